"""The skeleton of every benchmark: compute the missing rows, store each, write the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, did_you_mean
from expunge_bench.results import ResultStore, Row, Table


@dataclass(frozen=True)
class RowGroup:
    """Rows that share their preparation, such as a trained network.

    Parameters
    ----------
    keys
        The values of `Suite.keys` for each row. None if they are known only afterwards: then
        ``compute`` is called with an empty list.
    compute
        Yields complete rows for the keys that it receives: those that are not stored yet. Each row
        is stored before the next is computed.
    """

    keys: Sequence[Row] | None
    compute: Callable[[Sequence[Row]], Iterable[Row]]


@dataclass(frozen=True)
class Suite:
    """A benchmark: what identifies its rows, and the tables that it makes of them.

    Parameters
    ----------
    title
        The title of the page.
    keys
        The columns whose values identify a row.
    tables
        Makes tables of all rows.
    derive
        Adds columns that depend on several rows. They are not stored.
    """

    title: str
    keys: tuple[str, ...]
    tables: Callable[[Sequence[Row]], Sequence[Table]]
    derive: Callable[[Sequence[Row]], Sequence[Row]] = list

    def key(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The key of a row, in the order of `keys`."""
        return {name: values[name] for name in self.keys}

    def run(self, groups: Iterable[RowGroup], *, out: Path, command: str = "") -> list[Row]:
        """Compute the rows that ``out`` does not hold yet, and write the tables.

        An interrupted benchmark resumes at the first missing row. Writes ``rows.jsonl``,
        ``table.md`` and ``table.html``.

        Parameters
        ----------
        groups
            The rows to compute.
        out
            The folder of the results.
        command
            The command line, for the page.

        Returns
        -------
        list
            All rows in ``out``, those of earlier calls included.
        """
        store = ResultStore(out, self.keys)
        for group in groups:
            missing = [key for key in group.keys or () if key not in store]
            if missing or group.keys is None:
                for row in group.compute(missing):
                    if row not in store:
                        store.add(row)
        rows = list(self.derive(store.rows()))
        store.write_tables(self.title, command, self.tables(rows))
        return rows


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError with the closest match for the first name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} '{name}'", fix=did_you_mean(name, known))
