"""Rows of a benchmark on disk, and tables of means with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from scipy.stats import t

from expunge.errors import RunError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ResultStore:
    """``rows.jsonl`` in a folder: one JSON object a row.

    Parameters
    ----------
    folder
        Where the file lies. The first row creates it.
    keys
        The columns whose values identify a row.
    """

    folder: Path
    keys: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order in which they were added, without a half-written last line.

        Raises
        ------
        RunError
            If a line is not a row with these keys.
        """
        if not self._file.exists():
            return []
        rows = []
        lines = self._file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(json.loads(line))
                _ = self._key(rows[-1])
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"line {number} is not a row of this benchmark (expected the columns "
                    f"{', '.join(self.keys)}): {error}",
                    where=str(self._file),
                    fix="remove the line, or name another folder with --out",
                ) from error
        return rows

    def __contains__(self, key: Row) -> bool:
        return self._key(key) in self._known_keys

    def get(self, key: Row) -> dict[str, Any] | None:
        """The row with that key, or None."""
        wanted = self._key(key)
        return next((row for row in self.rows() if self._key(row) == wanted), None)

    def add(self, row: Row) -> None:
        """Append one row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        complete, newline, half_written = text.rpartition("\n")
        if half_written:  # an interrupted write
            self._file.write_text(complete + newline, encoding="utf-8")
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(row)) + "\n")
        self._known_keys.add(self._key(row))

    def write_tables(self, title: str, command: str, tables: Sequence[Table]) -> str:
        """Write ``table.md`` and ``table.html``; returns the Markdown."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(table.markdown() for table in tables)
        (self.folder / "table.md").write_text(text, encoding="utf-8")
        page = Environment(autoescape=True).from_string(_PAGE)
        html = page.render(title=title, command=command, tables=tables)
        (self.folder / "table.html").write_text(html, encoding="utf-8")
        return text

    @property
    def _file(self) -> Path:
        return self.folder / "rows.jsonl"

    @cached_property
    def _known_keys(self) -> set[tuple[Any, ...]]:
        return {self._key(row) for row in self.rows()}

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.keys)


@dataclass(frozen=True)
class Table:
    """Cells of text under a head, with a caption."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def markdown(self) -> str:
        """The table in Markdown, its caption above."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.caption}\n\n{text}\n" if self.caption else f"{text}\n"


def group_rows(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these columns, both in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def paired_differences(
    rows: Iterable[Row], baseline: Iterable[Row], *, name: str = "accuracy"
) -> list[float]:
    """``row − baseline`` of a column, for each seed that both have."""
    by_seed = {row["seed"]: row[name] for row in baseline}
    return [row[name] - by_seed[row["seed"]] for row in rows if row["seed"] in by_seed]


def format_mean(values: Iterable[float | None], *, form: str = ".3f", scale: float = 1.0) -> str:
    """The mean, and half the width of its 95 % t-interval for two values or more.

    Parameters
    ----------
    values
        None is skipped. Without any value the text is a dash.
    form
        The format of the mean, such as ``"+.1f"``. The interval has no sign.
    scale
        A factor: 100 for percent.

    Examples
    --------
    >>> format_mean([0.5, None]), format_mean([0.5, 0.7], form=".1f", scale=100)
    ('0.500', '60.0 ± 127.1')
    """
    known = np.array([v for v in values if v is not None], dtype=np.float64) * scale
    if not len(known):
        return "–"
    text = f"{known.mean():{form}}"
    if len(known) < 2:
        return text
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return f"{text} ± {half:{form.lstrip('+')}}"


def mean_cells(
    rows: Iterable[Row], names: Iterable[str], *, form: str = ".3f", scale: float = 1.0
) -> tuple[str, ...]:
    """`format_mean` of each of these columns; a missing column counts as None."""
    rows = list(rows)
    return tuple(
        format_mean((row.get(name) for row in rows), form=form, scale=scale) for name in names
    )


def noise_label(noise: str, rate: float) -> str:
    """``symmetric 0.4``; only the name for noise whose rate is fixed."""
    return f"{noise} {rate:g}" if rate else noise


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: left }
</style>
<h1>{{ title }}</h1>
<pre>{{ command }}</pre>
{% for table in tables %}
<table>
{% if table.caption %}<caption>{{ table.caption }}</caption>{% endif %}
<tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
</html>
"""
