"""The files of a data set that is kept in several: a folder, a pattern, or a clone from the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from glob import glob
from itertools import groupby, islice
from pathlib import Path

from expunge.data.paths import require_file
from expunge.errors import DataError, format_ids
from expunge.storage.reading import reading

# The words in the names of files and folders that say which split they hold, as on the Hub.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(r"[a-z]+")
_NUMBERED = re.compile(r"(?P<name>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<rest>.*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_OPEN = re.compile(r"[*?\[]")
_MAX_SHARDS = 1_000_000


def is_pattern(path: Path) -> bool:
    """Whether a path names several files: ``train-*.parquet`` or ``{000..009}.tar``."""
    return bool(_OPEN.search(str(path)) or _RANGE.search(path.name)) and not os.path.lexists(path)


def find_shards(path: Path, suffix: str, split: str) -> list[Path]:
    """Find the files of one set, in the order of the numbers in their names.

    Parameters
    ----------
    path
        A file; a pattern such as ``train-*.parquet`` or ``{000..009}.tar``; or a folder. If names
        in the folder say ``train``, ``validation`` or ``test``, as in a clone of a data set of the
        Hub, the files of one split are taken, otherwise all.
    suffix
        Of the files in a folder.
    split
        ``"train"``, ``"validation"`` or ``"test"``.

    Raises
    ------
    DataError
        If there is no such file, a shard of a numbered set is missing, or the folder holds several
        data sets.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("train-10.parquet", "train-9.parquet", "test-0.parquet"):
    ...     (folder / name).touch()
    >>> [shard.name for shard in find_shards(folder, ".parquet", "train")]
    ['train-9.parquet', 'train-10.parquet']
    """
    with reading(path):
        if is_pattern(path):
            return _matching(path)
        if not path.is_dir():
            return [require_file(path)]
        files = files_of(path, suffix)
    if not files:
        raise DataError(
            f"expected a file, found a directory that holds no {suffix} file",
            where=str(path),
            fix="check the path",
        )
    files = _of_split(files, path, split)
    _check_complete(files, path)
    return files


def files_of(folder: Path, suffix: str) -> list[Path]:
    """All files of a suffix in a folder, at any depth; hidden files and folders are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent) / name
            for name in names
            if name.lower().endswith(suffix) and not name.startswith(".")
        ]
    return in_order(found)


def in_order(files: Iterable[Path]) -> list[Path]:
    """Sort files by the text and the numbers in their paths: 9 before 10."""
    return sorted(files, key=lambda path: (_key(path.as_posix()), path.as_posix()))


def _key(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", text) if p]


def _matching(path: Path) -> list[Path]:
    """The files that a pattern names; those of a range must all be there."""
    found = []
    for name in _expand(path.name, str(path)):
        if _OPEN.search(str(path)):
            found += in_order(map(Path, glob(str(path.parent / name), recursive=True)))
        else:
            found.append(path.parent / name)
    missing = [file.name for file in found if not file.is_file()]
    if missing or not found:
        raise DataError(
            f"there is no file {format_ids(missing) or 'that fits this pattern'}",
            where=str(path),
            fix="check the pattern; in a spec, relative paths start at the spec file's folder",
        )
    return list(dict.fromkeys(found))


def _expand(name: str, where: str) -> list[str]:
    """The names of a range: ``{08..10}.tar``."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise DataError(
            f"the range {found[0]} names {max(0, last - first + 1)} files",
            where=where,
            fix="write the lower number first",
        )
    width = len(found[1])
    head, tail = name[: found.start()], name[found.end() :]
    return [f"{head}{i:0{width}d}{tail}" for i in range(first, last + 1)]


def split_of(file: Path) -> str:
    """The split that a relative path names, the last word first; empty if it names none.

    Examples
    --------
    >>> split_of(Path("data/train-00000-of-00005.parquet")), split_of(Path("0000.parquet"))
    ('train', '')
    """
    words = [SPLIT_WORDS[w] for w in _WORD.findall(file.as_posix().lower()) if w in SPLIT_WORDS]
    return words[-1] if words else ""


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of one split, of the only data set in the folder."""
    splits = {file: split_of(file.relative_to(folder)) for file in files}
    named = sorted({name for name in splits.values() if name})
    if named and split not in named:
        raise DataError(
            f"no file of the split '{split}'; there are {format_ids(named)}",
            where=str(folder),
            fix=f'set split = "{named[0]}", or name the files: path = '
            f'"{folder.as_posix()}/{files[0].parent.relative_to(folder).as_posix()}/*"',
        )
    chosen = [file for file in files if splits[file] == split] if named else files
    sets = sorted({_set_of(file.relative_to(folder)) for file in chosen})
    if len(sets) > 1:
        raise DataError(
            f"this folder holds several data sets: {format_ids(sets)}",
            where=str(folder),
            fix=f'name one of them: path = "{(folder / sets[0]).as_posix()}"',
        )
    return chosen


def _set_of(file: Path) -> str:
    """The folder of a file without folders that name splits: one for each data set of a clone."""
    parts = [p for p in file.parent.parts if p.lower() not in SPLIT_WORDS]
    return "/".join(parts) or "."


def _check_complete(files: list[Path], folder: Path) -> None:
    """Raise DataError if a shard ``00002-of-00005`` is missing."""

    def set_of(file: Path) -> str:
        found = _NUMBERED.fullmatch(file.name)
        name = f"{found['name']}{{}}-of-{found['total']}{found['rest']}" if found else ""
        return str(file.parent.relative_to(folder) / name) if found else ""

    for name, group in groupby(sorted(files, key=set_of), key=set_of):
        if not name:
            continue
        found = [m for file in group if (m := _NUMBERED.fullmatch(file.name))]
        total, width = int(found[0]["total"]), len(found[0]["number"])
        have = {int(m["number"]) for m in found}
        if len(have) < min(total, _MAX_SHARDS):
            missing = (i for i in range(total) if i not in have)
            listed = [name.format(f"{i:0{width}d}") for i in islice(missing, 50)]
            raise DataError(
                f"{total - len(have)} of {total} shards are missing: {format_ids(listed)}",
                where=str(folder),
                fix="download them too, or name the files to read by a pattern: "
                f'path = "{(folder / "*.parquet").as_posix()}"',
            )
