"""Training of a head, alone or with low-rank changes of its encoder, by the training loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator
from expunge.errors import ModelError
from expunge.nmtune.objectives import NMTuneConfig, regularisation
from expunge.training.checkpoints import Checkpoint
from expunge.training.loop import fit
from expunge.training.optimisation import TuneConfig
from expunge.training.steps import Step

# Features, transformed features and logits of v views: ``[v, b, d]``, ``[v, b, d]``, ``[v, b, c]``.
ViewOutputs = tuple[Tensor, Tensor, Tensor]
# The inputs of a step for this process: from the step and the generator of its epoch.
ReadInputs = Callable[[Step, np.random.Generator], object]


def train_head(
    network: nn.Module,
    inputs: ReadInputs,
    labels: Ints,
    config: NMTuneConfig,
    *,
    learning_rate: float,
    seed: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> None:
    """Minimise the objective by AdamW, in place; the network ends in evaluation mode.

    Parameters
    ----------
    network
        From the inputs of a step to `ViewOutputs`. What requires a gradient is trained.
    inputs
        Reads the inputs of a step. The generator is that of the epoch, alike in all processes.
    labels
        ``int64[n]``.
    config
        Objective, epochs, batch size and weight decay.
    learning_rate
        Its maximum; it falls as a cosine to zero.
    seed
        Decides the order and the views, together with the epoch.
    checkpoint, progress
        As in `expunge.training.loop.fit`.

    Raises
    ------
    ModelError
        If the loss is not finite.
    """
    what = f"nmtune {learning_rate:g}"
    draws: dict[int, np.random.Generator] = {}

    def order(seed: int, epoch: int, n: int) -> Ints:
        # One generator an epoch draws the order, and then the views of each step.
        draws.clear()
        draws[epoch] = generator(seed, "nmtune", "epoch", epoch)
        return draws[epoch].permutation(n)

    def update(step: Step) -> None:
        outputs = step.network(inputs(step, draws[step.epoch]))
        f, z, logits = (step.gather(values, dim=1) for values in outputs)
        y = step.to_device(labels[step.batch]).repeat(len(f))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y)
        if config.hidden:
            try:
                loss = loss + regularisation(z, f, config)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of infinity
                raise ModelError(
                    f"features became infinite in epoch {step.epoch + 1}",
                    where=what,
                    fix="leave out the highest learning rates",
                ) from None
        step.minimise(loss)

    settings = TuneConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer="adamw",
        lr=learning_rate,
        weight_decay=config.weight_decay,
        schedule="cosine",
        precision="float32",
    )
    fit(
        [network],
        len(labels),
        update,
        settings,
        seed=seed,
        what=what,
        build=_fused_adamw,
        order=order,
        schedule_offset=0.0,
        checkpoint=checkpoint,
        progress=progress,
    )


def _fused_adamw(network: nn.Module, config: TuneConfig) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    decay = config.weight_decay
    return torch.optim.AdamW(parameters, lr=config.lr or 0.0, weight_decay=decay, fused=True)


def choose_two_views(views: int, n: int, random: np.random.Generator) -> Ints:
    """Draw two different views for each sample, ``int64[2, n]``, or ``int64[1, n]`` of one."""
    return random.random((n, views)).argsort(axis=1)[:, :2].T
