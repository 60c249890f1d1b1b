"""Reading Parquet files: whatever is wrong with one is our error. What Arrow calls texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.errors import DataError, ExpungeError
from expunge.storage.reading import reading


@contextmanager
def open_parquet(
    path: Path,
    error: type[ExpungeError] = DataError,
    *,
    what: str = "not a Parquet file, or a damaged one",
    fix: str = "",
) -> Iterator[Any]:
    """Open a Parquet file to read it in the block; only reading belongs there.

    Parameters
    ----------
    path
        The file.
    error
        The class of error to raise.
    what, fix
        As in `reading`.

    Raises
    ------
    ExpungeError
        Of the class given, for anything that goes wrong in the block.
    """
    with (
        reading(path, error, what=what, fix=fix, also=(pa.ArrowException,)),
        pq.ParquetFile(path) as file,
    ):
        yield file


def holds_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds texts."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)
