"""What a file or folder of data holds: its source, columns, classes, shape and scale."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from expunge.data import Samples, read
from expunge.data.encoded import Encoded
from expunge.data.inputs import Inputs, require_tensor
from expunge.data.shards import files_of, split_of
from expunge.data.sources import DataConfig, guess_source, sources
from expunge.data.texts import Texts
from expunge.errors import DataError, extra_required
from expunge.models.huggingface import class_names, has_tokenizer
from expunge.scaffold.columns import Roles, choose_roles, inspect_columns

InputKind = Literal["image", "audio", "text", "table", "features"]

# Images and clips of which size and mode are looked at.
_MAX_PROBED = 64
# Images of several sizes are resized to at most this side.
_MAX_SIZE = 224
# Inputs of which mean and standard deviation are measured.
_MAX_MEASURED = 2000
# Channels or columns with a mean and a standard deviation of their own.
_MAX_CHANNELS = 64
_SPLITS = {
    "train": ("train", "training"),
    "held_out": ("validation", "valid", "val", "dev"),
    "validation": ("test", "testing"),
}


@dataclass(frozen=True)
class InspectedData:
    """The settings with which the training data are read, and what was read.

    shape: of one input. has_scale: whether inputs are to be standardised: neither audio nor
    indices. is_mixed: whether the rows are in no order of the classes, so that a part of them is
    like the rest.
    """

    config: DataConfig
    samples: Samples
    kind: InputKind
    shape: tuple[int, ...]
    has_scale: bool
    is_mixed: bool


@dataclass(frozen=True)
class NamedColumns:
    """Columns that the user names; the others are guessed."""

    label: str | None = None
    inputs: tuple[str, ...] = ()
    id: str | None = None


def inspect_data(
    path: Path, *, columns: NamedColumns | None = None, pretrained: Path | None = None
) -> InspectedData:
    """Read a data set with settings that are guessed from what it holds.

    pretrained: the folder of a Hugging Face model, whose tokenizer and class names are used.

    Raises
    ------
    DataError
        If it cannot be read, or which column has which role is not clear.
    """
    path, columns = path.resolve(), columns or NamedColumns()
    config, roles = _configure(path, columns)
    if roles is not None and roles.kind == "text":
        return _inspect_texts(path, config, pretrained)
    rows = sources.get(config.source or guess_source(path))(path, config)
    kind: InputKind = "features"
    if not isinstance(rows.inputs, Inputs | Texts):
        kind = "audio" if rows.is_audio else "image"
        find_form = _audio_form if rows.is_audio else _image_form
        config = replace(config, **find_form(rows.inputs))
    samples = read(config, folder=path.parent, name="training data")
    example = samples.inputs.batch(np.arange(1))
    if isinstance(example, dict):
        raise DataError("inputs of several tensors have no spec yet", where=str(path))
    shape = tuple(example.shape[1:])
    if kind == "features":
        kind = "image" if len(shape) == 3 else "table" if config.source == "table" else kind
    has_scale = kind == "image" or (kind != "audio" and example.is_floating_point())
    return InspectedData(config, samples, kind, shape, has_scale, _is_mixed(samples))


def _inspect_texts(path: Path, config: DataConfig, pretrained: Path | None) -> InspectedData:
    """Read texts with the tokenizer of a model."""
    if pretrained is None or not has_tokenizer(pretrained):
        raise DataError(
            f"column '{config.input}' holds texts, and no model with a tokenizer is named",
            where=str(path),
            fix="--model FOLDER, a folder of save_pretrained with its tokenizer; or give "
            "embeddings of the texts; or name other columns with --input",
        )
    tokenized = replace(config, tokenizer=str(pretrained.resolve()))
    classes = class_names(pretrained) or None
    samples = read(tokenized, folder=path.parent, classes=classes, name="training data")
    return InspectedData(config, samples, "text", (), False, _is_mixed(samples))


def _configure(path: Path, columns: NamedColumns) -> tuple[DataConfig, Roles | None]:
    """The settings of the columns, and their roles if the data are a table."""
    source = guess_source(path)
    if source in ("folder", "cifar10"):
        return DataConfig(str(path)), None
    if source == "webdataset":
        return DataConfig(str(path), label=columns.label or DataConfig.label), None
    if source == "arrays":
        return _configure_arrays(path, columns), None
    roles = choose_roles(
        inspect_columns(path),
        where=str(path),
        label=columns.label,
        inputs=columns.inputs,
        id=columns.id,
    )
    is_table = roles.kind == "number"
    config = DataConfig(
        str(path),
        source="table" if is_table else "",
        input=", ".join(roles.inputs),
        label=roles.label,
        id=roles.id,
    )
    return config, roles


def _configure_arrays(path: Path, columns: NamedColumns) -> DataConfig:
    """Names of the arrays, if they are not ``x`` and ``y``."""
    named: dict[str, Any] = {"label": columns.label, "id": columns.id}
    named["input"] = columns.inputs[0] if columns.inputs else None
    return DataConfig(str(path), **{k: v for k, v in named.items() if v})


def _image_form(encoded: Encoded) -> dict[str, Any]:
    """Mode and size that all images can be converted to; nothing if they are all alike."""
    forms = []
    for i in _probed(len(encoded)):
        try:
            with Image.open(io.BytesIO(encoded.read(i) or b"")) as image:
                forms.append((image.mode, image.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    modes, sizes = {mode for mode, _ in forms}, {size for _, size in forms}
    found: dict[str, Any] = {}
    if modes - {"L"} and modes != {"RGB"}:
        found["mode"] = "RGB"
    if len(sizes) > 1:
        sides = sorted(min(size) for _, size in forms)
        found["size"] = min(_MAX_SIZE, sides[len(sides) // 2])
    return found


def _audio_form(encoded: Encoded) -> dict[str, Any]:
    """The most frequent sample rate, and a length in seconds if the clips differ in it."""
    try:
        import soundfile
    except ImportError as error:
        raise extra_required("soundfile", "audio") from error
    rates: Counter[int] = Counter()
    lengths = []
    for i in _probed(len(encoded)):
        try:
            with soundfile.SoundFile(io.BytesIO(encoded.read(i) or b"")) as clip:
                rates[clip.samplerate] += 1
                lengths.append(clip.frames / clip.samplerate)
        except (OSError, RuntimeError):
            continue
    if not lengths:
        return {}
    seconds = round(float(np.quantile(lengths, 0.95)), 2)
    form: dict[str, Any] = {"sample_rate": rates.most_common(1)[0][0]}
    return {**form, "seconds": seconds} if len(set(lengths)) > 1 else form


def _probed(n: int) -> list[int]:
    """Positions spread over the data."""
    return sorted(set(np.linspace(0, n - 1, min(n, _MAX_PROBED)).astype(int).tolist()))


def _is_mixed(samples: Samples) -> bool:
    """Whether the first four fifths and the last fifth of the rows both have every class."""
    k = len(samples) * 4 // 5
    parts = (samples.labels[:k], samples.labels[k:])
    return all(len(np.unique(part)) == len(samples.classes) for part in parts)


def measure_scale(data: InspectedData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel or column; of many columns, one for all."""
    at = np.random.default_rng(0).permutation(len(data.samples))[:_MAX_MEASURED]
    stored = require_tensor(data.samples.inputs.batch(np.sort(at)), data.samples.name)
    x = data.samples.prepare(stored).double()
    kept = () if x.dim() > 1 and x.shape[1] > _MAX_CHANNELS else (1,)
    axes = [d for d in range(x.dim()) if d not in kept]
    mean, std = x.mean(dim=axes), x.std(dim=axes)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return _rounded(mean.flatten()), _rounded(std.flatten())


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    """Four significant digits."""
    return tuple(float(f"{value:.4g}") for value in values.tolist())


