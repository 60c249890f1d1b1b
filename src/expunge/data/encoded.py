"""Encoded images and clips, as bytes by position, before they are decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from expunge.data.inputs import Positions, ReadGroups
from expunge.storage.digest_cache import file_digests
from expunge.storage.reading import require_regular

# Decoded inputs of up to this size are kept in memory.
MAX_BYTES_IN_MEMORY = 4 << 30
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga")
# Kinds of files that hold samples for other tools, and how to make one that is read of them.
OTHER_SUFFIXES = {
    **dict.fromkeys((".mp3", ".m4a", ".aac", ".wma", ".opus", ".aiff", ".amr"), "audio"),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jp2", ".psd", ".dcm", ".svg"), "image"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm"), "video"),
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth", ".pkl"), "array"),
    ".txt": "text",
}
# How a file begins that Git LFS has not downloaded.
LFS_POINTER = b"version https://git-lfs.github.com"
# Files of which the first bytes are read, to distinguish audio from images.
_MAX_PROBED = 64


class Encoded(Protocol):
    """Encoded images or clips by position."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes | None:
        """Read the bytes of one file; None if none are stored."""
        ...

    def locate(self, position: int) -> Encoded:
        """One file alone, small enough to be sent to a worker process."""
        ...

    def content(self) -> str:
        """Hash all that can be read."""
        ...


class EncodedBytes:
    """One image or clip in memory."""

    def __init__(self, data: bytes | None) -> None:
        self._data = data

    def __len__(self) -> int:
        return 1

    def read(self, position: int) -> bytes | None:
        return self._data

    def locate(self, position: int) -> Encoded:
        return self

    def content(self) -> str:
        return hashlib.sha256(self._data or b"").hexdigest()


class EncodedFiles:
    """Images or clips in one file each."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = [os.fspath(path) for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, position: int) -> bytes | None:
        path = Path(self._paths[position])
        require_regular(path)
        return path.read_bytes()

    def locate(self, position: int) -> Encoded:
        return EncodedFiles([self._paths[position]])

    def content(self) -> str:
        digest = hashlib.sha256()
        for found in file_digests(self._paths):
            digest.update(bytes.fromhex(found))
        return digest.hexdigest()


def encoded_groups(encoded: Encoded, positions: Positions) -> ReadGroups | None:
    """Which files are read together; see `expunge.data.inputs.read_groups`."""
    found = getattr(encoded, "read_groups", None)
    return None if found is None else found(positions)


class EncodedSlice:
    """``n`` encoded images or clips from the position ``start`` on."""

    def __init__(self, encoded: Encoded, start: int, n: int) -> None:
        self._encoded, self._start, self._n = encoded, start, n

    def __len__(self) -> int:
        return self._n

    def read(self, position: int) -> bytes | None:
        return self._encoded.read(self._start + position)

    def locate(self, position: int) -> Encoded:
        return self._encoded.locate(self._start + position)

    def read_groups(self, positions: Positions) -> ReadGroups | None:
        return encoded_groups(self._encoded, positions + self._start)

    def content(self) -> str:
        return self._encoded.content() + (f" from {self._start}" if self._start else "")


class InvalidFile(Exception):
    """One image or clip that cannot be used; its message completes "images that …"."""


def stored_bytes(encoded: Encoded, position: int) -> bytes:
    """Read the bytes of one file; InvalidFile if there are none or they cannot be read."""
    try:
        data = encoded.read(position)
    except OSError as error:
        raise InvalidFile(f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise InvalidFile("hold no bytes")
    if data.startswith(LFS_POINTER):
        raise InvalidFile("are pointers of Git LFS, not the files: run `git lfs pull`")
    return data


def is_audio(encoded: Encoded, n: int) -> bool:
    """Whether the first file that has bytes begins like a WAV, FLAC or OGG file."""
    for i in range(min(n, _MAX_PROBED)):
        try:
            head = (encoded.read(i) or b"")[:12]
        except OSError:
            continue
        if head:
            return head[:4] in (b"fLaC", b"OggS") or head[:4] + head[8:] == b"RIFFWAVE"
    return False
