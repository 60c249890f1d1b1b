"""The augmentation of SimCLR: random crops, flips, colours and blur of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.data import Preparation
from expunge.errors import ConfigError, DataError, check_range

# Luma, and the axes of colour that hue rotates around it (YIQ).
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class SimCLRAugmentation:
    """A random view of prepared images, after SimCLR.

    Parameters
    ----------
    strength
        s in [0, 1.25]. Brightness, contrast and saturation are multiplied by factors in
        ``1 ± 0.8 s``; hue is rotated by an angle in ``± 0.2 s`` of a turn.
    area
        Interval in (0, 1] of the area of the crop as a fraction of the image. Its aspect ratio lies
        in [3/4, 4/3]. Half of the crops are mirrored.
    jitter
        Probability that the colours of an image change.
    grey
        Probability that an image loses its colours.
    blur
        Probability of a Gaussian blur with σ in [0.1, 2] pixels; the kernel is as wide as a tenth
        of the side.
    scale
        The sides of the view as a fraction of the image's, in (0, 1].
    prepare
        The preparation of the inputs. Colours change in the images before it.

    Raises
    ------
    ConfigError
        If a value lies outside its interval.

    Notes
    -----
    Inputs are ``float[b, C, H, W]`` with 1 or 3 channels; with one, only brightness and contrast
    change. The same state of the generator gives the same view on every device. Deviations from the
    paper: all colour changes are one affine map of each image, so their order is fixed; hue rotates
    in YIQ rather than HSV; values are clipped to [0, 1] once.

    References
    ----------
    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    arXiv:2002.05709.

    Examples
    --------
    >>> images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> view = SimCLRAugmentation(strength=0.5)
    >>> view(images, torch.Generator().manual_seed(1)).shape
    torch.Size([4, 3, 8, 8])
    """

    strength: float = 0.5
    area: tuple[float, ...] = (0.2, 1.0)
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    scale: float = 1.0
    prepare: Preparation = field(default_factory=Preparation)

    def __post_init__(self) -> None:
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area must be two rising fractions in (0, 1], not {self.area}")
        check_range(
            ConfigError,
            {
                "jitter": (self.jitter, "[0, 1]"),
                "grey": (self.grey, "[0, 1]"),
                "blur": (self.blur, "[0, 1]"),
                "scale": (self.scale, "(0, 1]"),
                "strength": (self.strength, "[0, 1.25]"),
            },
        )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise DataError(
                f"expected images [b, 1 or 3, H, W], got {list(x.shape)}",
                where="SimCLRAugmentation",
                fix="give the images grey or RGB channels",
            )
        draw = _Draw(len(x), generator, x.device)
        x = _crop(x, draw, self.area, self.scale)
        images = _recolour(self.prepare.undo(x), draw, self)
        if self.blur:
            images = _blur(images, draw, self.blur)
        return self.prepare.standardise(images.clamp(0, 1))


class _Draw:
    """Random numbers for each image of a batch. They are drawn on the CPU: alike on all devices."""

    def __init__(self, n: int, generator: torch.Generator, device: torch.device) -> None:
        self.n, self._generator, self._device = n, generator, device

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw ``float32[n]`` from an interval."""
        values = torch.rand(self.n, generator=self._generator)
        return (low + (high - low) * values).to(self._device)

    def bernoulli(self, probability: float) -> Tensor:
        """Draw ``bool[n]``, true with this probability."""
        return self.uniform(0, 1) < probability


def _crop(x: Tensor, draw: _Draw, area: tuple[float, ...], scale: float) -> Tensor:
    """Crop a random part of each image, scale it bilinearly and mirror half of them."""
    share = draw.uniform(area[0], area[1])
    aspect = draw.uniform(-math.log(4 / 3), math.log(4 / 3)).exp()
    wide = (share * aspect).sqrt().clamp(max=1)  # of the image's width
    high = (share / aspect).sqrt().clamp(max=1)
    left = (1 - wide) * draw.uniform(-1, 1)  # its centre, in [−1, 1] across the image
    down = (1 - high) * draw.uniform(-1, 1)
    mirrored = torch.where(draw.bernoulli(0.5), -wide, wide)
    none = torch.zeros_like(wide)
    rows = torch.stack([mirrored, none, left, none, high, down], dim=1).view(-1, 2, 3)
    sides = [max(1, round(scale * side)) for side in x.shape[2:]]
    grid = nn.functional.affine_grid(rows, [*x.shape[:2], *sides], align_corners=False)
    return nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _recolour(images: Tensor, draw: _Draw, config: SimCLRAugmentation) -> Tensor:
    """Change brightness, contrast, saturation and hue by one affine map of each image's colours."""
    b, c = images.shape[:2]
    spread = 0.8 * config.strength
    bright, contrast, saturate = (draw.uniform(max(0.0, 1 - spread), 1 + spread) for _ in range(3))
    turn = 2 * math.pi * draw.uniform(-0.2 * config.strength, 0.2 * config.strength)
    still = ~draw.bernoulli(config.jitter)
    bright, contrast, saturate = (v.masked_fill(still, 1.0) for v in (bright, contrast, saturate))
    turn = turn.masked_fill(still, 0.0)
    saturate = saturate.masked_fill(draw.bernoulli(config.grey), 0.0)
    if c == 1:
        grey, colours = images, torch.ones(b, 1, 1, device=images.device)
    else:
        to_yiq = torch.tensor(_YIQ, device=images.device)
        cos, sin, none = saturate * turn.cos(), saturate * turn.sin(), torch.zeros_like(turn)
        one = torch.ones_like(turn)
        turned = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], dim=1)
        colours = torch.linalg.inv(to_yiq) @ turned.view(b, 3, 3) @ to_yiq
        grey = (images * to_yiq[0].view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    scale = (bright * contrast).view(b, 1, 1)
    mean = (bright * (1 - contrast)).view(b, 1, 1, 1) * grey.mean(dim=(1, 2, 3), keepdim=True)
    return (scale * colours @ images.flatten(2)).view_as(images) + mean


def _blur(images: Tensor, draw: _Draw, share: float) -> Tensor:
    """Blur a fraction of the images by Gaussians of random width, one axis after the other."""
    reach = max(1, min(images.shape[2:]) // 20)
    sigma = draw.uniform(0.1, 2.0)
    sigma = torch.where(draw.bernoulli(share), sigma, 1e-3)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    taps = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    taps = taps / taps.sum(dim=1, keepdim=True)
    for axis in (2, 3):
        pad = [0, 0, reach, reach] if axis == 2 else [reach, reach, 0, 0]
        wide = nn.functional.pad(images, pad, mode="reflect")
        size = images.shape[axis]
        parts = (wide.narrow(axis, k, size) for k in range(2 * reach + 1))
        images = sum(tap.view(-1, 1, 1, 1) * part for tap, part in zip(taps.T, parts, strict=True))
    return images
