"""A folder of class folders: the name of the sub-folder is the class, the relative path the id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expunge.data.images import SUFFIXES, ImageFiles
from expunge.data.rows import Rows, existing_folder, inside
from expunge.errors import DataError, some

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig


def folder_rows(path: Path, config: DataConfig) -> Rows:
    """A folder of class folders with images, at any depth; sorted by class, then by path.

    Hidden files and files that are no images by their suffix are left aside. A link that leads out
    of the folder is an error.
    """
    existing_folder(path)
    classes = class_folders(path)
    if not classes:
        raise DataError(
            "no class folders in this folder",
            where=str(path),
            fix="expected one sub-folder a class, with the images in it",
        )
    ids, labels, empty = [], [], []
    for name in classes:
        found = [p.relative_to(path).as_posix() for p in _images(path / name)]
        if not found:
            empty.append(name)
        ids += sorted(found)
        labels += [name] * len(found)
    if empty:
        raise DataError(
            f"class folders without an image: {some(empty)}",
            where=str(path),
            fix=f"remove them, or add images ({' '.join(SUFFIXES)})",
        )
    return Rows(
        ids=np.array(ids, dtype=str),
        labels=np.array(labels, dtype=str),
        inputs=ImageFiles(inside_all(path, ids, np.array(ids), where=str(path))),
        names=tuple(classes),
        named_ids=True,
    )


def class_folders(path: Path) -> list[str]:
    """The names of the sub-folders that are not hidden, sorted."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def inside_all(folder: Path, texts: list[str], ids: np.ndarray, *, where: str) -> list[Path]:
    """The files of these relative paths; those outside the folder are errors, all at once."""
    paths, outside = [], []
    for text, name in zip(texts, ids.tolist(), strict=True):
        try:
            paths.append(inside(folder, text))
        except ValueError:
            outside.append(f"{name} ({text[:80]!r})" if text != name else repr(text[:80]))
    if outside:
        raise DataError(
            f"paths that lead outside this folder: {some(outside)}",
            where=where,
            fix="use relative paths to files below the folder, no '..' and no links out of it",
        )
    return paths


def _images(folder: Path) -> list[Path]:
    return [
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    ]
