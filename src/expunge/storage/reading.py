"""Reading files: whatever a reader raises on a damaged or hostile file becomes our error."""

from __future__ import annotations

import csv
import os
import pickle
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.errors import DataError, ExpungeError

# What decoders of text, archives, arrays and pickles raise. RecursionError and NotImplementedError
# are RuntimeErrors.
READ_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    csv.Error,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_MAX_REASON = 200  # characters


@contextmanager
def reading(
    where: str | Path,
    error: type[ExpungeError] = DataError,
    *,
    what: str = "cannot be read",
    fix: str = "",
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn what a reader raises into one of our errors; ours pass through.

    Parameters
    ----------
    where
        The file. A pipe or a device is refused: reading it may never end.
    error
        The class of error to raise.
    what
        What is wrong; the reason is added.
    fix
        What the user can do about it.
    also
        Further exceptions, those of a library.

    Examples
    --------
    >>> with reading("a.json", what="not JSON"):
    ...     int("x")
    Traceback (most recent call last):
    expunge.errors.DataError: a.json: not JSON: invalid literal for int() with base 10: 'x'
    """
    try:
        require_regular(where)
        yield
    except (*READ_ERRORS, *also) as problem:
        raise error(f"{what}: {reason_of(problem)}", where=str(where), fix=fix) from problem


def require_regular(path: str | Path) -> None:
    """Raise OSError if the path names a pipe, a device or a socket; a shell's ``<(…)`` may pass."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return
    is_redirected = stat.S_ISFIFO(mode) and str(path).startswith(("/dev/", "/proc/"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or is_redirected):
        raise OSError("is a pipe or a device, not a file")


def reason_of(problem: BaseException) -> str:
    """Describe an exception in one short line."""
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if isinstance(problem, MemoryError):
        return "too large for the memory"
    text = (isinstance(problem, OSError) and problem.strerror) or str(problem).strip()
    line = text.partition("\n")[0] or type(problem).__name__
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"


def is_file(path: Path) -> bool:
    """Whether the path names a file; False for a path that the system does not accept."""
    try:
        return path.is_file()
    except OSError:
        return False
