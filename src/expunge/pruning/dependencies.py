"""What has to be cut together with a unit, by torch-pruning's dependency graph, and whether it can.

torch-pruning (Fang et al., DepGraph, arXiv 2301.12900) names the parameters that depend on a unit.
It treats every operation that it does not know as element-wise, so its groups are verified: with
the consumers masked, a perturbation of the cut units must not change the model's output.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from expunge.data import Batch
from expunge.errors import ModelError, PruneError, format_ids
from expunge.models.architecture import has_batch_norm, is_transformer, tied_weights
from expunge.models.calls import (
    FORWARD_ERRORS,
    device_of,
    eval_mode,
    logits_of,
    to_device,
    unfused_attention,
)
from expunge.models.copying import copy_model
from expunge.models.initialisation import is_partly_frozen
from expunge.models.inspection import is_weight_layer
from expunge.pruning.attention_heads import Heads
from expunge.pruning.hidden_pairs import NoReader, PairGraph, pair_graph
from expunge.pruning.layer_units import Units, has_units, is_depthwise, n_units, sample_units
from expunge.pruning.masks import perturb_units, zero_inputs

if TYPE_CHECKING:
    import torch_pruning as tp

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
PASSTHROUGH = (*NORMS, nn.PReLU, nn.Parameter)  # what may lie between units and their consumers
MASK_HINT = 'mask the units instead of cutting them: mode = "mask"'
# Hooks that make a layer's weight of other parameters: part of what the layer computes.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# The parameters that are cut together: {(module, side): (torch-pruning's dependency, indices)}.
Members: TypeAlias = dict[Any, tuple[Any, set[int]]]


@dataclass(frozen=True)
class TracedModel:
    """A copy of a model in evaluation mode, all parameters trainable, with its dependency graph.

    parameters: names of the parameters by ``id``. frozen: ``id`` of those that do not require
    gradients in the model; none if that holds for all.
    """

    model: nn.Module
    graph: tp.DependencyGraph | PairGraph
    example: Batch
    parameters: dict[int, str]
    frozen: frozenset[int]

    @property
    def heads(self) -> dict[str, Heads]:
        """The attentions whose heads can be cut, by name."""
        return self.graph.heads if isinstance(self.graph, PairGraph) else {}

    @property
    def read_units(self) -> dict[str, Heads]:
        """The layers whose units one other layer alone reads, by name, with units as heads."""
        return self.graph.units_as_heads() if isinstance(self.graph, PairGraph) else {}

    @property
    def n_heads(self) -> dict[str, int]:
        """Their numbers of heads."""
        return {name: heads.count for name, heads in self.heads.items()}

    def n_units(self, name: str) -> int:
        """Number of units of a layer, or of heads of an attention."""
        return self.n_heads.get(name) or n_units(self.model.get_submodule(name))


def trace(model: nn.Module, example: Batch) -> TracedModel:
    """Copy a model and build its dependency graph.

    Raises
    ------
    ModelError
        If the model cannot be copied or does not run on the example.
    PruneError
        If torch-pruning cannot trace it.
    """
    work = copy_without_hooks(model).eval()
    is_partly = is_partly_frozen(work)
    frozen = frozenset(id(p) for p in work.parameters() if is_partly and not p.requires_grad)
    work.requires_grad_(True)
    example = to_device(example, device_of(work))
    run(work, example)  # the model's own errors first
    names = {id(p): n for n, p in work.named_parameters()}
    if is_cut_inside_blocks(work):
        return TracedModel(work, pair_graph(work, example, model), example, names, frozen)
    import torch_pruning as tp

    graph = tp.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad(), _plain_instance_norms(work):
            warnings.simplefilter("ignore")
            graph.build_dependency(work, example, forward_fn=logits_of, verbose=False)
    except FORWARD_ERRORS as error:
        raise PruneError(
            f"torch-pruning cannot trace the model: {type(error).__name__}: {error}", fix=MASK_HINT
        ) from error
    return TracedModel(work, graph, example, names, frozen)


def is_cut_inside_blocks(model: nn.Module) -> bool:
    """Whether only units inside residual blocks are cut: those that layers share are of one block,
    as in a gated MLP.
    """
    return is_transformer(model) and not has_batch_norm(model)


@contextmanager
def _plain_instance_norms(model: nn.Module) -> Iterator[None]:
    """In this block, instance norms are one element-wise operation.

    They reshape their input, which torch-pruning takes for a flattening of channels.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.instancenorm._InstanceNorm)]
    for norm in norms:
        norm.forward = torch.neg  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def check_hooks(model: nn.Module, example: Batch) -> None:
    """Refuse a model whose output its own hooks change: a cut copy has none.

    Raises
    ------
    PruneError
        If the model gives another output than a copy without hooks.
    """
    hooks = [
        hook
        for module in model.modules()
        for kind in _HOOKS[:2]
        for hook in getattr(module, kind).values()
        if not isinstance(hook, _WEIGHT_HOOKS)
        and not getattr(hook, "__module__", "").startswith("expunge.")
    ]
    if not hooks:
        return
    expected = run(copy_without_hooks(model).eval(), example)
    with eval_mode(model):
        got = run(model, example)
    if not torch.allclose(got, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise PruneError(
            "hooks of the model change its output, and a cut model has none",
            where="model",
            fix="put what the hooks do into modules of their own",
        )


def run(model: nn.Module, example: Batch) -> Tensor:
    """The logits of an example; ModelError if the model does not run on it."""
    example = to_device(example, device_of(model))
    try:
        with torch.no_grad(), unfused_attention():
            return logits_of(model, example)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model does not run on the example: {type(error).__name__}: {error}",
            fix="give one batch as the model takes it",
        ) from error


