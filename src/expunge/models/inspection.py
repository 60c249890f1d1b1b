"""Calling a model and finding its layers, without changing it."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge._core.rng import temp_seed
from expunge.data import Batch
from expunge.errors import ModelError, did_you_mean
from expunge.models.architecture import is_transposed_linear
from expunge.models.copying import copy_model, unchanged_attributes
from expunge.models.outputs import output_key, output_kind, output_tensor, to_logits

# What a model's forward pass raises for an input that it does not take.
FORWARD_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError, ArithmeticError),
)
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


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model and return its logits: its output, or the output's ``logits``; see `to_logits`.

    Parameters
    ----------
    model
        In the mode that the caller set.
    batch
        A tensor; or a dictionary, which is passed as keyword arguments, as Hugging Face models
        expect.

    Returns
    -------
    torch.Tensor
        ``float[b, c]`` with two classes or more.

    Raises
    ------
    ModelError
        If the output is anything else.

    Examples
    --------
    >>> logits_of(nn.Linear(4, 3), torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    kind = output_kind(model)
    if kind == "logits":
        return to_logits(raw_output(model, batch), kind)
    # In bfloat16 probabilities near 0 and 1 would be equal.
    with torch.autocast(device_of(model).type, enabled=False):
        return to_logits(raw_output(model, batch), kind)


def raw_output(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model and return its scores as they are, ``float[b, c]`` or ``float[b, 1]``."""
    return output_tensor(call_model(model, batch), output_key(model))


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Run a model on a copy of a batch, which its forward may change; return what it returns.

    Parts by name are keyword arguments. A forward of one argument of another name gets them as one
    dictionary.
    """
    if isinstance(batch, Tensor):
        return model(batch.clone())
    parts = {name: part.clone() for name, part in batch.items()}
    return model(parts) if _takes_dictionary(model, parts) else model(**parts)


def _takes_dictionary(model: nn.Module, parts: Mapping[str, Tensor]) -> bool:
    """Whether a model's forward has one argument, which is none of these parts."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    arguments = inspect.signature(model.forward).parameters
    return [
        a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) and name not in parts
        for name, a in arguments.items()
    ] == [True]


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module is a linear or convolution layer with units."""
    return isinstance(module, WEIGHT_LAYERS) or is_transposed_linear(module)


def to_channels_last(batch: Batch) -> Batch:
    """Images with channels last in memory, where convolutions are fastest; others as they are."""
    if isinstance(batch, Tensor) and batch.dim() == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's weights; the CPU for a model without any."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device."""
    if isinstance(batch, dict):
        return {k: v.to(device) for k, v in batch.items()}
    return batch.to(device)


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a model to a device inside the block, and back after it."""
    original = device_of(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(original)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Let torch's own encoders call their layers one by one inside the block.

    In evaluation mode they may run a whole block as one operation, and leave out padding by nested
    tensors: layers are not called then, or not with one row for each sample.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block.

    Afterwards every module has its previous mode, and the attributes and buffers that it had before
    (a forward pass may count its calls, or renormalise an embedding).
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with unchanged_attributes(model), _unchanged_state(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _unchanged_state(model: nn.Module) -> Iterator[None]:
    """Give the tensors that a forward pass in evaluation mode may change their values back."""
    before = [
        (m, k, t, t._version, t.detach().clone())
        for m, k, t in _changeable(model)
        if not t.is_inference() and not t.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, tensor, version, values in before:
                now = getattr(module, name)
                if now is not tensor or now._version != version:
                    now.copy_(values)


def _changeable(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Buffers, and embeddings of a limited norm."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            yield module, name, buffer
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            yield module, "weight", module.weight


def padding_id_of(model: nn.Module) -> int:
    """The index of padding by the model's first embedding; 0 if it states none."""
    embeddings = (m for m in model.modules() if isinstance(m, nn.Embedding))
    stated = next((m.padding_idx for m in embeddings), None)
    return 0 if stated is None else stated


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of a name; ModelError with the closest match for an unknown one."""
    modules = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(
            f"the model has no layer '{name}'", fix=did_you_mean(name, filter(None, modules))
        )
    module: nn.Module = modules[name]
    return module


@contextmanager
def capture_outputs(
    model: nn.Module, names: tuple[str, ...], *, inputs_of: str = "", differentiable: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers at each forward pass, into one dictionary.

    Parameters
    ----------
    model
        Has no more hooks after the block.
    names
        Names of layers that return a tensor, or a tuple that begins with one.
    inputs_of
        A layer whose input is added under the key ``"input"``.
    differentiable
        Whether the outputs carry gradients (also in a frozen model). The layers behind then work on
        a copy, so that an operation in place does not change what was captured.

    Yields
    ------
    dict
        ``{name: output}``, filled at each forward pass.

    Raises
    ------
    ModelError
        For an unknown name, and in the forward pass for a layer that returns something else.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with capture_outputs(model, ("0",)) as found:
    ...     _ = model(torch.zeros(2, 4))
    >>> found["0"].shape
    torch.Size([2, 8])
    """
    found: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> object:
            value = first_tensor(output)
            if value is None:
                raise ModelError(f"layer '{name}' returns {type(output).__name__}, not a tensor")
            if not differentiable:
                found[name] = value
                return None
            value = value if value.requires_grad else value.detach().requires_grad_()
            found[name] = value
            if isinstance(output, tuple):
                return (value.clone(), *output[1:])
            return value.clone()

        return hook

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["input"] = args[0]

    try:
        for name in names:
            handles.append(module_named(model, name).register_forward_hook(keep(name)))  # type: ignore[arg-type]
        if inputs_of:
            module = module_named(model, inputs_of)
            handles.append(module.register_forward_pre_hook(keep_input))
        with unfused_attention():
            yield found
    finally:
        for handle in handles:
            handle.remove()


