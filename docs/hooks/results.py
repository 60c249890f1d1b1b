"""Pages of results from the rows in ``docs/results/rows``: ``python docs/hooks/results.py``.

``docs/results/pages.toml`` has one entry a page, and one a line of the table in the README. A new
page is a ``rows.jsonl`` of `expunge bench`, copied to ``rows/NAME.jsonl``, and an entry. The pages
and the table are kept in the repository, and a test holds that they are what their rows give.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge_bench.repair import with_oracle_gaps
from expunge_bench.results import Row, Table, format_mean, group_rows

FOLDER = Path(__file__).parents[1] / "results"
README = Path(__file__).parents[2] / "README.md"
# The columns of the README's table, and the recipe in each.
README_COLUMNS = {
    "before": "no-op",
    "instant": "instant",
    "default": "default",
    "semi": "semi",
}
MAX_COLUMNS = 8
# Head, format and factor of the columns; others keep their name and have three digits.
COLUMNS: dict[str, tuple[str, str, float]] = {
    "accuracy": ("accuracy (%)", ".1f", 100),
    "wrong_labels_reproduced": ("wrong labels reproduced (%)", ".1f", 100),
    "worst_class": ("worst class (%)", ".1f", 100),
    "calibration_error": ("ECE (%)", ".1f", 100),
    "parameters": ("parameters", ",.0f", 1),
    "macs": ("MACs", ",.0f", 1),
    "answers": ("answers", ".0f", 1),
    "auroc": ("AUROC", ".3f", 1),
    "auprc": ("AUPRC", ".3f", 1),
    "corrected_accuracy": ("corrected accuracy (%)", ".1f", 100),
    "corrected_label_accuracy": ("corrected-label acc.", ".3f", 1),
    "coverage": ("interval coverage", ".2f", 1),
    "ece": ("ECE", ".3f", 1),
    "estimated_noise_rate": ("est. noise rate", ".3f", 1),
    "estimated_rate": ("est. noise rate", ".3f", 1),
    "f1": ("F1", ".3f", 1),
    "fault_type_accuracy": ("fault-type acc.", ".3f", 1),
    "flagged": ("flagged rate", ".3f", 1),
    "flagged_rate": ("flagged rate", ".3f", 1),
    "healed": ("healed (%)", ".1f", 100),
    "high - low": ("interval width", ".3f", 1),
    "holds": ("interval coverage", ".2f", 1),
    "low": ("interval from", ".3f", 1),
    "high": ("to", ".3f", 1),
    "max_f1": ("max F1", ".3f", 1),
    "max_f1 - f1": ("max F1 − F1", ".3f", 1),
    "miss_rate": ("miss rate @ true k", ".3f", 1),
    "noise_rate": ("noise rate", ".3f", 1),
    "oracle_gap_recovered": ("oracle gap (%)", ".0f", 100),
    "passes": ("plain passes", ".1f", 1),
    "peak_bytes": ("peak MB", ".0f", 1e-6),
    "precision": ("precision of found (%)", ".1f", 100),
    "rate_error": ("rate error", ".3f", 1),
    "recall": ("recall of found (%)", ".1f", 100),
    "samples_per_second": ("samples/s", ".0f", 1),
    "seconds": ("seconds", ".1f", 1),
    "seconds / train_seconds": ("training time (%)", ".0f", 100),
    "width": ("interval width", ".3f", 1),
    "worst_f1": ("F1, worst decile", ".3f", 1),
}


def entries(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The pages, as ``pages.toml`` describes them."""
    return tomllib.loads((folder / "pages.toml").read_text(encoding="utf-8"))["page"]


