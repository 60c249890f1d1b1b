"""Reading one data set: the sources, and which one a path has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from expunge._core.imports import import_named
from expunge._core.registry import NoMetadata, Registry
from expunge.data.arrays import npz_rows
from expunge.data.cifar import cifar_rows
from expunge.data.data_config import DataConfig
from expunge.data.folder import class_folders, folder_rows, has_samples
from expunge.data.label_files import correct_labels, read_joined, with_labels
from expunge.data.manifest import csv_rows, jsonl_rows, manifest_rows
from expunge.data.paths import fix_unknown_file, require_file, resolve_path
from expunge.data.rows import Rows, slice_rows, to_samples
from expunge.data.samples import Samples
from expunge.data.table_rows import table_rows
from expunge.data.text_tables import table_kind
from expunge.data.texts import Tokenizer, load_tokenizer
from expunge.data.transforms import Transform, load_transform
from expunge.errors import DataError
from expunge.storage.reading import reading

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
        rows = with_labels(rows, config.labels, folder)
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
    probs = {k: read_joined(samples, f, folder) for k, f in config.external_probs.items()}
    trusted = read_joined(samples, config.trusted, folder) if config.trusted else None
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
