"""What a spec file says about one data set, and how it is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from expunge._core.registry import NoMetadata, Registry
from expunge.data.arrays import npz_rows
from expunge.data.audio import RATES
from expunge.data.cifar import BATCHES, cifar_rows, human_labels
from expunge.data.folder import class_folders, folder_rows
from expunge.data.labels import encode, join
from expunge.data.manifest import manifest_rows, read_table, require_columns, table_column
from expunge.data.parquet import class_names, parquet_rows, read_column, read_values
from expunge.data.rows import Rows, require_file, some_rows, to_samples
from expunge.data.samples import Samples
from expunge.errors import ConfigError, DataError

LONGEST = 3600  # seconds of a clip


@dataclass(frozen=True)
class LabelFile:
    """Labels that lie in a second file.

    path: a Parquet, CSV or JSONL file, whose ``column`` is joined by ``id``; or CIFAR-10N's
    ``CIFAR-10_human.pt``, whose ``column`` (``random_label1``, say) is joined by position.
    """

    path: str
    column: str
    id: str = "id"


@dataclass(frozen=True)
class DataConfig:
    """One data set, for training or for validation.

    path: the file or folder; ``${NAME}`` and ``${NAME:-default}`` are taken from the environment.
    source: parquet, folder, manifest, arrays or cifar10; "" guesses from the path.
    input, label, id: column names; without ``id`` the ids are row numbers.
    labels: labels from a second file. probs: class probabilities from elsewhere, by name, and
    trusted: whether a sample is known to be right; each a list or truth column of a Parquet file,
    joined by id, see `Samples`. classes: class names, in order.
    mean, std: by channel, in units of the input scaled to [0, 1].
    size: resize images to size × size; without it all must agree. mode: convert images to RGB or L.
    rate: resample sound to that many Hz; without it clips of another rate than most are left out.
    seconds: cut or pad sound to that length; without it all clips must be equally long.
    view: the augmentation, see `expunge.data.views`. skip: leave out the
    first rows; rows: read so many only.
    split: train or test, for the CIFAR-10 folder; a spec's validation set reads test by default.
    """

    path: str
    source: str = ""
    input: str = "image"
    label: str = "label"
    id: str | None = None
    labels: LabelFile | None = None
    probs: dict[str, LabelFile] = field(default_factory=dict)
    trusted: LabelFile | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int | None = None
    mode: Literal["RGB", "L"] | None = None
    rate: int | None = None
    seconds: float | None = None
    view: str = "none"
    skip: int = 0
    rows: int | None = None
    split: Literal["train", "test"] = "train"

    def __post_init__(self) -> None:
        problems = []
        for name, value in (("size", self.size), ("rows", self.rows)):
            if value is not None and value < 1:
                problems.append(f"{name} must be 1 or more, not {value}")
        low, high = RATES
        if self.rate is not None and not low <= self.rate <= high:
            problems.append(f"rate must lie in {low}…{high} Hz, not {self.rate}")
        if self.seconds is not None and not 0 < self.seconds <= LONGEST:
            problems.append(f"seconds must be above 0 and at most {LONGEST}, not {self.seconds}")
        if self.skip < 0:
            problems.append(f"skip must not be negative: {self.skip}")
        if self.mode not in (None, "RGB", "L"):
            problems.append(f"mode must be 'RGB' or 'L', not '{self.mode}'")
        if self.split not in BATCHES:
            problems.append(f"split must be 'train' or 'test', not '{self.split}'")
        if len(self.mean) != len(self.std):
            problems.append(f"mean has {len(self.mean)} numbers and std {len(self.std)}")
        if any(not s > 0 for s in self.std):
            problems.append("std must be above 0")
        if problems:
            raise ConfigError("; ".join(problems))


Source = Callable[[Path, DataConfig], Rows]

sources: Registry[Source, NoMetadata] = Registry("source", NoMetadata)
sources.register("parquet")(parquet_rows)
sources.register("folder")(folder_rows)
sources.register("manifest")(manifest_rows)
sources.register("arrays")(npz_rows)
sources.register("cifar10")(cifar_rows)


def read(
    config: DataConfig,
    *,
    folder: Path,
    classes: Sequence[str] | None = None,
    name: str = "train",
) -> Samples:
    """Read one data set.

    folder: what relative paths start at (the spec file's folder); a relative path out of an
    environment variable starts at the working directory. classes: the classes that the result shall
    have, in that order (the training set's, when the validation set is read); labels are translated
    by name where the file orders them differently. name: how messages call the set.

    Images (as uint8) and sound (as int16) are decoded once and kept if they take less than 4 GiB,
    else read when they are asked for. Cost: one pass over the data; 50,000 small images take a few
    seconds, 4,000 one-second clips two.

    Clips that cannot be used are left out and named in ``skipped``, see `audio.decode`. Raises
    DataError, with all images or ids concerned, for anything else that cannot be read or cannot be
    right. Nothing is ever written.
    """
    path = resolve_path(config.path, folder)
    kind = config.source or _guess(path)
    rows = sources.get(kind)(path, config)
    if config.labels is not None:
        rows = _relabelled(rows, config.labels, folder)
    rows = some_rows(rows, config.skip, config.rows)
    samples = to_samples(
        rows,
        classes=tuple(classes or config.classes),
        mean=config.mean,
        std=config.std,
        mode=config.mode,
        size=config.size,
        rate=config.rate,
        seconds=config.seconds,
        view=config.view,
        name=name,
        where=f"{name} ({path})",
    )
    if not config.probs and config.trusted is None:
        return samples
    probs = {k: _joined(samples, file, folder) for k, file in config.probs.items()}
    trusted = _joined(samples, config.trusted, folder) if config.trusted else None
    return replace(samples, external_probs=probs, trusted=trusted)


def _joined(samples: Samples, file: LabelFile, folder: Path) -> np.ndarray:
    """A column of truth values, or of lists of numbers, for the samples' ids."""
    path = require_file(resolve_path(file.path, folder))
    values = read_values(path, file.column)
    return join(samples.ids, read_column(path, file.id), values, where=str(path))


def other_labels(samples: Samples, labels: LabelFile, *, folder: Path) -> Samples:
    """The samples with the labels of a second file, as class indices of the samples' classes."""
    rows = Rows(
        samples.ids, samples.labels, samples.inputs, samples.classes, samples.has_explicit_ids
    )
    rows = _relabelled(rows, labels, folder)
    where = f"{labels.path}, column '{labels.column}'"
    values, _ = encode(
        rows.labels, rows.ids, names=rows.names, classes=samples.classes, where=where
    )
    return replace(samples, labels=values)


def resolve_path(text: str, folder: Path) -> Path:
    """The path that a setting means: variables expanded, relative to the folder.

    >>> resolve_path("a/b", Path("/spec")).as_posix()
    '/spec/a/b'
    """
    from_environment = False

    def expand(match: re.Match[str]) -> str:
        nonlocal from_environment
        variable, default = match["name"], match["default"]
        value = os.environ.get(variable, "")
        if value:
            from_environment |= match.start() == 0
            return value
        if default is None:
            raise DataError(
                f"the environment variable {variable} is not set",
                where=text,
                fix=f"set it, or write ${{{variable}:-default}}",
            )
        return default

    expanded = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", expand, text)
    if not expanded or "\0" in expanded:
        raise DataError(f"{text!r} is no path")
    return (Path.cwd() if from_environment else folder) / expanded


def _guess(path: Path) -> str:
    suffixes = {".parquet": "parquet", ".csv": "manifest", ".jsonl": "manifest", ".npz": "arrays"}
    if path.suffix.lower() in suffixes:
        return suffixes[path.suffix.lower()]
    if path.is_dir():
        if any((path / batch).is_file() for batch in ("data_batch_1", "test_batch")):
            return "cifar10"
        if class_folders(path):
            return "folder"
        raise DataError(
            "neither class folders nor CIFAR-10 batches are in this folder",
            where=str(path),
            fix="expected one sub-folder a class, with the images or clips in it",
        )
    require_file(path)
    raise DataError(
        "the kind of this file cannot be told from its name",
        where=str(path),
        fix=f"set source to one of: {', '.join(sources.names())}",
    )


def _relabelled(rows: Rows, labels: LabelFile, folder: Path) -> Rows:
    """The rows with the labels of the second file."""
    path = require_file(resolve_path(labels.path, folder))
    names: tuple[str, ...] = ()
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        values = human_labels(path, labels.column)
        if len(values) != len(rows):
            raise DataError(
                f"{len(values)} labels for {len(rows)} samples: they are joined by position",
                where=str(path),
                fix="use the labels of this very set (CIFAR-10N: of the training set)",
            )
        return replace(rows, labels=values)
    if suffix == ".parquet":
        other_ids = read_column(path, labels.id)
        values = read_column(path, labels.column, ids=other_ids)
        names = class_names(path, labels.column)
    elif suffix in (".csv", ".jsonl"):
        table = read_table(path)
        require_columns(table, [labels.id, labels.column], path)
        lines = np.arange(1, len(table[labels.id]) + 1)
        other_ids = table_column(table, labels.id, lines, path)
        values = table_column(table, labels.column, other_ids, path)
    else:
        raise DataError(
            "a label file is .parquet, .csv, .jsonl or CIFAR-10_human.pt", where=str(path)
        )
    return replace(
        rows,
        labels=join(rows.ids, other_ids, values, where=str(path)),
        names=names or rows.names,
    )
