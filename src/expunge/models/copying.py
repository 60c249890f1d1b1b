"""Copies of a model, and its attributes as they were before a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from expunge.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)
# What torch itself keeps in the attributes of a module, and of that what holds tensors and modules.
_OF_TORCH = frozenset(vars(nn.Module()))
_REGISTERED = ("_parameters", "_buffers", "_modules")
# What a deep copy raises for a tensor of a graph, a lock, an open file.
_COPY_ERRORS = (TypeError, RuntimeError, NotImplementedError, AttributeError, OSError, ValueError)


def copy_model(model: Network) -> Network:
    """Copy a model, also one that `copy.deepcopy` refuses.

    Parameters
    ----------
    model
        Left as it was.

    Returns
    -------
    torch.nn.Module
        A deep copy. Tensors that belong to a graph (an activation that the model keeps, the weight
        of an old ``weight_norm``) are detached. What cannot be copied is shared with the model:
        locks, open files, generators.

    Raises
    ------
    ModelError
        If the model cannot be copied in this way either.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> model.features = model.weight * 2  # copy.deepcopy refuses it
    >>> copy_model(model).features.requires_grad
    False
    """
    memo: dict[int, Any] = {}
    with torch.inference_mode(False):
        try:
            return copy.deepcopy(model)
        except _COPY_ERRORS:
            _enter_attributes(model, memo, set())
        try:
            return copy.deepcopy(model, memo)
        except _COPY_ERRORS as error:
            raise ModelError(
                f"the model cannot be copied: {type(error).__name__}: {error}",
                where=type(model).__name__,
                fix="take what is no weight and no setting out of the model's attributes",
            ) from error


def _enter_attributes(model: nn.Module, memo: dict[int, Any], seen: set[int]) -> None:
    """Enter into the memo of a deep copy what it could not copy of the modules' attributes."""
    for module in model.modules():
        seen.add(id(module))
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                _enter(value, memo, seen)


def _enter(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, nn.Parameter | type):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        _enter_attributes(value, memo, seen)
    elif isinstance(value, Tensor) and value.grad_fn is not None:
        memo[id(value)] = value.detach().clone()
    elif not _is_copied(value, memo):
        for part in _parts(value):
            _enter(part, memo, seen)
        if not _is_copied(value, memo):
            memo[id(value)] = value


def _is_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except _COPY_ERRORS:
        return False
    return True


def _parts(value: Any) -> Iterator[Any]:
    """The values that a container or an object holds."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif hasattr(value, "__dict__"):
        yield from vars(value).values()


@contextmanager
def unchanged_attributes(model: nn.Module) -> Iterator[None]:
    """Give every module the plain attributes back that it had before the block.

    A forward pass can leave an activation in an attribute, or in a list in one. With gradients it
    would hold the graph, and `copy.deepcopy` would refuse the model.
    """
    before = [(module, _plain_attributes(module)) for module in model.modules()]
    held = [
        (value, copy.copy(value))
        for _, attributes in before
        for value in attributes.values()
        if type(value) in (list, dict, set)
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            own = vars(module)
            for name in _plain_attributes(module).keys() - attributes.keys():
                del own[name]
            own.update(attributes)
        for value, values in held:
            value.clear()
            value.extend(values) if isinstance(value, list) else value.update(values)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def detach_attributes(model: nn.Module) -> None:
    """Detach the tensors that modules keep as attributes from the graph of the last pass."""
    for module in model.modules():
        for name, value in _plain_attributes(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()
