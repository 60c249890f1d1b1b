"""A folder of class folders: the name of the sub-folder is the class, the relative path the id."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expunge.data.encoded import AUDIO_SUFFIXES, IMAGE_SUFFIXES, OTHER_SUFFIXES, EncodedFiles
from expunge.data.paths import require_folder, resolve_inside
from expunge.data.rows import Rows
from expunge.errors import DataError, format_ids

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig


KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
# Folders that are hidden, or that programs leave: archives of a Mac, thumbnails of a server.
_IGNORED = (".", "__MACOSX", "@eaDir", "__pycache__")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
CONVERT = {
    "audio": "convert them, e.g. `ffmpeg -i clip.mp3 clip.flac`",
    "image": "convert them to PNG or JPEG",
    "video": "take images out of them; videos are not read",
    "array": "read them in a data set of your own, see expunge.from_dataset",
    "text": "write the texts and labels into one CSV, JSONL or Parquet file",
}


def folder_rows(path: Path, config: DataConfig) -> Rows:
    """Read a folder of class folders with images or audio, at any depth.

    The rows are sorted by class, then by path. The classes are sorted as text, as torchvision's
    ``ImageFolder`` does: 0, 1, 10, 2. Hidden files and folders are ignored. Files of other suffixes
    are skipped and named.

    Raises
    ------
    DataError
        If there are no class folders, one is empty, the folders are splits, images and audio are
        mixed, most files are of a kind that is not read, or a link leads out of the folder.
    """
    require_folder(path)
    classes = class_folders(path)
    _check_layout(path, classes)
    ids: list[str] = []
    labels: list[str] = []
    others: list[str] = []
    for name in classes:
        files = list(_files(path, name))
        known = [p for p in files if _suffix(p) in KNOWN_SUFFIXES]
        others += [p for p in files if _suffix(p) not in KNOWN_SUFFIXES]
        ids += sorted(known)
        labels += [name] * len(known)
    _check_kinds(path, others, n_known=len(ids))
    empty = [name for name in classes if name not in set(labels)]
    if empty:
        raise DataError(
            f"class folders without an image or a clip: {format_ids(empty)}",
            where=str(path),
            fix=f"if these are no classes, name the folder that holds the class folders, or move "
            f"them elsewhere; files that are read: {' '.join(KNOWN_SUFFIXES)}",
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
        inputs=EncodedFiles(_inside(path, ids, classes)),
        class_names=tuple(classes),
        has_explicit_ids=True,
        id_root=os.path.realpath(path),
        is_audio=bool(clips),
        skipped={name: _describe_suffix(name) for name in sorted(others)},
    )


def class_folders(path: Path) -> list[str]:
    """List the sub-folders that are not hidden, sorted by name."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(_IGNORED))


def _check_layout(path: Path, classes: list[str]) -> None:
    """Raise DataError for a folder without class folders, and for one of splits."""
    if not classes:
        raise DataError(
            "no class folders in this folder",
            where=str(path),
            fix="expected one sub-folder a class, with the images or clips in it",
        )
    if classes and {name.lower() for name in classes} <= SPLITS:
        raise DataError(
            f"the sub-folders are splits, not classes: {format_ids(classes)}",
            where=str(path),
            fix=f'name one of them: path = "{(path / classes[0]).as_posix()}"',
        )


def _check_kinds(path: Path, others: list[str], *, n_known: int) -> None:
    """Raise DataError if most files are samples of a kind that is not read."""
    kinds = [OTHER_SUFFIXES[suffix] for n in others if (suffix := _suffix(n)) in OTHER_SUFFIXES]
    kinds = [kind for kind in kinds if kind != "text" or not n_known]
    if len(kinds) <= n_known:
        return
    kind = Counter(kinds).most_common(1)[0][0]
    suffixes = Counter(_suffix(name) for name in others)
    found = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(5))
    raise DataError(
        f"most files are of kinds that are not read: {found}", where=str(path), fix=CONVERT[kind]
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _describe_suffix(name: str) -> str:
    suffix = _suffix(name)
    return f"have the suffix {suffix}, which is not read" if suffix else "have no suffix"


def has_samples(path: Path) -> bool:
    """Whether a folder holds an image or a clip, at any depth."""
    return any(_suffix(name) in KNOWN_SUFFIXES for name in _files(path, "."))


def _files(root: Path, folder: str) -> Iterator[str]:
    """The files at any depth, relative to the root; hidden files and folders are left out."""
    for parent, folders, names in os.walk(root / folder):
        folders[:] = sorted(f for f in folders if not f.startswith(_IGNORED))
        start = Path(parent).relative_to(root).as_posix()
        prefix = "" if start == "." else f"{start}/"
        for name in sorted(names):
            if not name.startswith(".") and name not in ("Thumbs.db", "desktop.ini"):
                yield prefix + name


def _inside(root: Path, names: list[str], classes: list[str]) -> list[str]:
    """The paths of files that were found in a folder; a link must not lead out of it.

    Below the class folders no folder that is a link was entered.
    """
    base = os.path.realpath(root)
    links = [name for name in (*classes, *names) if os.path.islink(root / name)]
    resolve_inside(root, links, np.array(links), where=str(root))
    return [f"{base}/{name}" for name in names]
