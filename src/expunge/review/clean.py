"""The training data with corrected labels, as a new file; the original is never changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge._core.arrays import Array, Bools, Floats, Ints
from expunge.data import DataConfig, Samples
from expunge.data.paths import resolve_path
from expunge.errors import ConfigError, DataError, check_range, did_you_mean
from expunge.records import Partition, align
from expunge.review.original_rows import OriginalRows, check_target, read_original
from expunge.storage.atomic_files import new_file
from expunge.storage.json_files import parse_json
from expunge.storage.parquet_files import holds_text

NEW_COLUMNS = ("label_given", "p_noisy", "kind", "reviewed", "drop")
SUFFIXES = (".parquet", ".csv", ".jsonl")
MIN_CONFIDENCE = 0.9
_HUB = b"huggingface"


class Cleaned(NamedTuple):
    """What becomes of every sample of a partition, in its order.

    label: the corrected label. kind: ``"clean"``, ``"label"`` or ``"input"``. drop: noisy, and no
    right label is known.
    """

    ids: Array
    given: Ints
    label: Ints
    p_noisy: Floats
    kind: Array
    reviewed: Bools
    drop: Bools


def clean_labels(partition: Partition, *, min_confidence: float = MIN_CONFIDENCE) -> Cleaned:
    """Correct labels where that is sure, and say which samples to drop.

    Parameters
    ----------
    partition
        A partition, reviewed or not.
    min_confidence
        The least probability of a suggested label that replaces a given one, in [0, 1]. Labels that
        a person gave replace it in any case.

    Returns
    -------
    Cleaned
        Flagged samples have their label corrected or are dropped.
    """
    check_range(ConfigError, {"min_confidence": (min_confidence, "[0, 1]")}, where="clean")
    flagged, given = partition.flagged, partition.labels
    none = np.zeros(len(given), dtype=bool)
    reviewed: Bools = none if partition.reviewed is None else partition.reviewed
    is_input = partition.p_input_fault > partition.p_label_fault
    kind = np.where(flagged, np.where(is_input, "input", "label"), "clean")
    sure = reviewed | (partition.suggested_probability >= min_confidence)
    corrected = (kind == "label") & sure & (partition.suggested_label != given)
    label = np.where(corrected, partition.suggested_label, given)
    drop = flagged & ~corrected
    return Cleaned(partition.ids, given, label, partition.p_noisy, kind, reviewed, drop)


def summarise_clean(cleaned: Cleaned, classes: Sequence[str]) -> list[dict[str, Any]]:
    """What changed, class by class: samples that left it, came to it, were dropped."""
    moved = cleaned.label != cleaned.given
    rows = []
    for k, name in enumerate(classes):
        own = cleaned.given == k
        rows.append(
            {
                "class": name,
                "given": int(own.sum()),
                "moved_out": int((own & moved).sum()),
                "moved_in": int(((cleaned.label == k) & moved).sum()),
                "dropped": int((own & cleaned.drop).sum()),
                "reviewed": int((own & cleaned.reviewed).sum()),
                "kept": int(((cleaned.label == k) & ~cleaned.drop).sum()),
            }
        )
    return rows


def describe_clean(cleaned: Cleaned, n_unreadable: int) -> str:
    """The numbers of rows with another label and of those to be left out."""
    moved = int((cleaned.label != cleaned.given).sum())
    left_out = f"{int(cleaned.drop.sum()):,} noisy"
    if n_unreadable:
        left_out += f" and {n_unreadable:,} unreadable"
    return f"{moved:,} with another label, {left_out} to be left out (column drop)"


def write_clean(
    cleaned: Cleaned, samples: Samples, config: DataConfig, out: str | Path, *, folder: Path
) -> int:
    """Write the rows of the training data with corrected labels; returns their number.

    The file has all columns of the original, the label column corrected, and the columns
    ``label_given``, ``p_noisy``, ``kind``, ``reviewed`` and ``drop``. Samples that could not be
    read have the kind ``"unreadable"`` and are dropped; those that were held out of the training
    have the kind ``"held-out"`` and keep their labels. Data that are no table become one with the
    column ``id``, or ``file_name`` for a folder of files, as the Hub's folders have it.

    Parameters
    ----------
    cleaned
        Of `clean_labels`.
    samples
        The training data.
    config
        Where they were read from.
    out
        The new file: ``.parquet``, ``.csv`` or ``.jsonl``. Columns that CSV and JSONL cannot hold,
        such as images, are left out there.
    folder
        What relative paths of the configuration start at.

    Raises
    ------
    ConfigError
        If the suffix is unknown.
    DataError
        If a column of one of the new names exists.
    RunError
        If the file is the original or cannot be written.

    Notes
    -----
    Cost: Parquet is read and written a row group at a time, other tables whole.
    """
    out, source = Path(out), resolve_path(config.path, folder)
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"unsupported file type '{out.suffix}'; expected {', '.join(SUFFIXES)}",
            where=str(out),
            fix=did_you_mean(out.suffix, SUFFIXES),
        )
    check_target(out, source, config)
    original = read_original(source, config, samples)
    if config.labels is not None or config.corrections is not None:
        # The labels are not those of the files.
        original = _without_labels(original)
    taken = [name for name in NEW_COLUMNS if name in original.schema.names]
    if taken:
        raise DataError(
            f"the data have columns of these names already: {', '.join(taken)}",
            where=str(source),
            fix="clean the original data; columns of its own get other names, in the spec too",
        )
    columns = _new_columns(cleaned, samples, original)
    none = {name: values.slice(0, 0) for name, values in columns.items()}
    schema = _with_columns(original.schema.empty_table(), none, original.label).schema
    with new_file(out) as temporary:
        _write(_changed_parts(original, columns), schema, temporary, out.suffix)
    return len(original.ids)


def _without_labels(original: OriginalRows) -> OriginalRows:
    """The rows without their labels."""
    kept = [field for field in original.schema if field.name != original.label]
    schema = pa.schema(kept, metadata=original.schema.metadata)
    return original._replace(
        given=None,
        schema=schema,
        parts=lambda: (part.select(schema.names) for part in original.parts()),
    )


def _changed_parts(original: OriginalRows, columns: Mapping[str, pa.Array]) -> Iterator[pa.Table]:
    """The parts of the original with the new columns."""
    start = 0
    for part in original.parts():
        new = {name: values.slice(start, len(part)) for name, values in columns.items()}
        yield _with_columns(part, new, original.label)
        start += len(part)


def _new_columns(cleaned: Cleaned, samples: Samples, original: OriginalRows) -> dict[str, pa.Array]:
    """The columns that are added or replaced, by name, for every row."""
    ids, given = original.ids, original.given
    is_known, at = _positions(cleaned.ids, ids)
    is_readable, place = _positions(samples.ids, ids)
    moved = is_known & (cleaned.label[at] != cleaned.given[at])
    names = np.array(samples.classes, dtype=object)
    kind_of_label = pa.string()
    if given is not None:
        kind_of_label = original.schema.field(original.label).type
    else:
        given = list(np.where(is_readable, names[samples.labels[place]], None))
    # The value that the file has for a class: a name, or a number of its own.
    value = {int(cleaned.given[k]): v for k, v, m in zip(at, given, is_known, strict=True) if m}
    corrected = [
        value.get(int(cleaned.label[k]), names[cleaned.label[k]]) if m else v
        for k, m, v in zip(at, moved, given, strict=True)
    ]
    p = np.where(is_known, cleaned.p_noisy[at], np.nan)
    kind = np.where(is_known, cleaned.kind[at], np.where(is_readable, "held-out", "unreadable"))
    return {
        original.label: pa.array(corrected, type=kind_of_label),
        "label_given": pa.array(given, type=kind_of_label),
        "p_noisy": pa.array(p, mask=~is_known),
        "kind": pa.array(kind.tolist()),
        "reviewed": pa.array(cleaned.reviewed[at] & is_known),
        "drop": pa.array(np.where(is_known, cleaned.drop[at], ~is_readable)),
    }


def _positions(own: Array, wanted: Array) -> tuple[Bools, Ints]:
    """Which of the ids wanted are there, and where; 0 if not."""
    if own.dtype.kind != wanted.dtype.kind:
        own, wanted = own.astype(str), wanted.astype(str)
    found = np.isin(wanted, own)
    at = np.zeros(len(wanted), dtype=np.int64)
    at[found] = align(own, wanted[found])
    return found, at


def _with_columns(table: pa.Table, columns: Mapping[str, pa.Array], label: str) -> pa.Table:
    """The table with these columns, in the Hub's description too."""
    metadata = dict(table.schema.metadata or {})
    for name, values in columns.items():
        if name in table.column_names:
            k = table.column_names.index(name)
            table = table.set_column(k, table.schema.field(k), values)
        else:
            table = table.append_column(name, values)
    if _HUB in metadata:
        is_text = holds_text(table.schema.field(label).type)
        metadata[_HUB] = _described(metadata[_HUB], label, is_text=is_text)
    return table.replace_schema_metadata(metadata)


