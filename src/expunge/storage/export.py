"""A repaired model for use: weights and a manifest that rebuild it, and an ONNX file if asked for.

    manifest.json           constructor, arguments, plan, classes, input, preparation, hashes
    model.safetensors       the weights
    model.onnx              inputs to logits, preparation and features included

The manifest names code (the model's constructor), which is imported: load what you trust.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from expunge import specs
from expunge._core.rng import torch_generator
from expunge.config import build
from expunge.data import Batch, Preparation, Samples, as_samples
from expunge.data.arrays import to_cpu_tensor
from expunge.errors import ConfigError, DataError, ModelError, RunError, format_ids
from expunge.models.inspection import eval_mode, logits_of
from expunge.pruning import surgery
from expunge.records import PrunePlan
from expunge.storage.json_files import read_json
from expunge.storage.onnx import Parity, compare_graph, require_onnx, write_graph
from expunge.storage.run_folder import wrap_io_errors
from expunge.storage.weights import fit_weights, read_weights, save_weights

SCHEMA = 1
MANIFEST, WEIGHTS, GRAPH = "manifest.json", "model.safetensors", "model.onnx"
# What stored integers are multiplied by, see `Preparation`.
SCALES = {"uint8": 1 / 255, "int16": 1 / 32768}
# Inputs as they are stored, one for all or by the names of the model's arguments.
Stored = np.ndarray | Tensor | Mapping[str, np.ndarray | Tensor]
# Samples on which what was written is compared with the model, and how far logits may lie apart.
ASKED, TOLERANCE = 256, 1e-3


@dataclass(frozen=True)
class Form:
    """One input as it is stored: shape without the batch, dtype, and what scales it to floats."""

    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    constructor, arguments: make the network as it was before the repair. plan: the units that were
    cut from it, by layer; mode: whether they were removed or masked. inputs: by the names of the
    model's arguments, or one called ``input``; after scaling, mean and std are taken by channel.
    rate: Hz, for sound. sha256: of the files. onnx: the check of ``model.onnx``, if there is one,
    which takes the scaled input, ``float32``, in batches of any size.
    """

    constructor: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    inputs: dict[str, Form]
    sha256: dict[str, str]
    plan: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mode: Literal["remove", "mask"] = "remove"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rate: int | None = None
    onnx: Parity | None = None
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class ExportedModel:
    """A model for use, with all that it takes to ask it."""

    model: nn.Module
    manifest: Manifest

    @torch.inference_mode()
    def __call__(self, stored: Stored) -> Tensor:
        """Logits, ``float32[b, c]``, of inputs as they are stored: not scaled, not standardised.

        stored: arrays or tensors, ``[b, …]`` of the manifest's shape; by name where the model takes
        several. Raises DataError for others.
        """
        return logits_of(self.model, _prepared(stored, self.manifest)).float()

    def predict(self, stored: Stored) -> list[str]:
        """The names of the classes."""
        return [self.manifest.classes[c] for c in self(stored).argmax(dim=1).tolist()]


