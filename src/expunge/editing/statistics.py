"""Sufficient statistics of a linear regression, accumulated batch by batch, and its solutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge._core.distributed import all_reduce_sum, this_process


class RegressionStatistics:
    """Weighted moments of features and targets. Memory ``d²``, whatever the number of rows.

    Parameters
    ----------
    shift
        ``float32[d]``, about the mean of the features; subtracted, so that rounding does no harm.
    classes
        Number of classes c.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    >>> moments = RegressionStatistics(torch.zeros(1), 2)
    >>> moments.add(x, y, torch.ones(4))
    >>> moments.mean.tolist(), moments.weight.item()
    ([1.5], 4.0)
    """

    def __init__(self, shift: Tensor, classes: int) -> None:
        d, kind = len(shift), {"dtype": torch.float64, "device": shift.device}
        self.shift = shift
        self.weight = torch.zeros((), **kind)  # type: ignore[call-overload]
        self.sums = torch.zeros(d, **kind)  # type: ignore[call-overload]
        self.products = torch.zeros(d, d, **kind)  # type: ignore[call-overload]
        self.by_class = torch.zeros(d, classes, **kind)  # type: ignore[call-overload]
        self.counts = torch.zeros(classes, **kind)  # type: ignore[call-overload]

    def add(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Add rows: features ``float[b, d]``, labels ``int64[b]``, weights ``float[b]``."""
        x = (features - self.shift).float()
        one_hot = torch.nn.functional.one_hot(labels, len(self.counts)).float()
        weighted = x * weights.float()[:, None]
        self.weight += weights.sum().double()
        self.sums += weighted.sum(dim=0).double()
        self.products += (weighted.T @ x).double()
        self.by_class += (weighted.T @ one_hot).double()
        self.counts += (one_hot * weights.float()[:, None]).sum(dim=0).double()

    def all_reduce(self) -> None:
        """Sum the moments of all processes."""
        accelerator = this_process()
        for name in ("weight", "sums", "products", "by_class", "counts"):
            setattr(self, name, all_reduce_sum(getattr(self, name), accelerator))

    @property
    def mean(self) -> Tensor:
        """The mean of the features, ``float64[d]``."""
        mean: Tensor = self.shift.double() + self.sums / self.weight
        return mean


@dataclass(frozen=True)
class LinearFit:
    """A ridge regression of one-hot labels on standardised columns.

    Parameters
    ----------
    location, scale
        ``float64[d]``. The scale of a constant column is infinite.
    coefficients
        ``float64[d, c]`` on standardised columns.
    intercept
        ``float64[c]``.
    ridge
        λ.
    """

    location: Tensor
    scale: Tensor
    coefficients: Tensor
    intercept: Tensor
    ridge: float

    def predict(self, features: Tensor) -> Tensor:
        """Return predicted class indicators, ``float64[b, c]``."""
        d = len(self.location)
        z = (features[:, :d].double() - self.location) / self.scale
        return z @ self.coefficients + self.intercept


def ridge_fits(
    moments: RegressionStatistics, columns: Tensor, ridges: Sequence[float]
) -> list[LinearFit]:
    """Solve the ridge regression for some of the columns and several λ.

    ``W = (R + λ I)⁻¹ B`` with the correlation matrix R of the columns and their covariance B with
    the class indicators.

    Parameters
    ----------
    moments
        Of all columns.
    columns
        ``int64[k]``, which columns.
    ridges
        λ, above 0, in units of a standardised column's variance.

    Returns
    -------
    list of LinearFit
        One for each λ.

    Notes
    -----
    Cost: k³ for each λ; no pass over the data.
    """
    n, mean = moments.weight, moments.sums[columns] / moments.weight
    covariance = moments.products[columns][:, columns] / n - mean[:, None] * mean
    prior = moments.counts / n
    cross = moments.by_class[columns] / n - mean[:, None] * prior
    variance = covariance.diagonal()
    # What rounding leaves of a constant is no spread.
    floor = 1e-10 * (1 + (mean + moments.shift[columns].double()).square())
    scale = torch.where(variance > floor, variance.clamp(min=0).sqrt(), torch.inf)
    r, b = covariance / scale / scale[:, None], cross / scale[:, None]
    fits = []
    eye = torch.eye(len(r), device=r.device, dtype=r.dtype)
    for ridge in ridges:
        w = torch.cholesky_solve(b, torch.linalg.cholesky(r + ridge * eye))
        location = moments.shift[columns].double() + mean
        fits.append(LinearFit(location, scale, w, prior, ridge))
    return fits
