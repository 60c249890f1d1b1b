"""What a file or folder of data holds: its source, columns, classes, shape and scale."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from expunge.data import Samples, read
from expunge.data.classes import label_numbers, marks_unlabelled
from expunge.data.data_config import DataConfig
from expunge.data.encoded import Encoded
from expunge.data.inputs import Inputs, require_tensor
from expunge.data.pixels import DEEP_MODES
from expunge.data.shards import files_of, split_of
from expunge.data.sources import guess_source, is_data_file, sources
from expunge.data.texts import Texts
from expunge.errors import DataError, extra_required
from expunge.models.huggingface import class_names, has_tokenizer
from expunge.scaffold.arrays import choose_arrays
from expunge.scaffold.columns import choose_roles, inspect_columns

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
    indices. unused: columns that are neither input, label nor id. test: settings with which the
    same file is a test set.
    """

    config: DataConfig
    samples: Samples
    kind: InputKind
    shape: tuple[int, ...]
    has_scale: bool
    unused: tuple[str, ...] = ()
    test: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedColumns:
    """Columns that the user names; the others are guessed."""

    label: str | None = None
    inputs: tuple[str, ...] = ()
    id: str | None = None


def inspect_data(
    path: Path,
    *,
    columns: NamedColumns | None = None,
    pretrained: Path | None = None,
    has_weights: bool = False,
) -> InspectedData:
    """Read a data set with settings that are guessed from what it holds.

    pretrained: the folder of a Hugging Face model, whose tokenizer and class names are used.
    has_weights: whether the model has weights, whose outputs may stand for classes without samples.

    Raises
    ------
    DataError
        If it cannot be read, or which column has which role is not clear.
    """
    path, columns = path.resolve(), columns or NamedColumns()
    config, holds_texts, unused, test = _configure(path, columns)
    if holds_texts:
        return replace(_inspect_texts(path, config, pretrained), unused=unused)
    rows = sources.get(config.source or guess_source(path))(path, config)
    kind: InputKind = "features"
    if not isinstance(rows.inputs, Inputs | Texts):
        kind = "audio" if rows.is_audio else "image"
        find_form = _audio_form if rows.is_audio else _image_form
        config = replace(config, **find_form(rows.inputs))
    if not rows.class_names and pretrained is None:
        config = replace(config, classes=_numbers_as_names(rows.labels, has_weights=has_weights))
    samples = read(config, folder=path.parent, name="training data")
    example = samples.inputs.batch(np.arange(1))
    if isinstance(example, dict):
        raise DataError("inputs of several tensors have no spec yet", where=str(path))
    shape = tuple(example.shape[1:])
    if kind == "features":
        kind = "image" if len(shape) == 3 else "table" if config.source == "table" else kind
    has_scale = kind == "image" or (kind != "audio" and example.is_floating_point())
    return InspectedData(config, samples, kind, shape, has_scale, unused, test)


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
    return InspectedData(config, samples, "text", (), False)


def _numbers_as_names(labels: np.ndarray, *, has_weights: bool) -> tuple[str, ...]:
    """The class names of numbers that leave out some (10, 20, 40); () for 0 … c - 1 and for texts.

    Weights may have an output for each number that is left out, but none for negative ones.
    """
    numbers = label_numbers(labels)
    names = tuple(map(str, numbers))
    if not numbers or marks_unlabelled(names):
        return ()
    has_gaps = numbers[-1] >= len(numbers) and not has_weights
    return names if has_gaps or numbers[0] < 0 else ()


class _Guess(NamedTuple):
    """The settings of the columns; unused and test are those of `InspectedData`."""

    config: DataConfig
    holds_texts: bool = False
    unused: tuple[str, ...] = ()
    test: Mapping[str, str] = {}


def _configure(path: Path, columns: NamedColumns) -> _Guess:
    source = guess_source(path)
    if source in ("folder", "cifar10"):
        return _Guess(DataConfig(str(path)))
    if source == "webdataset":
        return _Guess(DataConfig(str(path), label=columns.label or DataConfig.label))
    if source == "arrays":
        return _configure_arrays(path, columns)
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
    return _Guess(config, roles.kind == "text", roles.unused)


def _configure_arrays(path: Path, columns: NamedColumns) -> _Guess:
    """Names of the arrays, if they are not ``x``, ``y`` and ``ids``."""
    given = columns.inputs[0] if columns.inputs else None
    found = choose_arrays(path, label=columns.label, input=given, id=columns.id)
    named = {"input": found.input, "label": found.label, "id": found.id}
    usual = {"input": "x", "label": "y", "id": "ids"}
    config: dict[str, Any] = {k: v for k, v in named.items() if v and v != usual[k]}
    test = dict(zip(("input", "label"), found.test or (), strict=False))
    return _Guess(DataConfig(str(path), **config), test=test)


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
    if len(modes) > 1 or not modes <= {"L", "RGB", *DEEP_MODES}:
        found["mode"] = "L" if modes <= {"1", "L", "LA", *DEEP_MODES} else "RGB"
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

    A folder with ``train``, ``val`` and ``test``, as folders or as files, is divided; beside
    ``train.csv``, ``test.csv`` is found, and beside ``wines.csv`` or ``wines_train.csv``,
    ``wines_test.csv``. A clone from the Hub has its other sets in itself, see `split_in_clone`. A
    folder with one file alone stands for that file.
    """
    if path.is_dir():
        has_folders = any((path / name).is_dir() for name in _SPLITS["train"])
        files = [file for file in _files(path) if file.stem.lower() in _SPLITS["train"]]
        if len(files) == 1 and not has_folders:
            return find_splits(files[0])
        if _only_file(path) == path and guess_source(path) == "parquet":
            splits = _clone_splits(path)
            sets = ("validation", "held_out")[: len({"test", "validation"} & splits)]
            return {"train": path, **dict.fromkeys(sets, path)}
        if has_folders:
            return _siblings(path, "")
    stem, train = (path.stem, path) if path.is_file() else (path.name, _only_file(path))
    if stem.lower() not in _SPLITS["train"]:
        base = re.sub(r"[_-]train(ing)?$", "", stem, flags=re.IGNORECASE)
        alike = _siblings(path.parent, path.suffix, (f"{base}_", f"{base}-")) if path.suffix else {}
        return {**alike, "train": train}
    return {**_siblings(path.parent, path.suffix if path.is_file() else ""), "train": train}


def split_in_clone(path: Path, name: str) -> str:
    """The split of a clone from the Hub that is the validation or the held-out set."""
    return "test" if name == "validation" and "test" in _clone_splits(path) else "validation"


def _clone_splits(path: Path) -> set[str]:
    return {split_of(file.relative_to(path)) for file in files_of(path, ".parquet")}


def _files(folder: Path) -> list[Path]:
    """The files in a folder that hold a data set."""
    return sorted(file for file in folder.iterdir() if file.is_file() and is_data_file(file))


def _only_file(folder: Path) -> Path:
    """The file of a data set that is all that a folder holds, or else the folder."""
    inside = [p for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []
    return inside[0] if len(inside) == 1 and inside == _files(folder) else folder


def _siblings(folder: Path, suffix: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, Path]:
    found = {}
    for split, names in _SPLITS.items():
        paths = [folder / f"{start}{name}{suffix}" for start in prefixes for name in names]
        there = [path for path in paths if path.exists()]
        if there:
            found[split] = _only_file(there[0])
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
