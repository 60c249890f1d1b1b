"""Reading JSON and TOML: everything that can be wrong with a file is one of our errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, RunError, type_with_article
from expunge.storage.digests import digest
from expunge.storage.reading import reading

MAX_BYTES = 256 * 2**20  # of a JSON or TOML file; ours are far smaller
MAX_DIGITS = 20  # of an integer: 64 bits and the sign
SEAL = "digest"  # the key of a file's own digest


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. NaN and Infinity are read as floats.

    Raises
    ------
    ValueError
        If the text is not JSON, is not UTF-8, is nested too deeply, or holds an integer of more
        than `MAX_DIGITS` digits.
    """
    try:
        return json.loads(text, parse_int=_parse_int)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


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
    with reading(path, error, fix=fix):
        found = parse_json(_read_text(path))
    if not isinstance(found, dict):
        raise error(f"holds {type_with_article(found)}, not an object", where=str(path), fix=fix)
    return found


def read_toml(path: Path, *, error: type[ExpungeError]) -> dict[str, Any]:
    """Read a TOML file; what is wrong with it is an error of the class given."""
    with reading(path, error, what="is not valid TOML"):
        return tomllib.loads(_read_text(path).removeprefix("\ufeff"))  # Notepad writes that sign


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain JSON values with their own digest, which `read_sealed` compares.

    Examples
    --------
    >>> sorted(seal({"seed": 1}))
    ['digest', 'seed']
    """
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=list))
    return {**plain, SEAL: digest(plain)}


def read_sealed(path: Path, *, fix: str = "") -> dict[str, Any]:
    """Read a JSON file that `seal` made, and check that no value has changed since."""
    values = read_json(path, error=RunError, fix=fix)
    stated = values.pop(SEAL, None)
    with reading(path, RunError, fix=fix):
        found = digest(values)
    if stated != found:
        raise RunError("has changed since it was written", where=str(path), fix=fix)
    return values


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, expected at most {MAX_BYTES:,}")
    return path.read_text(encoding="utf-8")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)
