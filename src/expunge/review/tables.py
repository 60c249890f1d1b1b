"""Tables beside a review: questions, answers, issues of other tools, documents to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from expunge._core.arrays import Array, Floats, Ints
from expunge.data.checks import label_problems
from expunge.data.classes import encode_labels
from expunge.data.parquet import hub_feature
from expunge.errors import DataError, did_you_mean, raise_all
from expunge.records import Partition
from expunge.review.answer_log import COLUMNS, DRAW_COLUMNS, from_row, to_row
from expunge.review.answers import Answer, RowIndex
from expunge.review.queue import Queue
from expunge.storage.reading import reading

# The interval of the rate of a partition that another tool made: nothing is known of it.
_UNKNOWN_RATE = (0.0, 1.0)


def queue_table(queue: Queue, partition: Partition, classes: Sequence[str]) -> pa.Table:
    """The questions of a queue as a table, to answer with a tool of one's own.

    Returns
    -------
    pyarrow.Table
        ``id, verdict, label, reviewer, time, repeat, given, suggested, p_noisy`` and how each
        sample was drawn. ``.to_pandas()`` gives a data frame. Fill in ``verdict`` (``"right"``,
        ``"wrong"``, ``"bad-input"``, ``"cannot-tell"``) and, where it is wrong, ``label``;
        `answers_from_table` reads it.
    """
    rows = RowIndex(partition.ids).rows([item.id for item in queue.items])
    found = []
    for item, row in zip(queue.items, rows, strict=True):
        blank = Answer(item.id, "skip", repeat=item.repeat, draw=item.draw)
        question = {
            "given": classes[int(partition.labels[row])],
            "suggested": classes[int(partition.suggested_label[row])],
            "p_noisy": float(partition.p_noisy[row]),
        }
        found.append(to_row(blank, classes) | {"verdict": ""} | question)
    table = pa.Table.from_pylist(found)
    k = table.column_names.index("label")
    return table.set_column(k, "label", table["label"].cast(pa.string()))


def answers_from_table(table: Any, classes: Sequence[str]) -> list[Answer]:
    """Read answers from a data frame, a ``datasets.Dataset`` or a pyarrow table.

    Parameters
    ----------
    table
        With the columns ``id`` and ``verdict`` and, where a label is wrong, ``label``: see
        `queue_table`. Rows without a verdict are left out.
    classes
        The names of the classes.

    Raises
    ------
    DataError
        If a column is missing, a verdict or a class does not exist; all of them in one error.

    Examples
    --------
    >>> table = pa.table({"id": [4, 5], "verdict": ["wrong", ""], "label": ["dog", None]})
    >>> [(a.id, a.label) for a in answers_from_table(table, ["cat", "dog"])]
    [(4, 1)]
    """
    indices = {name: k for k, name in enumerate(classes)}
    answers, problems = [], []
    for number, row in enumerate(answer_rows(as_table(table), where="answers"), start=1):
        try:
            if row["verdict"]:
                answers.append(from_row(row, indices))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    raise_all(DataError, problems, where="answers")
    return answers


def as_table(table: Any) -> pa.Table:
    """A pyarrow table of a data frame, a ``datasets.Dataset``, a mapping or a table.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if isinstance(table, pa.Table):
        return table
    with reading(type(table).__name__, what="is no table", also=(pa.ArrowException,)):
        if hasattr(table, "with_format"):
            found = table.with_format("arrow")[:]
            return found.replace_schema_metadata(table.data.schema.metadata)
        if hasattr(table, "to_numpy") and hasattr(table, "columns"):
            return pa.Table.from_pandas(table, preserve_index=False)
        return pa.table(dict(table))


