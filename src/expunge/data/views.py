"""Named random views (augmentations) of whole batches of prepared images or sound."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge._core.registry import NoMetadata, Registry
from expunge.data import audio_views
from expunge.data.samples import View
from expunge.errors import DataError

views: Registry[View, NoMetadata] = Registry("view", NoMetadata)
views.register("shift")(audio_views.shift)
views.register("speed")(audio_views.speed)
views.register("gain")(audio_views.gain)
views.register("background")(audio_views.background)
views.register("speech")(audio_views.speech)
views.register("speech-background")(audio_views.speech_background)


def view(name: str) -> View | None:
    """The view of that name, or None for ``"none"``.

    A view maps ``float[b, C, H, W]`` (sound: ``float[b, samples]``) and a CPU generator to a tensor
    of the same shape, dtype and device. The same generator state gives the same view; the input is
    left as it was.

    Raises ConfigError for an unknown name.

    >>> view("none") is None
    True
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> view("crop-flip")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 4])
    """
    function = views.get(name)
    return None if function is none else function


@views.register("none")
def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return x


@views.register("crop")
def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Reflect-pad by a few pixels and crop back at an offset of each sample's own."""
    rows, columns = _shifted(x, generator)
    return _pick(x, rows, columns)


@views.register("flip")
def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    _require_images(x)
    b, _, h, w = x.shape
    return _pick(
        x, torch.arange(h).expand(b, h), _mirrored(torch.arange(w).expand(b, w), generator)
    )


@views.register("crop-flip")
def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """``crop``, then ``flip``: the usual augmentation of small natural images."""
    rows, columns = _shifted(x, generator)
    return _pick(x, rows, _mirrored(columns, generator))


def _padding(side: int) -> int:
    """Pixels to pad a side of this length with: 4 from 32 on, 1 below 16, else 2."""
    wanted = 4 if side >= 32 else 2 if side >= 16 else 1
    return min(wanted, side - 1)  # a reflection needs more pixels than it mirrors


def _shifted(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row and column indices ``[b, H]`` and ``[b, W]`` of the crops, reflected into the image."""
    _require_images(x)
    sides = []
    for side in x.shape[2:]:
        pad = _padding(side)
        offset = torch.randint(-pad, pad + 1, (len(x), 1), generator=generator)
        index = (torch.arange(side) + offset).abs()
        sides.append(torch.where(index >= side, 2 * (side - 1) - index, index))
    return sides[0], sides[1]


def _pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x[i, :, rows[i]][:, :, columns[i]]`` for every i, by one gather over flat pixels."""
    b, c, h, w = x.shape
    index = rows.to(x.device)[:, :, None] * w + columns.to(x.device)[:, None, :]
    flat = x.reshape(b, c, h * w)
    return flat.gather(2, index.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


def _mirrored(columns: Tensor, generator: torch.Generator) -> Tensor:
    """The column indices ``[b, W]``, each row reversed with probability one half."""
    coins = torch.randint(0, 2, (len(columns), 1), generator=generator).bool()
    return torch.where(coins, columns.flip(1), columns)


def _require_images(x: Tensor) -> None:
    if x.dim() != 4:
        raise DataError(
            f"this view is for images of shape [b, C, H, W], not {tuple(x.shape)}",
            fix="set view to 'none', or to 'speech' for sound",
        )
