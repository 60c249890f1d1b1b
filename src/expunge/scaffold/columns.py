"""What the columns of a table hold, and which of them are label, input and id."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from expunge.data.labels import is_gap
from expunge.data.shards import find_shards
from expunge.data.text_tables import read_table
from expunge.errors import DataError, did_you_mean
from expunge.storage.reading import is_file

Kind = Literal["encoded", "vector", "path", "text", "category", "number", "empty"]

# Usual names, the most usual first.
LABEL_NAMES = (
    *("label", "labels", "target", "targets", "y", "class", "category", "kind"),
    *("fine_label", "coarse_label", "intent", "sentiment", "species", "diagnosis"),
)
_ID_NAME = re.compile(r"(.*[_\s-])?(id|ids|uid|uuid|key|index|idx)", re.IGNORECASE)
# The index of a data frame, as pandas writes it. One without a name cannot be named in a spec.
_FRAME_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+|")
# A column whose values have this many words on average holds texts.
_MIN_WORDS = 3.0
# Values of a column that are looked at.
_MAX_VALUES = 2000


@dataclass(frozen=True)
class Column:
    """What a column holds. n_distinct: among the values that were looked at; 0 if not counted.

    n_words: of a value, on average. codes: for each value the number of distinct ones before its
    first, so that columns of the same codes hold the same in other values.
    """

    kind: Kind
    n_distinct: int = 0
    n_values: int = 0
    n_words: float = 0.0
    is_class_label: bool = False
    codes: tuple[int, ...] = ()

    @property
    def is_categorical(self) -> bool:
        """Whether it can hold classes: few values, each of them several times."""
        return 2 <= self.n_distinct <= max(2, self.n_values // 4) and self.kind in (
            "category",
            "number",
        )


@dataclass(frozen=True)
class Roles:
    """The columns of inputs, labels and ids. kind: what the input columns hold."""

    inputs: tuple[str, ...]
    label: str
    id: str | None
    kind: Kind
    unused: tuple[str, ...] = ()


def inspect_columns(path: Path) -> dict[str, Column]:
    """Look at the columns of a Parquet (the first of many), CSV or JSONL file."""
    if path.is_dir() or path.suffix.lower() == ".parquet":
        return _parquet_columns(find_shards(path, ".parquet", "train")[0])
    table = read_table(path)
    return {name: _describe(values, path.parent) for name, values in table.items()}


def choose_roles(
    columns: Mapping[str, Column],
    *,
    where: str,
    label: str | None = None,
    inputs: Sequence[str] = (),
    id: str | None = None,
) -> Roles:
    """Choose the columns of label, id and inputs; those that are given are taken.

    Raises
    ------
    DataError
        If a column is not there, or no column is clearly the label or the input.
    """
    for name in (*inputs, *filter(None, (label, id))):
        if name not in columns:
            raise DataError(
                f"no column is called '{name}'", where=where, fix=did_you_mean(name, columns)
            )
    columns = {k: c for k, c in columns.items() if k}
    label = label or _guess_label(columns, inputs, where)
    if id is None:
        free = [name for name in columns if name != label and name not in inputs]
        id = next((name for name in free if _is_id(name, columns[name])), None)
    rest = {k: c for k, c in columns.items() if k not in (label, id)}
    names = tuple(inputs) or _guess_inputs(_without_label(rest, columns[label]), where)
    unused = tuple(name for name in rest if name not in names)
    return Roles(names, label, id, columns[names[0]].kind, unused)


def _guess_label(columns: Mapping[str, Column], inputs: Sequence[str], where: str) -> str:
    """The Hub's ClassLabel, a usual name, or the only column that can hold classes."""
    stated = [name for name, c in columns.items() if c.is_class_label]
    lower = {name.lower(): name for name in columns}
    named = [lower[name] for name in LABEL_NAMES if name in lower]
    free = {k: c for k, c in columns.items() if k not in inputs and not _FRAME_INDEX.fullmatch(k)}
    possible = [name for name, c in free.items() if c.is_categorical]
    texts = [name for name in possible if columns[name].kind == "category"]
    for found in (stated[:1], named[:1], texts if len(texts) == 1 else possible):
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"which column holds the labels is not clear; columns: {', '.join(columns)}",
        where=where,
        fix="name it: --label COLUMN",
    )


def _is_id(name: str, column: Column) -> bool:
    """A usual name, such as ``id``, ``image_id`` or ``PassengerId``, and no value twice."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    is_named = _ID_NAME.fullmatch(snake) or _FRAME_INDEX.fullmatch(name)
    return bool(is_named) and 0 < column.n_values == column.n_distinct


def _guess_inputs(columns: Mapping[str, Column], where: str) -> tuple[str, ...]:
    """The column of images, clips, vectors or the longest texts; else all columns of numbers."""
    for kind in ("encoded", "path", "vector", "text"):
        found = [name for name, c in columns.items() if c.kind == kind]
        if found:
            return (max(found, key=lambda name: columns[name].n_words),)
    numbers = tuple(
        name
        for name, c in columns.items()
        if c.kind == "number" and not _FRAME_INDEX.fullmatch(name)
    )
    if not numbers:
        raise DataError(
            f"no column holds images, clips, vectors, texts or numbers: {', '.join(columns)}",
            where=where,
            fix="name it: --input COLUMN",
        )
    return numbers


def _without_label(columns: Mapping[str, Column], label: Column) -> dict[str, Column]:
    """The columns that do not hold the label in other values, as its number beside its name."""
    codes = label.codes if label.is_categorical else ()
    return {name: c for name, c in columns.items() if not codes or c.codes != codes}


def _parquet_columns(path: Path) -> dict[str, Column]:
    from expunge.data.parquet import class_names, column_types, read_columns

    found: dict[str, Column] = {}
    for name, kind in column_types(path).items():
        if kind in ("encoded", "vector"):
            found[name] = Column("encoded" if kind == "encoded" else "vector")
        elif kind != "other":
            values = read_columns(path, [name]).column(0).to_pylist()
            described = _describe(values, path.parent)
            found[name] = replace(described, is_class_label=bool(class_names(path, name)))
    return found


def _describe(values: Sequence[Any], folder: Path) -> Column:
    step = max(1, len(values) // _MAX_VALUES)
    seen = [v for v in values[::step] if v is not None and v != ""]
    if seen and all(isinstance(v, list) for v in seen):
        return Column("vector")
    order: dict[str, int] = {}
    codes = tuple(order.setdefault(str(v), len(order)) for v in values[::step])
    counts = len({str(v) for v in seen}), len(seen)
    present = [v for v in seen if not (isinstance(v, str) and is_gap(v))]
    if all(_is_number(v) for v in present):
        return Column("number" if present else "empty", *counts, codes=codes)
    texts = [str(v) for v in seen]
    words = sum(len(text.split()) for text in texts) / len(texts)
    if words < _MIN_WORDS:
        kind: Kind = "path" if is_file(folder / texts[0]) else "category"
        return Column(kind, *counts, codes=codes)
    return Column("path" if is_file(folder / texts[0]) else "text", *counts, words)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(str(value))
    except ValueError:
        return False
    return True