# A tensor and how often it was changed in place: `x += y` makes another value of the same tensor.
Value = tuple[int, int]
# For every value, the layers that read it and the values that they return.
Readers = dict[Value, list[tuple[str, nn.Module, Value]]]


def first_tensor(value: object) -> Tensor | None:
    """A tensor, or the first entry of a tuple if that is one."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


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
        The linear layer that makes the logits; ``""`` if another operation makes them.
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
    """

    head: str
    readouts: Mapping[str, str]
    feature_layers: tuple[str, ...]
    tail: tuple[str, ...]
    blocks: tuple[str, ...] = ()


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
    calls, scores, blocks = _record_calls(model, example)
    leaves = [c for c in calls if not any(True for _ in c.module.children())]
    if not any(is_weight_layer(c.module) for c in leaves):
        raise ModelError(
            "no linear or convolution layer is called", fix="pass the network itself, not a wrapper"
        )
    logits = _before_probabilities(scores, leaves)
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
    )


def _before_probabilities(scores: Value, leaves: list[_Call]) -> Value:
    """What a last softmax or sigmoid reads; the scores themselves without one."""
    kinds = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
    return next(
        (c.source for c in leaves if isinstance(c.module, kinds) and c.output == scores), scores
    )


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
        with eval_mode(model), torch.no_grad(), unfused_attention():
            scores = raw_output(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls, _value(scores), blocks


def _repeated_modules(model: nn.Module) -> Iterator[str]:
    """Names of modules in a list or sequence that hold modules of their own."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for key, entry in module.named_children():
                if any(True for _ in entry.children()):
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


def reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """A copy with newly drawn weights.

    Every module with ``reset_parameters`` draws its own weights. The parameters of any other module
    (a class token, position embeddings) are permuted at random, which keeps their scale. Frozen
    modules and parameters stay as they are; where all are frozen, none is taken for frozen.

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
            if module in frozen:
                continue
            names = ("reset_parameters", "_reset_parameters")
            reset = next((r for n in names if callable(r := getattr(module, n, None))), None)
            if reset is not None:
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel())
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
        for parameter, values in kept.items():
            parameter.copy_(values)
    return fresh


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