def find_splits(path: Path) -> dict[str, Path]:
    """The training set, and sets beside it whose names say that they are other parts.

    A folder of folders ``train``, ``val`` and ``test`` is divided; beside ``train.csv``,
    ``test.csv`` is found. A clone from the Hub has its test set in itself.
    """
    if path.is_dir() and guess_source(path) == "parquet":
        splits = {split_of(file.relative_to(path)) for file in files_of(path, ".parquet")}
        return {"train": path, **({"validation": path} if "test" in splits else {})}
    if path.is_dir() and any((path / name).is_dir() for name in _SPLITS["train"]):
        return _siblings(path, "")
    stem = path.stem if path.is_file() else path.name
    if stem.lower() not in _SPLITS["train"]:
        return {"train": path}
    return {**_siblings(path.parent, path.suffix if path.is_file() else ""), "train": path}


def _siblings(folder: Path, suffix: str) -> dict[str, Path]:
    found = {}
    for split, names in _SPLITS.items():
        paths = [folder / f"{name}{suffix}" for name in names]
        there = [path for path in paths if path.exists()]
        if there:
            found[split] = there[0]
    if "validation" not in found and "held_out" in found:
        found["validation"] = found.pop("held_out")
    return found


def settings(config: DataConfig) -> dict[str, Any]:
    """The settings that are not the defaults, in the order of `DataConfig`, without the path."""
    default = DataConfig("")
    return {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if f.name != "path" and getattr(config, f.name) != getattr(default, f.name)
    }
