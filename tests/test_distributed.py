"""Two CPU processes do what one does: started as a user starts them, with torch's launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

WORK = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_distributed import work
work(Path(sys.argv[1]))
"""


def case():
    """A network with batch norm, and noisy digits that the processes cannot share evenly."""
    from expunge._core.rng import temp_seed
    from expunge.models.zoo import convnet
    from expunge.training.loop import TuneConfig
    from oracles_digits import clean, noisy

    with temp_seed(0, "network"):
        model = convnet(classes=10, channels=1, widths=(4, 8), hidden=16, convolutions=1)
    config = TuneConfig(targets="all", epochs=3, lr=0.05, batch_size=32, augment=False)
    return model, noisy(201, view="crop"), clean(101), config


def work(out: Path) -> None:
    """What each process does; the main one keeps the numbers for the test."""
    from accelerate.utils import gather_object

    from expunge import pipeline, stages
    from expunge._core.distributed import shutdown, this_process

    model, train, validation, config = case()
    accelerator = this_process()
    scores = stages.score(model, train, detectors=["loss", "augmented_margin", "attribution_mass"])
    split = stages.partition(scores)
    ranking = stages.rank(model, train, split)
    trained = pipeline.train(model, train, config, out=out / "0-train")
    settings = {
        # However few samples are flagged, the repair is carried out; so many that nothing is left
        # of a class are not.
        "overrides": {
            "partition": {"threshold": 0.9},
            "prune": {"fraction": 0.2},
            "tune": {"epochs": 2, "batch_size": 25},
            "min_flagged_fraction": 0.0,
        },
        "baselines": ("random-units",),
        "out": out / "run",
    }
    steps: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        steps.append(what)
        if what == "5-tune" and done == total // 2 + 1:
            raise KeyboardInterrupt

    stopped = False
    try:
        pipeline.repair(trained.model, train, validation, progress=stop, **settings)
    except KeyboardInterrupt:
        stopped = True
    result = pipeline.repair(trained.model, train, validation, **settings)
    again = pipeline.repair(trained.model, train, validation, **settings)
    weights = [
        torch.cat([t.double().flatten() for t in m.state_dict().values()])
        for m in (trained.model, result.model, again.model)
    ]
    everyone = gather_object(
        [
            (
                [w.numpy() for w in weights],
                result.after.accuracy.value,
                result.partition.p_noisy,
                result.plan,
                stopped,
            )
        ]
    )
    if accelerator.is_main_process:
        first = everyone[0]
        facts = {
            "processes": accelerator.num_processes,
            "stopped": all(other[4] for other in everyone),
            "agree": all(
                all(np.array_equal(a, b) for a, b in zip(first[0], other[0], strict=True))
                and first[1] == other[1]
                and np.array_equal(first[2], other[2])
                and first[3] == other[3]
                for other in everyone
            ),
            "resumed equals read": bool(torch.equal(weights[1], weights[2])),
        }
        (out / "facts.json").write_text(json.dumps(facts))
        np.savez(
            out / "numbers.npz",
            **{f"score.{k}": v for k, v in scores.values.items()},
            ids=scores.ids,
            p_noisy=split.p_noisy,
            effect=ranking.effect,
            unit=ranking.unit,
            layer=ranking.layer,
            trained=weights[0].numpy(),
            moving=trained.model.state_dict()["1.running_var"].numpy(),
        )
    shutdown()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    out = tmp_path_factory.mktemp("two")
    (out / "work.py").write_text(WORK)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    found = subprocess.run(
        [sys.executable, *launch, str(free_port()), str(out / "work.py"), str(out)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return out


def test_all_processes_end_with_the_same_models_and_decisions(two):
    facts = json.loads((two / "facts.json").read_text())
    assert facts == {"processes": 2, "stopped": True, "agree": True, "resumed equals read": True}


def test_two_processes_give_the_scores_partition_and_ranking_of_one(two):
    found = np.load(two / "numbers.npz")
    from expunge import stages

    model, train, _, _ = case()
    scores = stages.score(model, train, detectors=["loss", "augmented_margin", "attribution_mass"])
    split = stages.partition(scores)
    ranking = stages.rank(model, train, split)
    assert found["ids"].tolist() == scores.ids.tolist()
    for name, values in scores.values.items():
        np.testing.assert_allclose(found[f"score.{name}"], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["p_noisy"], split.p_noisy, rtol=1e-3, atol=1e-4)
    order, expected = (np.lexsort((t["unit"], t["layer"])) for t in (found, vars(ranking)))
    assert found["unit"][order].tolist() == ranking.unit[expected].tolist()
    scale = np.abs(ranking.effect).max()
    np.testing.assert_allclose(
        found["effect"][order], ranking.effect[expected], rtol=1e-2, atol=1e-3 * scale
    )


def test_one_run_folder_holds_one_whole_run(two):
    names = {p.name for p in (two / "run").iterdir()}
    assert {"1-score", "2-partition", "3-rank", "4-prune", "5-tune", "result.json"} <= names
    assert not any(name.startswith(".partial") or name.endswith(".partial") for name in names)
    lines = (two / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "start",
        "start",
        "end",
        "start",
        "end",
    ]
    found = json.loads((two / "run" / "result.json").read_text())
    assert found["baselines"]["random-units"]["accuracy"]["n"] == 101
