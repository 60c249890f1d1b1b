"""The settings of one data set, and reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from expunge._core.imports import import_named
from expunge._core.registry import NoMetadata, Registry
from expunge.data.arrays import npz_rows
from expunge.data.audio import SAMPLE_RATES
from expunge.data.cifar import cifar_rows, human_labels
from expunge.data.classes import encode_labels
from expunge.data.folder import class_folders, folder_rows, has_samples
from expunge.data.labels import join_by_id
from expunge.data.manifest import (
    check_columns,
    csv_rows,
    jsonl_rows,
    label_column,
    manifest_rows,
    table_column,
)
from expunge.data.paths import fix_unknown_file, require_file, resolve_path
from expunge.data.rows import Rows, slice_rows, to_samples
from expunge.data.samples import Samples
from expunge.data.table_rows import table_rows
from expunge.data.text_tables import read_table, table_kind
from expunge.data.texts import Tokenizer, load_tokenizer
from expunge.data.transforms import Transform, load_transform
from expunge.errors import ConfigError, DataError, format_ids, raise_all, range_problems
from expunge.storage.reading import reading

MAX_SECONDS = 3600  # of a clip
MAX_WORKERS = 1024


@dataclass(frozen=True)
class LabelFile:
    """A column of a second file, joined by id.

    Parameters
    ----------
    path
        A Parquet, CSV or JSONL file; or CIFAR-10N's ``CIFAR-10_human.pt``, whose columns
        (``random_label1``, for example) are joined by position.
    column
        The column with the values.
    id
        The column with the ids.

    Examples
    --------
    >>> LabelFile("labels.csv", column="human").id
    'id'
    """

    path: str
    column: str
    id: str = "id"


@dataclass(frozen=True)
class DataConfig:
    """The settings of one data set, as in a spec file; `read` reads it.

    Parameters
    ----------
    path
        The file or folder. ``${NAME}`` and ``${NAME:-default}`` are taken from the environment.
        Parquet and tar files may be many: a folder, a clone from the Hub, or a pattern such as
        ``data/train-*.parquet`` or ``{000..009}.tar``.
    source
        ``"parquet"``, ``"webdataset"`` (tar files), ``"csv"``, ``"jsonl"``, ``"folder"``,
        ``"manifest"`` (a CSV or JSONL file), ``"table"``, ``"arrays"`` or ``"cifar10"``; empty: the
        path decides.
    input, label, id
        The names of the columns. Without ``id`` the ids are row numbers. ``input`` of a table:
        several columns, separated by commas. Of tar files: extensions, see `webdataset_rows`.
    labels
        Labels of a second file, used instead of the column ``label``.
    corrections
        Labels of a second file for some of the ids; the other samples keep theirs.
    external_probs
        Class probabilities of other models by name, each a column of lists of ``c`` numbers in a
        Parquet file, joined by id. See `Samples`.
    trusted
        Whether each sample is known to be right: a truth column of a Parquet file, joined by id.
    root
        The folder that the paths of a manifest start at and lie in; by default the manifest's own.
    classes
        The class names, in the order of the indices.
    mean, std
        One number a channel, or one for all, in units of the scaled input; ``std`` above 0.
    size
        Resize images to ``size × size`` pixels, 1 or more. Without it all must have one size.
    mode
        Convert images to ``"RGB"`` or ``"L"`` (grey). Without it all must have one of these modes.
    sample_rate
        Resample audio to this rate in Hz, 1,000 to 384,000. Without it clips of another rate than
        most are skipped.
    seconds
        Cut or pad audio to this length, up to 3,600. Without it all clips must have one length.
    transform
        Preprocessing of every input: ``"package.module:object"`` (a function or a torchvision
        transform, called with the Pillow image, the clip or the stored tensor), or the folder of a
        Hugging Face processor. It takes images in RGB unless ``mode`` is given.
    transform_arguments
        If given, or if the object is a class, the object is called with them to make the transform.
    view
        A random view (augmentation): a name, see `expunge.data.view`, or
        ``"package.module:function"``.
    tokenizer
        The folder of a Hugging Face tokenizer: the input column holds texts. A model that a spec
        reads from a folder has its tokenizer there.
    pair
        The column of the second text, for models of pairs of texts.
    length
        The largest number of tokens of a text, 1 or more; longer texts are cut. Without it the
        tokenizer's own limit. Batches are padded to their longest text.
    skip_rows
        Skip this many rows at the start, 0 or more.
    max_rows
        Read at most this many rows, 1 or more.
    split
        ``"train"``, ``"validation"`` or ``"test"``: of a folder whose files are named after splits,
        and of the CIFAR-10 folder. In a spec, the validation set has ``"test"`` by default.
    workers
        The number of processes that decode images and clips, 0 or more. By default one a core if
        they do not fit into memory, else none. They do not change the result.

    Raises
    ------
    ConfigError
        With all values that are out of range.

    Examples
    --------
    >>> DataConfig("train.parquet", max_rows=1000).view
    'none'
    >>> DataConfig("train.parquet", max_rows=0, split="all")
    Traceback (most recent call last):
    expunge.errors.ConfigError: data: 2 problems
      1. max_rows must be 1 or more, not 0
      2. split must be 'train', 'validation' or 'test', not 'all'
    """

    path: str
    source: str = ""
    input: str = "image"
    label: str = "label"
    id: str | None = None
    labels: LabelFile | None = None
    corrections: LabelFile | None = None
    external_probs: dict[str, LabelFile] = field(default_factory=dict)
    trusted: LabelFile | None = None
    root: str = ""
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int | None = None
    mode: Literal["RGB", "L"] | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    transform: str = ""
    transform_arguments: dict[str, Any] = field(default_factory=dict)
    view: str = "none"
    tokenizer: str = ""
    pair: str | None = None
    length: int | None = None
    skip_rows: int = 0
    max_rows: int | None = None
    split: Literal["train", "validation", "test"] = "train"
    workers: int | None = None

    def __post_init__(self) -> None:
        low, high = SAMPLE_RATES
        problems = range_problems(
            {
                "size": (self.size, "[1, inf)"),
                "max_rows": (self.max_rows, "[1, inf)"),
                "skip_rows": (self.skip_rows, "[0, inf)"),
                "sample_rate": (self.sample_rate, f"[{low}, {high}]"),
                "seconds": (self.seconds, f"(0, {MAX_SECONDS}]"),
                "length": (self.length, "[1, inf)"),
                "workers": (self.workers, f"[0, {MAX_WORKERS}]"),
                "std": (min(self.std, default=None), "(0, inf)"),
            }
        )
        if self.mode not in (None, "RGB", "L"):
            problems.append(f"mode must be 'RGB' or 'L', not '{self.mode}'")
        if self.split not in ("train", "validation", "test"):
            problems.append(f"split must be 'train', 'validation' or 'test', not '{self.split}'")
        if len(self.mean) != len(self.std):
            problems.append(f"mean has {len(self.mean)} numbers and std {len(self.std)}")
        raise_all(ConfigError, problems, where="data")


Source = Callable[[Path, DataConfig], Rows]

sources: Registry[Source, NoMetadata] = Registry("source", NoMetadata)
sources.register("folder")(folder_rows)
sources.register("manifest")(manifest_rows)
sources.register("csv")(csv_rows)
sources.register("jsonl")(jsonl_rows)
sources.register("arrays")(npz_rows)
sources.register("table")(table_rows)
sources.register("cifar10")(cifar_rows)


@sources.register("webdataset")
def webdataset_source(path: Path, config: DataConfig) -> Rows:
    """Read tar files, see `webdataset.webdataset_rows`."""
    from expunge.data.webdataset import webdataset_rows

    return webdataset_rows(path, config)


@sources.register("parquet")
def parquet_source(path: Path, config: DataConfig) -> Rows:
    """Read Parquet files, see `parquet_shards.parquet_rows`."""
    from expunge.data.parquet_shards import parquet_rows

    return parquet_rows(path, config)


def read(
    config: DataConfig,
    *,
    folder: Path,
    classes: Sequence[str] | None = None,
    name: str = "train",
) -> Samples:
    """Read one data set from a file or folder.

    Parameters
    ----------
    config
        What to read.
    folder
        What relative paths start at: the folder of the spec file. A path that begins with an
        environment variable starts at the working directory.
    classes
        The classes of the result, in order: those of the training set when the validation set is
        read. Labels are translated by name if the file orders them differently.
    name
        How messages call the data set.

    Returns
    -------
    Samples
        In the order of the file. Clips that cannot be used are in ``skipped``; see
        `audio.decode_clips`.

    Raises
    ------
    DataError
        If anything else cannot be read or used; it names all images or ids concerned.
    ConfigError
        If there is no such source.

    Notes
    -----
    Images (as ``uint8``) and audio (as ``int16``) are decoded once and kept in memory if they take
    less than 4 GiB; otherwise they are decoded on demand. Cost: one pass over the data; a few
    seconds for 50,000 small images, two for 4,000 clips of one second. Nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "train.jsonl"
    ...     _ = table.write_text('{"x": [0, 1], "y": "cat"}\\n{"x": [1, 0], "y": "dog"}')
    ...     samples = read(DataConfig("train.jsonl", input="x", label="y"), folder=Path(folder))
    >>> samples.classes, samples.labels.tolist()
    (('cat', 'dog'), [0, 1])
    """
    path = resolve_path(config.path, folder)
    if config.root:
        config = replace(config, root=str(resolve_path(config.root, folder)))
    source = config.source or guess_source(path)
    with reading(path):
        rows = sources.get(source)(path, config)
    if not rows.class_names and classes and config.classes != tuple(classes):
        rows = replace(rows, class_names=config.classes)
    if config.labels is not None:
        rows = _with_labels(rows, config.labels, folder)
    rows = slice_rows(rows, config.skip_rows, config.max_rows)
    samples = to_samples(
        rows,
        classes=tuple(classes or config.classes),
        mean=config.mean,
        std=config.std,
        mode=config.mode,
        size=config.size,
        sample_rate=config.sample_rate,
        seconds=config.seconds,
        transform=_transform_of(config, folder),
        tokenizer=_tokenizer_of(config, folder),
        length=config.length,
        workers=config.workers,
        view=import_named(config.view, folder, what="view") if ":" in config.view else config.view,
        name=name,
        where=f"{name} ({path})",
    )
    if config.corrections is not None:
        samples = correct_labels(samples, config.corrections, folder=folder)
    if not config.external_probs and config.trusted is None:
        return samples
    probs = {k: _read_joined(samples, f, folder) for k, f in config.external_probs.items()}
    trusted = _read_joined(samples, config.trusted, folder) if config.trusted else None
    return replace(samples, external_probs=probs, trusted=trusted)


def _tokenizer_of(config: DataConfig, folder: Path) -> Tokenizer | None:
    return load_tokenizer(resolve_path(config.tokenizer, folder)) if config.tokenizer else None


def _transform_of(config: DataConfig, folder: Path) -> Transform | None:
    if not config.transform:
        return None
    return load_transform(
        config.transform,
        config.transform_arguments,
        folder=folder,
        sample_rate=config.sample_rate,
    )


def _read_joined(samples: Samples, file: LabelFile, folder: Path) -> np.ndarray:
    """A column of truth values, or of lists of numbers, for the samples' ids."""
    from expunge.data.parquet import read_column, read_values

    path = require_file(resolve_path(file.path, folder))
    values = read_values(path, file.column)
    return join_by_id(samples.ids, read_column(path, file.id), values, where=str(path))


