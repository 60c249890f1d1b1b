"""The skeleton of benchmarks: missing rows are computed and stored one by one."""

from __future__ import annotations

import json

import pytest

from expunge.errors import ConfigError
from expunge_bench.results import ResultStore, Table
from expunge_bench.suites import RowGroup, Suite, check_names


def tables(rows):
    return [Table(("a", "x"), tuple((str(r["a"]), str(r["x"])) for r in rows))]


SUITE = Suite("Title", ("a",), tables)


def test_only_missing_rows_are_computed(tmp_path):
    asked = []

    def compute(missing):
        asked.append([key["a"] for key in missing])
        yield from ({**key, "x": 10 * key["a"]} for key in missing)

    first = [RowGroup([{"a": 1}, {"a": 2}], compute)]
    SUITE.run(first, out=tmp_path)
    more = [RowGroup([{"a": 1}, {"a": 2}], compute), RowGroup([{"a": 2}, {"a": 3}], compute)]
    rows = SUITE.run(more, out=tmp_path)
    assert asked == [[1, 2], [3]]
    assert rows == [{"a": a, "x": 10 * a} for a in (1, 2, 3)]
    assert "| 3 | 30 |" in (tmp_path / "table.md").read_text()


def test_rows_before_an_interruption_are_kept(tmp_path):
    def interrupted(missing):
        yield {"a": 1, "x": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SUITE.run([RowGroup([{"a": 1}, {"a": 2}], interrupted)], out=tmp_path)
    assert ResultStore(tmp_path, ("a",)).rows() == [{"a": 1, "x": 1}]


def test_groups_with_unknown_keys_are_always_computed_and_stored_once(tmp_path):
    groups = [RowGroup(None, lambda missing: [{"a": 1, "x": 1}, {"a": 2, "x": 2}])]
    assert SUITE.run(groups, out=tmp_path) == SUITE.run(groups, out=tmp_path)
    assert len(ResultStore(tmp_path, ("a",)).rows()) == 2


def test_derived_columns_are_in_the_result_and_not_on_disk(tmp_path):
    suite = Suite(
        "Title", ("a",), tables, derive=lambda rows: [{**r, "n": len(rows)} for r in rows]
    )
    rows = suite.run([RowGroup([{"a": 1}], lambda _: [{"a": 1, "x": 0}])], out=tmp_path)
    assert rows == [{"a": 1, "x": 0, "n": 1}]
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"a": 1, "x": 0}


def test_the_page_names_the_command(tmp_path):
    SUITE.run([], out=tmp_path, command="expunge bench <x>")
    assert "expunge bench &lt;x&gt;" in (tmp_path / "table.html").read_text()


def test_a_key_has_the_columns_of_the_suite_in_their_order():
    suite = Suite("Title", ("b", "a"), tables)
    assert list(suite.key({"a": 1, "b": 2, "c": 3}).items()) == [("b", 2), ("a", 1)]


def test_unknown_names_are_refused_with_the_closest_match():
    check_names("method", ["code"], ["code", "url"])
    with pytest.raises(ConfigError, match=r"unknown method 'cod'\n.*did you mean 'code'"):
        check_names("method", ["code", "cod"], ["code", "url"])
