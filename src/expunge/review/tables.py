"""Tables beside a review: issues for other tools, documents to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from expunge.errors import DataError, did_you_mean
from expunge.records import Partition
from expunge.storage.reading import reading


def issues_table(partition: Partition, classes: Sequence[str]) -> pa.Table:
    """A partition as a table of issues with the columns of cleanlab's Datalab.

    Returns
    -------
    pyarrow.Table
        ``id, is_label_issue, label_score, given_label, predicted_label, is_outlier_issue,
        outlier_score``; scores are in [0, 1], low = bad. ``.to_pandas()`` gives a data frame.

    Examples
    --------
    >>> from expunge.records import Partition
    >>> p = [0.9, 0.1]
    >>> partition = Partition([0, 1], [0, 1], p, p, [0, 0], [1, 1], [0.9, 0.9], 0.5, (0.5, 0, 1))
    >>> issues_table(partition, ["cat", "dog"]).to_pylist()[0]["predicted_label"]
    'dog'
    """
    flagged = partition.flagged
    is_input = partition.p_input_fault > partition.p_label_fault
    names = list(classes)
    return pa.table(
        {
            "id": pa.array(partition.ids),
            "is_label_issue": flagged & ~is_input,
            "label_score": 1 - partition.p_label_fault,
            "given_label": [names[k] for k in partition.labels],
            "predicted_label": [names[k] for k in partition.suggested_label],
            "is_outlier_issue": flagged & is_input,
            "outlier_score": 1 - partition.p_input_fault,
        }
    )


def read_texts(path: Path, column: str) -> dict[str, str]:
    """Documents by id, from a Parquet, CSV or JSONL file with the columns ``id`` and this one.

    Raises
    ------
    DataError
        If the file or a column is not there.
    """
    table = read_table(path)
    for name in ("id", column):
        if name not in table.column_names:
            raise DataError(
                f"there is no column '{name}'",
                where=str(path),
                fix=did_you_mean(name, table.column_names),
            )
    ids, texts = table["id"].to_pylist(), table[column].to_pylist()
    return {str(i): str(t or "") for i, t in zip(ids, texts, strict=True)}


def read_table(path: Path) -> pa.Table:
    """A Parquet, CSV or JSONL file as a table; DataError if it cannot be read."""
    readers = {
        ".parquet": pq.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    if path.suffix not in readers:
        raise DataError(
            f"unsupported file type '{path.suffix}'; expected {', '.join(readers)}",
            where=str(path),
        )
    with reading(path, also=(pa.ArrowException,)):
        return readers[path.suffix](path)
