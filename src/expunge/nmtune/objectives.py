"""What NMTune minimises beside the cross-entropy, and the settings of its two published forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, raise_all

Reduction = Literal["sum", "mean"]
# Learning rates to choose from; those of the published code are 0.01 (probe) and 0.001 (the rest).
RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)


@dataclass(frozen=True)
class NMTuneConfig:
    """A head on frozen features, and how it is trained.

    The loss is ``CE + consistency · L_MSE + covariance · L_COV + dominance · L_SVD``.

    hidden: whether a residual MLP comes before the linear layer; without it this is a linear probe,
    and the three weights do nothing. ratio: the MLP's width by the features'.
    reduction: of ``L_MSE``, see `consistency`. cross_view: compare one view's output with another
    view's features. top: singular values that ``L_SVD`` counts.
    rates: learning rates to choose from. epochs, batch_size, weight_decay: of AdamW, whose rate
    falls as a cosine to zero.
    """

    hidden: bool = True
    ratio: int = 4
    consistency: float = 0.0
    reduction: Reduction = "sum"
    cross_view: bool = False
    covariance: float = 0.0
    dominance: float = 0.0
    top: int = 1
    rates: tuple[float, ...] = RATES
    epochs: int = 30
    batch_size: int = 64
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be 1 or more, not {getattr(self, name)}"
            for name in ("ratio", "top", "epochs")
            if getattr(self, name) < 1
        ]
        if self.batch_size < 2:
            problems.append(f"batch_size must be 2 or more, not {self.batch_size}")
        problems += [
            f"{name} must be a number from 0, not {getattr(self, name)}"
            for name in ("consistency", "covariance", "dominance", "weight_decay")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            problems.append(f"rates must be one or more above 0, not {self.rates}")
        raise_all(ConfigError, problems, where="NMTune")


_PAPER = NMTuneConfig(consistency=0.01, covariance=0.01, dominance=0.01)
PRESETS: Mapping[str, NMTuneConfig] = {
    "linear": NMTuneConfig(hidden=False),
    "mlp": NMTuneConfig(),
    # One weight for all terms, the norm summed over features, the first singular value.
    "paper": _PAPER,
    # The published code: other weights, the mean over features (1/d of the paper's norm), between
    # two views, the mean of the first five singular values.
    "code": replace(
        _PAPER,
        consistency=1.0,
        covariance=0.04,
        dominance=0.001,
        reduction="mean",
        cross_view=True,
        top=5,
    ),
}


def consistency(z: Tensor, f: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """``L_MSE``: how far directions move, the mean over samples of ``‖z/‖z‖ − f/‖f‖‖²``.

    z, f: ``float[b, d]``; no gradient flows to f. In [0, 4]; with ``"mean"``, over features too, in
    [0, 4/d].
    """
    normalised = nn.functional.normalize
    squared = (normalised(z, dim=1) - normalised(f, dim=1).detach()).square()
    return squared.sum(dim=1).mean() if reduction == "sum" else squared.mean()


def covariance(z: Tensor) -> Tensor:
    """``L_COV = Σ_{i≠j} C_ij² / d``, with ``C`` the covariance of z over the batch (``b − 1``).

    z: ``float[b, d]``, two rows or more. From 0; as in VICReg (arXiv 2105.04906). Cost: b · d².
    """
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]


def dominance(z: Tensor, *, top: int = 1) -> Tensor:
    """``L_SVD``: minus the mean of the first ``top`` of ``s_i / Σ s``, uncentred.

    z: ``float[b, d]``, not all zero. In [−1, 0). Cost: a singular value decomposition,
    ``b · d · min(b, d)``.
    """
    s = torch.linalg.svdvals(z)
    return -(s[:top] / s.sum()).mean()


def regularisation(z: Tensor, f: Tensor, config: NMTuneConfig) -> Tensor:
    """The three weighted terms of two views.

    z, f: outputs and features ``float[v, b, d]`` of one or two views. Covariance and singular
    values are those of both views together.
    """
    total = z.new_zeros(())
    if config.consistency:
        of, to = (z[-1:], f[:1]) if config.cross_view else (z, f)
        moved = consistency(of.flatten(0, 1), to.flatten(0, 1), reduction=config.reduction)
        total = total + config.consistency * moved
    if config.covariance:
        total = total + config.covariance * covariance(z.flatten(0, 1))
    if config.dominance:
        total = total + config.dominance * dominance(z.flatten(0, 1), top=config.top)
    return total
