"""Cutting units out of a network: a smaller copy by the dependency graph, or a reversible mask.

torch-pruning (Fang et al., DepGraph, arXiv:2301.12900) says which parameters go with a unit. It
takes every operation it does not know for element-wise, so what it says is checked, not believed:
with the consumers masked, shaking the cut units must not move the model's output, and the smaller
model must give the output of the masked one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeAlias

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from expunge.data import Batch
from expunge.errors import ModelError, PruneError, did_you_mean, format_ids, raise_all
from expunge.models.inspection import FORWARD_ERRORS, WEIGHT_LAYERS, device_of, logits_of, to_device
from expunge.records import PrunePlan, Size
from expunge.storage.weights import fit_weights

Units: TypeAlias = dict[str, list[int]]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
PASSTHROUGH = (*NORMS, nn.PReLU, nn.Parameter)  # what may lie between them and their consumers
MASK = 'mask the units instead of cutting them: mode = "mask"'
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def prunable(model: nn.Module, example: Batch) -> list[str]:
    """Names of the Linear, Conv1d and Conv2d layers whose output units can be cut, in module order.

    Not among them: the head, depthwise convolutions (they follow their producers), grouped
    convolutions, layers whose units are tied to each other, re-parametrised layers and tied
    weights, and layers whose units meet in one operation (LayerNorm, attention, a recurrent net).

    example: one batch as the model takes it, a tensor or ``{argument: tensor}``; one sample is
    enough. Raises PruneError if torch-pruning cannot trace the model, ModelError if the model does
    not run on the example. Cost: a few copies of the model and two forward passes a layer.
    """
    traced = _trace(model, example)
    free = [name for name in _layers(traced.model) if not _obstacle(traced, name)]
    if _cuts(model, example, free):
        return free
    return [name for name in free if _cuts(model, example, [name])]


def groups(model: nn.Module, example: Batch, layers: Iterable[str]) -> dict[str, str]:
    """For each layer the first, by name, of those in `layers` that share its output units.

    Units are shared index for index, as by a residual addition or a gate. A layer that shares with
    none of the others, or that cannot be cut, maps to itself.
    Raises PruneError for a name that is not a layer, and as `prunable` does.
    """
    names = list(dict.fromkeys(layers))
    raise_all(PruneError, _unknown(model, names), where="layers")
    traced = _trace(model, example)
    found: dict[str, str] = {}
    for name in sorted(names):
        if name in found:
            continue
        free = not _obstacle(traced, name)
        shared = _sides(_items(traced, {name: [0]}))[0] if free else {}
        found[name] = name
        found.update({other: name for other in names if other in shared})
    return {name: found[name] for name in names}


def norms(model: nn.Module, example: Batch, layers: Iterable[str]) -> list[str]:
    """Names of the batch and instance norms that the output units of these layers go through.

    None of what has no units that can be cut (a block, say), or where torch-pruning cannot trace
    the model. Raises PruneError for a name that the model does not have.
    """
    modules, known = dict(model.named_modules()), set(_layers(model))
    asked = list(dict.fromkeys(layers))
    strangers = _unknown(model, [name for name in asked if name not in modules])
    raise_all(PruneError, strangers, where="layers")
    names = [name for name in asked if name in known]
    try:
        traced = _trace(model, example)
    except PruneError:
        return []
    items = _items(traced, {name: [0] for name in names if not _obstacle(traced, name)})
    reached = {dep.target.module for dep, _ in items.values()}
    return [n for n, m in traced.model.named_modules() if isinstance(m, NORMS) and m in reached]


def prune(model: nn.Module, plan: PrunePlan, example: Batch) -> nn.Module:
    """A smaller copy of the model without the plan's units; the model given stays as it is.

    The plan's indices are those of the model given, for all layers at once; coupled layers lose the
    union of their units. Mode and `requires_grad` are kept, hooks and gradients are not copied. An
    empty plan gives a copy. In evaluation mode the result equals the model under `mask`.

    Raises PruneError for a layer that does not exist or cannot be cut, a unit out of range, a layer
    that would be emptied, a model that torch-pruning cannot trace, and a result that does not do
    what the masked model does. Cost: a copy of the model and a few forward passes.
    """
    units = _wanted(model, plan)
    if not units:
        return _copied(model)
    traced = _trace(model, example)
    problems = [(name, _obstacle(traced, name)) for name in units]
    if any(why for _, why in problems):
        told = "; ".join(f"layer '{name}' cannot be cut: {why}" for name, why in problems if why)
        raise PruneError(told, where="plan", fix=f"leave it out, or {MASK}")
    _pruned(traced, units)
    for (_, new), (_, old) in zip(
        traced.model.named_parameters(), model.named_parameters(), strict=True
    ):
        new.requires_grad_(old.requires_grad)
    for new_module, old_module in zip(traced.model.modules(), model.modules(), strict=True):
        new_module.training = old_module.training
    return traced.model


class MaskHandle:
    """Undoes a mask: `remove()`, or leave the ``with`` block.

    at_output: the layers masked at their own output, because they cannot be cut (see `mask`).
    """

    def __init__(self, hooks: list[RemovableHandle], at_output: tuple[str, ...] = ()) -> None:
        self._hooks = hooks
        self.at_output = at_output

    def remove(self) -> None:
        """Take the hooks off again; a second call does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> MaskHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def mask(model: nn.Module, plan: PrunePlan, example: Batch) -> MaskHandle:
    """Silence the plan's units on the model given, until the handle is removed.

    The units' channels are zeroed at the input of every layer that reads them, so that the model
    computes what `prune` would give. Where that is impossible (torch-pruning cannot trace the
    model, or the layer cannot be cut) the units are zeroed at the layer's own output instead and
    the handle names the layer in `at_output`. This is not the same: what follows, such as a batch
    norm or a bias, still turns the zeros into constants, and coupled layers are not touched.

    Raises PruneError for a layer that does not exist, a unit out of range and an emptied layer.
    """
    units = _wanted(model, plan)
    if not units:
        return MaskHandle([])
    _require_a_rest(model, units)
    try:
        traced = _trace(model, example)
    except PruneError:
        return _zeroed_outputs(model, units)
    plain = {name: idxs for name, idxs in units.items() if _obstacle(traced, name)}
    exact = {name: idxs for name, idxs in units.items() if name not in plain}
    producers, consumers = _sides(_items(traced, exact))
    _require_a_rest(model, producers)
    first, second = _zeroed_inputs(model, consumers), _zeroed_outputs(model, plain)
    return MaskHandle(first._hooks + second._hooks, second.at_output)


