"""Whether a model can be scored and trained on some samples; all problems at once."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from expunge._core.rng import temp_seed
from expunge.data import Batch, Samples
from expunge.data.classes import fix_class_count, smallest_classes
from expunge.data.inputs import longest_position
from expunge.data.labels import FIX_SEVERAL
from expunge.errors import ModelError, format_ids, raise_all
from expunge.models.architecture import tied_weights
from expunge.models.calls import (
    FORWARD_ERRORS,
    device_of,
    eval_mode,
    logits_of,
    raw_output,
    to_device,
)
from expunge.models.copying import copy_model
from expunge.storage.weight_files import tensor_subclass
from expunge.storage.weights import load_state, state_of


def check_fit(model: nn.Module, samples: Samples) -> None:
    """Check that a model takes the samples and has as many logits as they have classes.

    Of texts the longest one is tried.

    Raises
    ------
    ModelError
        If it does not, or is not a module.

    Notes
    -----
    Cost: one sample through the model.
    """
    require_network(model)
    at = longest_position(samples.inputs)
    example = to_device(samples.batch(np.array([at])), device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            logits = logits_of(model, example)
            is_one_number = (
                logits.shape[1] == 2 < len(samples.classes)
                and raw_output(model, example).shape[1] == 1
            )
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model fails on {f'sample {samples.ids[at]}' if at else 'the first sample'}: "
            f"{type(error).__name__}: {error}",
            where=samples.name,
            fix=_fix_failure(model, example, error),
        ) from error
    if is_one_number:
        raise ModelError(
            "the model gives one number for a sample, which is the logit of the second of two "
            f"classes; the data have {len(samples.classes)} classes",
            where=samples.name,
            fix=f"use a classifier with {len(samples.classes)} outputs; a regression model is not "
            "repaired",
        )
    _check_logits(logits, samples, n=1)


def _fix_failure(model: nn.Module, example: Batch, error: Exception) -> str:
    """What to do about a model that fails on an input, by the form of the input."""
    if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in model.modules()):
        return (
            "batch norm without averages (track_running_stats=False) makes an output depend on the "
            "other samples of the batch: keep averages, or use GroupNorm"
        )
    if other := _other_types(model):
        return f"weights are {format_ids(other)}, not float32; pass `model.float()`"
    if isinstance(error, NotImplementedError) and '"forward"' in str(error):
        inner = [name for name, part in model.named_children() if _is_network(part)]
        return f"pass the network that it holds: .{inner[0]}" if inner else "give it a forward"
    if fix := _fix_arguments(model, example):
        return fix
    arrays = example if isinstance(example, dict) else {"x": example}
    has_tokens = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    for name, array in arrays.items():
        if not has_tokens and not array.is_floating_point():
            scaled = ", pixels divided by 255" if array.dtype == torch.uint8 else ""
            return (
                "integers are passed as they are: give numbers that are measured as "
                f"{name}.astype('float32'){scaled}"
            )
    forms = ", ".join(f"{name} {tuple(array.shape[1:])}" for name, array in arrays.items())
    general = f"check the model's arguments and how the data are prepared: inputs are {forms}"
    if isinstance(example, dict):
        n = example["input_ids"].shape[-1] if "input_ids" in example else 0
        cut = f"set length if the {n} tokens of the longest text are too many; or " if n else ""
        return f"{cut}{general}"
    shape = tuple(example.shape)
    if first := next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None):
        if len(shape) == 4 and (shape[1], first.in_channels) == (1, 3):
            return (
                "inputs have 1 channel, the model takes 3: x.repeat(3, axis=1) in NumPy, "
                'mode = "RGB" of [data] in a spec'
            )
        if len(shape) == 4 and (shape[1], first.in_channels) == (3, 1):
            return (
                "inputs have 3 channels, the model takes 1: make them grey as in training, "
                'mode = "L" of [data] in a spec'
            )
        if len(shape) == 3:
            return f"inputs have shape {shape[1:]}: x[:, None] adds the channel"
        if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
            return (
                f"inputs have shape {shape[1:]}, which looks like [H, W, C]: "
                "x.transpose(0, 3, 1, 2) puts the channels first"
            )
    return general


def _fix_arguments(model: nn.Module, example: Batch) -> str:
    """What to do about a batch that is not what the model's forward takes; empty if it is."""
    signature = inspect.signature(model.forward)
    named = [n for n, a in signature.parameters.items() if a.kind is not a.VAR_KEYWORD]
    try:
        signature.bind(**example) if isinstance(example, dict) else signature.bind(example)
        if not isinstance(example, dict) or set(example) <= set(named):
            return ""
    except TypeError:
        pass
    if isinstance(example, dict):
        return (
            f"the arrays {format_ids(example)} are passed as keyword arguments: name them as the "
            f"arguments of the model's forward ({format_ids(named)}), or give one of them alone"
        )
    needed = ", ".join(
        f"'{name}': …"
        for name, argument in signature.parameters.items()
        if argument.default is argument.empty and argument.kind is not argument.VAR_KEYWORD
    )
    return (
        f"give what the model's forward needs by name, ({{{needed}}}, y), and what is no data a "
        "default"
    )