def _described(text: bytes, label: str, *, is_text: bool) -> bytes:
    """The Hub's description of the columns, with ours; as it is if it cannot be read."""
    try:
        described = parse_json(text)
        features = described["info"]["features"]
        types = {"p_noisy": "float64", "kind": "string", "reviewed": "bool", "drop": "bool"}
        new = {name: {"dtype": dtype, "_type": "Value"} for name, dtype in types.items()}
        of_label = {"dtype": "string", "_type": "Value"} if is_text else features[label]
        described["info"]["features"] = {
            **features,
            label: of_label,
            "label_given": of_label,
            **new,
        }
    except (ValueError, KeyError, TypeError):
        return text
    return json.dumps(described).encode()


def _write(parts: Iterable[pa.Table], schema: pa.Schema, path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        with pq.ParquetWriter(path, schema) as parquet:
            for part in parts:
                parquet.write_table(part)
        return
    plain = [field.name for field in schema if _is_plain(field.type, lists=suffix == ".jsonl")]
    rows = (row for part in parts for row in part.select(plain).to_pylist())
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, plain)
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _is_plain(kind: pa.DataType, *, lists: bool) -> bool:
    """Whether a value is text, a number or a truth value, or a list or object of these."""
    types = pa.types
    if types.is_struct(kind):
        return lists and all(_is_plain(field.type, lists=True) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return lists and _is_plain(kind.value_type, lists=True)
    tests = (types.is_integer, types.is_floating, types.is_boolean, holds_text)
    return any(test(kind) for test in tests)