def rows_of(entry: Mapping[str, Any], folder: Path = FOLDER) -> list[Row]:
    """The rows of a page."""
    text = (folder / "rows" / f"{entry['name']}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    is_repair = all("recipe" in row and "train_seconds" in row for row in rows)
    return with_oracle_gaps(rows) if is_repair else rows


def page(entry: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The Markdown of a page: command and commit, tables, targets."""
    source = f"[{len(rows):,} rows](rows/{entry['name']}.jsonl)"
    lines = [
        f"# {entry['title']}",
        "",
        entry["about"].strip(),
        "",
        *("```bash", entry["command"].strip(), "```", ""),
        f"Commit {entry['commit']}; {source}. {entry['machine']}.",
        "",
    ]
    for given in entry["table"]:
        lines += [f"## {given['title']}", "", table(given, rows).markdown()]
    if entry.get("target"):
        lines += ["## Targets", "", targets(entry["target"], rows).markdown()]
    notes = entry.get("notes", "").strip()
    return "\n".join([*lines, notes, ""] if notes else lines).rstrip() + "\n"


def table(given: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    """Means of columns by setting, sorted by the setting or, highest first, by ``sort``.

    A mean over seeds has half of its 95 % t-interval; ``spread = false`` leaves that out where the
    rows of a group are different settings. With ``across``, the name of a column, each of its
    ``names`` has a column of one value.
    """
    group, spread = given["group"], given.get("spread", True)
    groups = group_rows(chosen(rows, given.get("where", {})), *group)
    order = sorted(groups, key=lambda key: tuple((isinstance(v, str), v) for v in key))
    if "sort" in given:
        order.sort(key=lambda key: -(mean(groups[key], given["sort"]) or 0.0))
    if "across" in given:
        column, value = given["across"], given["values"][0]
        head = (*group, *given["names"])
        parts = [({column: name}, value) for name in given["names"]]
    else:
        head = (*group, given.get("count", "seeds"), *map(name_of, given["values"]))
        parts = [({}, value) for value in given["values"]]
    if len(head) > MAX_COLUMNS:
        raise ValueError(f"{given['title']}: {len(head)} columns, at most {MAX_COLUMNS}")
    lines = []
    for key in order:
        cells = [cell(chosen(groups[key], where), value, spread) for where, value in parts]
        counted = [] if "across" in given else [str(sum(r.get("seeds", 1) for r in groups[key]))]
        lines.append((*(str(v) for v in key), *counted, *cells))
    return Table(tuple(head), tuple(lines))


def name_of(value: str) -> str:
    """The head of a column."""
    return COLUMNS.get(value, (value,))[0]


def targets(given: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Table:
    """Each target beside what was measured; one that was missed says so."""
    lines = []
    for target in given:
        found = mean(chosen(rows, target["where"]), target["value"])
        is_least = "least" in target
        limit = target["least"] if is_least else target["most"]
        if found is None:
            raise ValueError(f"no row has the target '{target['text']}'")
        met = found >= limit if is_least else found <= limit
        sign = "≥" if is_least else "≤"
        shown = f"{found:.3f}"
        lines.append((target["text"], f"{sign} {limit:g}", shown, "met" if met else "**missed**"))
    return Table(("target", "limit", "measured", ""), tuple(lines))


def chosen(rows: Sequence[Row], where: Mapping[str, Any]) -> list[Row]:
    """The rows whose columns have these values, or one of a list."""

    def fits(row: Row) -> bool:
        return all(
            row[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in where.items()
        )

    return [row for row in rows if fits(row)]


def number(row: Row, name: str) -> float | None:
    """A column, the difference of two, ``"max_f1 - f1"``, or the ratio of two."""
    first, operator, second = name.partition(" / " if " / " in name else " - ")
    found = [row.get(part) for part in (first, second) if part]
    if None in found:
        return None
    numbers = [float(v.split(" ± ")[0] if isinstance(v, str) else v) for v in found]
    if operator == " / ":
        return numbers[0] / numbers[1]
    return numbers[0] - sum(numbers[1:])


def mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a column over the rows that have it."""
    known = [v for row in rows if (v := number(row, name)) is not None]
    return sum(known) / len(known) if known else None


def cell(rows: Sequence[Row], name: str, spread: bool) -> str:
    """The mean of a column, and half of its interval.

    Rows of which only the printed mean was kept, over ``seeds`` seeds, hold it as text.
    """
    if len(rows) == 1 and isinstance(rows[0].get(name), str):
        return str(rows[0][name])
    _, form, scale = COLUMNS.get(name, (name, ".3f", 1))
    values = [number(row, name) for row in rows] if spread else [mean(rows, name)]
    return format_mean(values, form=form, scale=scale)


def readme_table(folder: Path = FOLDER) -> str:
    """The table of results in the README: a line for each ``[[readme]]`` of ``pages.toml``."""
    lines = []
    for given in tomllib.loads((folder / "pages.toml").read_text(encoding="utf-8"))["readme"]:
        rows = chosen(rows_of(given, folder), given["where"])
        names = README_COLUMNS | given.get("names", {})
        column, value = given.get("column", "recipe"), given.get("value", "accuracy")
        cells = [cell(chosen(rows, {column: name}), value, spread=True) for name in names.values()]
        lines.append((given["setting"], *cells))
    head = ("data and noise", *README_COLUMNS)
    return Table(head, tuple(lines)).markdown()


def with_table(text: str, table: str) -> str:
    """A page with another table in the place of the one that has the same head."""
    head = table.split("\n", 1)[0] + "\n"
    before, found, rest = text.partition(head)
    if not found:
        raise ValueError(f"no table has the head {head.strip()}")
    return before + table + "\n" + rest.partition("\n\n")[2]


def main() -> None:
    """Write all pages, and the table in the README."""
    for entry in entries():
        assert re.fullmatch(r"[a-z0-9-]+", entry["name"]), entry["name"]
        text = page(entry, rows_of(entry))
        (FOLDER / f"{entry['name']}.md").write_text(text, encoding="utf-8")
    readme = with_table(README.read_text(encoding="utf-8"), readme_table())
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