def rebuild(
    model: nn.Module, plan: PrunePlan, example: Batch, state: Mapping[str, Tensor]
) -> nn.Module:
    """The pruned model again, from a fresh one of its constructor, the plan and the saved weights.

    Raises ModelError naming the tensors that do not fit, and what `prune` raises.
    """
    pruned = prune(model, plan, example)
    fit_weights(pruned, state, where="pruned model")
    return pruned


def size(model: nn.Module, example: Batch) -> Size:
    """Parameters, and multiply-adds of one sample: ``Σ outputs × weights per output``.

    Counted are the Linear and convolution modules that run on the example (biases, norms,
    activations, attention products and recurrent cells are not). Tied parameters count once.
    """
    work = _copied(model).eval()
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, _ConvTransposeNd):
            total += args[0].numel() * module.weight.numel() // module.in_channels
        elif isinstance(module, _ConvNd):
            total += output.numel() * module.weight.numel() // module.out_channels
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    for module in work.modules():
        if isinstance(module, nn.Linear | _ConvNd):
            module.register_forward_hook(count)
    _run(work, example)
    first = example if isinstance(example, Tensor) else next(iter(example.values()))
    return Size(parameters=sum(p.numel() for p in model.parameters()), macs=total // len(first))


# ------------------------------------------------------------------------------ plan and layers


def _layers(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, WEIGHT_LAYERS) and not _depthwise(module)
    ]


