"""Random views of vectors: rows of a table, embeddings.

The scale of each column and the distance of neighbours are those of the batch. The rows of a batch
of one stay as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expunge.errors import DataError

# Noise in distances to the nearest other row, the share of values that are dropped, and the largest
# part of another row that is mixed in.
NOISE_LENGTH, DROP_RATE, MAX_MIXED = 0.5, 0.15, 0.3


def neighbour_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add normal noise of half the distance to the nearest other row of the batch.

    Columns are compared, and the noise is scaled, by their standard deviations in the batch.

    Parameters
    ----------
    x
        ``float[b, d]``, prepared vectors. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.eye(4)
    >>> neighbour_noise(x, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 4])
    """
    _check_vectors(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    if len(x) < 2:
        return x.clone()
    scale = x.std(dim=0)
    z = torch.where(scale > 0, x / scale, 0.0)
    distances = torch.cdist(z, z)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.min(dim=1).values[:, None]
    length = NOISE_LENGTH / math.sqrt(x.shape[1])
    return x + length * nearest * scale * noise


def feature_dropout(x: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each value by the mean of its column in the batch, with probability 0.15.

    Parameters
    ----------
    x
        ``float[b, d]``, prepared vectors. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> feature_dropout(torch.eye(4), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 4])
    """
    _check_vectors(x)
    dropped = (torch.rand(x.shape, generator=generator) < DROP_RATE).to(x.device)
    return torch.where(dropped, x.mean(dim=0), x)


def mix(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each row with another one: ``x_i + λ (x_j − x_i)``, λ uniform in [0, 0.3].

    Parameters
    ----------
    x
        ``float[b, d]``, prepared vectors. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    References
    ----------
    mixup: arXiv 1710.09412; here the label stays that of the larger part.

    Examples
    --------
    >>> mix(torch.eye(4), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 4])
    """
    _check_vectors(x)
    other = torch.randint(0, len(x), (len(x),), generator=generator).to(x.device)
    part = MAX_MIXED * torch.rand((len(x), 1), generator=generator).to(x)
    return x + part * (x[other] - x)


def _check_vectors(x: Tensor) -> None:
    if x.dim() != 2 or not x.is_floating_point():
        raise DataError(
            f"this view is for vectors of shape [b, d], not {x.dtype} of shape {tuple(x.shape)}",
            fix="set view to 'none', or to 'crop-flip' for images",
        )
