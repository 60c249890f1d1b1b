"""What all suites share: rows on disk that are added one by one, and tables with intervals."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jinja2 import Environment
from scipy.stats import t

from expunge.errors import RunError

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class ResultStore:
    """``rows.jsonl`` in a folder: one object a row, known by the values of ``keys``.

    An interrupted suite skips the rows that it has.
    """

    folder: Path
    keys: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they were added; a half-written last line is no row."""
        file = self.folder / "rows.jsonl"
        if not file.exists():
            return []
        rows = []
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(json.loads(line))
                _ = self._key(rows[-1])
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"line {number} is no row of this suite: {error}",
                    where=str(file),
                    fix="remove the line, or name another folder",
                ) from error
        return rows

    def __contains__(self, key: Row) -> bool:
        return self._key(key) in self._known

    @cached_property
    def _known(self) -> set[tuple[Any, ...]]:
        return {self._key(row) for row in self.rows()}

    def add(self, row: Row) -> None:
        """Append one row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "rows.jsonl"
        kept = file.read_text(encoding="utf-8").rpartition("\n") if file.exists() else ("", "", "")
        if kept[2]:  # cut off while it was written
            file.write_text(kept[0] + kept[1], encoding="utf-8")
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(row)) + "\n")
        self._known.add(self._key(row))

    def write(self, title: str, command: str, tables: Sequence[Table]) -> str:
        """``table.md`` and ``table.html``; returns the Markdown."""
        text = "\n".join(table.markdown() for table in tables)
        (self.folder / "table.md").write_text(text, encoding="utf-8")
        page = Environment(autoescape=True).from_string(_PAGE)
        html = page.render(title=title, command=command, tables=tables)
        (self.folder / "table.html").write_text(html, encoding="utf-8")
        return text

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


def distinct(rows: Iterable[Row], *names: str) -> list[tuple[Any, ...]]:
    """The different values of these columns together, in order of appearance."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def mean(values: Iterable[float | None], *, form: str = ".3f", scale: float = 1.0) -> str:
    """Mean, with half the width of its 95 % t-interval where there are two values or more."""
    known = np.array([v for v in values if v is not None], dtype=np.float64) * scale
    if not len(known):
        return "–"
    text = f"{known.mean():{form}}"
    if len(known) < 2:
        return text
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return f"{text} ± {half:{form.lstrip('+')}}"


def busy_seconds() -> float:
    """A clock: of this process's work on a CPU, of the wall with a GPU.

    So that what else a machine does neither shortens nor lengthens what methods take.
    """
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def timed(work: Callable[[], T]) -> tuple[T, float, int]:
    """Result, seconds, and by how many bytes the process grew at its peak (0 but on Linux)."""
    before = _resident("VmRSS")
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start, max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Bytes in memory: now (VmRSS, after which the peak counts anew), or at the peak (VmHWM)."""
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not status.exists():
        return 0
    if field == "VmRSS":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # what was freed is not in use
            trim(0)
        peak.write_text("5")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0


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
