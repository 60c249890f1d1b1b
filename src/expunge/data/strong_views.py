"""Strong random views: what a network should still recognise, for learning without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Images: largest rotation in degrees, shear, change of scale; contrast and brightness in the
# image's own deviations; the hidden square as a fraction of the side.
_ROTATION, _SHEAR, _SCALE = 20.0, 0.15, 0.2
_CONTRAST, _BRIGHTNESS, _HIDDEN = 0.5, 0.5, 0.5
# Sequences: the hidden part of each axis. Features: hidden columns, and noise in deviations.
_HIDDEN_PART, _HIDDEN_COLUMNS, _NOISE = 0.25, 0.3, 0.25


def strong_view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a strongly changed copy of prepared inputs.

    Images ``[b, 1 or 3, h, w]`` are rotated, sheared and scaled, change contrast, brightness and
    colours, and lose a square. Other inputs of two axes or more (spectrograms, sequences) lose a
    part of each axis, clips ``[b, samples]`` of more than 4,096 values a quarter of their time.
    Features ``[b, d]`` lose 30 % of their columns, which become the batch's means, and get noise.

    Parameters
    ----------
    x
        ``float[b, …]``, prepared. It is not changed. Inputs of integers are returned as they are.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    References
    ----------
    Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
    2019, arXiv:1909.13719. Park et al., "SpecAugment", 2019, arXiv:1904.08779.

    Examples
    --------
    >>> x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> strong_view(x, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 8, 8])
    """
    if not x.is_floating_point():
        return x
    if x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 8:
        return _hide_square(_recolour(_distort(x, generator), generator), generator)
    if x.dim() == 2 and x.shape[1] <= 4096:
        return _blur_features(x, generator)
    for axis in range(1 if x.dim() == 2 else 2 if x.dim() == 4 else 1, x.dim()):
        x = _hide_part(x, axis, generator)
    return x


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shear and scale each image around its middle."""
    b = len(x)
    angle = _uniform(b, -_ROTATION, _ROTATION, generator) * (math.pi / 180)
    shear = _uniform(b, -_SHEAR, _SHEAR, generator)
    scale = _uniform(b, 1 - _SCALE, 1 + _SCALE, generator)
    cos, sin, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros(b)
    rows = torch.stack([cos, shear * cos - sin, zero, sin, shear * sin + cos, zero], dim=1)
    theta = rows.view(b, 2, 3).to(x.device, x.dtype)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _recolour(x: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness of each image, and the scale of its channels."""
    b, c = x.shape[:2]
    contrast = _uniform(b, 1 - _CONTRAST, 1 + _CONTRAST, generator)
    brightness = _uniform(b, -_BRIGHTNESS, _BRIGHTNESS, generator)
    colour = _uniform(b, 0, 1, generator)  # 0: the mean of the channels
    contrast, brightness, colour = (
        v.to(x.device, x.dtype).view(b, 1, 1, 1) for v in (contrast, brightness, colour)
    )
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    spread = x.std(dim=(1, 2, 3), keepdim=True)
    if c == 3:
        grey = x.mean(dim=1, keepdim=True)
        x = grey + colour * (x - grey)
    return mean + contrast * (x - mean) + brightness * spread


def _hide_square(x: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square of each image to the image's mean."""
    b, _, h, w = x.shape
    inside = []
    for side in (h, w):
        length = _HIDDEN * side
        centre = _uniform(b, 0, side, generator)[:, None]
        inside.append((torch.arange(side) + 0.5 - centre).abs() <= length / 2)
    hidden = (inside[0][:, :, None] & inside[1][:, None, :])[:, None].to(x.device)
    return torch.where(hidden, x.mean(dim=(1, 2, 3), keepdim=True), x)


def _hide_part(x: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Set a part of an axis of each input to the input's mean."""
    b, size = len(x), x.shape[axis]
    length = (_uniform(b, 0, _HIDDEN_PART, generator) * size).floor()
    start = (torch.rand(b, generator=generator) * (size - length)).floor()
    at = torch.arange(size)
    hidden = (at >= start[:, None]) & (at < (start + length)[:, None])
    shape = [b, *(size if k == axis else 1 for k in range(1, x.dim()))]
    mean = x.mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return torch.where(hidden.view(shape).to(x.device), mean, x)


def _blur_features(x: Tensor, generator: torch.Generator) -> Tensor:
    """Replace some columns by their means over the batch, and add noise."""
    hidden = (torch.rand(x.shape, generator=generator) < _HIDDEN_COLUMNS).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
    spread = x.std(dim=0, keepdim=True) if len(x) > 1 else torch.zeros_like(x)
    return torch.where(hidden, x.mean(dim=0, keepdim=True), x + _NOISE * spread * noise)
