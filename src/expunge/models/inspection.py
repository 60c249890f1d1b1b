"""The layers of a model and how they follow each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expunge.data import Batch, Samples
from expunge.errors import ModelError
from expunge.models.architecture import is_leaf, is_transposed_linear
from expunge.models.calls import (
    FORWARD_ERRORS,
    device_of,
    eval_mode,
    first_tensor,
    raw_output,
    to_device,
    unfused_attention,
)

# Samples that are to reach a layer, where the first ones leave layers unused, see `inspect_model`.
_MAX_CHECKED = 256
_CHECKED_AT_ONCE = 16
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Layers that act on each channel by itself, so that a unit keeps its index through them.
_CHANNELWISE = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.LayerNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
# Layers that do not change what the pooled features describe.
_POOLING = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
)
# Functions that make probabilities of logits, or give them another shape.
_CONVERSIONS = {
    *("softmax", "log_softmax", "sigmoid"),
    *("squeeze", "unsqueeze", "flatten", "view", "reshape", "__getitem__"),
    *("float", "double", "to", "contiguous", "clone"),
}
# A tensor and how often it was changed in place: `x += y` makes another value of the same tensor.
Value = tuple[int, int]
# For every value, the layers that read it and the values that they return.
Readers = dict[Value, list[tuple[str, nn.Module, Value]]]


class _Call(NamedTuple):
    """One call of a layer: its first input, its output, and the output's first dimension."""

    name: str
    module: nn.Module
    source: Value
    output: Value
    n_rows: int


@dataclass(frozen=True)
class ModelLayout:
    """The layers of a model by their function.

    Parameters
    ----------
    head
        The linear layer that makes the logits, or what softmax, sigmoid and changes of the shape
        make the scores from; ``""`` if another operation does.
    readouts
        For every other weight layer, the layer that ends its chain of normalisation and
        activation; a unit has the same index in both.
    feature_layers
        Layers whose pooled output describes a sample, first to last: ends of such chains and
        outputs of residual blocks.
    tail
        The layers from the head backwards as long as each only reads the one before.
    blocks
        The blocks of a transformer, among the feature layers: each turns tokens ``[b, t, d]`` into
        as many of the same width.
    unused
        Weight layers that the example does not reach.
    """

    head: str
    readouts: Mapping[str, str]
    feature_layers: tuple[str, ...]
    tail: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def find_head(model: nn.Module, example: Batch, *, where: str = "", fix: str) -> str:
    """The name of the linear layer that makes the logits.

    Parameters
    ----------
    model, example
        As in `inspect_layers`.
    where, fix
        Of the error.

    Raises
    ------
    ModelError
        If no linear layer makes the logits.

    Examples
    --------
    >>> find_head(nn.Sequential(nn.Linear(4, 3)), torch.zeros(1, 4), fix="use another model")
    '0'
    """
    head = inspect_layers(model, example).head
    if not head:
        raise ModelError("no linear layer makes the logits", where=where, fix=fix)
    return head


def inspect_layers(model: nn.Module, example: Batch) -> ModelLayout:
    """Find the layers of a model by running it once on an example and following the tensors.

    Parameters
    ----------
    model
        Left as it was.
    example
        One batch as the model takes it.

    Returns
    -------
    ModelLayout
        Names as in ``named_modules``.

    Raises
    ------
    ModelError
        If the model returns no logits, or calls no linear or convolution layer.

    Notes
    -----
    Cost: one forward pass. A layer that is called more than once ends no chain.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> layout = inspect_layers(model, torch.zeros(1, 4))
    >>> layout.head, layout.readouts, layout.tail
    ('2', {'0': '1'}, ('0', '1', '2'))
    """
    calls, logits, blocks = _record_calls(model, example)
    leaves = [c for c in calls if is_leaf(c.module)]
    if not any(is_weight_layer(c.module) for c in leaves):
        raise ModelError(
            "no linear or convolution layer is called",
            fix="pass the network itself, not a wrapper; make layers of weights that the forward "
            "multiplies by (nn.Linear)",
        )
    makers = (c.name for c in leaves if isinstance(c.module, nn.Linear) and c.output == logits)
    head = next(makers, "")
    readouts, feature_layers = _readouts_and_features(calls, leaves, head, logits, blocks)
    by_sample = _layers_by_sample(model, example, calls)
    feature_layers = tuple(name for name in feature_layers if name in by_sample)
    return ModelLayout(
        head,
        {name: readout for name, readout in readouts.items() if readout in by_sample},
        feature_layers,
        _tail(head, leaves),
        tuple(name for name in feature_layers if name in blocks),
        _unused(model, calls),
    )


