"""A tiny repair on real digits: noisy samples, a network that memorised them, quick settings."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from expunge import pipeline
from expunge._core.rng import temp_seed
from expunge.data import Samples, from_arrays
from expunge.demo.noise import wrong_labels
from expunge.models.zoo import mlp
from expunge.training.loop import TuneConfig

CLASSES = tuple(str(c) for c in range(10))
TRAINING = TuneConfig(targets="all", epochs=60, lr=0.05, batch_size=32, augment=False)
# Cut as what learned wrong labels by heart; these networks have no views to show it.
CUT: dict[str, Any] = {"prune": {"fraction": 0.2}}
QUICK: dict[str, Any] = {**CUT, "tune": {"epochs": 3, "batch_size": 32}}
# One line of evidence that needs no views.
FAST: dict[str, Any] = {**QUICK, "score": {"detectors": ["margin", "knn_disagreement"], "views": 0}}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """``float32[n, 1, 8, 8]`` in [0, 1] and ``int64[n]``."""
    found = load_digits()
    return (found.images[:, None] / 16).astype(np.float32), found.target.astype(np.int64)


def noisy_arrays(n: int = 400, rate: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    x, y = digits()
    return x[:n].copy(), wrong_labels(y[:n], rate=rate, noise="symmetric", classes=10, seed=0)


def noisy(n: int = 400, rate: float = 0.3, **changes: Any) -> Samples:
    """The first n digits, of which a share has wrong labels."""
    settings = {"ids": np.arange(n) + 1000, "classes": CLASSES, "name": "noisy digits"}
    return from_arrays(*noisy_arrays(n, rate), **{**settings, **changes})


def clean(n: int = 300, **changes: Any) -> Samples:
    """Other digits, with their right labels."""
    x, y = digits()
    settings = {"ids": np.arange(n) + 5000, "classes": CLASSES, "name": "clean digits"}
    return from_arrays(x[500 : 500 + n], y[500 : 500 + n], **{**settings, **changes})


def network(seed: int = 0, hidden: int = 48) -> nn.Module:
    with temp_seed(seed, "network"):
        return mlp(inputs=64, classes=10, hidden=hidden)


@cache
def _memorised() -> nn.Module:
    return pipeline.train(network(), noisy(), TRAINING).model


def memorised() -> nn.Module:
    """A network that has learned the noise by heart; a fresh copy for every caller."""
    return copy.deepcopy(_memorised())


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, to see that nothing was touched."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }
