"""Read the news articles that two benchmarks use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from expunge.errors import DataError


def read_articles(folder: Path, part: Literal["train", "test"]) -> list[dict[str, Any]]:
    """The rows of ``bbc_news_summary/{part}.parquet``.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    file = folder / "bbc_news_summary" / f"{part}.parquet"
    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error}",
            where=str(file),
            fix="--data FOLDER: one that holds bbc_news_summary",
        ) from error
    return rows
