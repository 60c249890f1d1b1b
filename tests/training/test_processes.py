"""Trainings in two CPU processes, started as a user starts them, beside the same in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

# What two processes compute as one does, up to rounding; in the others each process draws its own
# views or mixing, or batch norm sees a part of the batch.
EQUAL = ("tune", "elr", "co-teaching", "linear head")
AGREEING = ("divide-mix", "simclr", "mlp head", "augmented elr")

WORK = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import importlib.util
spec = importlib.util.spec_from_file_location("test_processes", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.work(Path(sys.argv[1]))
"""


def trained(name: str) -> nn.Module:
    """A network by one of the methods, on samples that two processes cannot share evenly."""
    from expunge.nmtune import PRESETS, NMTune
    from expunge.selfsupervised.simclr import SimclrConfig, pretrain
    from expunge.training.baselines import trainers
    from expunge.training.loop import TuneConfig, tune
    from expunge.training.targets import Targets
    from oracles_digits import network, noisy

    config = TuneConfig(epochs=3, lr=0.05, batch_size=25, augment=False, precision="float32")
    data = noisy(157, view="crop")
    if name == "tune":
        weights = np.random.default_rng(0).uniform(0.01, 1, 157) ** 3
        targets = Targets(np.arange(157), data.labels, weights)
        return tune(network(), data, targets, config, seed=0)
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
    how = {"seed": 0, "rate": 0.3, "what": "train"}
    return trainers.get(name)(network(), data, config, **how)


def weights_of(model: nn.Module) -> np.ndarray:
    return torch.cat([t.double().flatten() for t in model.state_dict().values()]).numpy()


def work(out: Path) -> None:
    """What each process does; the main one keeps the numbers for the test."""
    from accelerate.utils import gather_object

    from expunge._core.distributed import shutdown, this_process

    accelerator = this_process()
    weights = {name: weights_of(trained(name)) for name in (*EQUAL, *AGREEING)}
    everyone = gather_object([weights])
    if accelerator.is_main_process:
        facts = {
            "processes": accelerator.num_processes,
            "differ": [
                name
                for name in weights
                if not all(np.array_equal(weights[name], other[name]) for other in everyone)
            ],
        }
        (out / "facts.json").write_text(json.dumps(facts))
        np.savez(out / "weights.npz", **weights)
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
    command = [sys.executable, *launch, str(free_port()), str(out / "work.py"), str(out), __file__]
    found = subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return out


def test_two_processes_end_with_the_same_networks(two):
    assert json.loads((two / "facts.json").read_text()) == {"processes": 2, "differ": []}


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_train_as_one(two, name):
    """The loss is that of the whole batch: its weights, its small losses, its targets."""
    found = np.load(two / "weights.npz")[name]
    np.testing.assert_allclose(found, weights_of(trained(name)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AGREEING)
def test_a_training_in_two_processes_is_finite_and_moves(two, name):
    from oracles_digits import network

    found = np.load(two / "weights.npz")[name]
    assert np.isfinite(found).all()
    start = weights_of(network())
    assert len(found) != len(start) or not np.allclose(found, start, atol=1e-3)