def replace_labels(samples: Samples, labels: LabelFile, *, folder: Path) -> Samples:
    """Replace the labels by those of a second file, as indices of the samples' classes."""
    rows = Rows(
        samples.ids, samples.labels, samples.inputs, samples.classes, samples.has_explicit_ids
    )
    rows = _with_labels(rows, labels, folder)
    where = f"{labels.path}, column '{labels.column}'"
    values, _ = encode_labels(
        rows.labels, rows.ids, names=rows.class_names, classes=samples.classes, where=where
    )
    return replace(samples, labels=values)


_BY_SUFFIX = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".npz": "arrays",
}


def is_data_file(path: Path) -> bool:
    """Whether the suffix is that of a file with a whole data set."""
    return path.suffix.lower() in _BY_SUFFIX or bool(table_kind(path))


def guess_source(path: Path) -> str:
    """Choose the source by the suffix, or by what a folder holds."""
    with reading(path):
        return _guess_by_content(path)


def _guess_by_content(path: Path) -> str:
    if found := _BY_SUFFIX.get(path.suffix.lower()):
        return found
    if table_kind(path):
        return "manifest"
    if not path.is_dir():
        require_file(path)
        raise DataError(
            "the suffix of this file does not determine its source",
            where=str(path),
            fix=f"{fix_unknown_file(path)}; or set source to one of: {', '.join(sources.names())}",
        )
    if any((path / batch).is_file() for batch in ("data_batch_1", "test_batch")):
        return "cifar10"
    if class_folders(path) or any(path.glob("*.parquet")) or any(path.glob("*.tar")):
        return _guess_by_files(path)
    raise DataError(
        "this folder has neither class folders nor Parquet or tar files nor CIFAR-10 batches",
        where=str(path),
        fix=_fix_folder(path),
    )


