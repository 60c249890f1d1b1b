"""One step of a training, as the step function of a method receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Array, Ints
from expunge._core.distributed import all_reduce_sum, shard
from expunge._core.rng import generator, torch_generator
from expunge.config import Precision
from expunge.data import Batch, Samples
from expunge.models.calls import logits_of, to_channels_last
from expunge.models.checks import no_gradient
from expunge.training.optimisation import autocast

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Training:
    """What the steps of a training share.

    Parameters
    ----------
    networks
        The networks in training mode, wrapped for DDP.
    optimizers
        One for each network.
    accelerator
        Of this process.
    precision
        Of forward passes; see `TuneConfig`.
    seed, what
        Seed and name of the training, from which every random number is derived.
    max_gradient_norm
        To which gradients are clipped; None does not clip.
    losses
        The last loss of each network, by its number.
    """

    networks: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    accelerator: Accelerator
    precision: Precision
    seed: int
    what: str
    max_gradient_norm: float | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A batch of a training: its rows, the networks, and the random generators of the step.

    Parameters
    ----------
    epoch
        Number of the epoch, from 0.
    number
        Number of the step in the whole training, from 0.
    progress
        Fraction of the training before this step, in [0, 1).
    batch
        ``int64[b]``, the rows of the batch over all processes.
    training
        Networks, optimisers and settings.
    """

    epoch: int
    number: int
    progress: float
    batch: Ints
    training: Training

    @property
    def own(self) -> Ints:
        """``int64[…]``, the positions in the batch that this process computes."""
        return shard(np.arange(len(self.batch)), self.training.accelerator)

    @property
    def rows(self) -> Ints:
        """``int64[…]``, the rows of the batch that this process computes."""
        return self.batch[self.own]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        device: torch.device = self.training.accelerator.device
        return device

    @property
    def network(self) -> nn.Module:
        """The first network."""
        return self.training.networks[0]

    def to_device(self, values: Array | Tensor) -> Tensor:
        """Copy an array to the device of the networks."""
        return torch.as_tensor(values).to(self.device)

    def random(self) -> np.random.Generator:
        """Return a NumPy generator of this step and process, in its first state."""
        training = self.training
        return generator(training.seed, training.what, self.number, *self._process())

    def torch_random(self) -> torch.Generator:
        """Return a torch generator of this step and process, in its first state."""
        training = self.training
        return torch_generator(training.seed, training.what, self.number, *self._process())

    def _process(self) -> tuple[int, ...]:
        index: int = self.training.accelerator.process_index
        return (index,) if index else ()

    def process_key(self, number: int) -> int:
        """Return a number for the names of random streams: unique for the number and process."""
        accelerator = self.training.accelerator
        return int(number * accelerator.num_processes + accelerator.process_index)

    def augment(self, samples: Samples, x: Batch, view: int = 0) -> Batch:
        """Return a random view of inputs, or the inputs if the samples have no augmentation.

        The same number gives the same view.
        """
        if samples.view is None:
            return x
        names = (self.training.what, self.number, self.process_key(view))
        seen: Batch = samples.view(x, torch_generator(self.training.seed, *names))
        return seen

    def inputs(self, samples: Samples, positions: Ints, *, augment: bool) -> Batch:
        """Read this process's part of the batch; row i is the sample at ``positions[i]``.

        With ``augment``, a random view of it, see `augment`.
        """
        x = samples.batch(positions[self.rows], device=self.device)
        return self.augment(samples, x) if augment else x

    def autocast(self) -> torch.autocast:
        """Return the autocast context of forward passes."""
        return autocast(self.training.precision, self.device)

    def logits(self, network: int, x: Batch) -> Tensor:
        """Return the logits of a network, ``float32[b, c]``."""
        with self.autocast():
            return logits_of(self.training.networks[network], to_channels_last(x)).float()

    def gather(self, values: Tensor, dim: int = 0) -> Tensor:
        """Join the rows of all processes in the order of the batch.

        Gradients flow to the rows of this process alone. So a loss of gathered rows is the loss of
        the whole batch, and the gradients of all processes add up to its gradient.
        """
        accelerator = self.training.accelerator
        if accelerator.num_processes == 1:
            return values
        shape = list(values.shape)
        shape[dim] = len(self.batch)
        own = torch.from_numpy(self.own).to(values.device)
        whole = values.new_zeros(shape).index_copy(dim, own, values.detach())
        return all_reduce_sum(whole, accelerator).index_copy(dim, own, values)

    def minimise(self, loss: Tensor, network: int = 0) -> None:
        """Update a network by the gradient of a loss; the gradients of all processes are added."""
        accelerator, optimizer = self.training.accelerator, self.training.optimizers[network]
        optimizer.zero_grad(set_to_none=True)
        if not loss.requires_grad:
            raise no_gradient()
        # DDP averages over processes.
        (loss * accelerator.num_processes).backward()
        if self.training.max_gradient_norm is not None:
            parameters = self.training.networks[network].parameters()
            nn.utils.clip_grad_norm_(parameters, self.training.max_gradient_norm)
        optimizer.step()
        self.training.losses[network] = loss.detach()