def copy_without_hooks(model: nn.Module) -> nn.Module:
    """A copy without hooks: those of the caller (or of a mask) must not run here."""
    work = copy_model(model)
    for module in work.modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            for key in [k for k, hook in hooks.items() if not isinstance(hook, _WEIGHT_HOOKS)]:
                del hooks[key]
    return work


def group_members(traced: TracedModel, units: Units) -> Members:
    """All parameters that are cut with these units, with original indices.

    Every group is computed on the uncut graph and the indices are united, so that each tensor is
    cut once.
    """
    merged: Members = {}
    for name, wanted in units.items():
        layer = traced.model.get_submodule(name)
        side = traced.graph.get_pruner_of_module(layer).prune_out_channels
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Maximum recursive depth")  # of recurrent networks
            group = traced.graph.get_pruning_group(layer, side, wanted)
        for dep, idxs in group:
            key = (id(dep.target.module), dep.handler)
            merged.setdefault(key, (dep, set()))[1].update(idxs)
    return merged


def split_sides(members: Mapping[Any, tuple[Any, set[int]]]) -> tuple[Units, Units]:
    """Layers that are cut at their output (producers) and at their input (consumers), by name."""
    producers: Units = {}
    consumers: Units = {}
    for dep, idxs in members.values():
        module = dep.target.module
        if has_units(module) and not is_depthwise(module):
            side = producers if _is_producer(dep) else consumers
            side[dep.target._name] = sorted(idxs)
    return producers, consumers


def _is_producer(dep: Any) -> bool:
    return bool(dep.handler.__name__ == "prune_out_channels")


def has_influence(traced: TracedModel, producers: Units, consumers: Units) -> bool:
    """Whether the units change the output although the channels of all consumers are zero."""
    with zero_inputs(traced.model, consumers):
        reference = run(traced.model, traced.example)
        with perturb_units(traced.model, producers):
            perturbed = run(traced.model, traced.example)
    return not torch.allclose(reference, perturbed, rtol=1e-4, atol=1e-6, equal_nan=True)


def why_not_prunable(traced: TracedModel, name: str) -> str:
    """Why a layer's output units, or an attention's heads, cannot be cut; empty if they can."""
    layer = traced.model.get_submodule(name)
    width = traced.n_units(name)
    if layer not in traced.graph.module2node:
        return "it takes no part in the forward pass"
    if width < 2:
        return "it has a single unit"
    sample = sample_units(width)
    try:
        members = group_members(traced, {name: sample})
        tied = set(tied_weights(traced.model))
        for dep, idxs in members.values():
            if name in traced.heads:
                why = _unsupported_layer(dep.target.module, dep.target._name, tied)
            else:
                why = _unsupported_member(dep, sorted(idxs) == sample, width, tied)
            if why:
                return why
        influence = has_influence(traced, *split_sides(members))
    except FORWARD_ERRORS as error:
        return _why_no_group(traced.model, error)
    except PruneError as error:
        return f"torch-pruning finds a wrong group for it ({error.what})"
    return "its units reach the output on a path that torch-pruning misses" if influence else ""


def touches_frozen(traced: TracedModel, name: str) -> bool:
    """Whether a cut of the layer's units would change a frozen parameter."""
    if not traced.frozen:
        return False
    for dep, _ in group_members(traced, {name: [0]}).values():
        module = dep.target.module
        own = [module] if isinstance(module, nn.Parameter) else module.parameters()
        if any(id(p) in traced.frozen for p in own):
            return True
    return False


def _why_no_group(model: nn.Module, error: Exception) -> str:
    modules = model.named_modules()
    recurrent = [f"'{k}' ({type(m).__name__})" for k, m in modules if isinstance(m, nn.RNNBase)]
    if recurrent:
        return f"its units go into {format_ids(recurrent)}, which is recurrent and cannot be cut"
    if isinstance(error, NoReader):
        return str(error)
    return f"torch-pruning finds no group for it ({type(error).__name__}: {error})"


def _unsupported_member(dep: Any, same: bool, width: int, tied: set[int]) -> str:
    """Why a member of a layer's group forbids the cut; empty if it does not.

    same: whether its indices are those of the layer. width: of the layer. tied: parameters.
    """
    import torch_pruning as tp

    module, name = dep.target.module, dep.target._name
    is_layer = has_units(module)
    is_consumer = is_layer and not is_depthwise(module) and not _is_producer(dep)
    if not dep.target.outputs and not is_consumer:
        return "it makes the logits"
    if not is_layer:
        known = isinstance(module, PASSTHROUGH) or type(module).__module__ == tp.ops.__name__
        is_supported = known or not list(module.parameters())
        return "" if is_supported else f"its units go into '{name}' ({type(module).__name__})"
    if isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module):
        return f"'{name}' is a grouped convolution"
    if why := _unsupported_layer(module, name, tied):
        return why
    if is_consumer or is_depthwise(module):
        return ""
    index_for_index = same and is_weight_layer(module) and n_units(module) == width
    return "" if index_for_index else f"its units are tied to several units of '{name}'"


def _unsupported_layer(module: nn.Module, name: str, tied: set[int]) -> str:
    """Why a layer's own weights forbid the cut; empty if they do not."""
    if has_units(module) and "weight" not in dict(module.named_parameters(recurse=False)):
        plain = "torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        return f"'{name}' is re-parametrised" + (f" ({plain})" if is_parametrized(module) else "")
    if any(id(p) in tied for p in module.parameters()):
        return f"'{name}' shares its weights with another layer"
    return ""
