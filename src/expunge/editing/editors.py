"""Editors: changes of a network in closed form, without a gradient step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.distributed import shard_blocks, this_process
from expunge._core.progress import Progress, silent
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import torch_generator
from expunge.config import Precision
from expunge.data import Batch, Samples, View
from expunge.models.calls import to_channels_last
from expunge.records import Partition
from expunge.records.editing import HeadPlan

# Views are drawn in blocks of this many samples: neither batch size nor the number of processes
# changes them.
BLOCK_SIZE, BATCH_SIZE = 64, 256


class EditedModel(NamedTuple):
    """A changed copy of a network, and its new head if it got one."""

    model: nn.Module
    head: HeadPlan | None = None


@dataclass(frozen=True)
class EditTask:
    """What an editor works on.

    Parameters
    ----------
    model
        The network. It is not changed.
    samples
        The training samples.
    partition
        The partition of these samples, in their order.
    held_out
        Samples that the network was not trained on, with labels of the same source.
    seed
        Seed of everything random.
    precision
        Of forward passes.
    progress
        Called as ``progress(what, done, total)``.
    """

    model: nn.Module
    samples: Samples
    partition: Partition
    held_out: Samples | None = None
    seed: int = 0
    precision: Precision = "auto"
    progress: Progress = silent

    @property
    def device(self) -> torch.device:
        """Where the passes are computed."""
        device: torch.device = this_process().device
        return device

    def batches(self, positions: Ints, *, n_views: int) -> Iterator[tuple[Ints, list[Batch]]]:
        """Yield this process's share of some samples: the plain inputs, then random views."""
        own = positions[shard_blocks(len(positions), BLOCK_SIZE, this_process())]
        resident = self.samples.to_device(self.device)
        for number, batch in enumerate(resident.batches(BATCH_SIZE, positions=own)):
            x = resident.batch(batch, device=self.device)
            found = [x]
            if isinstance(x, Tensor) and resident.view is not None:
                found += [self._view(resident.view, batch, x, k) for k in range(n_views)]
            yield batch, [to_channels_last(inputs) for inputs in found]
            self.progress("edit", min((number + 1) * BATCH_SIZE, len(own)), len(own))

    def _view(self, view: View, batch: Ints, x: Tensor, number: int) -> Tensor:
        """The same view whatever the batch size and the number of processes."""
        parts = []
        for start in range(0, len(batch), BLOCK_SIZE):
            draw = torch_generator(self.seed, "edit", int(batch[start]), number)
            parts.append(view(x[start : start + BLOCK_SIZE], draw))
        return torch.cat(parts)


Editor = Callable[..., EditedModel]

editors: Registry[Editor, NoMetadata] = Registry(
    "editor",
    NoMetadata,
    modules=(
        "expunge.editing.ridge_head",
        "expunge.editing.activation_projection",
        "expunge.editing.synaptic_dampening",
    ),
)
