"""The manifest of an exported model: how its network is made and what its inputs look like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Array
from expunge._core.rng import torch_generator
from expunge.config import build
from expunge.data import Batch, Preparation
from expunge.data.conversion import is_frame, to_cpu_tensor
from expunge.data.texts import MASK
from expunge.editing.earlier_cuts import EarlierCut
from expunge.errors import (
    DataError,
    ModelError,
    RunError,
    check_range,
    format_ids,
    type_with_article,
)
from expunge.export.files import StoredDecoding
from expunge.export.onnx import Parity
from expunge.models.calls import FORWARD_ERRORS, raw_output
from expunge.models.outputs import OutputKind
from expunge.records import HeadPlan
from expunge.storage.atomic_files import write_file
from expunge.storage.json_files import read_json, read_sealed, seal

SCHEMA = 2
EXPORT_AGAIN = "export the model again"
MAX_INPUT_VALUES = 2**28  # of one sample
MANIFEST = "manifest.json"
# What stored integers are multiplied by, see `Preparation`.
SCALES = {"uint8": 1 / 255, "int16": 1 / 32768}
MAX_SCALED = 2.0  # of scaled inputs, which a resize may bring a little above 1
# Inputs as they are stored: one for all, or by the names of the model's arguments.
StoredInputs = Array | Tensor | Mapping[str, Array | Tensor]


@dataclass(frozen=True)
class InputFormat:
    """The format in which one input is stored.

    Parameters
    ----------
    shape
        Without the batch.
    dtype
        A name as in torch: ``"uint8"``.
    scale
        What turns stored integers into floats.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``.

    Parameters
    ----------
    constructor, arguments
        They make the network as it was before the repair.
    classes
        Names of the classes, in the order of the logits.
    inputs
        By the names of the model's arguments, or one called ``input``.
    sha256
        Of the files, by name.
    plan
        The units that were cut, by layer.
    mode
        Whether the units were removed or masked.
    head
        How a closed-form head reads the network, see `expunge.HeadPlan`; None if it has its own.
    mean, std
        By channel; subtracted and divided by after scaling.
    sample_rate
        Hz, for audio.
    earlier
        What earlier runs cut, before the units of the plan.
    decoding
        How files become stored inputs, if they can.
    onnx
        The check of ``model.onnx``, if there is one. The file takes the scaled input, ``float32``,
        in batches of any size.
    output
        What the network returns, see `to_logits`; exported models give logits in any case.
    output_key
        Which part of what the network returns that is; None for the usual one.
    columns
        Names of the columns of a table, in the order of the input, if they are known.
    versions
        Of expunge and torch.
    schema
        Version of this format.
    """

    constructor: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    inputs: dict[str, InputFormat]
    sha256: dict[str, str]
    plan: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mode: Literal["remove", "mask"] = "remove"
    head: HeadPlan | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sample_rate: int | None = None
    earlier: tuple[EarlierCut, ...] = ()
    decoding: StoredDecoding | None = None
    onnx: Parity | None = None
    output: OutputKind = "logits"
    output_key: str | None = None
    columns: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def modules(self) -> tuple[str, ...]:
        """The packages and modules beside expunge that a use of the model imports."""
        transform = self.decoding.transform if self.decoding else ""
        names = (name.partition(":")[0] for name in (self.constructor, transform) if ":" in name)
        return tuple(sorted({name.partition(".")[0] for name in names} - {"expunge"}))


def input_formats(stored: Batch) -> dict[str, InputFormat]:
    """The formats of a batch of stored inputs."""
    if isinstance(stored, dict):
        return {k: InputFormat(tuple(x.shape[1:]), _dtype_name(x.dtype)) for k, x in stored.items()}
    name = _dtype_name(stored.dtype)
    return {"input": InputFormat(tuple(stored.shape[1:]), name, SCALES.get(name, 1.0))}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def prepare_inputs(stored: StoredInputs, manifest: Manifest) -> Batch:
    """Turn stored inputs into model inputs: scaled and standardised.

    The parts of a dictionary are neither scaled nor checked for their shape.

    Raises
    ------
    DataError
        For inputs of another format than the manifest's.
    """
    names = list(manifest.inputs)
    if isinstance(stored, Mapping):
        absent = [name for name in names if name not in stored]
        if absent:
            raise DataError(
                f"there is no '{format_ids(absent)}'", where="input", fix="add it by its name"
            )
        parts = {name: _tensor(x, name) for name, x in stored.items()}
        return {k: x.float() if x.is_floating_point() else x for k, x in parts.items()}
    form = manifest.inputs.get("input")
    if form is None:
        raise DataError(
            f"the model takes several inputs: {format_ids(names)}",
            where="input",
            fix="give a dictionary with these names",
        )
    fix = _fix_array(stored, manifest.columns, form.dtype)
    x = _tensor(stored, "input", fix=fix)
    # Floats are taken as scaled already; other integers would be scaled in another way.
    is_known = x.is_floating_point() or _dtype_name(x.dtype) == form.dtype
    if tuple(x.shape[1:]) != form.shape or not is_known:
        expected = f"{form.dtype}[{', '.join(map(str, ('b', *form.shape)))}]"
        raise DataError(
            f"got {_dtype_name(x.dtype)}{list(x.shape)}, expected {expected}",
            where="input",
            fix=_fix_shape(tuple(x.shape), form.shape)
            if is_known
            else "give inputs as they were stored",
        )
    if form.scale != 1 and x.is_floating_point() and x.numel() and x.abs().max() > MAX_SCALED:
        raise DataError(
            f"got floats as large as {float(x.abs().max()):g}, expected {form.dtype}, or floats "
            f"multiplied by 1/{round(1 / form.scale)}",
            where="input",
            fix=f"x.astype('{form.dtype}') in NumPy, x.to(torch.{form.dtype}) in torch",
        )
    return Preparation(manifest.mean, manifest.std)(x)


def _fix_shape(given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What makes a batch of the inputs that the model takes."""
    if given == expected:
        return "x[None] makes a batch of one sample"
    if len(expected) == 3 and given[1:] == (*expected[1:], expected[0]):
        return "x.transpose(0, 3, 1, 2) in NumPy, x.permute(0, 3, 1, 2) in torch"
    return "give inputs as they were stored"


