"""The rows of data frames, as the items of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from expunge.data.conversion import categories_of, names_of, to_list


class Categories(NamedTuple):
    """The categories of a column, in their order; named as the Hub's ``ClassLabel``."""

    names: list[str]


class FrameRows(Sequence[dict[str, Any]]):
    """The rows of a frame of pandas or polars, or of an Arrow table, as dictionaries.

    ``features`` holds the class names of the categorical columns of pandas.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = FrameRows(pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}, index=[7, 3]), "data")
    >>> len(rows), rows[1]
    (2, {'text': 'b', 'label': 1})
    """

    def __init__(self, frame: Any, where: str) -> None:
        columns = {name: frame[name] for name in names_of(frame, where)}
        self._columns = {name: to_list(column) for name, column in columns.items()}
        self._n = len(frame)
        stated = {name: categories_of(column) for name, column in columns.items()}
        self.features = {k: Categories([*map(str, v)]) for k, v in stated.items() if v is not None}

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, position: Any) -> Any:
        return {name: column[position] for name, column in self._columns.items()}
