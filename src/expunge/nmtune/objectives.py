"""The regularisers of NMTune, and the settings of its two published forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, raise_all, range_problems

Reduction = Literal["sum", "mean"]
# Candidate learning rates. The published code has 0.01 for the probe and 0.001 for the others.
LEARNING_RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)


@dataclass(frozen=True)
class NMTuneConfig:
    """The settings of a head on frozen features, and of its training.

    The loss is ``CE + consistency · L_MSE + covariance · L_COV + dominance · L_SVD``.

    Parameters
    ----------
    hidden
        Whether a residual MLP precedes the linear layer. Without it the head is a linear probe, and
        the three weights have no effect.
    ratio
        Width of the MLP divided by that of the features, 1 or more.
    consistency, covariance, dominance
        The weights of the terms, 0 or more.
    reduction
        Whether ``L_MSE`` is the ``"sum"`` or the ``"mean"`` over features; see `consistency`.
    cross_view
        Whether ``L_MSE`` compares the output of one view with the features of another.
    top
        The number of singular values in ``L_SVD``, 1 or more.
    learning_rates
        Candidate learning rates, one or more, above 0.
    epochs
        1 or more.
    batch_size
        2 or more.
    weight_decay
        Of AdamW, 0 or more. Its learning rate falls as a cosine to zero.

    Raises
    ------
    ConfigError
        With all values that are out of range.

    Examples
    --------
    >>> NMTuneConfig(hidden=False).batch_size
    64
    >>> NMTuneConfig(ratio=0, batch_size=1)
    Traceback (most recent call last):
    expunge.errors.ConfigError: NMTune: 2 problems
      1. ratio must be 1 or more, not 0
      2. batch_size must be 2 or more, not 1
    """

    hidden: bool = True
    ratio: int = 4
    consistency: float = 0.0
    reduction: Reduction = "sum"
    cross_view: bool = False
    covariance: float = 0.0
    dominance: float = 0.0
    top: int = 1
    learning_rates: tuple[float, ...] = LEARNING_RATES
    epochs: int = 30
    batch_size: int = 64
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        problems = range_problems(
            {
                "ratio": (self.ratio, "[1, inf)"),
                "consistency": (self.consistency, "[0, inf)"),
                "covariance": (self.covariance, "[0, inf)"),
                "dominance": (self.dominance, "[0, inf)"),
                "top": (self.top, "[1, inf)"),
                "epochs": (self.epochs, "[1, inf)"),
                "batch_size": (self.batch_size, "[2, inf)"),
                "weight_decay": (self.weight_decay, "[0, 1e30]"),
            }
        )
        if not self.learning_rates or not all(0 < lr <= 1e30 for lr in self.learning_rates):
            problems.append(
                "learning_rates must be one or more numbers in (0, 1e30], not "
                f"{self.learning_rates}"
            )
        raise_all(ConfigError, problems, where="NMTune")


_PAPER = NMTuneConfig(consistency=0.01, covariance=0.01, dominance=0.01)
PRESETS: Mapping[str, NMTuneConfig] = {
    "linear": NMTuneConfig(hidden=False),
    "mlp": NMTuneConfig(),
    # One weight for all terms, the norm summed over features, the first singular value.
    "paper": _PAPER,
    # The published code differs: its weights, the mean over features (1/d of the paper's norm),
    # two views in the consistency term, and the mean of the first five singular values.
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
    """Compute ``L_MSE``: the mean over samples of ``‖z/‖z‖ − f/‖f‖‖²``.

    Parameters
    ----------
    z, f
        ``float[b, d]``: transformed features and features. No gradient flows to ``f``.
    reduction
        ``"sum"`` over the features, or ``"mean"``: 1/d of that.

    Returns
    -------
    Tensor
        A number in [0, 4], or in [0, 4/d].

    Examples
    --------
    >>> consistency(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
    tensor(4.)
    """
    normalised = nn.functional.normalize
    squared = (normalised(z, dim=1) - normalised(f, dim=1).detach()).square()
    return squared.sum(dim=1).mean() if reduction == "sum" else squared.mean()


def covariance(z: Tensor) -> Tensor:
    """Compute ``L_COV = Σ_{i≠j} C_ij² / d``, with the covariance ``C`` of z (over ``b − 1``).

    Parameters
    ----------
    z
        ``float[b, d]``, two rows or more.

    Returns
    -------
    Tensor
        A number of 0 or more.

    Notes
    -----
    Cost: O(b d²).

    References
    ----------
    VICReg, https://arxiv.org/abs/2105.04906.

    Examples
    --------
    >>> covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    tensor(4.)
    """
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]


def dominance(z: Tensor, *, top: int = 1) -> Tensor:
    """Compute ``L_SVD``: minus the mean of the first ``top`` of ``s_i / Σ s``, uncentred.

    Parameters
    ----------
    z
        ``float[b, d]``, not all zero.
    top
        The number of singular values.

    Returns
    -------
    Tensor
        A number in [−1, 0).

    Notes
    -----
    Cost: a singular value decomposition, O(b d min(b, d)).

    Examples
    --------
    >>> dominance(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor(-0.7500)
    """
    s = torch.linalg.svdvals(z)
    mean: Tensor = (s[:top] / s.sum()).mean()
    return -mean


def regularisation(z: Tensor, f: Tensor, config: NMTuneConfig) -> Tensor:
    """Compute the sum of the three weighted terms.

    Parameters
    ----------
    z, f
        ``float[v, b, d]``: transformed features and features of one or two views. Covariance and
        singular values are those of all views together.
    config
        The weights.
    """
    total = z.new_zeros(())
    if config.consistency:
        output, target = (z[-1:], f[:1]) if config.cross_view else (z, f)
        change = consistency(output.flatten(0, 1), target.flatten(0, 1), reduction=config.reduction)
        total = total + config.consistency * change
    if config.covariance:
        total = total + config.covariance * covariance(z.flatten(0, 1))
    if config.dominance:
        total = total + config.dominance * dominance(z.flatten(0, 1), top=config.top)
    return total
