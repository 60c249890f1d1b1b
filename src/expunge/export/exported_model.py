"""A repaired model for use: weights, a manifest that rebuilds it and, optionally, an ONNX file.

    manifest.json           constructor, arguments, plan, classes, input, preparation, hashes
    model.safetensors       the weights
    README.md               the model card: what was found and done
    model.onnx              inputs to logits, preparation and features included

The manifest names code (the model's constructor), which is imported: load what you trust.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from expunge import specs
from expunge._core.isolation import isolated
from expunge._core.rng import temp_seed
from expunge.data import Batch, DataLike, Samples, as_samples
from expunge.data.decoding import Decoding
from expunge.editing.earlier_cuts import EarlierCut, cut_again, earlier_cuts, earlier_from
from expunge.editing.readout import rebuild
from expunge.errors import ConfigError, DataError, ModelError, RunError, format_ids
from expunge.export.files import (
    Files,
    default_decoding,
    is_file,
    load_decoding,
    read_files,
    store_decoding,
)
from expunge.export.manifest import (
    EXPORT_AGAIN,
    Manifest,
    StoredInputs,
    example_inputs,
    input_formats,
    prepare_inputs,
    read_manifest,
    write_manifest,
)
from expunge.export.model_card import render_model_card
from expunge.export.onnx import compare_graph, require_onnx, write_graph
from expunge.models.adaptation import adapt_model, unwrap
from expunge.models.calls import eval_mode, logits_of
from expunge.models.checks import check_fit, check_model
from expunge.models.constructors import name_of
from expunge.models.copying import copy_model
from expunge.models.outputs import OutputForm, mark_output, output_form
from expunge.records import HeadPlan, PrunePlan
from expunge.storage import serialization
from expunge.storage.atomic_files import make_folder, new_folder, wrap_io_errors
from expunge.storage.digests import file_digest, require_unchanged
from expunge.storage.finished_run import read_record, read_result
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading
from expunge.storage.run_folder import read_header
from expunge.storage.weight_files import read_weights
from expunge.storage.weights import save_weights

WEIGHTS, GRAPH, CARD = "model.safetensors", "model.onnx", "README.md"
MAX_CHECK_SAMPLES = 256  # on which the export is compared with the model
TOLERANCE = 1e-3  # of the logits of an ONNX file


@dataclass(frozen=True)
class ExportedModel:
    """A model for use, with its manifest.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU.
    manifest
        Says how inputs are prepared and what the classes are called.
    decoding
        How files become inputs; None if the manifest does not say.
    """

    model: nn.Module
    manifest: Manifest
    decoding: Decoding | None = None

    @torch.no_grad()  # a forward may switch gradients on, which inference mode forbids
    def __call__(self, stored: StoredInputs | Files) -> Tensor:
        """Logits of inputs as they are stored: not scaled, not standardised.

        Parameters
        ----------
        stored
            Arrays or tensors, ``[b, …]`` of the manifest's shape; by name if the model takes
            several. Or files of images or audio: a path, a Pillow image, or a list of them; they
            are decoded, resized and transformed as the training data were.

        Returns
        -------
        torch.Tensor
            ``float32[b, c]``.

        Raises
        ------
        DataError
            For inputs of another format.
        """
        found = read_files(stored, self.decoding) if is_file(stored) else stored
        inputs = prepare_inputs(cast(StoredInputs, found), self.manifest)
        return logits_of(self.model, inputs).float()

    def predict(self, stored: StoredInputs | Files) -> list[str]:
        """The names of the predicted classes; DataError if logits are NaN or infinite."""
        logits = self(stored)
        bad = ~torch.isfinite(logits).all(dim=1)
        if bad.any():
            raise DataError(
                f"logits are NaN or infinite for rows {format_ids(bad.nonzero()[:, 0].tolist())}",
                where="input",
                fix="fill missing values as in training, or leave these rows out",
            )
        return [self.manifest.classes[c] for c in logits.argmax(dim=1).tolist()]


@isolated
def export_model(
    model: nn.Module,
    data: DataLike,
    folder: str | Path,
    *,
    constructor: str | Callable[..., nn.Module],
    arguments: Mapping[str, Any] | None = None,
    plan: PrunePlan | None = None,
    head: HeadPlan | None = None,
    mode: Literal["remove", "mask"] = "remove",
    transform: str = "",
    onnx: bool = False,
    tolerance: float = TOLERANCE,
    summary: Mapping[str, Any] | None = None,
) -> ExportedModel:
    """Write a repaired model for use, and load it again.

    ``export_model(result.model, validation, "out", constructor="package.module:function",
    arguments={…}, plan=result.plan)``

    Parameters
    ----------
    model
        Left as it was.
    data
        Samples of the kind that the model takes; up to `MAX_CHECK_SAMPLES` of them check the
        export.
    folder
        Must be empty or not exist. It appears in one step, complete or not at all.
    constructor, arguments
        As in a spec; they make the network as it was before the repair. A function or class that
        can be imported by its name is named by it.
    plan
        The units that were cut; None if nothing was.
    head
        How a closed-form head reads the model: ``result.head``; None if it has the network's own.
    mode
        Whether units were removed or masked.
    transform
        The name of the transform that a data set in Python applied to its images, as in a spec, so
        that the export takes files. Data that were read from files keep their own.
    onnx
        Also write ``model.onnx`` (needs ``expunge[onnx]``).
    summary
        What the model card states: ``result.json`` of the run, or `summarise` of a result.
    tolerance
        Largest absolute difference of an ONNX logit.

    Returns
    -------
    ExportedModel
        As `load_exported_model` reads it.

    Raises
    ------
    ModelError
        If the manifest does not rebuild a model with the same logits, or the ONNX file's logits
        differ by more than ``tolerance``.
    ConfigError
        If the arguments are not plain values, or a package for ONNX is not installed.
    RunError
        If the folder is not empty or cannot be written.

    Notes
    -----
    Cost: a few forward passes; for ONNX a trace of some seconds.

    Examples
    --------
    >>> import tempfile
    >>> from expunge.models import mlp
    >>> x, y = torch.randn(4, 6), torch.arange(4) % 3
    >>> folder = Path(tempfile.mkdtemp()) / "out"
    >>> how = {"constructor": "expunge.models:mlp", "arguments": {"inputs": 6, "classes": 3}}
    >>> exported = export_model(mlp(inputs=6, classes=3), (x, y), folder, **how)
    >>> exported(x).shape
    torch.Size([4, 3])
    """
    samples, folder = as_samples(data), Path(folder)
    samples = samples.subset(np.arange(min(MAX_CHECK_SAMPLES, len(samples))))
    model, constructor = adapt_model(model, samples).model, name_of(constructor)
    check_model(model)
    check_fit(model, samples)
    model = copy_model(model).cpu()
    _check_empty(folder)
    _check_plain_values(arguments or {})
    if onnx:
        require_onnx()
    make_folder(folder.parent)
    with new_folder(folder) as temporary:
        save_weights(model, temporary / WEIGHTS)
        manifest = Manifest(
            constructor,
            dict(arguments or {}),
            samples.classes,
            input_formats(samples.inputs.batch(np.arange(1))),
            {WEIGHTS: file_digest(temporary / WEIGHTS)},
            {k: tuple(map(int, units)) for k, units in plan.units.items()} if plan else {},
            mode,
            head,
            samples.prepare.mean,
            samples.prepare.std,
            samples.sample_rate,
            output=output_form(model).kind,
            output_key=output_form(model).key,
            earlier=earlier_cuts(model),
            decoding=store_decoding(samples, transform, temporary),
            columns=samples.columns,
            versions=_versions(),
        )
        write_manifest(manifest, temporary)
        card = render_model_card(manifest, summary)
        (temporary / CARD).write_text(card, encoding="utf-8")
        found = _load(temporary)
        _check_same_logits(found, model, samples)
        if onnx:
            graph = found.model, samples, temporary / GRAPH
            write_graph(*graph)
            parity = compare_graph(*graph, tolerance=tolerance)
            hashes = {**manifest.sha256, GRAPH: file_digest(temporary / GRAPH)}
            found = replace(found, manifest=replace(manifest, onnx=parity, sha256=hashes))
            write_manifest(found.manifest, temporary)
    return found


@isolated
def load_exported_model(folder: str | Path) -> ExportedModel:
    """Read the model of a folder that `export_model` wrote.

    Tensors are read from safetensors. The constructor that the manifest names is imported and
    called, also from modules in the folder: load only what you trust.

    Parameters
    ----------
    folder
        With a manifest and weights.

    Returns
    -------
    ExportedModel
        In evaluation mode, on the CPU.

    Raises
    ------
    RunError
        If the manifest cannot be read, or a file has changed since it was written.
    ModelError
        If the network cannot be made or does not fit the weights.

    Examples
    --------
    >>> load_exported_model("no/such/folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    expunge.errors.RunError: no/such/folder/manifest.json: cannot be read: ...
      fix: name a folder that `expunge export` wrote
    """
    try:
        return _load(Path(folder))
    except ModelError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        name = (error.__cause__.name or error.where).partition(".")[0]
        raise ModelError(
            error.what, where=error.where, fix=f"copy {name}.py into {folder}, or install {name}"
        ) from error


def _load(folder: Path) -> ExportedModel:
    manifest = read_manifest(folder)
    present = {k: v for k, v in manifest.sha256.items() if k == WEIGHTS or (folder / k).is_file()}
    require_unchanged(folder, present, fix=EXPORT_AGAIN)
    config = specs.ModelConfig(manifest.constructor, manifest.arguments)
    state = read_weights(folder / WEIGHTS)
    network = unwrap(specs.build_model(config, folder, 0)).model.eval()
    model = _rebuild(
        network,
        plan=_plan_of(manifest.plan),
        head=manifest.head,
        mode=manifest.mode,
        earlier=manifest.earlier,
        example=example_inputs(manifest, network),
        state=state,
    )
    mark_output(model, OutputForm(manifest.output, manifest.output_key))
    return ExportedModel(model, manifest, _decoding_of(manifest, folder))


def _decoding_of(manifest: Manifest, folder: Path) -> Decoding | None:
    """How files become inputs: as the manifest says, or as plain pixels and clips do."""
    rate, form = manifest.sample_rate, manifest.inputs.get("input")
    found = load_decoding(manifest.decoding, folder, sample_rate=rate)
    if found is None and form is not None:
        return default_decoding(form.shape, form.dtype, rate)
    return found


def export_run(
    spec: str | Path,
    folder: str | Path,
    *,
    run: str | Path | None = None,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportedModel:
    """Write the model of a finished run for use; the spec says how its network is made.

    Parameters
    ----------
    spec
        Path of the spec.
    folder
        As in `export_model`.
    run
        The run folder; by default the one that ``expunge repair SPEC`` writes.
    onnx, tolerance
        As in `export_model`.

    Returns
    -------
    ExportedModel
        As `load_exported_model` reads it.

    Raises
    ------
    RunError
        If the run is not finished or has another model or other training data; and as
        `export_model`.
    """
    finished = finished_run(spec, run)
    config = finished.config
    return export_model(
        finished.model,
        finished.data,
        folder,
        constructor=config.constructor,
        arguments=config.arguments,
        plan=finished.plan,
        head=finished.head,
        mode=finished.mode,
        onnx=onnx,
        tolerance=tolerance,
        summary=finished.summary,
    )


class FinishedRun(NamedTuple):
    """The model of a finished run, and what it was made from."""

    model: nn.Module
    data: Samples
    plan: PrunePlan
    head: HeadPlan | None
    mode: Literal["remove", "mask"]
    config: specs.ModelConfig
    summary: Mapping[str, Any]


def finished_run(spec: str | Path, run: str | Path | None) -> FinishedRun:
    """Read the model of a finished run; the spec says how its network is made.

    Raises
    ------
    RunError
        If the run is not finished or has another model or other training data.
    """
    loaded, base = specs.read_spec(spec), Path(spec).resolve().parent
    run = specs.run_folder(loaded, spec) if run is None else Path(run)
    header, state, plan, head, earlier = _read_finished_run(run)
    if changes := [c for c in specs.changes_since(run, loaded) if c.startswith("model.")]:
        listed = "\n".join(f"  {line}" for line in changes)
        raise RunError(
            f"has another model than the spec names; what differs:\n{listed}",
            where=str(run),
            fix=specs.undo_or_repair(spec, run),
        )
    train = specs.read_train(loaded, base)
    if loaded.holds_out:
        train = specs.hold_out_some(loaded, train, header["seed"])[0]
    differing = [k for k, v in train.fingerprint().items() if header["train"].get(k) != v]
    if differing:
        raise RunError(
            f"has other training data than the spec names: {format_ids(differing)} differ",
            where=str(run),
            fix="name the run folder of this spec with --run, or "
            + specs.undo_or_repair(spec, run),
        )
    config = replace(loaded.model, weights="", checkpoints=())
    mode, example = header["settings"]["prune"]["mode"], train.batch(np.arange(1))
    model = _rebuild(
        specs.build_model(config, base, 0).eval(),
        plan=plan,
        head=head,
        mode=mode,
        earlier=earlier,
        example=example,
        state=state,
    )
    return FinishedRun(model, train, plan, head, mode, config, read_result(run))


# ------------------------------------------------------------------------------------ rebuilding


def _rebuild(
    network: nn.Module,
    *,
    plan: PrunePlan,
    head: HeadPlan | None,
    mode: Literal["remove", "mask"],
    earlier: Sequence[EarlierCut],
    example: Batch,
    state: Mapping[str, Tensor],
) -> nn.Module:
    """Remove or mask the units of a network as its constructor made it, and load the weights."""
    model = cut_again(network, earlier, example)
    return rebuild(model, plan, head, state, example=example, mode=mode)


def _plan_of(units: Mapping[str, tuple[int, ...]]) -> PrunePlan:
    return PrunePlan(units, sum(map(len, units.values())))


def _read_finished_run(
    run: Path,
) -> tuple[dict[str, Any], dict[str, Tensor], PrunePlan, HeadPlan | None, tuple[EarlierCut, ...]]:
    """The header of a run, its model's weights, the units that it cut, its head, earlier cuts."""
    fix = "let `expunge repair` end first, or name the run folder with --run"
    try:
        read_record(run, WEIGHTS)
        header = read_header(run)
    except RunError as error:
        raise RunError(error.what, where=error.where, fix=fix) from error
    with (
        reading(run, RunError, what="holds no finished run", fix=fix, also=(SafetensorError,)),
        safe_open(run / WEIGHTS, framework="pt") as file,
    ):
        facts = file.metadata() or {}
        found = parse_json(facts["plan"])
        units = {layer: tuple(map(int, numbers)) for layer, numbers in found.items()}
        head = serialization.load_head(parse_json(facts["head"]))
        earlier = earlier_from(parse_json(facts["earlier"]))
    return header, read_weights(run / WEIGHTS), _plan_of(units), head, earlier


def _check_same_logits(exported: ExportedModel, model: nn.Module, samples: Samples) -> None:
    """Raise ModelError if the exported model does not give the model's own logits."""
    with torch.no_grad(), eval_mode(model):
        for at in samples.batches(64):
            with temp_seed(0, "export"):  # a model may draw in evaluation mode
                expected = logits_of(model, samples.batch(at)).float()
            with temp_seed(0, "export"):
                got = exported(samples.inputs.batch(at))
            if got.shape != expected.shape or not torch.allclose(got, expected, 1e-4, 1e-4):
                raise ModelError(
                    "constructor, arguments, plan and weights do not give the model's own logits",
                    where=exported.manifest.constructor,
                    fix="give the arguments and the plan that the model was made with",
                )


# ----------------------------------------------------------------------------------------- files


def _check_plain_values(arguments: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"arguments must be plain values, as in a spec: {error}",
            where="export",
            fix="write a constructor that takes numbers and text",
        ) from error


def _check_empty(folder: Path) -> None:
    with wrap_io_errors(folder):
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty:
        raise RunError("is not empty", where=str(folder), fix="name a new folder")


def _versions() -> dict[str, str]:
    found = {}
    for name in ("expunge", "torch"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
            found[name] = version(name)
    return found
