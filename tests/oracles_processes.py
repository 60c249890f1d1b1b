"""Work for several processes, started without the imports of each: a server forks them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge import pipeline, stages
from expunge._core.distributed import shutdown, this_process
from expunge._core.rng import temp_seed
from expunge.config import PartitionConfig
from expunge.errors import RunError
from expunge.models.zoo import convnet
from expunge.nmtune import PRESETS, NMTune
from expunge.selfsupervised.simclr import SimclrConfig, pretrain
from expunge.training.baselines import trainers
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import Targets
from oracles_digits import clean, network, noisy

# What the server imports once for all, torch's first optimiser and scikit-learn's parts as well.
PRELOAD = ["expunge.pipeline", "accelerate", "torch._dynamo", "sklearn.mixture", "sklearn.cluster"]
PRELOAD += ["sklearn.neighbors", "sklearn.tree", "oracles_processes"]
DETECTORS = ("loss", "augmented_margin", "attribution_mass", "lda_margin", "local_uncertainty")
# What two processes compute as one does, up to rounding; in the others each process draws its own
# views or mixing, or batch norm sees a part of the batch.
EQUAL = ("tune", "elr", "co-teaching", "linear head", "ridge-head", "sap", "ssd")
AGREEING = ("divide-mix", "simclr", "mlp head", "augmented elr", "semi", "ssl-refine")


def start(n: int, work: Callable[[Path], None], out: Path) -> list[int]:
    """Run the work in n processes of one group; return their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [
        context.Process(target=_enter, args=(rank, n, port, work, out)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode if process.exitcode is not None else -1 for process in processes]


def _enter(rank: int, n: int, port: int, work: Callable[[Path], None], out: Path) -> None:
    """What a launcher sets, and the work."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    work(out)
    shutdown()


def case() -> tuple[Any, Any, Any, TuneConfig]:
    """A network with batch norm, and noisy digits that the processes cannot share evenly."""
    with temp_seed(0, "network"):
        model = convnet(classes=10, channels=1, widths=(4, 8), hidden=16, convolutions=1)
    config = TuneConfig(targets="all", epochs=2, lr=0.05, batch_size=32, augment=False)
    return model, noisy(201, view="crop"), clean(101), config


def settings(out: Path) -> dict[str, Any]:
    """Of a repair that is carried out, however few samples are flagged."""
    return {
        "overrides": {
            "score": {"views": 1},
            "partition": {"threshold": 0.9},
            "prune": {"fraction": 0.2},
            "tune": {"epochs": 2, "batch_size": 25},
            "min_flagged_fraction": 0.0,
        },
        "baselines": ("random-units",),
        "out": out / "run",
    }


def detection(out: Path) -> dict[str, Any]:
    """Scores, partition and ranking; the main process keeps them in a file."""
    model, train, _, _ = case()
    scores = stages.score(model, train, detectors=DETECTORS, views=2, batch_size=64)
    split = stages.partition(scores, PartitionConfig(threshold=0.5))
    ranking = stages.rank(model, train, split)
    found = {
        **{f"score.{name}": values for name, values in scores.values.items()},
        "ids": scores.ids,
        "p_noisy": split.p_noisy,
        "p_input_fault": split.p_input_fault,
        "suggested_label": split.suggested_label,
        "rate": np.array([split.noise_rate[0]]),
        "effect": ranking.effect[np.lexsort((ranking.unit, ranking.layer))],
    }
    accelerator = this_process()
    if accelerator.is_main_process:
        np.savez(out / f"detection-{accelerator.num_processes}.npz", **found)
    return found


def detect_only(out: Path) -> None:
    detection(out)


def repair(out: Path) -> None:
    """Detection, a repair that is interrupted and resumed, and one that is read again."""
    found = detection(out)
    model, train, validation, config = case()
    trained = pipeline.train(model, train, config, out=out / "0-train")
    stopped = False

    def stop(what: str, done: int, total: int) -> None:
        if what == "5-tune" and done == total // 2 + 1:
            raise KeyboardInterrupt

    try:
        pipeline.repair(trained.model, train, validation, progress=stop, **settings(out))
    except KeyboardInterrupt:
        stopped = True
    result = pipeline.repair(trained.model, train, validation, **settings(out))
    again = pipeline.repair(trained.model, train, validation, **settings(out))
    seen = [found["p_noisy"], result.partition.p_noisy, np.array([result.after.accuracy.value])]
    seen += [flat(m) for m in (trained.model, result.model, again.model)]
    facts = {"stopped": stopped, "units": result.plan.units, "seconds": result.seconds["tune"]}
    everyone = gathered((seen, json.dumps(facts, default=list)))
    report(
        out / "repair.json",
        {
            "stopped": stopped,
            "agree": all(
                is_same(other[0], seen) and other[1] == everyone[0][1] for other in everyone
            ),
            "resumed equals read": bool(np.array_equal(seen[4], seen[5])),
        },
    )


def train(out: Path) -> None:
    """Every method of `trained`; the main process keeps the weights in a file."""
    weights = {name: flat(trained(name)) for name in (*EQUAL, *AGREEING)}
    everyone = gathered(weights)
    if this_process().is_main_process:
        np.savez(out / "weights.npz", **weights)
    differ = [
        name
        for name, own in weights.items()
        if not all(np.array_equal(own, other[name]) for other in everyone)
    ]
    report(out / "facts.json", {"processes": len(everyone), "differ": differ})


def trained(name: str) -> nn.Module:
    """A network by one of the methods, on samples that two processes cannot share evenly."""
    config = TuneConfig(epochs=3, lr=0.05, batch_size=25, augment=False, precision="float32")
    data = noisy(157, view="crop")
    if name == "tune":
        weights = np.random.default_rng(0).uniform(0.01, 1, 157) ** 3
        targets = Targets(np.arange(157), data.labels, weights)
        return tune(network(), data, targets, config, seed=0)
    if name in ("ridge-head", "sap", "ssd", "semi"):
        split = stages.partition(stages.score(network(), data, detectors=("loss",), views=0))
        if name == "semi":
            return stages.tune(network(), data, split, config, targets="semi")
        return stages.edit(network(), data, split, method=name).model
    if name == "simclr":
        simclr = SimclrConfig(epochs=2, batch_size=50, hidden=8, projection=4, precision="float32")
        return pretrain(network(), data, simclr).model
    if name.endswith("head"):
        x = data.batch(np.arange(157)).flatten(1).numpy()
        views = np.stack([x, x + 0.1])
        preset = PRESETS["linear" if name == "linear head" else "code"]
        settings = replace(preset, epochs=2, learning_rates=(0.01,))
        return NMTune.fit(views, data.labels, config=settings).head
    if name == "augmented elr":
        name, config = "elr", replace(config, augment=True)
    return trainers.get(name)(network(), data, config, seed=0, rate=0.3, what="train")


def killed(out: Path) -> None:
    """A repair in whose tuning the second process is killed; the first keeps its error."""
    model, train, validation, _ = case()

    def stop(what: str, done: int, total: int) -> None:
        if what == "5-tune" and done == total // 2 + 1 and this_process().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        pipeline.repair(model, train, validation, progress=stop, **settings(out))
    except RunError as error:
        (out / "error.txt").write_text(str(error))
        os._exit(1)


def flat(model: Any) -> np.ndarray:
    """All weights and buffers of a model."""
    parts = [t.double().flatten() for t in model.state_dict().values()]
    return np.asarray(torch.cat(parts))


def is_same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def gathered(value: Any) -> list[Any]:
    """The value of every process."""
    from accelerate.utils import gather_object

    return gather_object([value])


def report(file: Path, facts: dict[str, Any]) -> None:
    if this_process().is_main_process:
        file.write_text(json.dumps(facts))