def _fix_array(x: object, columns: Sequence[str], dtype: str) -> str:
    """What makes an array of a frame, a list or another object."""
    if not is_frame(x):
        return f"numpy.asarray(x, dtype={dtype!r})"
    chosen = "x[list(exported.manifest.columns)]" if columns else "x"
    return f"{chosen}.to_numpy().astype({dtype!r})"


def _tensor(x: object, where: str, *, fix: str = "give an array") -> Tensor:
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise DataError(
            f"got {type_with_article(x)}, expected an array or a tensor", where=where, fix=fix
        )
    try:
        return to_cpu_tensor(x)
    except TypeError as error:
        raise DataError(
            f"got dtype {x.dtype}, expected floats, uint8 or signed integers", where=where, fix=fix
        ) from error


def example_inputs(manifest: Manifest, model: nn.Module) -> Batch:
    """Make inputs in the manifest's format to trace a network: random numbers, and tokens 0, 1, 2 …

    Attention to equal tokens would not depend on its queries and keys. Where the model fails on
    these (it has fewer tokens), all are 0.
    """
    example = _example(manifest, are_tokens_counted=True)
    try:
        with torch.no_grad():
            raw_output(model, example)
    except (*FORWARD_ERRORS, ModelError):
        return _example(manifest, are_tokens_counted=False)
    return example


def _example(manifest: Manifest, *, are_tokens_counted: bool) -> Batch:
    draw, made = torch_generator(0, "example"), {}
    for name, form in manifest.inputs.items():
        x = torch.randn((1, *form.shape), generator=draw)
        if form.scale == 1.0 and not form.dtype.startswith(("float", "bfloat")):
            x = torch.zeros_like(x, dtype=getattr(torch, form.dtype))
            if name == MASK:
                x += 1
            elif are_tokens_counted and name in ("input", "input_ids"):
                x += torch.arange(x.shape[-1]).to(x.dtype)
        made[name] = x
    return made["input"] if list(made) == ["input"] else made


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest into a folder; RunError if that fails."""
    text = json.dumps(seal(asdict(manifest)), indent=2, ensure_ascii=False)
    write_file(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises
    ------
    RunError
        If it cannot be read, has another schema or has changed since it was written.
    ConfigError
        For unknown or missing keys.
    """
    file = folder / MANIFEST
    schema = read_json(file, fix="name a folder that `expunge export` wrote").get("schema")
    if schema != SCHEMA:
        raise RunError(
            f"has the schema {schema}, this version reads {SCHEMA}",
            where=str(file),
            fix=EXPORT_AGAIN,
        )
    values = read_sealed(file, fix=EXPORT_AGAIN)
    manifest = build(Manifest, values, where=str(file))
    _check_formats(manifest.inputs, str(file))
    return manifest


def _check_formats(inputs: Mapping[str, InputFormat], where: str) -> None:
    """Refuse formats that no tensor has, and inputs that take too much memory to trace with."""
    for name, form in inputs.items():
        sizes = {f"inputs.{name}.shape[{i}]": (n, "[1, inf)") for i, n in enumerate(form.shape)}
        check_range(RunError, sizes, where=where)
        is_type = isinstance(getattr(torch, form.dtype, None), torch.dtype)
        if not is_type or math.prod(form.shape) > MAX_INPUT_VALUES:
            raise RunError(
                f"input '{name}' is {form.dtype} of shape {list(form.shape)}",
                where=where,
                fix=EXPORT_AGAIN,
            )
