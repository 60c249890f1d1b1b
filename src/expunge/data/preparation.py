"""From stored inputs to what a model reads: scaled and standardised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """From stored to model inputs: ``(scale · x − mean) / std``, by channel, in float32.

    The scale is 1/255 for ``uint8`` (pixels), 1/32768 for ``int16`` (audio), and 1 for floats.
    Other integers are indices: they keep their values and their type.

    Parameters
    ----------
    mean, std
        One number a channel, or one for all; in units of the scaled input. Empty: no
        standardisation.

    Examples
    --------
    >>> pixels = torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)
    >>> Preparation(mean=(0.5,), std=(0.25,))(pixels).flatten()
    tensor([-2.,  2.])
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Scale and standardise a batch ``[b, c, …]``."""
        if x.dtype == torch.uint8:
            x = x.float().div_(255.0)
        elif x.dtype == torch.int16:
            x = x.float().div_(32768.0)
        elif x.is_floating_point():
            x = x.float()
        return self.standardise(x)

    def standardise(self, x: Tensor) -> Tensor:
        """``(x − mean) / std`` by channel: the last step alone."""
        if not self.mean:
            return x
        mean, std = self._by_channel(x)
        return (x - mean) / std

    def undo(self, x: Tensor) -> Tensor:
        """``x · std + mean``: back to scaled inputs, pixels in [0, 1]."""
        if not self.mean:
            return x
        mean, std = self._by_channel(x)
        return x * std + mean

    def _by_channel(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.mean, self.std))
        return mean, std
