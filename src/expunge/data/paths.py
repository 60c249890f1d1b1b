"""Paths of files and folders: resolved, checked, and kept inside a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from expunge.errors import DataError, format_ids
from expunge.storage.reading import is_file, reading


def resolve_path(text: str, folder: Path) -> Path:
    """Expand variables in a path and resolve it against a folder.

    Parameters
    ----------
    text
        ``${NAME}`` and ``${NAME:-default}`` are taken from the environment. ``~`` at the start is
        the home folder.
    folder
        What a relative path starts at. One that begins with a variable that is set starts at the
        working directory.

    Raises
    ------
    DataError
        If a variable without a default is not set, or the path is empty.

    Examples
    --------
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
    return (Path.cwd() if from_environment else folder) / os.path.expanduser(expanded)


def require_inside(folder: Path, text: str) -> Path:
    """Resolve a path; ValueError if it is outside the folder.

    A path with ``..`` that leaves the folder, a link out of it and an absolute path to elsewhere
    are outside. Backslashes separate folders, as on Windows, unless there is a file of that name.
    """
    if not text or "\0" in text:
        raise ValueError(text)
    if "\\" in text and not os.path.lexists(folder / text):
        text = text.replace("\\", "/")
    path = Path(os.path.realpath(folder / text))
    if not path.is_relative_to(os.path.realpath(folder)) or re.match("[A-Za-z]:/", text):
        raise ValueError(text)
    return path


_ADVICE = {
    "save the sheet as CSV": (".xlsx", ".xls", ".xlsm", ".ods"),
    "pickles run code when they are read: write arrays with numpy.savez, tables as Parquet": (
        ".pkl",
        ".pickle",
        ".joblib",
        ".pt",
        ".pth",
    ),
    "write it as Parquet: pandas.read_feather(path).to_parquet(…)": (".feather", ".arrow", ".ipc"),
    "write inputs and labels as numpy.savez(path, x=…, y=…)": (".npy", ".h5", ".hdf5", ".mat"),
    "unpack it first": (".zip", ".tar", ".tgz", ".7z", ".rar", ".gz"),
}


def fix_unknown_file(path: Path) -> str:
    """What to do about a data file of a suffix that is not read."""
    suffix = path.suffix.lower()
    found = [advice for advice, suffixes in _ADVICE.items() if suffix in suffixes]
    return found[0] if found else "give a .parquet, .csv, .tsv, .jsonl, .json or .npz file"


def require_file(path: Path) -> Path:
    """Return the path of a file; DataError if there is none."""
    with reading(path):
        is_folder = path.is_dir()
    if is_folder:
        raise DataError("expected a file, found a directory", where=str(path))
    return _require_path(path)


def require_folder(path: Path) -> Path:
    """Return the path of a folder; DataError if there is none."""
    if is_file(path):
        raise DataError("expected a folder, found a file", where=str(path))
    return _require_path(path)


def _require_path(path: Path) -> Path:
    with reading(path):
        exists = path.exists()
    if not exists:
        raise DataError(
            "no such file or folder",
            where=str(path),
            fix="check the spelling; in a spec, relative paths start at the spec file's folder",
        )
    return path


def resolve_inside(folder: Path, texts: list[str], ids: np.ndarray, *, where: str) -> list[Path]:
    """Resolve many paths; one DataError names all that are outside the folder."""
    paths, outside = [], []
    for text, name in zip(texts, ids.tolist(), strict=True):
        try:
            paths.append(require_inside(folder, text))
        except (ValueError, OSError):
            outside.append(f"{name} ({text[:80]!r})" if text != name else repr(text[:80]))
    if outside:
        raise DataError(
            f"paths that lead outside the folder {folder}: {format_ids(outside)}",
            where=where,
            fix="write paths relative to this folder, without '..' and links out of it; in a spec, "
            "root names another folder that all paths lie in",
        )
    return paths