def _depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd)
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def _width(layer: nn.Module) -> int:
    """Number of output units."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _unknown(model: nn.Module, names: Iterable[str]) -> list[str]:
    known, modules = _layers(model), dict(model.named_modules())
    return [
        f"'{name}' ({type(modules[name]).__name__}) has no units to cut: Linear, Conv1d and Conv2d "
        "layers have, and depthwise convolutions follow what they read"
        if name in modules
        else f"the model has no layer '{name}': {did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]


def _wanted(model: nn.Module, plan: PrunePlan) -> Units:
    """The plan's units by layer, sorted and without repetition, checked against the model."""
    problems = _unknown(model, plan.units)
    units = {name: sorted({int(u) for u in idxs}) for name, idxs in plan.units.items() if idxs}
    for name in units if not problems else ():
        n = _width(model.get_submodule(name))
        wrong = [u for u in units[name] if not 0 <= u < n]
        if wrong:
            problems.append(f"layer '{name}' has units 0 to {n - 1}, not {format_ids(wrong)}")
    raise_all(PruneError, problems, where="plan")
    return units


def _require_a_rest(model: nn.Module, units: Units) -> None:
    empty = [name for name in units if len(units[name]) >= _width(model.get_submodule(name))]
    if empty:
        raise PruneError(
            f"no unit would be left in {format_ids(empty)}",
            where="plan",
            fix="cut fewer units; coupled layers lose the union of their units",
        )


# ------------------------------------------------------------------------------ running the model


