"""A folder of class folders: the name of the sub-folder is the class, the relative path the id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expunge.data import audio
from expunge.data.images import SUFFIXES, EncodedFiles
from expunge.data.rows import Rows, require_folder, require_inside
from expunge.errors import DataError, format_ids

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig


def folder_rows(path: Path, config: DataConfig) -> Rows:
    """A folder of class folders with images or sound, at any depth; sorted by class, then path.

    Hidden files and files that are neither by their suffix are left aside. Images and sound in one
    folder, and a link that leads out of the folder, are errors.
    """
    require_folder(path)
    classes = class_folders(path)
    if not classes:
        raise DataError(
            "no class folders in this folder",
            where=str(path),
            fix="expected one sub-folder a class, with the images or clips in it",
        )
    ids: list[str] = []
    labels: list[str] = []
    empty: list[str] = []
    for name in classes:
        found = [p.relative_to(path).as_posix() for p in _files(path / name)]
        if not found:
            empty.append(name)
        ids += sorted(found)
        labels += [name] * len(found)
    if empty:
        raise DataError(
            f"class folders without an image or a clip: {format_ids(empty)}",
            where=str(path),
            fix=f"remove them, or add files ({' '.join((*SUFFIXES, *audio.SUFFIXES))})",
        )
    sound = [i for i in ids if i.lower().endswith(audio.SUFFIXES)]
    if 0 < len(sound) < len(ids):
        raise DataError(
            f"both images and sound are in this folder: {format_ids(sound, 2)} beside "
            f"{format_ids(sorted(set(ids) - set(sound)), 2)}",
            where=str(path),
            fix="move one of them elsewhere",
        )
    return Rows(
        ids=np.array(ids, dtype=str),
        labels=np.array(labels, dtype=str),
        inputs=EncodedFiles(inside_all(path, ids, np.array(ids), where=str(path))),
        names=tuple(classes),
        has_explicit_ids=True,
        root=os.path.realpath(path),
        sound=bool(sound),
    )


def class_folders(path: Path) -> list[str]:
    """The names of the sub-folders that are not hidden, sorted."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def inside_all(folder: Path, texts: list[str], ids: np.ndarray, *, where: str) -> list[Path]:
    """The files of these relative paths; those outside the folder are errors, all at once."""
    paths, outside = [], []
    for text, name in zip(texts, ids.tolist(), strict=True):
        try:
            paths.append(require_inside(folder, text))
        except ValueError:
            outside.append(f"{name} ({text[:80]!r})" if text != name else repr(text[:80]))
    if outside:
        raise DataError(
            f"paths that lead outside this folder: {format_ids(outside)}",
            where=where,
            fix="use relative paths to files below the folder, no '..' and no links out of it",
        )
    return paths


def _files(folder: Path) -> list[Path]:
    known = (*SUFFIXES, *audio.SUFFIXES)
    return [
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in known and not p.name.startswith(".") and not p.is_dir()
    ]