def export_model(
    model: nn.Module,
    data: Any,
    folder: str | Path,
    *,
    constructor: str,
    arguments: Mapping[str, Any] | None = None,
    plan: PrunePlan | None = None,
    mode: Literal["remove", "mask"] = "remove",
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportedModel:
    """Write a repaired model for use, and load what was written.

    ``export_model(result.model, validation, "out", constructor="package.module:function",
    arguments={…}, plan=result.plan)``

    data: samples of the kind that the model takes; up to 256 of them are asked about. constructor,
    arguments: as in a spec, they make the network as it was before the repair. mode: what the
    recipe did with the plan. onnx: write ``model.onnx`` too (``expunge[onnx]``).

    The folder must be empty or not exist; it appears in one step, complete or not at all. Raises
    ModelError if what the manifest rebuilds does not give the model's own logits, or those of the
    ONNX file lie further than ``tolerance`` from these, RunError if the folder cannot be written.
    Cost: a few forward passes; for ONNX a trace of some seconds.
    """
    samples, folder = as_samples(data), Path(folder)
    samples = samples.subset(np.arange(min(ASKED, len(samples))))
    model = copy.deepcopy(model).cpu()
    _require_empty(folder)
    _require_json(arguments or {})
    if onnx:
        require_onnx()
    with wrap_io_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        save_weights(model, temporary / WEIGHTS)
        manifest = Manifest(
            constructor,
            dict(arguments or {}),
            samples.classes,
            _forms(samples.inputs.batch(np.arange(1))),
            {WEIGHTS: _sha256(temporary / WEIGHTS)},
            {k: tuple(map(int, units)) for k, units in plan.units.items()} if plan else {},
            mode,
            samples.prepare.mean,
            samples.prepare.std,
            samples.sample_rate,
            versions=_versions(),
        )
        _write_manifest(manifest, temporary)
        found = _loaded(temporary)
        _require_same(found, model, samples)
        if onnx:
            graph = found.model, samples, temporary / GRAPH
            write_graph(*graph)
            parity = compare_graph(*graph, tolerance=tolerance)
            hashes = {**manifest.sha256, GRAPH: _sha256(temporary / GRAPH)}
            found = replace(found, manifest=replace(manifest, onnx=parity, sha256=hashes))
            _write_manifest(found.manifest, temporary)
        with wrap_io_errors(folder):
            temporary.chmod(0o755)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def load_exported_model(folder: str | Path) -> ExportedModel:
    """The model of a folder that `export_model` wrote, from manifest and weights alone.

    Tensors are read from safetensors; the constructor that the manifest names is imported and
    called, also from modules in the folder: load what you trust. Raises RunError for a manifest
    that cannot be read and files that have changed, ModelError for a network that does not fit.
    """
    try:
        return _loaded(Path(folder))
    except ModelError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        name = (error.__cause__.name or error.where).partition(".")[0]
        raise ModelError(
            error.what, where=error.where, fix=f"copy {name}.py into {folder}, or install {name}"
        ) from error


def _loaded(folder: Path) -> ExportedModel:
    manifest = _read_manifest(folder)
    for name, expected in manifest.sha256.items():
        if (folder / name).is_file() and _sha256(folder / name) != expected:
            raise RunError("has changed since it was written", where=str(folder / name))
    config = specs.ModelConfig(manifest.constructor, manifest.arguments)
    state = read_weights(folder / WEIGHTS)
    cut = manifest.plan, manifest.mode
    model = _rebuilt(config, folder, *cut, _example(manifest), state)
    return ExportedModel(model, manifest)


def export_run(
    spec: str | Path,
    folder: str | Path,
    *,
    run: str | Path | None = None,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportedModel:
    """Write the model of a finished run for use; the spec says how its network is made.

    run: the run folder; by default the one that ``expunge repair SPEC`` writes to. See
    `export_model`. Raises RunError if the run is not finished, or of other training data.
    """
    said, place = specs.read_spec(spec), Path(spec).resolve().parent
    run = specs.run_folder(said, spec) if run is None else Path(run)
    header, state, plan = _finished_run(run)
    train, validation, _ = specs.read_data(said, place)
    differing = [k for k, v in train.fingerprint().items() if header["train"].get(k) != v]
    if differing:
        raise RunError(
            f"is of other training data than the spec names: {format_ids(differing)} differ",
            where=str(run),
            fix="name the run folder of this spec with --run",
        )
    data = train if validation is None else validation
    config = replace(said.model, weights="", checkpoints=())
    mode, example = header["settings"]["prune"]["mode"], data.batch(np.arange(1))
    return export_model(
        _rebuilt(config, place, plan.units, mode, example, state),
        data,
        folder,
        constructor=config.constructor,
        arguments=config.arguments,
        plan=plan,
        mode=mode,
        onnx=onnx,
        tolerance=tolerance,
    )


# ------------------------------------------------------------------------------------ rebuilding


def _rebuilt(
    config: specs.ModelConfig,
    folder: Path,
    units: Mapping[str, tuple[int, ...]],
    mode: Literal["remove", "mask"],
    example: Batch,
    state: Mapping[str, Tensor],
) -> nn.Module:
    """The network of a constructor, without the units, with the weights."""
    model = specs.build_model(config, folder, 0).eval()
    plan = PrunePlan(units, sum(map(len, units.values())))
    if units and mode == "remove":
        return surgery.rebuild(model, plan, example, state).eval()
    if units:
        surgery.mask(model, plan, example)
    fit_weights(model, state, where=WEIGHTS)
    return model


def _finished_run(run: Path) -> tuple[dict[str, Any], dict[str, Tensor], PrunePlan]:
    """What a run belongs to, its model's weights, and the units that it cut."""
    try:
        header = read_json(run / "run.json")
        with safe_open(run / WEIGHTS, framework="pt") as file:
            units = json.loads((file.metadata() or {})["plan"])
    except (RunError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"holds no finished run: {error}",
            where=str(run),
            fix="let `expunge repair` end first, or name the run folder with --run",
        ) from error
    units = {layer: tuple(numbers) for layer, numbers in units.items()}
    return header, read_weights(run / WEIGHTS), PrunePlan(units, sum(map(len, units.values())))


def _require_same(exported: ExportedModel, model: nn.Module, samples: Samples) -> None:
    """Refuse a manifest that makes another network than the one that was to be written."""
    with torch.inference_mode(), eval_mode(model):
        for at in samples.batches(64):
            expected = logits_of(model, samples.batch(at)).float()
            made = exported(samples.inputs.batch(at))
            if made.shape != expected.shape or not torch.allclose(made, expected, 1e-4, 1e-4):
                raise ModelError(
                    "constructor, arguments, plan and weights do not give the model's own logits",
                    where=exported.manifest.constructor,
                    fix="give the arguments and the plan that the model was made with",
                )


# --------------------------------------------------------------------------------------- inputs


def _forms(stored: Batch) -> dict[str, Form]:
    if isinstance(stored, dict):
        return {k: Form(tuple(x.shape[1:]), _name_of(x.dtype)) for k, x in stored.items()}
    name = _name_of(stored.dtype)
    return {"input": Form(tuple(stored.shape[1:]), name, SCALES.get(name, 1.0))}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _prepared(stored: Stored, manifest: Manifest) -> Batch:
    """What the model takes; the parts of a dictionary are neither scaled nor held to a shape."""
    names = list(manifest.inputs)
    if isinstance(stored, Mapping):
        absent = [name for name in names if name not in stored]
        if absent:
            raise DataError(
                f"there is no '{format_ids(absent)}'", where="input", fix="add it by name"
            )
        return {name: _tensor(x, name) for name, x in stored.items()}
    form = manifest.inputs.get("input")
    if form is None:
        raise DataError(
            f"the model takes several inputs: {format_ids(names)}",
            where="input",
            fix="give a dictionary with these names",
        )
    x = _tensor(stored, "input")
    # Floats are taken as scaled already; other integers would be scaled in another way.
    known = x.is_floating_point() or _name_of(x.dtype) == form.dtype
    if tuple(x.shape[1:]) != form.shape or not known:
        one = known and tuple(x.shape) == form.shape
        expected = f"{form.dtype}[{', '.join(map(str, ('b', *form.shape)))}]"
        raise DataError(
            f"got {_name_of(x.dtype)}{list(x.shape)}, expected {expected}",
            where="input",
            fix="x[None] makes a batch of one sample" if one else "give inputs as they were stored",
        )
    return Preparation(manifest.mean, manifest.std)(x)


def _tensor(x: object, where: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise DataError(f"got a {type(x).__name__}, expected an array or a tensor", where=where)
    try:
        return to_cpu_tensor(x)
    except TypeError as error:
        raise DataError(
            f"got dtype {x.dtype}, expected floats, uint8 or signed integers", where=where
        ) from error


def _example(manifest: Manifest) -> Batch:
    """Some input of the right form, to trace a network with."""
    draw, made = torch_generator(0, "example"), {}
    for name, form in manifest.inputs.items():
        x = torch.randn((1, *form.shape), generator=draw)
        index = form.scale == 1.0 and not form.dtype.startswith(("float", "bfloat"))
        made[name] = torch.zeros_like(x, dtype=getattr(torch, form.dtype)) if index else x
    return made["input"] if list(made) == ["input"] else made


# ----------------------------------------------------------------------------------------- files


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    with wrap_io_errors(folder):
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    values = read_json(file, fix="name a folder that `expunge export` wrote")
    if values.get("schema") != SCHEMA:
        raise RunError(
            f"has the schema {values.get('schema')}, this version reads {SCHEMA}",
            where=str(file),
            fix="export the model again",
        )
    return build(Manifest, values, where=str(file))


def _require_json(arguments: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"arguments must be plain values, as in a spec: {error}",
            where="export",
            fix="write a constructor that takes numbers and text",
        ) from error


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError("is there already", where=str(folder), fix="name a new folder with --out")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("expunge", "torch"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
            found[name] = version(name)
    return found
