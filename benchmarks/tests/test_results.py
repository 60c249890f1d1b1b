"""Rows on disk, means and tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from expunge.errors import RunError
from expunge_bench.results import ResultStore, Table, format_mean, group_rows, paired_differences


def test_means_carry_the_t_interval():
    values = [0.5, 0.6, 0.9]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert format_mean(values) == f"0.667 ± {half:.3f}"
    assert format_mean([0.5, None]) == "0.500"
    assert format_mean([None]) == "–"


def test_rows_on_disk_survive_a_cut_off_line(tmp_path):
    store = ResultStore(tmp_path, ("a",))
    store.add({"a": 1, "x": 0.5})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"a": 2, "x"')
    assert {"a": 1} in store
    assert {"a": 2} not in store
    store.add({"a": 2, "x": None})
    assert store.rows() == [{"a": 1, "x": 0.5}, {"a": 2, "x": None}]


def test_rows_of_something_else_are_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"b": 1}\n')
    with pytest.raises(RunError, match="line 1 is not a row of this benchmark"):
        ResultStore(tmp_path, ("a",)).rows()


def test_tables_are_escaped_in_html(tmp_path):
    table = Table(("a", "b"), (("<b>", "1"),), "Caption")
    text = ResultStore(tmp_path, ("a",)).write_tables("T", "expunge bench", [table])
    assert text == "Caption\n\n| a | b |\n| --- | --- |\n| <b> | 1 |\n"
    assert "&lt;b&gt;" in (tmp_path / "table.html").read_text()


def test_rows_are_grouped_in_order_of_appearance():
    rows = [{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]
    assert group_rows(rows, "a", "b") == {(2, 1): [rows[0], rows[2]], (1, 1): [rows[1]]}


def test_differences_are_row_minus_baseline_of_the_same_seed():
    rows = [{"seed": s, "accuracy": a} for s, a in ((0, 0.7), (1, 0.9), (2, 0.1))]
    baseline = [{"seed": s, "accuracy": a} for s, a in ((1, 0.5), (0, 0.6))]
    assert paired_differences(rows, baseline) == pytest.approx([0.1, 0.4])
    assert paired_differences(baseline, rows) == pytest.approx([-0.4, -0.1])


def test_a_row_is_found_by_its_key(tmp_path):
    store = ResultStore(tmp_path, ("a",))
    store.add({"a": 1, "x": 0.5})
    assert store.get({"a": 1}) == {"a": 1, "x": 0.5}
    assert store.get({"a": 2}) is None
