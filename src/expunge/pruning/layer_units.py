"""The layers of a model that have units, and a plan's units checked against them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import isqrt
from typing import TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from expunge.errors import PruneError, did_you_mean, format_ids, raise_all
from expunge.models.architecture import is_transposed_linear
from expunge.models.inspection import is_weight_layer
from expunge.records import PrunePlan

Units: TypeAlias = dict[str, list[int]]  # sorted indices by the name of a layer or an attention


def unit_layers(model: nn.Module) -> list[str]:
    """Names of the linear and convolution layers, without depthwise convolutions."""
    return [
        name
        for name, module in model.named_modules()
        if is_weight_layer(module) and not is_depthwise(module)
    ]


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution whose every output channel reads one input channel."""
    return (
        isinstance(module, _ConvNd)
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def n_units(layer: nn.Module) -> int:
    """Number of output units of a linear or convolution layer."""
    if is_transposed_linear(layer):
        return int(layer.nf)  # type: ignore[arg-type]
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def n_inputs(layer: nn.Module) -> int:
    """Number of inputs of a linear or convolution layer."""
    if is_transposed_linear(layer):
        return int(layer.nx)  # type: ignore[arg-type]
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def is_dense(module: nn.Module) -> bool:
    """Whether a module is a layer of units each of which reads all inputs."""
    return has_units(module) and not (
        isinstance(module, _ConvTransposeNd) or getattr(module, "groups", 1) > 1
    )


def channel_dim(layer: nn.Module) -> int:
    """The dimension of the units in a layer's output, and of the channels in its input."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def has_units(module: nn.Module) -> bool:
    """Whether a module is a linear or convolution layer of any kind."""
    return isinstance(module, nn.Linear | _ConvNd) or is_transposed_linear(module)


def sample_units(width: int) -> list[int]:
    """Some units, irregularly (squares), so that units tied to each other by any shift show."""
    return [i * i for i in range(isqrt(width) + 1) if i * i < width - 1]


def unknown_layers(
    model: nn.Module, names: Iterable[str], attentions: Collection[str] = ()
) -> list[str]:
    """A message for each name that is no layer of units, and none of the attentions."""
    known, modules = [*unit_layers(model), *attentions], dict(model.named_modules())
    return [
        f"'{name}' ({type(modules[name]).__name__}) has no units to cut: Linear, Conv1d and Conv2d "
        "layers and attentions with several heads have, and depthwise convolutions follow what "
        "they read"
        if name in modules
        else f"the model has no layer '{name}': {did_you_mean(name, filter(None, known))}"
        for name in names
        if name not in known
    ]


def planned_units(
    model: nn.Module, plan: PrunePlan, n_heads: Mapping[str, int] | None = None
) -> Units:
    """The plan's units by layer, and heads by attention, sorted and without repetition.

    Raises
    ------
    PruneError
        Naming every unknown layer, or every unit out of range.
    """
    n_heads = n_heads or {}
    problems = unknown_layers(model, plan.units, n_heads)
    units = {name: sorted({int(u) for u in idxs}) for name, idxs in plan.units.items() if idxs}
    for name in units if not problems else ():
        n = n_heads[name] if name in n_heads else n_units(model.get_submodule(name))
        what = "heads" if name in n_heads else "units"
        wrong = [u for u in units[name] if not 0 <= u < n]
        if wrong:
            problems.append(f"layer '{name}' has {what} 0 to {n - 1}, not {format_ids(wrong)}")
    raise_all(PruneError, problems, where="plan")
    return units


def check_not_emptied(
    model: nn.Module, units: Units, n_heads: Mapping[str, int] | None = None
) -> None:
    """Raise PruneError if a layer would lose all its units, or an attention all its heads."""
    n_heads = n_heads or {}
    empty = [
        name
        for name, own in units.items()
        if len(own) >= (n_heads.get(name) or n_units(model.get_submodule(name)))
    ]
    if empty:
        raise PruneError(
            f"no unit would be left in {format_ids(empty)}",
            where="plan",
            fix="cut fewer units; coupled layers lose the union of their units",
        )
