"""Columns of features that hold the labels, perhaps in other values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from expunge._core.arrays import Array, Ints
from expunge.data.feature_table import FeatureTable

# In fewer rows a column may be like the labels by chance.
_MIN_ROWS = 20
# Rows of a matrix that are compared at once.
_CHUNK_SIZE = 4096


def columns_of_classes(table: FeatureTable, labels: Ints) -> dict[str, bool]:
    """The columns with one value in each class, and whether it differs between all classes.

    Such a column may be the label itself, its number, its name in other letters, or tell one class
    from the rest.

    Parameters
    ----------
    table
        Features of n rows.
    labels
        ``[n]``, the indices of the classes.

    Returns
    -------
    dict
        By the names of the columns; empty for fewer than 20 rows or two for each class.

    Notes
    -----
    Cost: O(n) for each column. Columns of vectors are not examined.

    Examples
    --------
    >>> from expunge.data.feature_table import as_feature_table
    >>> labels = np.arange(30) % 3
    >>> table = as_feature_table({"width": np.arange(30.0), "name": np.array(list("ABC"))[labels]})
    >>> columns_of_classes(table, labels)
    {'name': True}
    """
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    if len(classes) < max(_MIN_ROWS, 2 * len(first)):
        return {}
    columns = _of_matrix if table.rows is None else _of_rows
    counts = {name: len(np.unique(values)) for name, values in columns(table, first, classes)}
    return {name: count == len(first) for name, count in counts.items() if count > 1}


def _of_matrix(table: FeatureTable, first: Ints, classes: Ints) -> Iterator[tuple[str, Array]]:
    """Columns of a matrix, and their value in each class; ``first`` is the first row of each."""
    values = table.values[first]
    is_fixed = np.ones(values.shape[1], dtype=bool)
    for start in range(0, len(classes), _CHUNK_SIZE):
        rows = slice(start, start + _CHUNK_SIZE)
        is_fixed[is_fixed] = (
            table.values[rows][:, is_fixed] == values[classes[rows]][:, is_fixed]
        ).all(axis=0)
    for k in np.flatnonzero(is_fixed):
        yield table.names[k], values[:, k]


def _of_rows(table: FeatureTable, first: Ints, classes: Ints) -> Iterator[tuple[str, Array]]:
    """Columns of a table, and the code of their value in each class."""
    assert table.rows is not None
    for name in table.rows.column_names:
        column = table.rows.column(name).combine_chunks()
        if pa.types.is_nested(column.type):
            continue
        column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()  # polars: unsigned
        if (codes == codes[first][classes]).all():
            yield name, codes[first]