def inspect_model(model: nn.Module, samples: Samples) -> ModelLayout:
    """Find the layers of a model that give a row for each of some samples.

    As `inspect_layers` with the first samples. If they leave layers unused, as a mixture of experts
    does, experts, and layers that only some of more samples reach, are no readouts and no feature
    layers.

    Notes
    -----
    Cost: two forward passes of two samples; where layers are unused, up to 256 samples more.
    """
    layout = inspect_layers(model, samples.example())
    if not layout.unused:
        return layout
    n = min(_MAX_CHECKED, len(samples))
    rows = np.linspace(0, len(samples) - 1, n).round().astype(np.int64)
    experts = _experts(model, samples.example(), layout)
    used = {*layout.feature_layers, *layout.readouts.values()}
    used = {name for name in used if not f"{name}.".startswith(experts)}
    for part in np.array_split(rows, -(-n // _CHECKED_AT_ONCE)):
        try:
            calls = _record_calls(model, samples.batch(part))[0]
        except FORWARD_ERRORS:  # a network for batches of one size
            return layout
        used &= {c.name for c in calls} - {c.name for c in calls if c.n_rows != len(part)}
    return replace(
        layout,
        readouts={name: readout for name, readout in layout.readouts.items() if readout in used},
        feature_layers=tuple(name for name in layout.feature_layers if name in used),
        blocks=tuple(name for name in layout.blocks if name in used),
    )


def _experts(model: nn.Module, example: Batch, layout: ModelLayout) -> tuple[str, ...]:
    """Prefixes of the modules in lists of which a batch reaches some: others may reach the rest.

    Modules of which one reads another are no experts but a stack.
    """
    calls = _record_calls(model, example)[0]
    found: tuple[str, ...] = ()
    for path, entries in model.named_modules():
        if isinstance(entries, nn.ModuleList | nn.ModuleDict):
            names = [f"{path}.{key}".removeprefix(".") for key, _ in entries.named_children()]
            prefixes = tuple(f"{name}." for name in names)
            own = [c for c in calls if c.name in names]
            is_stack = not {c.source for c in own}.isdisjoint(c.output for c in own)
            if not is_stack and any(f"{n}.".startswith(prefixes) for n in layout.unused):
                found += prefixes
    return found


def _unused(model: nn.Module, calls: list[_Call]) -> tuple[str, ...]:
    called = {c.module for c in calls}
    return tuple(n for n, m in model.named_modules() if is_weight_layer(m) and m not in called)


class _Conversions(TorchFunctionMode):
    """In this block, notes what softmax, sigmoid and changes of the shape make of which tensor."""

    def __init__(self) -> None:
        super().__init__()
        # By the value that is made; an id is unique only as long as its tensor lives.
        self._made: dict[Value, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _CONVERSIONS and isinstance(output, Tensor):
            source = args[0] if args else kwargs["input"]
            if source is not output and source.numel() == output.numel():
                self._made[_value(output)] = output, source
        return output

    def source_of(self, scores: Tensor) -> Tensor:
        """The first table ``[b, c]`` that scores were made from; the scores themselves if none."""
        found = scores
        while (made := self._made.get(_value(scores))) is not None:
            scores = made[1]
            found = scores if scores.dim() == 2 else found
        return found


def _layers_by_sample(model: nn.Module, example: Batch, calls: list[_Call]) -> set[str]:
    """Layers whose output has one row for each sample, for one batch and for one twice as large.

    A window attention has a row for each window, a sequence-first network one for each position.
    """
    if isinstance(example, dict):
        n = len(next(iter(example.values())))
        twice: Batch = {k: torch.cat([v, v]) for k, v in example.items()}
    else:
        n, twice = len(example), torch.cat([example, example])
    try:
        more, _, _ = _record_calls(model, twice)
    except FORWARD_ERRORS:  # a network for batches of one size
        more = []
    wrong = {c.name for c in calls if c.n_rows != n} | {c.name for c in more if c.n_rows != 2 * n}
    return {c.name for c in calls} - wrong


def _record_calls(model: nn.Module, example: Batch) -> tuple[list[_Call], Value, dict[str, Value]]:
    """All calls of modules in one forward pass, the logits, and the outputs of token blocks."""
    example = to_device(example, device_of(model))
    calls: list[_Call] = []
    blocks: dict[str, Value] = {}
    candidates = set(_repeated_modules(model))
    alive: list[Tensor] = []  # an id is unique only as long as its tensor lives
    handles = []

    def record(name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[object, ...], named: dict[str, object], output: object
        ) -> None:
            source = args[0] if args else next(iter(named.values()), None)
            value = first_tensor(output)
            if not isinstance(source, Tensor) or value is None:
                return
            is_block = name in candidates and value.dim() == 3 and source.shape == value.shape
            if is_block:
                blocks[name] = _value(value)
            if is_block or (args and value is output):
                rows = len(value) if value.dim() else 0
                calls.append(_Call(name, module, _value(source), _value(value), rows))
                alive.extend((source, value))

        return hook

    for name, module in model.named_modules():
        if name or is_weight_layer(module):  # a model may be one layer
            handles.append(module.register_forward_hook(record(name), with_kwargs=True))
    try:
        with eval_mode(model), torch.no_grad(), unfused_attention(), _Conversions() as conversions:
            scores = raw_output(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls, _value(conversions.source_of(scores)), blocks


def _repeated_modules(model: nn.Module) -> Iterator[str]:
    """Names of modules in a list or sequence that hold modules of their own."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for key, entry in module.named_children():
                if not is_leaf(entry):
                    yield f"{name}.{key}" if name else key


def _readouts_and_features(
    calls: list[_Call],
    leaves: list[_Call],
    head: str,
    logits: Value,
    blocks: Mapping[str, Value],
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The readout of every weight layer, and the feature layers in the order of their calls."""
    readers: Readers = defaultdict(list)
    times = Counter(c.name for c in leaves)
    for name, module, x, y, _ in leaves:
        # A layer that is called more than once has no one output that shows another's units.
        readers[x].append((name, module if times[name] == 1 else nn.Module(), y))
    readouts: dict[str, str] = {}
    ends: list[tuple[int, str]] = []
    # By tensor: a later operation in place is part of what a feature layer shows.
    seen: set[int] = {logits[0]}
    order = {c.output: i for i, c in reversed(list(enumerate(calls)))}
    for name, module, _, y, _ in leaves:
        if is_weight_layer(module) and name != head:
            readouts[name], end = _follow(name, y, readers, _CHANNELWISE)
            seen.add(y[0])
            ends.append((order[end], readouts[name]))
            while end[0] not in seen:
                seen.add(end[0])
                _, end = _follow("", end, readers, _POOLING)
    # A block can return the very tensor of a layer inside it: the block is the feature layer.
    ends += [(order[y], name) for name, y in blocks.items()]
    seen |= {y[0] for y in blocks.values()}
    leaf_modules = [c.module for c in leaves]
    for name, module, _, y, _ in calls:
        holds_weights = any(is_weight_layer(m) for m in module.modules())
        if holds_weights and module not in leaf_modules and y[0] not in seen:
            seen.add(y[0])
            ends.append((order[y], name))
    return readouts, tuple(dict.fromkeys(name for _, name in sorted(ends)))


def _value(tensor: Tensor) -> Value:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _follow(
    name: str, value: Value, readers: Readers, kinds: tuple[type[nn.Module], ...]
) -> tuple[str, Value]:
    """Follow a value while its only reader is a layer of one of these kinds."""
    visited = set()
    while value not in visited:
        visited.add(value)
        following = [r for r in readers[value] if isinstance(r[1], kinds) and r[0] != name]
        if len(following) != 1 or len(readers[value]) != 1:
            break
        name, _, value = following[0]
    return name, value


def _tail(head: str, leaves: list[_Call]) -> tuple[str, ...]:
    """Names of the linear and ReLU layers that end the model, the first of them first."""
    # Identity and, in evaluation mode, dropout return their input and make no new value.
    passing = (nn.Dropout, nn.Identity)
    made_by = {y: (name, m, x) for name, m, x, y, _ in leaves if not isinstance(m, passing)}
    tail: list[str] = []
    value = next((y for name, _, _, y, _ in leaves if name == head), None)
    while value is not None and value in made_by:
        name, module, source = made_by[value]
        inplace = isinstance(module, nn.ReLU) and module.inplace
        if not isinstance(module, nn.Linear | nn.ReLU) or inplace or name in tail:
            break
        tail.insert(0, name)
        value = source
    return tuple(tail)


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module is a linear or convolution layer with units."""
    return isinstance(module, WEIGHT_LAYERS) or is_transposed_linear(module)
