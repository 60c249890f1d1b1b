"""Calling a model, looking into it, and leaving it as it was."""

from __future__ import annotations

import copy
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.rng import temp_seed
from expunge.data import Batch, Samples
from expunge.errors import ModelError, did_you_mean, format_ids, raise_all

# What a model's forward raises when it meets something that it does not take.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
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
# Layers behind which a pooled feature says nothing new.
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
    """The model's logits ``[b, c]``: its output, or the output's ``logits``.

    A dictionary batch is passed as keyword arguments, as Hugging Face models expect.
    """
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"{type(output)}"
        raise ModelError(
            f"expected logits of shape [batch, classes], got {got}",
            where="model output",
            fix="return the logits, or an object with `.logits`",
        )
    return output


def to_channels_last(batch: Batch) -> Batch:
    """Images with their channels last in memory, where convolutions are quickest; else as it is."""
    if isinstance(batch, Tensor) and batch.dim() == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on that device."""
    if isinstance(batch, dict):
        return {k: v.to(device) for k, v in batch.items()}
    return batch.to(device)


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on that device inside the block, and back where it was after it."""
    home = device_of(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has its own mode again."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of that name; an unknown name is an error with the closest match."""
    modules = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(
            f"the model has no layer '{name}'", fix=did_you_mean(name, filter(None, modules))
        )
    return modules[name]


@contextmanager
def capture_outputs(
    model: nn.Module, names: tuple[str, ...], *, inputs_of: str = "", differentiable: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named layers at each forward pass, into one dictionary.

    ``inputs_of`` adds that layer's input, under the key ``"input"``. With ``differentiable``, the
    outputs carry gradients (also in a frozen model), and layers behind work on a copy, so that an
    operation in place does not change what was captured. The hooks are gone after the block.
    """
    found: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise ModelError(f"layer '{name}' returns {type(output).__name__}, not a tensor")
            if not differentiable:
                found[name] = output
                return None
            output = output if output.requires_grad else output.detach().requires_grad_()
            found[name] = output
            return output.clone()

        return hook

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["input"] = args[0]

    try:
        for name in names:
            handles.append(module_named(model, name).register_forward_hook(keep(name)))  # type: ignore[arg-type]
        if inputs_of:
            module = module_named(model, inputs_of)
            handles.append(module.register_forward_pre_hook(keep_input))
        yield found
    finally:
        for handle in handles:
            handle.remove()


# A tensor and how often it was changed in place: `x += y` makes another value of the same tensor.
Value = tuple[int, int]
# For every value, the layers that read it and what they make of it.
Readers = dict[Value, list[tuple[str, nn.Module, Value]]]


@dataclass(frozen=True)
class ModelLayout:
    """Where things are in a model.

    head: the linear layer that makes the logits ("" if another operation makes them).
    readouts: for every other weight layer, the layer that ends its chain of normalisation and
    activation; a unit has the same index in both. stages: layers whose pooled output describes a
    sample, first to last: ends of such chains and outputs of residual blocks.
    tail: the layers from the head backwards as long as each only reads the one before.
    """

    head: str
    readouts: Mapping[str, str]
    feature_layers: tuple[str, ...]
    tail: tuple[str, ...]


def find_head(model: nn.Module, example: Batch, *, where: str = "", fix: str) -> str:
    """The name of the linear layer that makes the logits; ModelError if none does. One pass."""
    head = inspect_layers(model, example).head
    if not head:
        raise ModelError("no linear layer makes the logits", where=where, fix=fix)
    return head


def inspect_layers(model: nn.Module, example: Batch) -> ModelLayout:
    """Find the layers of a model by running it once on an example and following the tensors."""
    example = to_device(example, device_of(model))
    calls: list[tuple[str, nn.Module, Value, Value]] = []
    alive: list[Tensor] = []
    handles = []
    for name, module in model.named_modules():
        if name:

            def hook(
                m: nn.Module, args: tuple[object, ...], output: object, name: str = name
            ) -> None:
                source = args[0] if args else None
                if isinstance(source, Tensor) and isinstance(output, Tensor):
                    calls.append((name, m, _value(source), _value(output)))
                    alive.extend((source, output))

            handles.append(module.register_forward_hook(hook))
    try:
        with eval_mode(model), torch.no_grad():
            logits = logits_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    leaves = [c for c in calls if not any(True for _ in c[1].children())]
    if not any(isinstance(c[1], WEIGHT_LAYERS) for c in leaves):
        raise ModelError(
            "no linear or convolution layer is called", fix="pass the network itself, not a wrapper"
        )
    last = _value(logits)
    head = next((n for n, m, _, y in leaves if isinstance(m, nn.Linear) and y == last), "")
    readers: Readers = defaultdict(list)
    times = Counter(c[0] for c in leaves)
    for name, module, x, y in leaves:
        # A layer that is called more than once has no one output that could stand for another's.
        readers[x].append((name, module if times[name] == 1 else nn.Module(), y))
    readouts: dict[str, str] = {}
    ends: list[tuple[int, str]] = []
    # By tensor: what is done to it in place later is what a stage shows.
    seen: set[int] = {id(logits)}
    order = {c[3]: i for i, c in reversed(list(enumerate(calls)))}
    for name, module, _, y in leaves:
        if isinstance(module, WEIGHT_LAYERS) and name != head:
            readouts[name], end = _follow(name, y, readers, _CHANNELWISE)
            seen.add(y[0])
            ends.append((order[end], readouts[name]))
            while end[0] not in seen:
                seen.add(end[0])
                _, end = _follow("", end, readers, _POOLING)
    for name, module, _, y in calls:
        holds_weights = any(isinstance(m, WEIGHT_LAYERS) for m in module.modules())
        if holds_weights and module not in [c[1] for c in leaves] and y[0] not in seen:
            seen.add(y[0])
            ends.append((order[y], name))
    stages = tuple(dict.fromkeys(name for _, name in sorted(ends)))
    return ModelLayout(head, readouts, stages, _tail(head, leaves))


def _value(tensor: Tensor) -> Value:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _follow(
    name: str, value: Value, readers: Readers, kinds: tuple[type[nn.Module], ...]
) -> tuple[str, Value]:
    """Walk on from a value while the layer that reads it next is of one of these kinds."""
    visited = set()
    while value not in visited:
        visited.add(value)
        following = [r for r in readers[value] if isinstance(r[1], kinds) and r[0] != name]
        if len(following) != 1 or len(readers[value]) != 1:
            break
        name, _, value = following[0]
    return name, value


def _tail(head: str, leaves: list[tuple[str, nn.Module, Value, Value]]) -> tuple[str, ...]:
    """Names of the linear and ReLU layers that end the model, the first of them first."""
    # Identity and, in evaluation mode, dropout return what they got: they made nothing.
    passing = (nn.Dropout, nn.Identity)
    made_by = {y: (name, m, x) for name, m, x, y in leaves if not isinstance(m, passing)}
    tail: list[str] = []
    value = next((y for name, _, _, y in leaves if name == head), None)
    while value is not None and value in made_by:
        name, module, source = made_by[value]
        inplace = isinstance(module, nn.ReLU) and module.inplace
        if not isinstance(module, nn.Linear | nn.ReLU) or inplace or name in tail:
            break
        tail.insert(0, name)
        value = source
    return tuple(tail)


def reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """A copy with fresh weights: every module with weights draws its own anew.

    The parameters of a module that cannot (it has no ``reset_parameters``, as a class token and
    embeddings of positions) change places at random: their scale stays, what they knew does not.
    """
    fresh = copy.deepcopy(model)
    with temp_seed(seed, "initialise"), torch.no_grad():
        for module in fresh.modules():
            names = ("reset_parameters", "_reset_parameters")
            reset = next((r for n in names if callable(r := getattr(module, n, None))), None)
            if reset is not None:
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel())
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return fresh


def check_fit(model: nn.Module, samples: Samples) -> None:
    """Refuse samples that the model does not take, or that have another number of classes.

    Cost: one sample through the model.
    """
    _require_network(model)
    example = to_device(samples.batch(np.arange(1)), device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            logits = logits_of(model, example)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model fails on the first sample: {type(error).__name__}: {error}",
            where=samples.name,
            fix="check the model's arguments and how the data are prepared",
        ) from error
    if logits.shape[1] != len(samples.classes):
        raise ModelError(
            f"the model gives {logits.shape[1]} logits, the data have {len(samples.classes)} "
            "classes",
            where=samples.name,
            fix="name all classes of the model in the data, or use the model's own head",
        )


def _require_network(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a {type(model).__name__} is no network",
            fix="build the network, and load weights into it by `load_state_dict`",
        )


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be worked on: no module, a wrapper, tied, not finite or half weights."""
    _require_network(model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ModelError(
            f"the model is wrapped in {type(model).__name__}", fix="pass `model.module` instead"
        )
    problems = []
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    tied = [names for names in owners.values() if len(names) > 1]
    if tied:
        problems.append(
            f"weights are tied: {format_ids(' = '.join(t) for t in tied)}; "
            "give each layer its own copy"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    other = {str(t.dtype) for _, t in tensors if t.is_floating_point()} - {"torch.float32"}
    if other:
        problems.append(
            f"weights are {format_ids(sorted(other))}, not float32; pass `model.float()`"
        )
    bad = [n for n, t in tensors if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        problems.append(f"weights are NaN or infinite: {format_ids(bad)}; load a sound checkpoint")
    raise_all(ModelError, problems, where="model")
