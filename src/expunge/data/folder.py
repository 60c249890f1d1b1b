"""A folder of class folders: the name of the sub-folder is the class, the relative path the id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expunge.data.encoded import AUDIO_SUFFIXES, IMAGE_SUFFIXES, EncodedFiles
from expunge.data.paths import require_folder, resolve_inside
from expunge.data.rows import Rows
from expunge.errors import DataError, format_ids

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig


def folder_rows(path: Path, config: DataConfig) -> Rows:
    """Read a folder of class folders with images or audio, at any depth.

    The rows are sorted by class, then by path. Hidden files and files with other suffixes are
    ignored.

    Raises
    ------
    DataError
        If there are no class folders, one is empty, images and audio are mixed, or a link leads out
        of the folder.
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
            fix=f"remove them, or add files ({' '.join((*IMAGE_SUFFIXES, *AUDIO_SUFFIXES))})",
        )
    clips = [i for i in ids if i.lower().endswith(AUDIO_SUFFIXES)]
    if 0 < len(clips) < len(ids):
        raise DataError(
            f"both images and audio are in this folder: {format_ids(clips, 2)} and "
            f"{format_ids(sorted(set(ids) - set(clips)), 2)}",
            where=str(path),
            fix="move one of them elsewhere",
        )
    return Rows(
        ids=np.array(ids, dtype=str),
        labels=np.array(labels, dtype=str),
        inputs=EncodedFiles(resolve_inside(path, ids, np.array(ids), where=str(path))),
        class_names=tuple(classes),
        has_explicit_ids=True,
        id_root=os.path.realpath(path),
        is_audio=bool(clips),
    )


def class_folders(path: Path) -> list[str]:
    """List the sub-folders that are not hidden, sorted by name."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    known = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
    return [
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in known and not p.name.startswith(".") and not p.is_dir()
    ]
