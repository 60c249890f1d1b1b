"""Generated data of any size, and what scores and partition of them cost."""

from __future__ import annotations

import numpy as np
import pytest

from expunge_bench import scale

pytestmark = pytest.mark.usefixtures("few_trees")


def test_rows_do_not_depend_on_the_batch_in_which_they_are_read():
    data = scale.GaussianClasses(3000, 5, 4)
    positions = np.array([2999, 0, 1024, 1023])
    one_by_one = [data.rows(np.array([p]))[0] for p in positions]
    assert np.array_equal(data.rows(positions), one_by_one)
    assert len(np.unique(data.rows(np.arange(3000)), axis=0)) == 3000


def test_three_tenths_of_the_labels_are_wrong():
    data = scale.GaussianClasses(1000, 7, 4)
    assert (data.given() != data.right).mean() == 0.3


def test_many_classes_are_measured_in_both_ways(tmp_path):
    rows = scale.bench(sizes=[900], classes=[120], widths=[16], out=tmp_path)
    assert [row["way"] for row in rows] == ["features", "network"]
    assert all(row["auroc"] > 0.6 and row["cpu_seconds"] > 0 for row in rows)
    assert "| network | 900 | 120 | 16 |" in (tmp_path / "table.md").read_text()
