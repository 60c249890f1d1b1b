"""Calling a model and its layers, without changing it."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge._core.isolation import callers_device
from expunge.data import Batch
from expunge.errors import ConfigError, ModelError, did_you_mean
from expunge.models.copying import unchanged_attributes
from expunge.models.outputs import output_form, output_tensor, to_logits

# What a model's forward pass raises for an input that it does not take.
FORWARD_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError, ArithmeticError),
)
# Ways to run a model, the fastest first, and the one in which each ran, see `_form`.
_Way = Literal["given", "contiguous", "plain"]
_ORDER: tuple[_Way, ...] = ("given", "contiguous", "plain")
_LOGGER = logging.getLogger(__name__)
_PLAIN_FORM = (False, False, False)
_WAYS: WeakKeyDictionary[nn.Module, dict[tuple[bool, ...], _Way]] = WeakKeyDictionary()


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
    kind = output_form(model, training=model.training).kind
    if kind == "logits":
        return to_logits(raw_output(model, batch), kind)
    # In bfloat16 probabilities near 0 and 1 would be equal.
    with torch.autocast(device_of(model).type, enabled=False):
        return to_logits(raw_output(model, batch), kind)


def raw_output(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model and return its scores as they are, ``float[b, c]`` or ``float[b, 1]``."""
    form = output_form(model, training=model.training)
    return output_tensor(call_model(model, batch), form.key)


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Run a model on a copy of a batch, which its forward may change; return what it returns.

    Parts by name are keyword arguments. A forward of one argument of another name gets them as one
    dictionary. Models that fail on images with channels last (a forward with ``view``) or under
    autocast (DeBERTa in bfloat16) run without; the latter is logged as a warning.
    """
    form = _form(model, batch)
    if form == _PLAIN_FORM:
        return _forward(model, batch, "given")
    known = _WAYS.setdefault(model, {})
    if form in known:
        return _forward(model, batch, known[form])
    state = torch.get_rng_state()
    buffers = [(b, b.clone()) for b in model.buffers()] if model.training else []
    for way in _ORDER:
        try:
            output = _forward(model, batch, way)
        except FORWARD_ERRORS as error:
            if way == _ORDER[-1] or isinstance(error, torch.OutOfMemoryError):
                raise
            torch.set_rng_state(state)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
        else:
            break
    known[form] = way
    if way == "plain":
        _log_float32(type(model).__name__)
    return output


@cache
def _log_float32(kind: str) -> None:
    """Log once for each class of models that autocast is off."""
    _LOGGER.warning("%s fails under autocast: it runs in float32, which is slower", kind)


def _form(model: nn.Module, batch: Batch) -> tuple[bool, bool, bool]:
    """Whether autocast is on, a batch has channels last, and so have weights."""
    device = device_of(model).type
    return (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device),
        isinstance(batch, Tensor) and not batch.is_contiguous(),
        not all(p.is_contiguous() for p in model.parameters()),
    )


def _forward(model: nn.Module, batch: Batch, way: _Way) -> Any:
    """Run a model on a copy of a batch: both as they are, contiguous, or also without autocast."""
    if way == "plain":
        with torch.autocast(device_of(model).type, enabled=False):
            return _forward(model, batch, "contiguous")
    if way == "contiguous":
        if _form(model, batch)[2]:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        batch = batch.contiguous() if isinstance(batch, Tensor) else batch
    if isinstance(batch, Tensor):
        inputs = batch.clone()
        with callers_device():
            return model(inputs)
    parts = {name: part.clone() for name, part in batch.items()}
    with callers_device():
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


def used_parameters(output: Tensor, parameters: Iterable[nn.Parameter]) -> set[int]:
    """The ``id`` of each parameter that an output depends on; of all if gradients do not tell."""
    known = list(parameters)
    try:
        gradients = torch.autograd.grad(output.sum(), known, allow_unused=True)
    except FORWARD_ERRORS:  # no graph, or a backward pass of its own in training mode alone
        return {id(p) for p in known}
    return {id(p) for p, g in zip(known, gradients, strict=True) if g is not None}


def to_channels_last(batch: Batch) -> Batch:
    """Images with channels last in memory, where convolutions are fastest; others as they are."""
    if isinstance(batch, Tensor) and batch.dim() == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's weights; the CPU for a model without any."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def find_device(name: str) -> torch.device:
    """The device of this name, ``"cpu"`` or ``"cuda:1"``; ConfigError if there is none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(
            f"no device '{name}': {str(error).splitlines()[0]}",
            fix="cpu works everywhere; others need a torch that was built for them",
        ) from error


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
    buffers = [(m, dict(m._buffers)) for m in model.modules()]
    before = [
        (m, k, t, t._version, t.detach().clone())
        for m, k, t in _changeable(model)
        if not t.is_inference() and not t.is_meta
    ]
    try:
        yield
    finally:
        for module, known in buffers:
            for name in [k for k in module._buffers if known.get(k) is None]:
                if name in known:  # it was declared, and the forward pass filled it
                    module._buffers[name] = None
                else:
                    delattr(module, name)
        with torch.no_grad():
            for module, name, tensor, version, values in before:
                now = getattr(module, name)
                if now.shape != values.shape:  # the forward pass keeps a batch in a buffer
                    setattr(module, name, values.to(now.device))
                elif now is not tensor or now._version != version:
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


def first_tensor(value: object) -> Tensor | None:
    """A tensor, or the first entry of a tuple if that is one."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None
