"""Writing files and folders: each appears whole, in one rename, or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from expunge.errors import ExpungeError, RunError
from expunge.storage.reading import reason_of

# How the names of files and folders begin that are not yet whole.
TEMPORARY = ".partial-"


def write_file(
    target: str | Path,
    content: str | bytes | Callable[[Path], object],
    *,
    error: type[ExpungeError] = RunError,
) -> None:
    """Write a file in one rename; what was there before stays until then.

    Parameters
    ----------
    target
        The file. A link is replaced, not followed.
    content
        Text, which is written as UTF-8; bytes; or a function that writes to the path given.
    error
        The class of error to raise.

    Raises
    ------
    ExpungeError
        Of the class given: if the file cannot be written, or is no regular file.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_file(file, "whole")
    >>> file.read_text()
    'whole'
    """
    with new_file(target, error=error) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless it exists."""
    with wrap_io_errors(folder, RunError):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def new_file(target: str | Path, *, error: type[ExpungeError] = RunError) -> Iterator[Path]:
    """Provide a path to write to, which becomes the file where the block ends without an error."""
    target = Path(target)
    with wrap_io_errors(target, error):
        if target.exists() and not target.is_file():
            raise error("is not a file", where=str(target), fix="name a file")
        temporary = _temporary(target)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(mode)  # safetensors makes a file of its own, for its owner alone
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, error: type[ExpungeError] = RunError) -> Iterator[Path]:
    """Provide a folder to fill, which becomes the target where the block ends without an error.

    The target must not exist, or be empty.
    """
    with wrap_io_errors(target, error):
        temporary = _temporary(target)
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def wrap_io_errors(path: Path, error: type[ExpungeError] = RunError) -> Iterator[None]:
    """Turn errors of the disk (full, read-only, forbidden) into one of ours."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as problem:
        raise error(
            f"cannot be written: {reason_of(problem)}",
            where=str(path),
            fix="make the folder that it is to lie in"
            if isinstance(problem, FileNotFoundError)
            else "free some space, choose another folder, or copy the run folder to one "
            "that can be written",
        ) from problem


def require_other_file(out: Path, *inputs: Path) -> None:
    """Refuse an output that would overwrite an input."""
    for path in inputs:
        try:
            is_same = out.samefile(path)
        except OSError:  # one of them does not exist
            continue
        if is_same:
            raise RunError(
                "--out would overwrite the input", where=str(out), fix="name another file"
            )


def _temporary(target: Path) -> Path:
    """A new path beside the target; what a process that was killed left for it is deleted."""
    host, name = (
        hashlib.sha256(t.encode(errors="replace")).hexdigest()[:8]
        for t in (platform.node(), target.name)
    )
    for left_over in target.parent.glob(f"{TEMPORARY}{host}-{name}-*"):
        process = left_over.name.split("-")[3]
        if process.isdigit() and not _is_running(int(process)):
            delete(left_over)
    ending = f"{os.getpid()}-{secrets.token_hex(4)}{target.suffix}"
    return target.parent / f"{TEMPORARY}{host}-{name}-{ending}"


def _is_running(process: int) -> bool:
    if os.name == "nt":  # a signal would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def delete(path: Path) -> None:
    """Delete a file, a link or a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
