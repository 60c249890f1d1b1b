"""Which channels of which layers belong to each head of an attention, found by perturbation.

The queries, keys and values of a head change the channels of that head, and no others, in front of
the layer that reads the attention's output. Which rows of the layers that write them are theirs
shows in the channels that change. A gated MLP of which one layer writes gates and values is alike:
each hidden unit is a head of one channel, with two rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.models.calls import FORWARD_ERRORS, logits_of, unfused_attention
from expunge.pruning.layer_units import n_inputs, n_units
from expunge.pruning.multihead import HeadwiseAttention

# Queries, keys, values, and a layer that makes a bias for each head.
_MAX_WRITERS = 4


@dataclass(frozen=True)
class Heads:
    """The heads of one attention, or the hidden units of one gated MLP.

    Parameters
    ----------
    attention
        Name of the smallest module that holds the layers; its units are the heads.
    count
        Number of heads that can be cut apart; heads that share keys and values are one.
    width
        Channels of each of them in front of the reader.
    n_queries
        Number of heads of queries.
    reader
        Name of the layer that reads the heads.
    rows
        For each layer that writes queries, keys or values: the rows of each head. Empty for
        `HeadwiseAttention`, which holds them as one parameter.
    """

    attention: str
    count: int
    width: int
    n_queries: int
    reader: str
    rows: Mapping[str, tuple[tuple[int, ...], ...]]

    def channels(self, heads: Sequence[int]) -> list[int]:
        """The channels of some heads in front of the reader."""
        return [c for h in heads for c in range(h * self.width, (h + 1) * self.width)]


def find_heads(
    model: nn.Module,
    example: Batch,
    called: Sequence[nn.Module],
    inputs: Mapping[nn.Module, Tensor],
) -> dict[str, Heads]:
    """Find the attentions whose heads can be cut, by name.

    Parameters
    ----------
    model
        In evaluation mode; torch's own attentions compute head by head.
    example
        One batch, on the model's device.
    called, inputs
        The linear layers that run once, in order, and their inputs.

    Notes
    -----
    Cost: about ten passes through a part of the model for each kind of attention. Attentions whose
    layers have equal sizes, and equal names but for numbers, are of one kind.
    """
    names = {m: n for n, m in model.named_modules()}
    found = [_own_heads(n, m) for m, n in names.items() if isinstance(m, HeadwiseAttention)]
    known: dict[object, _Structure | None] = {}
    for position, reader in enumerate(called):
        before = called[max(0, position - _MAX_WRITERS) : position]
        if not _may_be_attention(before, reader, inputs):
            continue
        layers = (*before, reader)
        path = [names[m] for m in layers]
        kind = tuple((re.sub(r"\d+", "#", names[m]), n_units(m)) for m in layers)
        if kind not in known:
            known[kind] = _measure(model, example, path)
        structure = known[kind]
        if structure is not None:
            found.append(structure.named(path))
    attentions = [heads.attention for heads in found]
    # A module with two attentions has no name for the heads of one.
    return {h.attention: h for h in found if h.attention and attentions.count(h.attention) == 1}


def _own_heads(name: str, module: HeadwiseAttention) -> Heads:
    n, width = module.num_heads, module.head_dim
    return Heads(name, n, width, n, f"{name}.out_proj", {})


def _may_be_attention(
    before: Sequence[nn.Module], reader: nn.Module, inputs: Mapping[nn.Module, Tensor]
) -> bool:
    """Whether layers before the reader may write queries, keys and values, or gates and values: one
    layer all of them, or two layers with one input."""
    if any(n_units(m) in (2 * n_inputs(reader), 3 * n_inputs(reader)) for m in before):
        return True
    read = [inputs[m] for m in before]
    return any(
        a.shape == b.shape and torch.equal(a, b) for k, a in enumerate(read) for b in read[:k]
    )


@dataclass(frozen=True)
class _Structure:
    """The heads of a kind of attention; rows: by the position of the writer before the reader."""

    count: int
    width: int
    n_queries: int
    rows: Mapping[int, tuple[tuple[int, ...], ...]]

    def named(self, path: Sequence[str]) -> Heads:
        """The heads of the attention with these layers, the reader last."""
        rows = {path[k]: of_heads for k, of_heads in self.rows.items()}
        name = _common_module([*rows, path[-1]])
        return Heads(name, self.count, self.width, self.n_queries, path[-1], rows)


def _common_module(names: Sequence[str]) -> str:
    """The smallest module that holds all these modules; empty for the model itself."""
    columns = zip(*(n.split(".") for n in names), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, columns)
    return ".".join(parts[0] for parts in shared)


def _measure(model: nn.Module, example: Batch, path: Sequence[str]) -> _Structure | None:
    """The heads in front of a reader, the last of the path; None if there are no two."""
    *before, reader = path
    probe = _Probe(model, example, tuple(before), reader)
    moved = {k: m for k in range(len(before)) if (m := probe.moved(k, [0])) is not None}
    moved = {k: m for k, m in moved.items() if 0 < len(m) < probe.width}
    width = max((m[-1] + 1 for m in moved.values()), default=0)
    # A row of the values moves one channel.
    single = [len(m) for m in moved.values() if min(width, 2) <= len(m) == m[-1] + 1]
    if not single:
        return None
    count = probe.width // width
    if width * count != probe.width:
        return None
    rows = {k: _rows(probe, k, count) for k in moved}
    found = {k: r for k, r in rows.items() if r is not None}
    if len(found) < len(moved) or (width == 1 and any(len(r[0]) == 1 for r in found.values())):
        return None  # a unit of several layers, one row of each, is no head
    return _Structure(count, width, probe.width // min(single), found)


def _rows(probe: _Probe, writer: int, count: int) -> tuple[tuple[int, ...], ...] | None:
    """The rows of each head: one run of rows, or one in each half or third of the layer."""
    n = n_units(probe.layer(writer))
    width = probe.width // count
    for parts in (1, 2, 3):
        if n % (parts * count):
            continue
        index = torch.arange(n).view(parts, count, -1)
        rows = tuple(tuple(index[:, h].flatten().tolist()) for h in range(count))
        ends = (0, count - 1)
        found = [probe.moved(writer, rows[h]) for h in ends]
        if all(m and {c // width for c in m} == {h} for h, m in zip(ends, found, strict=True)):
            return rows
    return None


class _Reached(Exception):
    """The reader was reached: the rest of the forward pass tells nothing."""


class _Probe:
    """Which inputs of a reader change with some rows of the layers before it.

    The outputs of all these layers are random, so that the answer depends on the code of the
    attention and not on the weights.
    """

    def __init__(
        self, model: nn.Module, example: Batch, before: tuple[str, ...], reader: str
    ) -> None:
        self._model, self._example, self._before, self._reader = model, example, before, reader
        self.width = n_inputs(model.get_submodule(reader))
        self._base = self._input()

    def layer(self, position: int) -> nn.Module:
        return self._model.get_submodule(self._before[position])

    def moved(self, position: int, rows: Sequence[int]) -> list[int] | None:
        """The channels that change with these rows of one layer; None if the pass fails."""
        got = self._input(self._before[position], rows)
        if got is None or self._base is None or got.shape != self._base.shape:
            return None
        changes = (got - self._base).abs().flatten(0, -2).amax(dim=0) > 0
        return list(changes.nonzero().flatten().tolist())

    def _input(self, changed: str = "", rows: Sequence[int] = ()) -> Tensor | None:
        found: list[Tensor] = []

        def reach(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0].detach().clone())
            raise _Reached

        with _random_outputs(self._model, self._before, changed, rows):
            handle = self._model.get_submodule(self._reader).register_forward_pre_hook(reach)
            try:
                with torch.no_grad(), unfused_attention():
                    logits_of(self._model, self._example)
            except _Reached:
                pass
            except FORWARD_ERRORS:
                return None
            finally:
                handle.remove()
        return found[0] if found else None


@contextmanager
def _random_outputs(
    model: nn.Module, names: Sequence[str], changed: str, rows: Sequence[int]
) -> Iterator[None]:
    """Replace the outputs of layers by random numbers, with other ones in some rows of one."""

    def draw(seed: int, like: Tensor) -> Tensor:
        numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
        return numbers.to(like)

    def hook(seed: int, own: Sequence[int]) -> object:
        def replace(_: nn.Module, __: object, output: Tensor) -> Tensor:
            numbers = draw(seed, output)
            if own:
                index = torch.tensor(own, device=output.device)
                numbers[..., index] = draw(-1 - seed, output)[..., index]
            return numbers

        return replace

    handles = [
        model.get_submodule(n).register_forward_hook(hook(k, rows if n == changed else ()))  # type: ignore[arg-type]
        for k, n in enumerate(names)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -------------------------------------------------------------------------- cutting an attention


def cut_head_tensors(model: nn.Module, heads: Heads, cut: Sequence[int]) -> None:
    """Remove some heads, in place, from the parameters that have a dimension for them: biases by
    relative position, scales. Layers and norms are left."""
    left = [h for h in range(heads.count) if h not in set(cut)]
    group = heads.n_queries // heads.count
    kept = {
        heads.count: left,
        heads.n_queries: [q for h in left for q in range(h * group, (h + 1) * group)],
    }
    for module in _inner_modules(model, heads):
        owned: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in owned:
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                dims = [d for d, n in enumerate(tensor.shape) if n in kept]
                if len(dims) != 1:
                    continue
                index = torch.tensor(kept[tensor.shape[dims[0]]], device=tensor.device)
                new = tensor.detach().index_select(dims[0], index)
                is_weight = isinstance(tensor, nn.Parameter)
                tensors[name] = nn.Parameter(new, tensor.requires_grad) if is_weight else new


def head_settings(
    model: nn.Module, cut: Sequence[tuple[Heads, int]]
) -> Iterator[list[tuple[nn.Module, str, int]]]:
    """What the modules of attentions may have to know after a cut, the likeliest first.

    Parameters
    ----------
    model
        With cut layers.
    cut
        Attentions with the number of heads that are left.

    Yields
    ------
    list
        Attributes ``(module, name, value)`` that hold a number of heads or of their channels.
    """
    counts: list[tuple[nn.Module, str, int]] = []
    widths: list[tuple[nn.Module, str, int]] = []
    inputs: list[tuple[nn.Module, str, int]] = []
    for heads, left in cut:
        group = heads.n_queries // heads.count
        sizes = {heads.count: left, heads.n_queries: left * group}
        total, new = heads.count * heads.width, left * heads.width
        for module in _inner_modules(model, heads):
            for name, value in vars(module).items():
                if type(value) is not int:
                    continue
                if value in sizes and not re.search("dim|size|idx|index|len", name):
                    counts.append((module, name, sizes[value]))
                elif value == total:
                    is_input = re.search("embed|hidden|dim|in_", name)
                    (inputs if is_input else widths).append((module, name, new))
    yield counts + widths
    yield counts
    yield counts + widths + inputs
    yield []


def _inner_modules(model: nn.Module, heads: Heads) -> list[nn.Module]:
    """The modules of an attention but the layers that write and read its heads, and norms."""
    layers = [model.get_submodule(n) for n in (*heads.rows, heads.reader)]
    return [
        m
        for m in model.get_submodule(heads.attention).modules()
        if m not in layers and "norm" not in type(m).__name__.lower()
    ]
