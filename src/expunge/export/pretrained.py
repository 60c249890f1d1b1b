"""Repaired Hugging Face models as folders that ``from_pretrained`` reads."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.isolation import isolated
from expunge.data import Batch, DataLike, Samples, as_samples
from expunge.data.paths import resolve_path
from expunge.data.texts import Tokenizer, load_tokenizer
from expunge.data.transforms import HubProcessor, has_processor
from expunge.errors import ModelError, RunError
from expunge.export.exported_model import CARD, GRAPH, TOLERANCE, finished_run
from expunge.export.model_card import render_pretrained_card
from expunge.export.onnx import compare_graph, write_graph
from expunge.models.calls import eval_mode, logits_of
from expunge.models.copying import copy_model
from expunge.models.huggingface import CONFIG, class_names, has_tokenizer, quiet
from expunge.pruning import surgery
from expunge.records import PrunePlan
from expunge.storage.atomic_files import wrap_io_errors
from expunge.storage.json_files import read_json
from expunge.storage.weights import fit_weights

_CHECK_SAMPLES = 32
# Weights keep their values up to this step; a power of two, so that nothing is rounded.
_STEP = 2.0**-10


@isolated
def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    data: DataLike,
    *,
    tokenizer: Tokenizer | None = None,
    processor: object | None = None,
    plan: PrunePlan | None = None,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write a repaired Hugging Face model so that ``from_pretrained`` loads it.

    ``save_pretrained(result.model, "repaired", validation, plan=result.plan, tokenizer=tokenizer)``

    A configuration has one size for all layers, so that it cannot describe a pruned network. The
    pruned units are therefore written as zeros: the logits are those of the pruned model, the size
    is that of the original. `export_model` keeps the smaller size.

    Parameters
    ----------
    model
        A model of transformers, or of peft: then only the adapter is written. Left as it was.
    folder
        Must be empty or not exist. It appears in one step.
    data
        Samples of the kind that the model takes; up to 32 of them check the saved weights.
    tokenizer
        Written into the folder too.
    processor
        An image processor or a feature extractor of transformers, written into the folder too.
    plan
        The units that were removed; None if nothing was.
    onnx
        Also write ``model.onnx``, of the pruned size (needs ``expunge[onnx]``).
    tolerance
        Largest absolute difference of an ONNX logit.
    summary
        What the model card states, as in `export_model`. A card that the model writes itself, as
        peft does, stays.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ModelError
        If the model has no ``save_pretrained``, zeros do not give the pruned model's logits, as
        behind a layer norm over pruned units, or an ONNX file's logits differ by more than
        ``tolerance``.
    RunError
        If the folder is not empty or cannot be written.

    Examples
    --------
    >>> save_pretrained(nn.Linear(2, 2), "out", (np.zeros((4, 2)), [0, 1, 0, 1]))
    Traceback (most recent call last):
    expunge.errors.ModelError: model: Linear has no save_pretrained
      fix: expunge.export_model writes models of any kind
    """
    folder, writer = Path(folder), getattr(model, "save_pretrained", None)
    if writer is None:
        raise ModelError(
            f"{type(model).__name__} has no save_pretrained",
            where="model",
            fix="expunge.export_model writes models of any kind",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError("is not empty", where=str(folder), fix="name a new folder")
    samples = as_samples(data)
    some = samples.subset(np.arange(min(_CHECK_SAMPLES, len(samples))))
    smaller = copy_model(model).cpu().eval() if onnx else None
    if plan is not None and plan.units:
        model = _with_zeros(model, plan, some.batch(np.arange(len(some))))
    with wrap_io_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            with quiet():
                for part in (model, tokenizer, processor):
                    if part is not None:
                        part.save_pretrained(str(temporary))  # type: ignore[attr-defined]
            _name_classes(temporary, samples.classes)
            if not (temporary / CARD).exists():
                card = render_pretrained_card(
                    type(model).__name__,
                    samples,
                    summary,
                    is_whole=has_tokenizer(temporary) or has_processor(temporary),
                )
                (temporary / CARD).write_text(card, encoding="utf-8")
            if smaller is not None:
                write_graph(smaller, some, temporary / GRAPH)
                compare_graph(smaller, some, temporary / GRAPH, tolerance=tolerance)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def export_pretrained_run(
    spec: str | Path,
    folder: str | Path,
    *,
    run: str | Path | None = None,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write the model of a finished run, whose spec names a pretrained folder.

    Its tokenizer or processor is written too; a processor that transforms the data comes first.

    Parameters
    ----------
    spec
        Path of the spec.
    folder
        As in `save_pretrained`.
    run
        The run folder; by default the one that ``expunge repair SPEC`` writes.
    onnx, tolerance
        As in `save_pretrained`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    RunError
        If the run is not finished or has another model or other training data; and as
        `save_pretrained`.
    """
    finished = finished_run(spec, run)
    if finished.head is not None:
        raise ModelError(
            "the repair replaced the last layers, which from_pretrained cannot rebuild",
            where=str(spec),
            fix="repair with a recipe that keeps all layers, or use expunge.load_run",
        )
    source = resolve_path(finished.config.pretrained, Path(spec).resolve().parent)
    return save_pretrained(
        finished.model,
        folder,
        finished.data,
        tokenizer=load_tokenizer(source) if has_tokenizer(source) else None,
        processor=_processor(finished.data, source),
        plan=finished.plan if finished.mode == "remove" else None,
        onnx=onnx,
        tolerance=tolerance,
        summary=finished.summary,
    )


def _processor(samples: Samples, source: Path) -> HubProcessor | None:
    """The processor that transforms the data, or else that of the model's folder."""
    made = samples.decoding.transform if samples.decoding else None
    if made is not None and isinstance(made.function, HubProcessor):
        return made.function
    return HubProcessor(source) if has_processor(source) else None


def _name_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write the class names into a configuration that has none of its own."""
    path = folder / CONFIG
    if path.is_file() and not class_names(folder):
        config = read_json(path, error=ModelError)
        config["id2label"] = {str(k): name for k, name in enumerate(classes)}
        config["label2id"] = {name: k for k, name in enumerate(classes)}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_zeros(model: nn.Module, plan: PrunePlan, batch: Batch) -> nn.Module:
    """The pruned model in its original size, with zeros for the pruned units."""
    full = type(model)(model.config)
    state = filled_with_zeros(full, plan, batch, model.state_dict())
    fit_weights(full, state, where="save_pretrained")
    with torch.inference_mode(), eval_mode(model), eval_mode(full):
        expected, got = logits_of(model, batch), logits_of(full, batch)
    if not torch.allclose(expected, got, 1e-4, 1e-4):
        raise ModelError(
            "zeros for the pruned units do not give the pruned model's logits",
            where="save_pretrained",
            fix="expunge.export_model keeps the pruned model",
        )
    return full.eval()


def filled_with_zeros(
    full: nn.Module, plan: PrunePlan, example: Batch, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a pruned model in the sizes of the original, with zeros for what was cut.

    Parameters
    ----------
    full
        The original architecture. Its weights are replaced.
    plan, example
        As in `surgery.prune`.
    state
        The state dictionary of the pruned model.

    Notes
    -----
    The last digits of the original's weights are replaced by numbers, and it is pruned; the numbers
    that remain say where the pruned model's weights belong.

    Examples
    --------
    >>> full, plan = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), PrunePlan({"0": (1,)}, 1)
    >>> small = surgery.prune(full, plan, torch.ones(1, 2))
    >>> found = filled_with_zeros(full, plan, torch.ones(1, 2), small.state_dict())
    >>> found["0.bias"].shape, float(found["0.bias"][1])
    (torch.Size([3]), 0.0)
    """
    numbered = full.double()
    with torch.no_grad():
        for tensor in numbered.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(_numbered(tensor))
    places = surgery.prune(numbered, plan, _as_double(example)).state_dict()
    found = {}
    for name, original in numbered.state_dict().items():
        values = state[name]
        if values.shape != original.shape:
            flat = torch.zeros(original.numel(), dtype=values.dtype)
            flat[_numbers_of(places[name], original.numel())] = values.flatten()
            values = flat.view_as(original)
        found[name] = values.clone()
    full.float()
    return found


def _numbered(values: Tensor) -> Tensor:
    """The values with their places as fractions of a small step; what they compute stays alike."""
    places = (torch.arange(values.numel(), dtype=values.dtype) + 0.5) / values.numel()
    return ((values / _STEP).floor() + places.view_as(values)) * _STEP


def _numbers_of(values: Tensor, n: int) -> Tensor:
    """The places that `_numbered` wrote into some of n values."""
    return ((values.flatten() / _STEP).remainder(1) * n).long()


def _as_double(batch: Batch) -> Batch:
    if isinstance(batch, dict):
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return batch.double() if batch.is_floating_point() else batch
