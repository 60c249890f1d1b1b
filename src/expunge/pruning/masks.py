"""Hooks that change the channels of some units: set to zero, or perturbed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.errors import PruneError
from expunge.pruning.layer_units import Units, channel_dim
from expunge.pruning.multihead import Headwise

Edit = Callable[[Tensor], Tensor]


class MaskHandle:
    """Undoes a mask: call `remove`, or leave the ``with`` block.

    Parameters
    ----------
    hooks
        The hooks of the mask.
    at_output
        The layers that are masked at their own output, because they cannot be cut; see
        `surgery.mask`.

    Examples
    --------
    >>> layer = nn.Linear(2, 3)
    >>> with zero_outputs(layer, {"": [1]}):
    ...     layer(torch.ones(1, 2))[0, 1].item()
    0.0
    """

    def __init__(
        self, hooks: Sequence[RemovableHandle | Headwise], at_output: tuple[str, ...] = ()
    ) -> None:
        self._hooks = list(hooks)
        self.at_output = at_output

    def remove(self) -> None:
        """Remove the hooks; a second call does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def __add__(self, other: MaskHandle) -> MaskHandle:
        return MaskHandle(self._hooks + other._hooks, self.at_output + other.at_output)

    def __enter__(self) -> MaskHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def zero_inputs(model: nn.Module, units: Units) -> MaskHandle:
    """Set these input channels of these layers to zero at each forward pass."""

    def hook(idxs: list[int]) -> Callable[..., Any]:
        return lambda layer, args: (
            _edit_channels(args[0], layer, idxs, torch.zeros_like),
            *args[1:],
        )

    return MaskHandle(
        [model.get_submodule(n).register_forward_pre_hook(hook(i)) for n, i in units.items()]
    )


def zero_outputs(model: nn.Module, units: Units) -> MaskHandle:
    """Set these output channels of these layers to zero at each forward pass."""
    return _edit_outputs(model, units, torch.zeros_like)


def perturb_units(model: nn.Module, units: Units) -> MaskHandle:
    """Change these output channels of these layers: ``x → 2 |x| + 1``."""
    return _edit_outputs(model, units, lambda x: 2 * x.abs() + 1)


def _edit_outputs(model: nn.Module, units: Units, edit: Edit) -> MaskHandle:
    def hook(idxs: list[int]) -> Callable[..., Any]:
        return lambda layer, _, output: _edit_channels(output, layer, idxs, edit)

    hooks = [model.get_submodule(n).register_forward_hook(hook(i)) for n, i in units.items()]
    return MaskHandle(hooks, tuple(units))


def _edit_channels(x: Tensor, layer: nn.Module, idxs: list[int], edit: Edit) -> Tensor:
    """x with some channels edited: of the last dimension, or of the one before space."""
    dim = channel_dim(layer)
    if idxs[-1] >= x.shape[dim]:  # on a GPU this would be fatal
        raise PruneError(f"channel {idxs[-1]} of an input with {x.shape[dim]} channels")
    index = torch.tensor(idxs, device=x.device)
    return x.index_copy(dim, index, edit(x.index_select(dim, index)))
