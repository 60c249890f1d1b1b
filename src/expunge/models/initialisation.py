"""Drawing new weights, and what of a model is frozen."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from expunge._core.rng import temp_seed
from expunge.models.copying import copy_model


def reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """A copy with newly drawn weights.

    Every module with ``reset_parameters`` draws its own weights. The parameters of any other module
    (a class token, position embeddings) are permuted at random, which keeps their scale. Models of
    transformers then draw the weights that they know by their own rule. Frozen modules and
    parameters stay as they are; where all are frozen, none is taken for frozen.

    Parameters
    ----------
    model
        Left as it was.
    seed
        Of the draw; the global random state is restored.

    Returns
    -------
    torch.nn.Module
        On the same device, in the same mode.

    Examples
    --------
    >>> model = nn.Linear(4, 3)
    >>> a, b = reinitialise(model, 0), reinitialise(model, 0)
    >>> torch.equal(a.weight, b.weight), torch.equal(a.weight, model.weight)
    (True, False)
    """
    fresh = copy_model(model)
    frozen = frozen_modules(fresh)
    if fresh in frozen:  # all is frozen: as loaded for use
        frozen, kept = set(), {}
    else:
        kept = {p: p.detach().clone() for p in fresh.parameters() if not p.requires_grad}
    with temp_seed(seed, "initialise"), torch.no_grad():
        for module in fresh.modules():
            if module not in frozen:
                _draw(module)
        for model_of_transformers in _models_of_transformers(fresh):
            for module in model_of_transformers.modules():
                if module not in frozen:
                    model_of_transformers._init_weights(module)
        for parameter, values in kept.items():
            parameter.copy_(values)
    return fresh


def _draw(module: nn.Module) -> None:
    """Draw the weights of one module, apart from those of its children."""
    names = ("reset_parameters", "_reset_parameters")
    reset = next((r for n in names if callable(r := getattr(module, n, None))), None)
    if reset is not None:
        reset()
        return
    for parameter in module.parameters(recurse=False):
        order = torch.randperm(parameter.numel())
        parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))


def _models_of_transformers(model: nn.Module) -> list[Any]:
    """Return the models of transformers in a model, outer ones first: inner rules come last."""
    transformers = sys.modules.get("transformers")
    if transformers is None:  # then no model is one of its classes
        return []
    return [m for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]


def frozen_modules(model: nn.Module, is_frozen: bool = False) -> set[nn.Module]:
    """Modules whose parameters are all frozen; one without parameters is as its parent is.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    >>> frozen_modules(model) == {model[0]}
    True
    """
    weights = list(model.parameters())
    is_frozen = not any(p.requires_grad for p in weights) if weights else is_frozen
    inner = [frozen_modules(module, is_frozen) for module in model.children()]
    return set().union({model} if is_frozen else (), *inner)


def is_partly_frozen(model: nn.Module) -> bool:
    """Whether some parameters are frozen and others are not."""
    return len({p.requires_grad for p in model.parameters()}) == 2
