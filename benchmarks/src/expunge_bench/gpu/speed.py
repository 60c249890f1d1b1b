"""The probe of CUDA graphs, and scoring against a plain pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from expunge import stages
from expunge._core.rng import temp_seed
from expunge.config import ScoreConfig
from expunge.data import Samples, from_arrays
from expunge.detection.signals import collect
from expunge.models.zoo import resnet
from expunge.training.loop import TuneConfig
from expunge_bench.gpu.setup import GpuRun, Row, peak_memory_mb, pieces
from expunge_bench.rlap import image_protocol


@pieces.register("probe", alone=True)
def probe(run: GpuRun) -> Iterator[Row]:
    """Train a small network with and without CUDA graphs: same loss, and how much faster."""
    n = min(1_280, run.sizes.n_protocol)
    x = np.random.default_rng(0).standard_normal((n, 3, 32, 32)).astype(np.float32)
    data = from_arrays(x, np.arange(n) % 4)
    with temp_seed(0, "network"):
        model = resnet(classes=4, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))
    config = TuneConfig(targets="all", epochs=2, batch_size=64, lr=0.01, precision="float32")
    found = {}
    for graphs in (False, True):
        epochs = replace(config, cuda_graphs=graphs)
        stages.tune(model, data, None, epochs)  # first launches and captures
        started = time.perf_counter()
        tuned = stages.tune(model, data, None, epochs)
        _wait()
        found[graphs] = (_loss(tuned, data), time.perf_counter() - started)
    same = abs(found[True][0] - found[False][0]) < 0.02 * abs(found[False][0])
    if same and torch.cuda.is_available():
        run.work.mkdir(parents=True, exist_ok=True)
        (run.work / "cuda-graphs").write_text("equal losses\n", encoding="utf-8")
    for graphs, (loss, seconds) in found.items():
        yield {
            "name": "CUDA graphs" if graphs else "eager",
            "loss": loss,
            "ms_per_step": 1e3 * seconds / (config.n_epochs * -(-n // 64)),
            "is_used": same and graphs and torch.cuda.is_available(),
        }


def _loss(model: nn.Module, data: Samples) -> float:
    logits = torch.tensor(np.asarray(collect(model, data, precision="float32").logits))
    return float(nn.functional.cross_entropy(logits, torch.from_numpy(data.labels.copy())))


@pieces.register("speed", needs=("probe",), alone=True)
def speed(run: GpuRun) -> Iterator[Row]:
    """Score as `default` does, and in a plain pass, on the network of the published protocol."""
    samples = run.cifar.test.subset(np.arange(min(run.sizes.n_speed, len(run.cifar.test))))
    model = image_protocol(run.cifar, width=run.sizes.width).network(run.seed)
    views = 3
    work: dict[str, Callable[[], object]] = {
        "plain pass": lambda: collect(model, samples),
        "score, 3 views": lambda: stages.score(model, samples, views=views),
        "score, loss alone": lambda: stages.score(model, samples, detectors=("loss",)),
        "score, as instant": lambda: stages.score(model, samples, ScoreConfig(views=1)),
    }
    plain = 0.0
    for name, compute in work.items():
        compute() if name == "plain pass" else None  # the first kernels are slow
        started = time.perf_counter()
        compute()
        _wait()
        seconds = time.perf_counter() - started
        plain = plain or seconds
        yield {
            "name": name,
            "samples_per_second": len(samples) / seconds,
            "plain_passes": seconds / plain,
            "peak_memory_mb": peak_memory_mb(),
        }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