def _run(model: nn.Module, example: Batch) -> Tensor:
    example = to_device(example, device_of(model))
    try:
        with torch.no_grad():
            return logits_of(model, example)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model does not run on the example: {type(error).__name__}: {error}",
            fix="give one batch as the model takes it",
        ) from error


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy without hooks: those of the caller (or of a mask) must not run here."""
    try:
        work = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"the model cannot be copied: {error}",
            fix="remove hooks and re-parametrisations such as torch.nn.utils.weight_norm",
        ) from error
    for module in work.modules():
        for kind in HOOKS:
            getattr(module, kind).clear()
    return work


# ------------------------------------------------------------------------------ dependency graph


@dataclass(frozen=True)
class _Traced:
    """A copy of the model in evaluation mode, all parameters trainable, and its graph."""

    model: nn.Module
    graph: tp.DependencyGraph
    example: Batch
    parameters: dict[int, str]  # names by id


def _trace(model: nn.Module, example: Batch) -> _Traced:
    work = _copied(model).eval().requires_grad_(True)
    example = to_device(example, device_of(work))
    _run(work, example)  # the model's own errors first
    graph = tp.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(work, example, forward_fn=logits_of, verbose=False)
    except FORWARD_ERRORS as error:
        raise PruneError(
            f"torch-pruning cannot trace the model: {type(error).__name__}: {error}", fix=MASK
        ) from error
    return _Traced(work, graph, example, {id(p): n for n, p in work.named_parameters()})


def _items(traced: _Traced, units: Units) -> dict[Any, tuple[Any, set[int]]]:
    """What is cut with these units: ``{(module, side): (dependency, indices)}``.

    Every group is asked of the uncut graph and their indices are united, so that all of them are
    original ones and each tensor is cut once.
    """
    merged: dict[Any, tuple[Any, set[int]]] = {}
    for name, wanted in units.items():
        layer = traced.model.get_submodule(name)
        side = traced.graph.get_pruner_of_module(layer).prune_out_channels
        for dep, idxs in traced.graph.get_pruning_group(layer, side, wanted):
            key = (id(dep.target.module), dep.handler)
            merged.setdefault(key, (dep, set()))[1].update(idxs)
    return merged


def _sides(items: Mapping[Any, tuple[Any, set[int]]]) -> tuple[Units, Units]:
    """Layers cut at their output, and layers cut at their input, by name."""
    producers: Units = {}
    consumers: Units = {}
    for dep, idxs in items.values():
        module = dep.target.module
        if isinstance(module, nn.Linear | _ConvNd) and not _depthwise(module):
            side = producers if _makes(dep) else consumers
            side[dep.target._name] = sorted(idxs)
    return producers, consumers


def _makes(dep: Any) -> bool:
    return bool(dep.handler.__name__ == "prune_out_channels")


def _pruned(traced: _Traced, units: Units) -> None:
    """Cut the units from the traced copy and check the result; its graph is of no use then."""
    items = _items(traced, units)
    producers, consumers = _sides(items)
    _require_a_rest(traced.model, producers)
    if _leaks(traced, producers, consumers):
        raise PruneError(
            f"units of {format_ids(producers)} reach the output past {format_ids(consumers)}",
            fix=MASK,
        )
    with _zeroed_inputs(traced.model, consumers):
        expected = _run(traced.model, traced.example)
    kept = {name: _width(traced.model.get_submodule(name)) for name in producers}
    for dep, idxs in items.values():
        _cut(traced, dep, sorted(idxs))
    _check(traced, expected, {n: kept[n] - len(producers[n]) for n in kept})


def _cuts(model: nn.Module, example: Batch, names: list[str]) -> bool:
    """Whether a trial cut of these layers works (constant slices and views only show there)."""
    traced = _trace(model, example)
    try:
        _pruned(traced, {n: _sample(_width(traced.model.get_submodule(n))) for n in names})
    except PruneError:
        return False
    return True


def _sample(width: int) -> list[int]:
    """Some units, irregularly (squares), so that units tied to each other by any shift show."""
    return [i * i for i in range(isqrt(width) + 1) if i * i < width - 1]


def _cut(traced: _Traced, dep: Any, idxs: list[int]) -> None:
    target, result = dep.target.module, dep(idxs)
    if isinstance(target, nn.Parameter):  # a parameter of its own is replaced, not changed
        path, _, leaf = traced.parameters[id(target)].rpartition(".")
        setattr(traced.model.get_submodule(path), leaf, result)


def _obstacle(traced: _Traced, name: str) -> str:
    """Why the layer's output units cannot be cut; empty if they can."""
    layer = traced.model.get_submodule(name)
    width = _width(layer)
    if layer not in traced.graph.module2node:
        return "it takes no part in the forward pass"
    if width < 2:
        return "it has a single unit"
    sample = _sample(width)
    try:
        items = _items(traced, {name: sample})
        tied = _tied_parameters(traced.model)
        for dep, idxs in items.values():
            if why := _foreign(dep, sorted(idxs) == sample, width, tied):
                return why
        leaks = _leaks(traced, *_sides(items))
    except FORWARD_ERRORS as error:
        modules = traced.model.named_modules()
        recurrent = [f"'{k}' ({type(m).__name__})" for k, m in modules if isinstance(m, nn.RNNBase)]
        if recurrent:
            return (
                f"its units go into {format_ids(recurrent)}, which is recurrent and cannot be cut"
            )
        return f"torch-pruning finds no group for it ({type(error).__name__}: {error})"
    except PruneError as error:
        return f"torch-pruning finds a wrong group for it ({error.what})"
    return "its units meet others on a way that torch-pruning does not follow" if leaks else ""


