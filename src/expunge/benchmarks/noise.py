"""Faults put into clean data on purpose, and the truth about them. Only benchmarks see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.errors import ConfigError
from expunge.rng import generator

LabelNoise = Literal["symmetric", "pair"]


@dataclass(frozen=True)
class Truth:
    """What is really so: the right labels, and which samples were made bad, and how."""

    labels: np.ndarray
    label_fault: np.ndarray
    input_fault: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """``bool[n]``: bad in one way or another."""
        return self.label_fault | self.input_fault


def wrong_labels(
    labels: np.ndarray, *, rate: float, noise: LabelNoise, classes: int, seed: int
) -> np.ndarray:
    """Labels of which exactly ``round(rate · n)`` are wrong.

    symmetric: any other class, equally likely. pair: always the next class (c → c + 1 mod k).
    """
    chosen = chosen_rows(len(labels), rate, seed=seed, what="labels")
    rng = generator(seed, "noise", noise)
    shift = rng.integers(1, classes, len(chosen)) if noise == "symmetric" else 1
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + shift) % classes
    return noisy


def gaussian_inputs(
    x: np.ndarray, *, rate: float, sigma: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of which ``round(rate · n)`` are replaced by ``clip(x + σ · N(0, 1), 0, 1)``.

    The published corruption (arXiv 2506.11615), fixed for each sample. x: float in [0, 1].
    Returns the inputs, and which were corrupted (``bool[n]``).
    """
    chosen = chosen_rows(len(x), rate, seed=seed, what="inputs")
    corrupted = x.copy()
    draw = generator(seed, "noise", "gaussian").standard_normal((len(chosen), *x.shape[1:]))
    corrupted[chosen] = np.clip(x[chosen] + sigma * draw, 0, 1).astype(x.dtype)
    fault = np.zeros(len(x), dtype=bool)
    fault[chosen] = True
    return corrupted, fault


def chosen_rows(n: int, rate: float, *, seed: int, what: str) -> np.ndarray:
    """``round(rate · n)`` of n rows, drawn without replacement."""
    if not 0 <= rate < 1:
        raise ConfigError(f"the noise rate must lie in [0, 1), not {rate}", fix="0.4 means 40 %")
    return generator(seed, "rows", what).permutation(n)[: round(rate * n)]
