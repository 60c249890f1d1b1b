"""The pages of results in the docs are what their rows give, and their commands run."""

from __future__ import annotations

import importlib.util
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge_bench.cli import bench

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "hooks" / "results.py"
spec = importlib.util.spec_from_file_location("results_pages", SCRIPT)
assert spec is not None
assert spec.loader is not None
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)
ENTRIES = {entry["name"]: entry for entry in results.entries()}
COMMANDS = [line for entry in ENTRIES.values() for line in entry["command"].split("\n") if line]


@pytest.mark.parametrize("name", ENTRIES)
def test_a_page_is_what_its_rows_give(name):
    text = (results.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    expected = results.page(ENTRIES[name], results.rows_of(ENTRIES[name]))
    assert text == expected, "run: python docs/hooks/results.py"


def test_the_table_of_the_readme_is_what_the_rows_give():
    text = results.README.read_text(encoding="utf-8")
    table = results.readme_table()
    assert table in text, "run: python docs/hooks/results.py"
    changed = text.replace(table, table.replace("±", "+", 1))
    assert changed != text
    assert results.with_table(changed, table) == text
    with pytest.raises(ValueError, match="no table has the head"):
        results.with_table("no table", results.readme_table())


def test_every_file_of_rows_has_a_page_and_every_page_an_entry():
    rows = {path.stem for path in (results.FOLDER / "rows").glob("*.jsonl")}
    pages = {path.stem for path in results.FOLDER.glob("*.md")}
    assert rows == pages == set(ENTRIES)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_of_a_page_reaches_its_benchmark(command, tmp_path, monkeypatch):
    """The benchmarks themselves run small in their own tests."""
    words = shlex.split(command)
    assert words[:2] == ["expunge", "bench"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech_commands").mkdir()
    (tmp_path / "speech_commands" / "testing_list.txt").touch()
    called = []
    module = import_module(f"expunge_bench.{words[2]}")
    monkeypatch.setattr(module, "bench", lambda *a, **k: called.append((a, k)) or [])
    out = ["--out", str(tmp_path / "out"), "--json"]
    said = CliRunner().invoke(bench, [*words[2:], *out])
    assert said.exit_code == 0, said.output
    assert len(called) == 1


ROWS = [
    {"noise": "pair", "method": m, "seed": s, "f1": f, "max_f1": f + 0.1}
    for m, s, f in (("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.9), ("b", 1, 0.9))
]


def test_cells_are_means_with_intervals_sorted_by_a_column():
    given = {"title": "t", "group": ["method"], "values": ["f1", "max_f1 - f1"], "sort": "f1"}
    found = results.table(given, ROWS)
    assert found.head == ("method", "seeds", "F1", "max F1 − F1")
    half = 12.7062 * np.std([0.5, 0.7], ddof=1) / np.sqrt(2)
    assert found.rows == (
        ("b", "2", "0.900 ± 0.000", "0.100 ± 0.000"),
        ("a", "2", f"0.600 ± {half:.3f}", "0.100 ± 0.000"),
    )
    across = {"title": "t", "group": ["noise"], "across": "method", "names": ["a", "b"]}
    found = results.table({**across, "values": ["f1"], "spread": False}, ROWS)
    assert (found.head, found.rows) == (("noise", "a", "b"), (("pair", "0.600", "0.900"),))


def test_a_missed_target_says_so_and_one_without_rows_is_refused():
    target = {"text": "F1", "where": {"method": "a"}, "value": "f1"}
    both = [{**target, "least": 0.6}, {**target, "most": 0.5}]
    last = [row[-1] for row in results.targets(both, ROWS).rows]
    assert last == ["met", "**missed**"]
    with pytest.raises(ValueError, match="no row has the target"):
        results.targets([{**target, "where": {"method": "c"}, "least": 0}], ROWS)


def test_a_table_of_nine_columns_is_refused():
    given = {"title": "wide", "group": list("abcd"), "values": list("efgh")}
    row = dict.fromkeys("abcdefgh", 1)
    with pytest.raises(ValueError, match="wide: 9 columns, at most 8"):
        results.table(given, [row])
