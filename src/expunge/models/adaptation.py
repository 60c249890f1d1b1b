"""A user's model as the stages take it: without wrappers, its output read as logits."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expunge._core.rng import temp_seed
from expunge.data import Samples
from expunge.data.waveforms import has_clip_shape, looks_like_sound
from expunge.errors import ModelError
from expunge.models.calls import (
    FORWARD_ERRORS,
    call_model,
    device_of,
    eval_mode,
    logits_of,
    raw_output,
    to_device,
)
from expunge.models.checks import require_network
from expunge.models.copying import copy_model
from expunge.models.outputs import (
    OutputForm,
    OutputKind,
    find_output_key,
    find_output_kind,
    mark_output,
    may_be_probabilities,
    output_form,
    output_tensor,
    possible_forms,
    to_logits,
)

_LOGGER = logging.getLogger(__name__)
# Samples whose outputs tell logits from probabilities.
_MAX_SAMPLES = 256
_SAID: dict[OutputKind, str] = {
    "probabilities": "the model returns probabilities (each row sums to 1); their logarithms are "
    "used as logits",
    "sigmoid": "the model returns probabilities (a sigmoid's); log p/(1 − p) is used as logits",
}


_SEVERAL = (
    "{} parts of the model's output have {} columns; the first was taken for the logits. If that "
    "is another, wrap the model so that it returns the logits alone"
)


_SOUND = (
    "the inputs look like sound; with sample_rate (of expunge.from_arrays, expunge.from_dataset or "
    "[data] in a spec) they are compared by their spectra"
)


class Adapted(NamedTuple):
    """A model as the stages take it, and notes about what was changed for that."""

    model: nn.Module
    notes: tuple[str, ...] = ()


def adapt_model(model: nn.Module, samples: Samples) -> Adapted:
    """Take the wrappers off a model and find out what its output means.

    Parameters
    ----------
    model
        Left as it was.
    samples
        On which the model runs.

    Returns
    -------
    Adapted
        The model itself, the one inside the wrapper, or a copy whose output is read in another
        way than as the usual logits.

    Raises
    ------
    ModelError
        For what is no network whose layers can be read, see `require_network`.

    Notes
    -----
    Cost: six samples through the model, up to 256 if its output lies in [0, 1].
    """
    model, notes = unwrap(model)
    if samples.sample_rate is None and _are_clips(samples):
        notes = (*notes, _SOUND)
        _log_once(samples.name, _SOUND)
    if output_form(model) == OutputForm():
        model, new = _mark_evaluation(model, samples)
        notes = (*notes, *new)
    form = _training_form(model, samples)
    if form is None:
        return Adapted(model, notes)
    model = copy_model(model)
    mark_output(model, form, training=True)
    part = "" if form.key is None else f" in part '{form.key}'"
    kind = "probabilities" if form.kind == "sigmoid" else form.kind
    return Adapted(model, (*notes, f"in training mode the model returns {kind}{part}"))


def _mark_evaluation(model: nn.Module, samples: Samples) -> Adapted:
    """Find out what the output of a model means in evaluation mode."""
    notes: tuple[str, ...] = ()
    key, n_fitting = _key_on(model, samples)
    if n_fitting > 1:
        notes = (*notes, _SEVERAL.format(n_fitting, len(samples.classes)))
        _log_once(type(model).__name__, notes[-1])
    if key is not None:
        model = copy_model(model)
        mark_output(model, OutputForm("logits", key))
        notes = (*notes, f"the logits are part '{key}' of the model's output")
    kind = _kind_on(model, samples)
    if kind == "logits":
        return Adapted(model, notes)
    model = copy_model(model)
    mark_output(model, OutputForm(kind, key))
    return Adapted(model, (*notes, _SAID[kind]))


def _training_form(model: nn.Module, samples: Samples) -> OutputForm | None:
    """The form of the output in training mode, if that is another than in evaluation mode.

    Layers without parts, such as batch norm, stay in evaluation mode, and nothing is dropped out:
    the logits are those scores that are the same in both modes. None also if none are.
    """
    x = to_device(samples.example(), device_of(model))
    try:
        with eval_mode(model), torch.no_grad(), temp_seed(0, "check"):
            expected = logits_of(model, x)
            for module in model.modules():
                module.training = module is model or any(True for _ in module.children())
            usual = output_form(model, training=True)
            with _WithoutDropout():
                output = call_model(model, x)
    except (*FORWARD_ERRORS, ModelError):
        return None  # what is wrong is said by `check_training`
    for form in (usual, *possible_forms(output)):
        if _gives(output, form, expected):
            return None if form == usual else form
    return None


def _are_clips(samples: Samples) -> bool:
    """Whether the first 32 inputs look like sound; two rule out files of any other kind."""
    if not has_clip_shape(samples.example()):
        return False
    return looks_like_sound(samples.batch(np.arange(min(32, len(samples)))))


class _WithoutDropout(TorchFunctionMode):
    """In this block, functions that drop something out return their input."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        if "dropout_p" in kwargs:  # of an attention
            kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


