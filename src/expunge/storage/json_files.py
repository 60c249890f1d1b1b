"""Reading JSON objects: everything that can be wrong with a file is one of our errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, RunError

MAX_BYTES = 256 * 2**20  # of a JSON file; ours are far smaller
MAX_DIGITS = 20  # of an integer: 64 bits and the sign


def read_json(
    path: str | Path, *, error: type[ExpungeError] = RunError, fix: str = ""
) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Parameters
    ----------
    path
        A UTF-8 file of at most `MAX_BYTES`.
    error
        The class of error to raise.
    fix
        What the user can do about it; the last line of the message.

    Returns
    -------
    dict
        The object. NaN and Infinity are read as floats.

    Raises
    ------
    ExpungeError
        Of the class given: the file does not exist, cannot be read, is too large, is not UTF-8 or
        not JSON, is nested too deeply, holds an integer of more than `MAX_DIGITS` digits, or holds
        something other than an object.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "config.json"
    >>> _ = file.write_text('{"seed": 1}')
    >>> read_json(file)
    {'seed': 1}
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, expected at most {MAX_BYTES:,}")
        found = json.loads(path.read_text(encoding="utf-8"), parse_int=_parse_int)
    except (OSError, ValueError) as problem:
        raise error(f"cannot be read: {problem}", where=str(path), fix=fix) from problem
    except RecursionError as problem:
        raise error("cannot be read: nested too deeply", where=str(path), fix=fix) from problem
    if not isinstance(found, dict):
        raise error(f"holds a {type(found).__name__}, not an object", where=str(path), fix=fix)
    return found


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)