def answer_rows(table: pa.Table, *, where: str) -> list[dict[str, Any]]:
    """The rows of answers of a table, as plain values; missing ones are None.

    A label that is a number is the name of a class that the Hub's description gives it.

    Raises
    ------
    DataError
        If ``id`` or ``verdict`` is missing.
    """
    for name in ("id", "verdict"):
        if name not in table.column_names:
            raise DataError(
                f"there is no column '{name}'",
                where=where,
                fix=did_you_mean(name, table.column_names),
            )
    own = [name for name in (*COLUMNS, "given", *DRAW_COLUMNS) if name in table.column_names]
    rows: list[dict[str, Any]] = table.select(own).to_pylist()
    names = hub_feature(table.schema, "label").get("names")
    for row in rows:
        for key, value in row.items():
            if value != value:  # NaN stands for a missing value in a data frame
                row[key] = None
        label = row.get("label")
        if isinstance(names, list) and isinstance(label, int) and 0 <= label < len(names):
            row["label"] = str(names[label])
    return rows


def partition_from_issues(issues: Any, classes: Sequence[str], *, ids: Any = None) -> Partition:
    """A partition from cleanlab's Datalab, to review what it found.

    Parameters
    ----------
    issues
        ``lab.get_issues("label")``: ``is_label_issue, label_score, given_label, predicted_label``;
        with ``is_outlier_issue`` and ``outlier_score`` of ``lab.get_issues("outlier")`` joined, if
        wanted. A data frame, a mapping of columns or a pyarrow table.
    classes
        The names of the classes; labels are names or indices.
    ids
        The ids of the samples. Default: the column ``id``, else row numbers.

    Returns
    -------
    Partition
        What is an issue is flagged. Among the issues, and among the others, a low score is a high
        probability: the order is cleanlab's, the probabilities are not calibrated before
        `reviewed`.

    Raises
    ------
    DataError
        If a column is missing or a label is no class.

    Examples
    --------
    >>> issues = {
    ...     "is_label_issue": [True, False],
    ...     "label_score": [0.1, 0.9],
    ...     "given_label": ["cat", "dog"],
    ...     "predicted_label": ["dog", "dog"],
    ... }
    >>> partition_from_issues(issues, ["cat", "dog"]).p_noisy.round(2).tolist()
    [0.95, 0.05]
    """
    table = as_table(issues)
    needed = ("is_label_issue", "label_score", "given_label", "predicted_label")
    missing = [name for name in needed if name not in table.column_names]
    raise_all(DataError, [f"there is no column '{name}'" for name in missing], where="issues")
    if ids is None:
        ids = table["id"].to_pylist() if "id" in table.column_names else range(len(table))
    names = np.array(list(ids))
    given = _labels(table, "given_label", names, classes)
    suggested = _labels(table, "predicted_label", names, classes)
    p_label = _probability(table, "label")
    has_outliers = {"is_outlier_issue", "outlier_score"} <= set(table.column_names)
    p_input = _probability(table, "outlier") if has_outliers else np.zeros(len(table))
    p_noisy = np.maximum(p_label, p_input)
    return Partition(
        ids=names,
        labels=given,
        p_noisy=p_noisy,
        p_label_fault=p_label,
        p_input_fault=p_input,
        suggested_label=suggested,
        suggested_probability=p_label,
        threshold=0.5,
        noise_rate=(float((p_noisy > 0.5).mean()), *_UNKNOWN_RATE),
    )


def _labels(table: pa.Table, column: str, ids: Array, classes: Sequence[str]) -> Ints:
    """A column of names or indices of classes as indices."""
    values = np.array(table[column].to_pylist())
    labels, _ = encode_labels(values, ids, classes=tuple(classes), where=column)
    raise_all(DataError, label_problems(labels, ids, len(classes)), where=column)
    found: Ints = labels.astype(np.int64)
    return found


def _probability(table: pa.Table, kind: str) -> Floats:
    """Above 0.5 for an issue, and lower the higher the score is."""
    score = np.clip(np.array(table[f"{kind}_score"].to_pylist(), dtype=np.float64), 0, 1)
    is_issue = np.array(table[f"is_{kind}_issue"].to_pylist(), dtype=bool)
    p: Floats = np.where(is_issue, 1 - score / 2, (1 - score) / 2)
    return np.nan_to_num(p)


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