def _gives(output: object, form: OutputForm, expected: Tensor) -> bool:
    """Whether an output, read in some form, has the expected logits."""
    try:
        found = to_logits(output_tensor(output, form.key), form.kind)
    except ModelError:
        return False
    # Logarithms of very small probabilities are not exact.
    a, b = (z.float().log_softmax(dim=1).clamp_min(-12) for z in (found, expected))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-2)


@cache
def _log_once(name: str, note: str) -> None:
    """Log a note also where a stage runs by itself, which returns no notes."""
    _LOGGER.warning("%s: %s", name, note)


def _key_on(model: nn.Module, samples: Samples) -> tuple[str | None, int]:
    """Which part of the output has a column for each class, and how many parts have."""
    x = to_device(samples.batch(np.arange(1)), device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            output = call_model(model, x)
    except FORWARD_ERRORS:
        return None, 0  # what is wrong is said by `check_fit`
    return find_output_key(output, len(samples.classes))


def stability_notes(model: nn.Module, samples: Samples) -> tuple[str, ...]:
    """Say what else the output for a sample depends on; empty if on nothing.

    Cost: four samples through the model.
    """
    try:
        with eval_mode(model), torch.no_grad(), temp_seed(0, "check"):
            both, first, again = (
                raw_output(model, to_device(samples.batch(np.arange(n)), device_of(model)))[0]
                for n in (min(2, len(samples)), 1, 1)
            )
    except (*FORWARD_ERRORS, ModelError):
        return ()  # what is wrong is said by `check_fit`
    if not torch.allclose(first, again, rtol=0.01, atol=1e-4, equal_nan=True):
        return (
            "the model's output is random in evaluation mode, too: scores are those of one draw",
        )
    if not torch.allclose(first, both, rtol=0.01, atol=1e-4, equal_nan=True):
        return ("the model's output for a sample depends on the other samples of its batch",)
    return ()


def _kind_on(model: nn.Module, samples: Samples) -> OutputKind:
    n = min(_MAX_SAMPLES, len(samples))
    found: list[OutputKind] = []
    try:
        with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
            for rows in np.split(np.arange(n), range(1, n, 64)):  # the first sample by itself
                scores = raw_output(model, _with_graph(samples, rows, model))
                if not may_be_probabilities(scores):
                    return "logits"
                found.append(find_output_kind(scores))
    except (*FORWARD_ERRORS, ModelError):
        return "logits"  # what is wrong is said by `check_fit`
    return found[0] if len(set(found)) == 1 else "logits"


def _with_graph(samples: Samples, rows: np.ndarray, model: nn.Module) -> Tensor | dict[str, Tensor]:
    """A batch whose outputs have a graph even if the model is frozen."""
    x = to_device(samples.batch(rows), device_of(model))
    return x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def unwrap(model: nn.Module) -> Adapted:
    """Take wrappers for compilation and for several devices off a model and its parts.

    Raises
    ------
    ModelError
        For what is no network whose layers can be read, and for sharded weights.

    Examples
    --------
    >>> network = nn.Linear(2, 3)
    >>> unwrap(nn.DataParallel(network)).model is network
    True
    """
    require_network(model)
    names: list[str] = []
    while (inner := _inside(model)) is not None:
        names.append(_name_of(model))
        model = inner
    parts = [n for n, m in model.named_modules() if n and _inside(m) is not None]
    is_compiled = any(getattr(m, "_compiled_call_impl", None) for m in model.modules())
    if parts or is_compiled:
        names += ["torch.compile"] if is_compiled else []
        model = copy_model(model)  # a copy is not compiled
        for part in reversed(parts):  # what is inside comes first
            names.append(_unwrap_part(model, part))
    require_network(model)
    if not names:
        return Adapted(model)
    found = ", ".join(dict.fromkeys(names))
    return Adapted(model, (f"the wrapper {found} was taken off; the network inside was used",))


def _unwrap_part(model: nn.Module, path: str) -> str:
    """Replace a part by what is inside its wrapper."""
    parent_name, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_name)
    part = parent.get_submodule(name)
    inner, label = _inside(part), _name_of(part)
    if inner is not None:
        parent._modules[name] = inner
    return label


def _inside(model: nn.Module) -> nn.Module | None:
    """The network in a wrapper; None for what is no wrapper."""
    if type(model).__name__ == "FullyShardedDataParallel":
        raise ModelError(
            "the weights are sharded by FullyShardedDataParallel",
            where="model",
            fix="gather the full state dict, and load it into the network itself",
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped: nn.Module = model.module
        return wrapped
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _name_of(wrapper: nn.Module) -> str:
    return "torch.compile" if hasattr(wrapper, "_orig_mod") else type(wrapper).__name__