def check_training(model: nn.Module, samples: Samples) -> None:
    """Check that a model can be trained: a forward and a backward pass in training mode.

    Raises
    ------
    ModelError
        If every parameter is frozen, the pass fails, no gradient reaches a trainable parameter, or
        the model does not load its own state dict.

    Notes
    -----
    Cost: a copy of the model, and two samples through it.
    """
    require_trainable(model)
    rows = np.arange(min(2, len(samples)))
    if len(rows) < 2:
        return
    work = copy_model(model).train()
    load_state(work, state_of(work))
    try:
        with torch.inference_mode(False), torch.enable_grad(), temp_seed(0, "check"):
            logits = logits_of(work, to_device(samples.batch(rows), device_of(work)))
            _check_logits(logits, samples, n=2)
            if logits.requires_grad:
                logits.float().logsumexp(dim=1).sum().backward()  # type: ignore[no-untyped-call]
    except ModelError as error:
        raise ModelError(error.what, where="model, in training mode", fix=error.fix) from error
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model fails in training mode: {type(error).__name__}: {error}",
            where=samples.name,
            fix="take the operation in place out of the model's forward: x = x + y for x += y"
            if "inplace operation" in str(error)
            else "in training mode, too, take a batch of inputs and return the logits",
        ) from error
    if all(p.grad is None for p in work.parameters() if p.requires_grad):
        raise no_gradient()


def no_gradient() -> ModelError:
    """The error for a model whose loss depends on no parameter that is trained."""
    return ModelError(
        "no gradient reaches a parameter that is not frozen",
        where="model",
        fix="take torch.no_grad, detach and argmax out of the model's forward; "
        "torch.utils.checkpoint needs use_reentrant=False",
    )


def _check_logits(logits: torch.Tensor, samples: Samples, *, n: int) -> None:
    if len(logits) != n:
        raise ModelError(
            f"the model gives {len(logits)} rows of logits for {n} inputs",
            where=samples.name,
            fix="return one row of logits for each input",
        )
    if logits.shape[1] != len(samples.classes):
        raise ModelError(
            f"the model gives {logits.shape[1]} logits, the data have {len(samples.classes)} "
            "classes, by their numbers of samples "
            f"{smallest_classes(samples.labels, samples.classes)}",
            where=samples.name,
            fix=fix_class_count(samples.labels, samples.classes, logits.shape[1]),
        )


