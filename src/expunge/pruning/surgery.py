"""Removing units from a network: a smaller copy by the dependency graph, or a reversible mask.

A cut is verified: the smaller model must give the output of the masked one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from expunge._core.rng import temp_seed
from expunge.config import PruneMode
from expunge.data import Batch
from expunge.errors import ModelError, PruneError, format_ids, raise_all
from expunge.models.copying import copy_model
from expunge.pruning.attention_heads import Heads, head_settings
from expunge.pruning.dependencies import (
    MASK_HINT,
    NORMS,
    TracedModel,
    copy_without_hooks,
    group_members,
    has_influence,
    run,
    split_sides,
    touches_frozen,
    trace,
    why_not_prunable,
)
from expunge.pruning.hidden_pairs import PairGraph
from expunge.pruning.layer_units import (
    Units,
    check_not_emptied,
    has_units,
    n_inputs,
    n_units,
    planned_units,
    sample_units,
    unit_layers,
    unknown_layers,
)
from expunge.pruning.masks import MaskHandle, zero_inputs, zero_outputs
from expunge.pruning.multihead import (
    HeadwiseAttention,
    projection_macs,
    use_headwise,
)
from expunge.records import PrunePlan, Size
from expunge.storage.weights import fit_weights


def prunable(model: nn.Module, example: Batch) -> list[str]:
    """Names of the Linear, Conv1d and Conv2d layers whose output units can be cut, and of the
    attentions whose heads can.

    Not among them: the head, depthwise convolutions (they follow their producers), grouped
    convolutions, layers whose units are tied to each other, re-parametrised layers and tied
    weights, layers whose units frozen parameters hold or read (unless all are frozen), layers
    that auxiliary outputs read in training mode, and layers whose units meet in one operation
    (LayerNorm, a recurrent net).

    Parameters
    ----------
    model
        Left as it was.
    example
        One batch as the model takes it, a tensor or ``{argument: tensor}``; one sample is enough.

    Returns
    -------
    list of str
        In module order.

    Raises
    ------
    PruneError
        If torch-pruning cannot trace the model.
    ModelError
        If the model does not run on the example.

    Notes
    -----
    Cost: a few copies of the model and two forward passes a layer.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> prunable(model, torch.zeros(1, 4))
    ['0']
    """
    traced = trace(model, example)
    known = {*unit_layers(traced.model), *traced.heads}
    names = [name for name, _ in traced.model.named_modules() if name in known]
    free = [name for name in names if not why_not_prunable(traced, name)]
    free = [name for name in free if not touches_frozen(traced, name)]
    return _cuttable(model, example, free, trains=_runs_in_training(model, example))


def groups(model: nn.Module, example: Batch, layers: Iterable[str]) -> dict[str, str]:
    """For each layer the first, by name, of the given layers that share its output units.

    Attentions share their heads with none. Units are shared index for index, as by a residual
    addition or a gate. A layer that shares with none of the others, or that cannot be cut, maps to
    itself.

    Parameters
    ----------
    model, example
        As in `prunable`.
    layers
        Names of layers of units, and of attentions.

    Returns
    -------
    dict
        ``{layer: first layer of its group}`` in the order of ``layers``.

    Raises
    ------
    PruneError
        For a name that is not a layer of units, and as `prunable`.
    ModelError
        As `prunable`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> groups(model, torch.zeros(1, 4), ["0"])
    {'0': '0'}
    """
    names = list(dict.fromkeys(layers))
    traced = trace(model, example)
    raise_all(PruneError, unknown_layers(model, names, traced.heads), where="layers")
    found: dict[str, str] = {}
    for name in sorted(names):
        if name in found:
            continue
        free = not why_not_prunable(traced, name)
        shared = split_sides(group_members(traced, {name: [0]}))[0] if free else {}
        found[name] = name
        found.update({other: name for other in names if other in shared})
    return {name: found[name] for name in names}


def norms(model: nn.Module, example: Batch, layers: Iterable[str]) -> list[str]:
    """Names of the batch and instance norms that the output units of these layers go through.

    A layer without units that can be cut (a block, say) contributes none, and so does a model that
    torch-pruning cannot trace.

    Parameters
    ----------
    model, example
        As in `prunable`.
    layers
        Names of modules.

    Returns
    -------
    list of str
        In module order.

    Raises
    ------
    PruneError
        For a name that the model does not have.
    ModelError
        If the model does not run on the example.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    >>> norms(model, torch.zeros(1, 4), ["0"])
    ['1']
    """
    modules, known = dict(model.named_modules()), set(unit_layers(model))
    wanted = list(dict.fromkeys(layers))
    unknown = unknown_layers(model, [name for name in wanted if name not in modules])
    raise_all(PruneError, unknown, where="layers")
    names = [name for name in wanted if name in known]
    try:
        traced = trace(model, example)
    except PruneError:
        return []
    free = {name: [0] for name in names if not why_not_prunable(traced, name)}
    reached = {dep.target.module for dep, _ in group_members(traced, free).values()}
    return [n for n, m in traced.model.named_modules() if isinstance(m, NORMS) and m in reached]


def prune(model: nn.Module, plan: PrunePlan, example: Batch) -> nn.Module:
    """A smaller copy of the model without the plan's units.

    In evaluation mode the result equals the model under `mask`.

    Parameters
    ----------
    model
        Left as it was.
    plan
        Indices of the model given, for all layers at once; coupled layers lose the union of their
        units. Those of an attention are heads. An empty plan gives a copy.
    example
        One batch as the model takes it.

    Returns
    -------
    torch.nn.Module
        Training mode and ``requires_grad`` are kept; hooks and gradients are not copied.

    Raises
    ------
    PruneError
        For a layer that does not exist or cannot be cut, a unit out of range, a layer that would
        be emptied, a model that torch-pruning cannot trace, and a result whose output differs from
        that of the masked model.
    ModelError
        If the model cannot be copied or does not run on the example.

    Notes
    -----
    Cost: a copy of the model and a few forward passes.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> small = prune(model, PrunePlan({"0": (1, 5)}, requested=2), torch.zeros(1, 4))
    >>> small[0].out_features, model[0].out_features
    (6, 8)
    """
    if not any(plan.units.values()):
        return copy_without_hooks(model)
    traced = _trace_for(model, plan, example)
    units = planned_units(model, plan, traced.n_heads)
    _check_cuttable(traced, units)
    _cut_units(traced, units)
    for (_, new), (_, old) in zip(
        traced.model.named_parameters(), model.named_parameters(), strict=True
    ):
        new.requires_grad_(old.requires_grad)
    for new_module, old_module in zip(traced.model.modules(), model.modules(), strict=True):
        new_module.training = old_module.training
    if isinstance(traced.graph, PairGraph):
        traced.graph.headwise.remove()
    return traced.model


def _check_cuttable(traced: TracedModel, units: Units) -> None:
    """Raise PruneError with the layers that cannot be cut, by reason."""
    names: dict[str, list[str]] = {}
    for name in units:
        names.setdefault(why_not_prunable(traced, name), []).append(name)
    names.pop("", None)
    listed = [
        f"layer{'s' if len(own) > 1 else ''} {format_ids(map(repr, own))} cannot be cut: {why}"
        for why, own in names.items()
    ]
    if listed:
        raise PruneError("; ".join(listed), where="plan", fix=f"leave it out, or {MASK_HINT}")


def _trace_for(model: nn.Module, plan: PrunePlan, example: Batch) -> TracedModel:
    """Trace a model; names that no model of its kind can have are an error before that."""
    modules = dict(model.named_modules())
    unknown = unknown_layers(model, [name for name in plan.units if name not in modules])
    raise_all(PruneError, unknown, where="plan")
    return trace(model, example)


def mask(model: nn.Module, plan: PrunePlan, example: Batch) -> MaskHandle:
    """Silence the plan's units on the model given, until the handle is removed.

    The units' channels are zeroed at the input of every layer that reads them, so that the model
    computes what `prune` would give.

    Parameters
    ----------
    model
        Gets hooks; its weights are not changed.
    plan
        As in `prune`.
    example
        One batch as the model takes it.

    Returns
    -------
    MaskHandle
        Removes the mask. Its ``at_output`` names the layers that are masked at their own output.

    Raises
    ------
    PruneError
        For a layer that does not exist, a unit out of range and an emptied layer.
    ModelError
        If the model cannot be copied or does not run on the example.

    Notes
    -----
    Where torch-pruning cannot trace the model, or the layer cannot be cut, the units are zeroed at
    the layer's own output instead. This is not the same: what follows, such as a batch norm or a
    bias, still turns the zeros into constants, and coupled layers are not touched.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> plan, x = PrunePlan({"0": (1, 5)}, requested=2), torch.ones(1, 4)
    >>> small = prune(model, plan, x)
    >>> with mask(model, plan, x):
    ...     torch.allclose(model(x), small(x))
    True
    """
    if not any(plan.units.values()):
        return MaskHandle([])
    try:
        traced = _trace_for(model, plan, example)
    except PruneError:
        units = planned_units(model, plan)
        check_not_emptied(model, units)
        return zero_outputs(model, units)
    units = planned_units(model, plan, traced.n_heads)
    check_not_emptied(model, units, traced.n_heads)
    at_output = {name: idxs for name, idxs in units.items() if why_not_prunable(traced, name)}
    exact = {name: idxs for name, idxs in units.items() if name not in at_output}
    producers, consumers = split_sides(group_members(traced, exact))
    check_not_emptied(model, producers)
    handle = MaskHandle([use_headwise(model)] if traced.heads.keys() & exact.keys() else [])
    return handle + zero_inputs(model, consumers) + zero_outputs(model, at_output)


def apply_plan(model: nn.Module, plan: PrunePlan, example: Batch, *, mode: PruneMode) -> nn.Module:
    """Return a copy of the model without the planned units: removed, or silenced by masks."""
    if mode == "remove":
        return prune(model, plan, example)
    masked = copy_model(model)
    mask(masked, plan, example)
    return masked


def rebuild(
    model: nn.Module,
    plan: PrunePlan,
    example: Batch,
    state: Mapping[str, Tensor],
    *,
    mode: PruneMode = "remove",
) -> nn.Module:
    """The pruned model from an unpruned one of the same constructor, the plan and the weights.

    Parameters
    ----------
    model
        As its constructor makes it; left as it was.
    plan, example
        As in `prune`.
    state
        The state dictionary of the pruned model.
    mode
        How the units were pruned: ``"remove"`` or ``"mask"``.

    Returns
    -------
    torch.nn.Module
        The pruned model with these weights.

    Raises
    ------
    ModelError
        Naming the tensors that do not fit.
    PruneError
        As `prune`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> plan, x = PrunePlan({"0": (1, 5)}, requested=2), torch.ones(1, 4)
    >>> small = prune(model, plan, x)
    >>> torch.equal(rebuild(model, plan, x, small.state_dict())(x), small(x))
    True
    """
    pruned = apply_plan(model, plan, example, mode=mode)
    fit_weights(pruned, state, where="pruned model")
    return pruned


def size(model: nn.Module, example: Batch) -> Size:
    """Parameters, and multiply-adds of one sample: ``Σ outputs × weights per output``.

    Parameters
    ----------
    model
        Left as it was.
    example
        One batch as the model takes it.

    Returns
    -------
    Size
        Tied parameters count once. Multiply-adds are those of the Linear and convolution modules
        that run on the example, and of the projections of ``nn.MultiheadAttention``; biases,
        norms, activations, attention products and recurrent cells are not counted.

    Raises
    ------
    ModelError
        If the model cannot be copied or does not run on the example.

    Examples
    --------
    >>> size(nn.Linear(4, 8), torch.zeros(2, 4))
    Size(parameters=40, macs=32)
    """
    work = copy_without_hooks(model).eval()
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, _ConvTransposeNd):
            total += args[0].numel() * module.weight.numel() // module.in_channels
        elif isinstance(module, _ConvNd):
            total += output.numel() * module.weight.numel() // module.out_channels
        else:
            total += output.numel() * n_inputs(module)

    def count_attention(
        module: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor], output: object
    ) -> None:
        nonlocal total
        total += projection_macs(module, args, named)

    use_headwise(work)
    for module in work.modules():
        if has_units(module):
            module.register_forward_hook(count)
        elif isinstance(module, HeadwiseAttention):
            module.register_forward_hook(count_attention, with_kwargs=True)
    run(work, example)
    first = example if isinstance(example, Tensor) else next(iter(example.values()))
    return Size(parameters=sum(p.numel() for p in model.parameters()), macs=total // len(first))


def _cut_units(traced: TracedModel, units: Units) -> None:
    """Cut the units from the traced copy and verify the result; its graph is of no use then."""
    members = group_members(traced, units)
    producers, consumers = split_sides(members)
    check_not_emptied(traced.model, producers)
    check_not_emptied(traced.model, units, traced.n_heads)
    if has_influence(traced, producers, consumers):
        raise PruneError(
            f"units of {format_ids(producers)} reach the output past {format_ids(consumers)}",
            fix=MASK_HINT,
        )
    with zero_inputs(traced.model, consumers):
        expected = run(traced.model, traced.example)
    before = {name: n_units(traced.model.get_submodule(name)) for name in producers}
    for dep, idxs in members.values():
        _cut(traced, dep, sorted(idxs))
    widths = {n: before[n] - len(producers[n]) for n in before}
    heads = [(h, h.count - len(units[n])) for n, h in traced.heads.items() if n in units]
    if not heads:
        _check_cut(traced, expected, widths)
        return
    _resize_attentions(traced, heads, partial(_check_cut, traced, expected, widths))


def _resize_attentions(
    traced: TracedModel, heads: list[tuple[Heads, int]], check: Callable[[float], None]
) -> None:
    """Tell the attentions how many heads are left, in the first way that gives the right output;
    exactly, or else within the tolerance: other numbers in a module may be equal to that of heads.
    """
    failure = PruneError("no way was tried")
    ways = list(head_settings(traced.model, heads))
    for precision, settings in itertools.product((0.01, 1.0), ways):
        before = [(module, name, vars(module)[name]) for module, name, _ in settings]
        for module, name, value in settings:
            setattr(module, name, value)
        try:
            check(precision)
        except PruneError as error:
            failure = error
            for module, name, value in before:
                setattr(module, name, value)
        else:
            return
    raise failure


def _cuttable(model: nn.Module, example: Batch, names: list[str], *, trains: bool) -> list[str]:
    """The layers of which a trial cut works; trains: whether the whole model runs in training."""
    if not names or _trial_cut_works(model, example, names, trains=trains):
        return names
    if len(names) == 1:
        return []
    half = len(names) // 2
    parts = (names[:half], names[half:])
    return [n for part in parts for n in _cuttable(model, example, part, trains=trains)]


def _trial_cut_works(model: nn.Module, example: Batch, names: list[str], *, trains: bool) -> bool:
    """Whether a trial cut of these layers works (constant slices and views only show there)."""
    traced = trace(model, example)
    units = {n: sample_units(traced.n_units(n)) for n in names}
    try:
        _cut_units(traced, units)
    except PruneError:
        return False
    return not trains or _runs_in_training(traced.model, example)


def _runs_in_training(model: nn.Module, example: Batch) -> bool:
    """Whether a copy runs in training mode, where auxiliary outputs may read other layers."""
    twice = (
        {k: torch.cat([v, v]) for k, v in example.items()}
        if isinstance(example, dict)
        else torch.cat([example, example])
    )
    try:
        with temp_seed(0, "training mode"):
            run(copy_without_hooks(model).train(), twice)
    except ModelError:
        return False
    return True


def _cut(traced: TracedModel, dep: Any, idxs: list[int]) -> None:
    target, result = dep.target.module, dep(idxs)
    if isinstance(target, nn.Parameter):  # a parameter of its own is replaced, not changed
        path, _, leaf = traced.parameters[id(target)].rpartition(".")
        setattr(traced.model.get_submodule(path), leaf, result)


def _check_cut(
    traced: TracedModel, expected: Tensor, widths: dict[str, int], precision: float = 1.0
) -> None:
    """Compare the request with the result: number of units, shapes and output.

    precision: factor of the tolerance.
    """
    wrong = [n for n, w in widths.items() if n_units(traced.model.get_submodule(n)) != w]
    if wrong:
        raise PruneError(
            f"torch-pruning did not cut the units of {format_ids(wrong)}", fix=MASK_HINT
        )
    try:
        got = run(traced.model, traced.example)
    except ModelError as error:
        raise PruneError(f"the pruned model does not run: {error.what}", fix=MASK_HINT) from error
    # Leaves room for other summation order and for TF32; a wrong channel moves the output more.
    limit = precision * (0.01 if torch.finfo(got.dtype).bits >= 32 else 0.1)
    gap = (got - expected).abs().max()
    if gap > limit * expected.abs().max() + 1e-6:
        raise PruneError(
            f"the pruned model's output differs by {gap:.2g} from the masked model's",
            fix=MASK_HINT,
        )
