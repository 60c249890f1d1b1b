"""`expunge bench without-model`."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris

from expunge_bench import without_model
from expunge_bench.without_model import bench, summary

pytestmark = pytest.mark.usefixtures("few_trees")


def test_rows_are_made_once_for_tables_and_embeddings(tmp_path, monkeypatch):
    kinds = (("none", 0.0), ("symmetric", 0.27))  # of four
    monkeypatch.setattr(without_model, "_EMBEDDING_NOISE", kinds)
    x, y = load_iris(return_X_y=True)
    np.savez(tmp_path / "flowers.npz", x=x, y=y)
    kept = {"part": "development", "out": tmp_path, "embeddings": tmp_path / "flowers.npz"}
    rows = bench(**kept, sets=["flowers"])
    assert bench(**kept, sets=["flowers"]) == rows
    assert {row["noise"] for row in rows} == {"none", "symmetric"}
    found = summary(rows)["flowers"]
    assert found["detect"] > 0.7
    assert found.keys() == {
        *("detect", "detect+logistic", "cleanlab+logistic", "detect+trees", "cleanlab+trees")
    }
    assert "| flowers |" in (tmp_path / "table.md").read_text(encoding="utf-8")
