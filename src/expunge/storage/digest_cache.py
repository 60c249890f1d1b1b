"""SHA-256 of many or large files, remembered in the user's cache by path, size and time."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from expunge.storage.digests import file_digest
from expunge.storage.reading import reading
from expunge.storage.user_cache import cache_folder, write_cached

# Fewer files of fewer bytes in all are read each time.
MIN_FILES = 10_000
MIN_BYTES = 1 << 30
# A file that was changed so shortly before, in nanoseconds, can change again at the same time.
_SETTLED = 2_000_000_000
_KEY, _DIGEST = 16, 32  # bytes


def file_digests(paths: Sequence[str | Path]) -> list[str]:
    """SHA-256 of files, in their order.

    Parameters
    ----------
    paths
        The files. With 10,000 or more, or of 1 GiB or more in all, those whose size and time of
        change are as before are not read again.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    stats = []
    for path in paths:
        with reading(path):
            stats.append(os.stat(path))
    if len(paths) < MIN_FILES and sum(found.st_size for found in stats) < MIN_BYTES:
        return [_digest(path) for path in paths]
    keys = [_key(path, found) for path, found in zip(paths, stats, strict=True)]
    file = _cache_file(paths)
    wanted = set(keys)
    known = {key: digest for key, digest in _read(file).items() if key in wanted}
    missing = [i for i, key in enumerate(keys) if key not in known]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, [paths[i] for i in missing]))
    computed = {keys[i]: bytes.fromhex(digest) for i, digest in zip(missing, digests, strict=True)}
    now = time.time_ns()
    settled = [keys[i] for i in missing if now - stats[i].st_mtime_ns > _SETTLED]
    if settled:
        _write(file, known | {key: computed[key] for key in settled})
    known |= computed
    return [known[key].hex() for key in keys]


def _digest(path: str | Path) -> str:
    with reading(path):
        return file_digest(Path(path))


def _key(path: str | Path, found: os.stat_result) -> bytes:
    text = f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_KEY).digest()


def _cache_file(paths: Sequence[str | Path]) -> Path:
    """The part of the cache for the files of one folder."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    name = hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / "digests" / f"{name}.npy"


def _read(file: Path) -> dict[bytes, bytes]:
    """What is remembered; nothing if the file is missing or damaged."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return {}
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != _KEY + _DIGEST:
        return {}
    data = np.ascontiguousarray(rows).tobytes()
    width = _KEY + _DIGEST
    return {data[i : i + _KEY]: data[i + _KEY : i + width] for i in range(0, len(data), width)}


def _write(file: Path, known: dict[bytes, bytes]) -> None:
    """Remember digests; where the cache cannot be written, they are computed again."""
    data = b"".join(key + digest for key, digest in known.items())
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, _KEY + _DIGEST)

    def save(path: Path) -> None:
        with path.open("wb") as opened:
            np.save(opened, rows)

    write_cached(file, save)