def _fix_folder(path: Path) -> str:
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return (
            "datasets.load_from_disk reads this folder: write it with to_parquet, or give the data "
            "set in Python"
        )
    return (
        "expected one sub-folder a class, with the images or clips in it; or name a CSV file with "
        "their paths and labels"
    )


def _guess_by_files(path: Path) -> str:
    """Parquet and tar files make a data set where there is no image and no clip beside them."""
    for suffix in (".parquet", ".tar"):
        if any(next(path.glob(f"{depth}*{suffix}"), None) for depth in ("", "*/", "*/*/")):
            return "folder" if has_samples(path) else _BY_SUFFIX[suffix]
    return "folder"


def _with_labels(rows: Rows, labels: LabelFile, folder: Path) -> Rows:
    """The rows with the labels of the second file, as indices of the rows' classes if any."""
    path = require_file(resolve_path(labels.path, folder))
    names: tuple[str, ...] = ()
    if path.suffix.lower() in (".pt", ".pth"):
        values = human_labels(path, labels.column)
        if len(values) != len(rows):
            raise DataError(
                f"{len(values)} labels for {len(rows)} samples: they are joined by position",
                where=str(path),
                fix="use the labels of this very set (CIFAR-10N: of the training set)",
            )
    else:
        other_ids, values, names = _read_label_file(path, labels)
        values = join_by_id(rows.ids, other_ids, values, where=str(path))
    known = rows.class_names
    if names:
        indices, _ = encode_labels(values, rows.ids, names=names, where=str(path))
        values = np.array(names)[indices] if values.dtype.kind != "U" else values
        known = known if set(names) <= set(known) else names
    if known:
        values, known = encode_labels(values, rows.ids, classes=known, where=str(path))
    return replace(rows, labels=values, class_names=known)


