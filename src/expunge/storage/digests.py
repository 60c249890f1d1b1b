"""SHA-256 of settings and files. This module loads no heavy package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from expunge.errors import RunError
from expunge.storage.reading import reading


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same settings give the same text."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), default=list)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_unchanged(folder: Path, files: Mapping[str, str], *, fix: str) -> None:
    """Compare files with the SHA-256 that was stored when they were written.

    Raises
    ------
    RunError
        Naming the file that is missing or has changed.
    """
    for name, expected in files.items():
        with reading(folder / str(name), RunError, fix=fix):
            is_same = Path(name).name == name and file_digest(folder / name) == expected
        if not is_same:
            raise RunError("has changed since it was written", where=str(folder / name), fix=fix)
