"""Selective synaptic dampening (SSD): weights that matter most to flagged samples are shrunk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge._core.rng import subsample
from expunge.editing.editors import EditedModel, EditTask, editors
from expunge.errors import ConfigError, check_range
from expunge.models.calls import eval_mode, logits_of, on_device
from expunge.pruning.dependencies import copy_without_hooks

# Samples over which the Fisher information is averaged, at most, and the size of their batches.
_MAX_SAMPLES, _BATCH_SIZE = 4096, 64


@editors.register("ssd")
def synaptic_dampening(
    task: EditTask, *, selection: float = 10.0, dampening: float = 1.0
) -> EditedModel:
    """Shrink the weights that carry the flagged samples (selective synaptic dampening).

    ``w ← min(b F_all / F_flagged, 1) · w`` where ``F_flagged > a F_all``, with F the mean squared
    gradient of the loss of a batch.

    Parameters
    ----------
    task
        Network, samples and partition.
    selection
        a, above 0: the smaller, the more weights are shrunk.
    dampening
        b, above 0: the smaller, the more they are shrunk.

    Returns
    -------
    EditedModel
        The same architecture with other weights; unchanged if no sample is flagged.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    Cost: a forward and a backward pass over at most 4,096 flagged and 4,096 of all samples.

    References
    ----------
    Foster, Schoepf and Brintrup, "Fast Machine Unlearning Without Retraining Through Selective
    Synaptic Dampening", 2023, arXiv:2308.07707.

    Examples
    --------
    >>> from expunge import stages
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> split = stages.partition(stages.score(model, data, detectors=("loss",)))
    >>> stages.edit(model, data, split, method="ssd").model[0].weight.shape
    torch.Size([8, 4])
    """
    check_range(
        ConfigError,
        {
            "edit.options.selection": (selection, "(0, inf)"),
            "edit.options.dampening": (dampening, "(0, inf)"),
        },
    )
    model, flagged = copy_without_hooks(task.model), np.flatnonzero(task.partition.flagged)
    if not len(flagged):
        return EditedModel(model)
    with on_device(model, task.device), eval_mode(model):
        everything = _squared_gradients(model, task, np.arange(len(task.samples)), "all")
        bad = _squared_gradients(model, task, flagged, "flagged")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                ratio = everything[name] / bad[name].clamp(min=1e-30)
                is_selected = bad[name] > selection * everything[name]
                weight.mul_(torch.where(is_selected, (dampening * ratio).clamp(max=1.0), 1.0))
    return EditedModel(model)


def _squared_gradients(
    model: nn.Module, task: EditTask, rows: Ints, what: str
) -> dict[str, Tensor]:
    """The mean over batches of the squared gradient of the mean loss, by parameter."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    chosen, count = subsample(rows, _MAX_SAMPLES, task.seed, "ssd", what), 0
    for p in frozen:
        p.requires_grad_(True)
    with torch.enable_grad():
        for batch in task.samples.batches(_BATCH_SIZE, positions=chosen):
            x = task.samples.batch(batch, device=task.device)
            y = torch.from_numpy(task.samples.labels[batch]).to(task.device)
            loss = nn.functional.cross_entropy(logits_of(model, x).float(), y)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            count += 1
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square()
    for p in frozen:
        p.requires_grad_(False)
    return {name: values / count for name, values in total.items()}