def _read_label_file(
    path: Path, labels: LabelFile
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Ids and labels of a file, and the class names that it states."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from expunge.data.parquet import class_names, read_column

        ids = read_column(path, labels.id)
        return ids, read_column(path, labels.column, ids=ids), class_names(path, labels.column)
    if table_kind(path):
        table = read_table(path)
        check_columns(table, [labels.id, labels.column], path)
        ids = table_column(table, labels.id, np.arange(1, len(table[labels.id]) + 1), path)
        return ids, label_column(table, labels.column, ids, path), ()
    raise DataError(
        f"unsupported file type '{suffix}'; expected .parquet, .csv, .jsonl or CIFAR-10_human.pt",
        where=str(path),
    )


def correct_labels(samples: Samples, corrections: LabelFile, *, folder: Path) -> Samples:
    """Replace the labels of those samples whose ids are in a second file; the others keep theirs.

    Raises
    ------
    DataError
        If the file has none of the ids or repeats one, or a label is no class.
    """
    path = require_file(resolve_path(corrections.path, folder))
    ids, values, names = _read_label_file(path, corrections)
    own = samples.ids
    if own.dtype.kind != ids.dtype.kind:
        own, ids = own.astype(str), ids.astype(str)
    known = np.isin(ids, own)
    if not known.any():
        raise DataError(
            f"corrects none of the samples: its ids are {format_ids(ids)}, those of the data "
            f"{format_ids(own)}",
            where=str(path),
            fix="check that `id` names the matching column in both files",
        )
    at = np.flatnonzero(np.isin(own, ids))
    found = join_by_id(own[at], ids[known], values[known], where=str(path))
    labels = samples.labels.copy()
    labels[at], _ = encode_labels(
        found, own[at], names=names, classes=samples.classes, where=str(path)
    )
    return replace(samples, labels=labels)