def require_network(model: object) -> None:
    """Raise ModelError for what is no network whose layers can be read and copied."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(
            f"expected a network, got the class {model.__name__}",
            fix=f"make one: {model.__name__}(…)",
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a torch.nn.Module, got {type(model).__name__}",
            fix=_fix_no_network(model),
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise ModelError(
            "the model is TorchScript, whose layers can be neither read nor copied",
            where="model",
            fix="pass the network that torch.jit.script or torch.jit.trace was given; its weights "
            "load by `network.load_state_dict(scripted.state_dict())`",
        )
    if any(k.__module__ == "torch.export._unlift" for k in type(model).__mro__):
        raise ModelError(
            "the model is an exported program of torch.export, which cannot be trained",
            where="model",
            fix="pass the network that was exported; its weights load by "
            "`network.load_state_dict(exported.state_dict())`",
        )
    _require_one_label(model)
    tensors = _named_tensors(model)
    if sharded := [n for n, t in tensors if tensor_subclass(t) == "DTensor"]:
        raise ModelError(
            f"weights are distributed over processes (DTensor): {format_ids(sharded)}",
            where="model",
            fix="load the full state dict into the network itself: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True))",
        )
    quantised = [n for n, m in model.named_modules() if _is_quantised(m)]
    quantised += [f"{n} ({tensor_subclass(t)})" for n, t in tensors if tensor_subclass(t)]
    if quantised:
        raise ModelError(
            f"layers are quantised: {format_ids(quantised)}",
            where="model",
            fix="pass the model in float32, and quantise the repaired one",
        )
    if lazy := [n for n, t in tensors if is_lazy(t)]:
        raise ModelError(
            f"layers have no weights before their first batch: {format_ids(lazy)}",
            where="model",
            fix="run one batch of the data through the model first (a constructor returns it with "
            "weights), and train it",
        )
    if unloaded := [n for n, t in tensors if t.is_meta]:
        raise ModelError(
            f"weights are not loaded, they are on the device 'meta': {format_ids(unloaded)}",
            where="model",
            fix="load the weights: model.to_empty(device='cpu'), then load_state_dict",
        )


def _require_one_label(model: nn.Module) -> None:
    """Raise ModelError if a model of Transformers is configured for something else than classes."""
    task = getattr(getattr(model, "config", None), "problem_type", None)
    if task not in ("multi_label_classification", "regression"):
        return
    single = "if each sample has one class: set problem_type of its config to "
    fix = f"{single}'single_label_classification'"
    raise ModelError(
        f"the model is configured for '{task}' (problem_type), not for one class a sample",
        where="model",
        fix=f"{fix}; {FIX_SEVERAL}" if task == "multi_label_classification" else fix,
    )


def _fix_no_network(model: object) -> str:
    """What to do about an object that is no network."""
    inner = [name for name, part in getattr(model, "__dict__", {}).items() if _is_network(part)]
    if inner:  # scikit-learn's names end with _ where something was fitted
        name = min(inner, key=lambda name: not name.endswith("_"))
        return f"pass the network that it holds: .{name}"
    if hasattr(model, "fit") and hasattr(model, "predict"):
        return (
            "expunge.detect(features, labels, probs=…) finds wrong labels without a network; probs "
            "are those of sklearn.model_selection.cross_val_predict(…, method='predict_proba')"
        )
    return "build the network, and load weights into it by `load_state_dict`"


def _is_network(part: object) -> bool:
    return isinstance(part, nn.Module) and any(True for _ in part.parameters())


def _named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _is_quantised(module: nn.Module) -> bool:
    home = type(module).__module__
    kinds = (".quantized", ".qat", ".fake_quantize")
    is_torch = home.startswith("torch.") and any(kind in home for kind in kinds)
    is_integer = any(
        not p.is_floating_point() and not p.is_complex() for p in module.parameters(recurse=False)
    )
    return is_torch or home.startswith(("bitsandbytes.", "torchao.")) or is_integer


def require_trainable(model: nn.Module) -> None:
    """Raise ModelError if every parameter is frozen: what is frozen stays as it is."""
    parameters = list(model.parameters())
    if not parameters:
        raise ModelError(
            "the model has no parameters, so nothing can be tuned",
            where="model",
            fix="register what may change as torch.nn.Parameter; buffers are not tuned",
        )
    if not any(p.requires_grad for p in parameters):
        raise ModelError(
            "every parameter is frozen (requires_grad is False), so nothing can be tuned",
            where="model",
            fix="unfreeze what the repair may change: model.requires_grad_(True)",
        )


def check_model(model: nn.Module) -> None:
    """Check that a model can be repaired; all problems at once.

    Raises
    ------
    ModelError
        For something that is not a module, TorchScript, quantised layers, layers that never ran,
        weights that are not float32, and NaN or infinite weights.
    """
    require_network(model)
    tensors = _named_tensors(model)
    problems = []
    if other := _other_types(model):
        problems.append(f"weights are {format_ids(other)}, not float32; pass `model.float()`")
    with torch.no_grad():
        bad = [n for n, t in tensors if not torch.isfinite(t).all()]
    if bad:
        problems.append(
            f"weights are NaN or infinite: {format_ids(bad)}; load an earlier checkpoint"
        )
    raise_all(ModelError, problems, where="model")


def _other_types(model: nn.Module) -> list[str]:
    """The types of floats other than float32 that a model has."""
    found = {str(t.dtype) for _, t in _named_tensors(model) if t.is_floating_point()}
    return sorted(found - {"torch.float32"})


def tied_note(model: nn.Module) -> str:
    """What a repair does about tied weights; empty for a model without any."""
    tied = tied_weights(model).values()
    if not tied:
        return ""
    return (
        f"weights are tied: {format_ids(' = '.join(names) for names in tied)}; they stay tied, "
        "and their layers are not pruned"
    )
