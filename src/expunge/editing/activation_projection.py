"""Scaled activation projection (SAP): directions that trusted inputs hardly use are scaled down."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Ints
from expunge.editing.editors import BLOCK_SIZE, EditedModel, EditTask, editors
from expunge.errors import ConfigError, check_range
from expunge.models.architecture import tied_weights
from expunge.models.calls import eval_mode, logits_of, on_device
from expunge.models.inspection import WEIGHT_LAYERS
from expunge.pruning.dependencies import copy_without_hooks


@editors.register("sap")
def activation_projection(
    task: EditTask, *, alpha: float = 10_000.0, trusted: int = 1_000
) -> EditedModel:
    """Project the weights on the inputs of trusted samples (scaled activation projection).

    ``W ← W U diag(λ) Uᵀ`` for every linear and convolution layer, with the eigenvectors U of the
    second moments of its inputs over the trusted samples, the shares s of the eigenvalues and
    ``λ = α s / ((α − 1) s + 1)``.

    Parameters
    ----------
    task
        Network, samples and partition.
    alpha
        α, 1 or more; the larger, the less is changed. The paper chooses it by clean validation
        labels.
    trusted
        Number of trusted samples, those with the smallest ``p_noisy`` of each class. The paper
        takes those of smallest loss, which after memorisation says nothing.

    Returns
    -------
    EditedModel
        The same architecture with other weights.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    Cost: one pass over the trusted samples and an eigendecomposition for each layer. Grouped
    convolutions, those of one dimension and tied weights stay as they are.

    References
    ----------
    Sangamesh Kodge et al., "SAP: Corrective Machine Unlearning with Scaled Activation Projection
    for Label Noise Robustness", 2024, arXiv:2403.08618.

    Examples
    --------
    >>> from expunge import stages
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> split = stages.partition(stages.score(model, data, detectors=("loss",)))
    >>> stages.edit(model, data, split, method="sap").model[0].weight.shape
    torch.Size([8, 4])
    """
    check_range(
        ConfigError,
        {"edit.options.alpha": (alpha, "[1, inf)"), "edit.options.trusted": (trusted, "[1, inf)")},
    )
    model = copy_without_hooks(task.model)
    moments: dict[str, Tensor] = {}
    tied = tied_weights(model)
    with on_device(model, task.device), eval_mode(model), torch.no_grad():
        handles = [
            module.register_forward_pre_hook(_collector(moments, name, module))
            for name, module in model.named_modules()
            if isinstance(module, WEIGHT_LAYERS)
            and _is_plain(module)
            and id(module.weight) not in tied
        ]
        rows = _trusted_rows(task, trusted)
        for batch in task.samples.batches(BLOCK_SIZE, positions=rows):
            logits_of(model, task.samples.batch(batch, device=task.device))
        for handle in handles:
            handle.remove()
        for name, second in moments.items():
            weight = cast(Tensor, model.get_submodule(name).weight)
            flat = weight.flatten(1) @ _projection(second, alpha).to(weight.dtype)
            weight.copy_(flat.view_as(weight))
    return EditedModel(model)


def _trusted_rows(task: EditTask, count: int) -> Ints:
    """The samples with the smallest p_noisy, as many of each given label."""
    partition, classes = task.partition, len(task.samples.classes)
    each, rows = max(1, count // classes), []
    for label in range(classes):
        own = np.flatnonzero(partition.labels == label)
        rows.append(own[np.lexsort((partition.ids[own], partition.p_noisy[own]))][:each])
    return np.sort(np.concatenate(rows))


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _collector(
    moments: dict[str, Tensor], name: str, module: nn.Module
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds the second moments of a layer's input."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if isinstance(module, nn.Conv2d):
            padding = cast(tuple[int, ...], module.padding)
            sides = {"dilation": module.dilation, "padding": padding, "stride": module.stride}
            patches = nn.functional.unfold(x.float(), module.kernel_size, **sides)
            second = torch.einsum("bip,bjp->ij", patches, patches)
        else:
            rows = x.float().flatten(0, -2)
            second = rows.T @ rows
        moments[name] = moments.get(name, torch.zeros_like(second)) + second

    return hook


def _projection(second: Tensor, alpha: float) -> Tensor:
    """Return ``U diag(λ) Uᵀ``, see `activation_projection`."""
    values, vectors = torch.linalg.eigh(second.double())
    share = values.clamp(min=0) / values.clamp(min=0).sum().clamp(min=1e-12)
    importance = alpha * share / ((alpha - 1) * share + 1)
    projection: Tensor = (vectors * importance) @ vectors.T
    return projection
