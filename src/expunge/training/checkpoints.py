"""The state of a training between two epochs, and how a training resumes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from expunge._core.distributed import broadcast_decision
from expunge.storage.weights import load_state, state_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class Checkpoint(Protocol):
    """Storage of the state between two epochs, from which an interrupted training resumes."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the number of finished epochs and the state after them, or None."""
        ...

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Replace the state by that after this many epochs."""
        ...


# The networks of a training, each with its optimiser.
Networks = Sequence[tuple[nn.Module, torch.optim.Optimizer]]


def training_state(networks: Networks, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a training as one flat dictionary of tensors on the CPU.

    Parameters
    ----------
    networks
        Networks and their optimisers.
    extra
        Further tensors of the training method.

    Returns
    -------
    dict of str to Tensor
        ``model.*`` and ``optimizer.*`` of the first network, ``model1.*`` and ``optimizer1.*`` of
        the second, and so on; ``extra.*``.
    """
    tensors: dict[str, Tensor] = {f"extra.{name}": value for name, value in extra.items()}
    for number, (model, optimizer) in enumerate(networks):
        suffix = str(number or "")
        tensors |= {f"model{suffix}.{name}": v for name, v in state_of(model).items()}
        for index, memory in optimizer.state_dict()["state"].items():
            for name, value in memory.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer{suffix}.{index}.{name}"] = value
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def restore(
    checkpoint: Checkpoint | None,
    networks: Networks,
    extra: Mapping[str, Tensor],
    accelerator: Accelerator,
) -> int:
    """Restore the saved state, if there is one, in place.

    Parameters
    ----------
    checkpoint
        Where the state is stored. The main process reads it for all.
    networks, extra
        As in `training_state`.
    accelerator
        Of this process.

    Returns
    -------
    int
        The number of finished epochs.
    """
    saved = None if checkpoint is None else broadcast_decision(accelerator, checkpoint.load)
    if saved is None:
        return 0
    epoch, tensors = saved
    for name, value in extra.items():
        value.copy_(tensors[f"extra.{name}"])
    for number, (model, optimizer) in enumerate(networks):
        suffix = str(number or "")
        load_state(model, _with_prefix(f"model{suffix}.", tensors))
        memory: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, stored in _with_prefix(f"optimizer{suffix}.", tensors).items():
            (index, name), value = key.split(".", 1), stored
            # Laid out as the parameter, which a fused optimiser needs.
            like = parameters[int(index)]
            if value.shape == like.shape:
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            memory.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": memory})
    return epoch


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