def _foreign(dep: Any, same: bool, width: int, tied: set[int]) -> str:
    """Why a member of a layer's group forbids the cut; empty if it does not."""
    module, name = dep.target.module, dep.target._name
    layer = isinstance(module, nn.Linear | _ConvNd)
    consumer = layer and not _depthwise(module) and not _makes(dep)
    if not dep.target.outputs and not consumer:
        return "it makes the logits"
    if not layer:
        known = isinstance(module, PASSTHROUGH) or type(module).__module__ == tp.ops.__name__
        listed = known or not list(module.parameters())
        return "" if listed else f"its units go into '{name}' ({type(module).__name__})"
    if isinstance(module, _ConvNd) and module.groups > 1 and not _depthwise(module):
        return f"'{name}' is a grouped convolution"
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return f"'{name}' is re-parametrised"
    if any(id(p) in tied for p in module.parameters()):
        return f"'{name}' shares its weights with another layer"
    if consumer or _depthwise(module):
        return ""
    index_for_index = same and isinstance(module, WEIGHT_LAYERS) and _width(module) == width
    return "" if index_for_index else f"its units are tied to several units of '{name}'"


def _tied_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    return {id(p) for m in model.modules() for p in m._parameters.values() if _again(p, seen)}


def _again(parameter: nn.Parameter | None, seen: set[int]) -> bool:
    known = parameter is not None and id(parameter) in seen
    seen.add(id(parameter))
    return known


# ------------------------------------------------------------------------------ masks and checks


def _shaken(x: Tensor) -> Tensor:
    return 2 * x.abs() + 1


def _edited(
    x: Tensor, layer: nn.Module, idxs: list[int], edit: Callable[[Tensor], Tensor]
) -> Tensor:
    """x with `edit` done to the channels `idxs`: the last dimension, or the one before space."""
    dim = -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1
    if idxs[-1] >= x.shape[dim]:  # on a GPU this would be fatal
        raise PruneError(f"channel {idxs[-1]} of an input with {x.shape[dim]} channels")
    index = torch.tensor(idxs, device=x.device)
    return x.index_copy(dim, index, edit(x.index_select(dim, index)))


def _zeroed_inputs(model: nn.Module, units: Units) -> MaskHandle:
    def hook(idxs: list[int]) -> Callable[..., Any]:
        return lambda layer, args: (_edited(args[0], layer, idxs, torch.zeros_like), *args[1:])

    return MaskHandle(
        [model.get_submodule(n).register_forward_pre_hook(hook(i)) for n, i in units.items()]
    )


def _zeroed_outputs(
    model: nn.Module, units: Units, edit: Callable[[Tensor], Tensor] = torch.zeros_like
) -> MaskHandle:
    def hook(idxs: list[int]) -> Callable[..., Any]:
        return lambda layer, _, output: _edited(output, layer, idxs, edit)

    hooks = [model.get_submodule(n).register_forward_hook(hook(i)) for n, i in units.items()]
    return MaskHandle(hooks, tuple(units))


def _leaks(traced: _Traced, producers: Units, consumers: Units) -> bool:
    """Whether the units move the output although the channels of all their consumers are zeroed."""
    with _zeroed_inputs(traced.model, consumers):
        still = _run(traced.model, traced.example)
        with _zeroed_outputs(traced.model, producers, _shaken):
            moved = _run(traced.model, traced.example)
    return not torch.allclose(still, moved, rtol=1e-4, atol=1e-6, equal_nan=True)


def _check(traced: _Traced, expected: Tensor, widths: dict[str, int]) -> None:
    """Compare what was asked with what was done: number of units, shapes and output."""
    wrong = [n for n, w in widths.items() if _width(traced.model.get_submodule(n)) != w]
    if wrong:
        raise PruneError(f"torch-pruning did not cut the units of {format_ids(wrong)}", fix=MASK)
    try:
        got = _run(traced.model, traced.example)
    except ModelError as error:
        raise PruneError(f"the pruned model does not run: {error.what}", fix=MASK) from error
    # Leaves room for other summation order and for TF32; a wrong channel moves the output more.
    limit = 0.01 if torch.finfo(got.dtype).bits >= 32 else 0.1
    gap = (got - expected).abs().max()
    if gap > limit * expected.abs().max() + 1e-6:
        raise PruneError(
            f"the pruned model's output differs by {gap:.2g} from the masked model's", fix=MASK
        )
