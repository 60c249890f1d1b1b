"""SHA-256 of many files, remembered by size and time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from expunge.errors import DataError
from expunge.storage import digest_cache, user_cache
from expunge.storage.digest_cache import file_digests


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three old files, of which the cache takes note."""
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "MIN_FILES", 3)
    found = [tmp_path / "data" / name for name in "abc"]
    found[0].parent.mkdir()
    for file in found:
        file.write_text(file.name)
        os.utime(file, (1, 1))
    return found


def expected(files: list[Path]) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_only_files_that_changed_are_read_again(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_digests(files) == expected(files)
    read: list[str] = []
    original = digest_cache.file_digest
    monkeypatch.setattr(
        digest_cache, "file_digest", lambda path: (read.append(path.name), original(path))[1]
    )
    assert file_digests(files) == expected(files)
    assert read == []
    files[1].write_text("B")
    assert file_digests(files) == expected(files)
    assert read == ["b"]
    # Changed just now: it may change again without another time, and is not remembered.
    assert file_digests(files) == expected(files)
    assert read == ["b", "b"]


def test_a_damaged_or_forbidden_cache_changes_nothing(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digests(files)
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-7])
    assert file_digests(files) == expected(files)
    (tmp_path / "file").touch()
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "file"))
    assert file_digests(files) == expected(files)


def test_few_files_leave_no_cache(files: list[Path], tmp_path: Path) -> None:
    assert file_digests(files[:2]) == expected(files[:2])
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_is_named(files: list[Path]) -> None:
    files[2].unlink()
    with pytest.raises(DataError, match=r"data/c: cannot be read: No such file"):
        file_digests(files)
