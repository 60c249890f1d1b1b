"""Which hidden units of a transformer are cut together, found by perturbing them.

A transformer's blocks are residual, so that only units inside a block can be cut: the heads of an
attention, and those of layers that alone write the input of the next one, as in an MLP. They are
found without a graph of operations: unit j of a layer is changed, and no other channel of the
reader's input may change. Depthwise convolutions between the two are cut with them. `PairGraph`
answers as torch-pruning's dependency graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from expunge.data import Batch
from expunge.models.architecture import is_transposed_linear
from expunge.models.calls import FORWARD_ERRORS, logits_of, unfused_attention, used_parameters
from expunge.pruning.attention_heads import Heads, cut_head_tensors, find_heads
from expunge.pruning.layer_units import (
    channel_dim,
    has_units,
    is_dense,
    is_depthwise,
    n_inputs,
    n_units,
    sample_units,
)
from expunge.pruning.masks import perturb_units
from expunge.pruning.multihead import Headwise, cut_heads, use_headwise

# A layer's units are read by one of the next few linear layers; a gated MLP has two before it.
_MAX_DISTANCE = 3
# Of the largest change: another memory layout rounds the same values in another way.
_ROUNDING = 1e-5


def prune_out_channels(layer: nn.Module, idxs: list[int]) -> nn.Module:
    """Remove output units of a layer, or channels of a depthwise convolution, in place."""
    kept, is_depthwise_before = _kept(n_units(layer), idxs), is_depthwise(layer)
    _select(layer, "weight", kept, dim=1 if is_transposed_linear(layer) else 0)
    if getattr(layer, "bias", None) is not None:
        _select(layer, "bias", kept, dim=0)
    _set_size(layer, ("out_features", "out_channels", "nf"), len(kept))
    if is_depthwise_before:
        _set_size(layer, ("in_channels", "groups"), len(kept))
    return layer


def prune_in_channels(layer: nn.Module, idxs: list[int]) -> nn.Module:
    """Remove inputs of a layer, in place."""
    kept = _kept(n_inputs(layer), idxs)
    _select(layer, "weight", kept, dim=0 if is_transposed_linear(layer) else 1)
    _set_size(layer, ("in_features", "in_channels", "nx"), len(kept))
    return layer


def _kept(width: int, idxs: Iterable[int]) -> list[int]:
    gone = set(idxs)
    return [k for k in range(width) if k not in gone]


def _select(layer: nn.Module, name: str, kept: list[int], *, dim: int) -> None:
    old: Tensor = getattr(layer, name)
    index = torch.tensor(kept, device=old.device)
    new = old.detach().index_select(dim, index).contiguous()
    setattr(layer, name, nn.Parameter(new, requires_grad=old.requires_grad))


def _set_size(layer: nn.Module, names: tuple[str, ...], size: int) -> None:
    for name in vars(layer).keys() & {*names}:
        setattr(layer, name, size)


class NoReader(LookupError):
    """A layer whose units no other layer alone reads."""


@dataclass(frozen=True)
class _Target:
    module: nn.Module
    _name: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Dependency:
    target: _Target
    handler: Callable[[nn.Module, list[int]], nn.Module]

    def __call__(self, idxs: list[int]) -> nn.Module:
        return self.handler(self.target.module, idxs)


@dataclass(frozen=True)
class PairGraph:
    """Layers of a model whose units one other layer alone reads, and attentions.

    Parameters
    ----------
    model
        The model.
    headwise
        Makes its attentions torch's own again.
    module2node
        The layers that run, and the attentions, with their names.
    readers
        For each layer whose units can be cut: the layers that hold the same units, and the one that
        reads them.
    heads
        The attentions whose heads can be cut, by name.
    """

    model: nn.Module
    headwise: Headwise
    module2node: dict[nn.Module, str]
    readers: dict[nn.Module, tuple[tuple[nn.Module, ...], nn.Module]] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)

    def get_pruner_of_module(self, layer: nn.Module) -> Any:
        """How a layer is cut, as torch-pruning says it."""
        return _Pruner

    def get_pruning_group(
        self, layer: nn.Module, side: object, idxs: list[int]
    ) -> Iterator[tuple[_Dependency, list[int]]]:
        """All layers that are cut with these units of a layer, or these heads of an attention."""
        heads = self.heads.get(self.module2node[layer])
        if heads is not None:
            yield from self._group_of_heads(layer, heads, idxs)
            return
        if layer not in self.readers:
            raise NoReader("no layer alone reads its units, or other operations mix them")
        writers, reader = self.readers[layer]
        for writer in writers:
            target = _Target(writer, self.module2node[writer], (self.module2node[reader],))
            yield _Dependency(target, prune_out_channels), list(idxs)
        yield _Dependency(_Target(reader, self.module2node[reader], ()), prune_in_channels), idxs

    def units_as_heads(self) -> dict[str, Heads]:
        """The units of each layer that one linear layer alone reads, as heads of one channel."""
        found = {}
        for layer, (_, reader) in self.readers.items():
            if isinstance(reader, _ConvNd):
                continue
            name, n = self.module2node[layer], n_units(layer)
            rows = {name: tuple((k,) for k in range(n))}
            found[name] = Heads(name, n, 1, n, self.module2node[reader], rows)
        return found

    def _group_of_heads(
        self, attention: nn.Module, heads: Heads, idxs: list[int]
    ) -> Iterator[tuple[_Dependency, list[int]]]:
        cut = cut_heads if not heads.rows else partial(_cut_tensors, self.model, heads)
        yield _Dependency(_Target(attention, heads.attention, (heads.reader,)), cut), list(idxs)
        for name, rows in heads.rows.items():
            target = _Target(self.model.get_submodule(name), name, (heads.reader,))
            own = sorted(row for h in idxs for row in rows[h])
            yield _Dependency(target, prune_out_channels), own
        reader = _Target(self.model.get_submodule(heads.reader), heads.reader, ())
        yield _Dependency(reader, prune_in_channels), heads.channels(sorted(idxs))


def _cut_tensors(
    model: nn.Module, heads: Heads, attention: nn.Module, idxs: list[int]
) -> nn.Module:
    cut_head_tensors(model, heads, idxs)
    return attention


class _Pruner:
    prune_out_channels = staticmethod(prune_out_channels)


def pair_graph(model: nn.Module, example: Batch, key: nn.Module) -> PairGraph:
    """Find the hidden units and the heads of a model that can be cut.

    Parameters
    ----------
    model
        In evaluation mode, without hooks. torch's own attentions compute head by head from now on.
    example
        One batch as the model takes it, on its device.
    key
        The model of which this one is a copy: in a block of `found_once` it is examined once.

    Notes
    -----
    Cost: a forward pass for each pair of layers that follow each other, a backward pass, and that
    of `find_heads`.
    """
    known, handle = _FOUND.get(), use_headwise(model)
    if known is not None and id(key) in known:
        return known[id(key)].graph(model, handle)
    names = {m: n for n, m in model.named_modules()}
    called, inputs = _calls(model, example)
    graph = PairGraph(model, handle, {m: names[m] for m in called})
    if len(called) != len(set(called)):
        called = [m for m in called if called.count(m) == 1]
    is_reached = _reached(model, example)
    called = [m for m in called if is_reached(m)]
    dense = [m for m in called if is_dense(m)]
    linear = [m for m in dense if not isinstance(m, _ConvNd)]
    heads = find_heads(model, example, linear, inputs)
    graph.heads.update(
        {n: h for n, h in heads.items() if is_reached(model.get_submodule(h.reader))}
    )
    graph.module2node.update({model.get_submodule(name): name for name in graph.heads})
    for position, reader in enumerate(dense):
        before = dense[max(0, position - _MAX_DISTANCE) : position]
        writers = tuple(
            writer
            for writer in before
            if n_units(writer) == n_inputs(reader)
            and n_units(writer) > 1
            and not _is_in_attention(model, names[writer])
            and _writes_alone(model, example, writer, reader, inputs)
        )
        for writer in writers:
            between = called[called.index(writers[0]) : called.index(reader)]
            same = (m for m in between if is_depthwise(m) and n_units(m) == n_units(writer))
            graph.readers[writer] = (*writers, *same), reader
    if known is not None:
        known[id(key)] = _Found.of(key, graph)
    return graph


@dataclass(frozen=True)
class _Found:
    """What a graph says, by names. It keeps the model, so that no other one takes its place."""

    model: nn.Module
    nodes: tuple[str, ...]
    readers: dict[str, tuple[tuple[str, ...], str]]
    heads: dict[str, Heads]

    @classmethod
    def of(cls, model: nn.Module, graph: PairGraph) -> _Found:
        names = graph.module2node
        readers = {
            names[layer]: (tuple(names[w] for w in writers), names[reader])
            for layer, (writers, reader) in graph.readers.items()
        }
        return cls(model, tuple(names.values()), readers, graph.heads)

    def graph(self, model: nn.Module, handle: Headwise) -> PairGraph:
        """The graph of another copy."""
        layer = model.get_submodule
        readers = {
            layer(name): (tuple(layer(w) for w in writers), layer(reader))
            for name, (writers, reader) in self.readers.items()
        }
        return PairGraph(
            model, handle, {layer(name): name for name in self.nodes}, readers, dict(self.heads)
        )


_FOUND: ContextVar[dict[int, _Found] | None] = ContextVar("_FOUND", default=None)


@contextmanager
def found_once() -> Iterator[None]:
    """In this block, a transformer that is traced again is not perturbed again.

    No model that is traced in it may change.
    """
    if _FOUND.get() is not None:
        yield
        return
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def _is_in_attention(model: nn.Module, name: str) -> bool:
    """Whether the module that holds a layer is an attention: its units belong to heads."""
    parent = type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
    return "attention" in parent or "attn" in parent


def _calls(model: nn.Module, example: Batch) -> tuple[list[nn.Module], dict[nn.Module, Tensor]]:
    """The layers of units in the order in which they are called, and their inputs."""
    called: list[nn.Module] = []
    inputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            called.append(module)
            inputs[module] = args[0].detach().clone()

    layers = [m for m in model.modules() if has_units(m)]
    handles = [m.register_forward_pre_hook(record) for m in layers]
    try:
        with torch.no_grad(), unfused_attention():
            logits_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return called, inputs


def _reached(model: nn.Module, example: Batch) -> Callable[[nn.Module], bool]:
    """Whether the logits depend on a layer."""
    with torch.enable_grad(), unfused_attention():
        used = used_parameters(logits_of(model, example), model.parameters())
    return lambda layer: any(id(p) in used for p in layer.parameters())


def _writes_alone(
    model: nn.Module,
    example: Batch,
    writer: nn.Module,
    reader: nn.Module,
    inputs: dict[nn.Module, Tensor],
) -> bool:
    """Whether units of the writer are, index for index, those channels of the reader's input."""
    found: list[Tensor] = []
    units = sample_units(n_units(writer))
    name = next(n for n, m in model.named_modules() if m is writer)
    handle = reader.register_forward_pre_hook(
        lambda _, args: found.append(args[0].detach().clone())
    )
    try:
        with torch.no_grad(), unfused_attention(), perturb_units(model, {name: units}):
            logits_of(model, example)
    except FORWARD_ERRORS:
        return False
    finally:
        handle.remove()
    if len(found) != 1 or found[0].shape != inputs[reader].shape:
        return False
    changes = (found[0] - inputs[reader]).abs().movedim(channel_dim(reader), -1)
    moved = changes.flatten(0, -2).amax(dim=0) > _ROUNDING * changes.max()
    others = torch.ones_like(moved)
    others[units] = False
    return bool(moved[units].any()) and not bool(moved[others].any())
