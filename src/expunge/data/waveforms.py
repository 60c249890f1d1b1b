"""Whether arrays are clips of sound."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from expunge.data.inputs import Batch

# Fewer values are no clip: half a second at 8 kHz.
MIN_CLIP_VALUES = 4_000
MAX_CHANNELS = 32
# Of neighbouring values, in half of the clips: sound changes slowly from one value to the next.
MIN_CORRELATION = 0.5


def has_channel_axis(x: Batch) -> TypeGuard[Tensor]:
    """Whether a batch has the shape of clips with channels, ``[b, channels, samples]``."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 3
        and x.shape[1] <= MAX_CHANNELS
        and x.shape[2] >= MIN_CLIP_VALUES
    )


def has_clip_shape(x: Batch) -> TypeGuard[Tensor]:
    """Whether a batch has the type and the shape of clips, with channels or without."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    return has_channel_axis(x) or (x.dim() == 2 and x.shape[1] >= MIN_CLIP_VALUES)


def looks_like_sound(x: Batch) -> bool:
    """Whether prepared inputs are long waves of both signs in [-1, 1].

    Examples
    --------
    >>> t = torch.arange(8000) / 8000
    >>> looks_like_sound(torch.sin(2000 * t)[None]), looks_like_sound(torch.rand(1, 8000))
    (True, False)
    """
    if not has_clip_shape(x):
        return False
    if has_channel_axis(x):
        x = x[:, 0]
    if not -1 <= x.min() < 0 < x.max() <= 1:
        return False
    x = x.float() - x.float().mean(dim=1, keepdim=True)
    power = (x * x).sum(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    correlation = (x[:, 1:] * x[:, :-1]).sum(dim=1) / power
    return bool(correlation.median() > MIN_CORRELATION)
