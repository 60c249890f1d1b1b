"""The user's cache: what is slow to find out about data that do not change.

It is `$EXPUNGE_CACHE`, else `$XDG_CACHE_HOME/expunge`, else `~/.cache/expunge`. It may be deleted
at any time; where it cannot be read or written, the work is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.storage.atomic_files import make_folder, write_file
from expunge.storage.json_files import read_json

VARIABLE = "EXPUNGE_CACHE"


def cache_folder() -> Path:
    """The folder of the cache; it need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~/.cache"))) / "expunge"


def write_cached(file: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file of the cache, if it can be written."""
    try:
        make_folder(file.parent)
        write_file(file, content)
    except ExpungeError:
        return


def read_reasons(key: str, n: int) -> dict[int, str] | None:
    """What was found wrong with some of n samples, by position; None if nothing is remembered.

    key: a digest of the data and of the settings with which they are read.
    """
    file = _reasons_file(key)
    try:
        if not file.is_file():
            return None
        found = {int(i): str(reason) for i, reason in read_json(file)["reasons"].items()}
    except (ExpungeError, OSError, LookupError, ValueError, AttributeError, TypeError):
        return None
    return found if all(0 <= i < n for i in found) else None


def write_reasons(key: str, reasons: dict[int, str]) -> None:
    """Remember what is wrong with samples."""
    write_cached(_reasons_file(key), json.dumps({"reasons": reasons}))


def _reasons_file(key: str) -> Path:
    return cache_folder() / "reasons" / f"{key}.json"
