"""`expunge detect`."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from expunge.cli import app

pytestmark = pytest.mark.usefixtures("few_trees")


def test_detect_prints_a_summary_and_writes_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, right = np.random.default_rng(0), np.arange(120) % 2
    x = np.eye(2)[right] + 0.1 * rng.standard_normal((120, 2))
    given = np.where(np.arange(120) < 12, 1 - right, right)
    np.savez("data.npz", x=x, y=given, p=np.full((120, 2), 0.5))
    runner = CliRunner()
    plain = runner.invoke(app, ["detect", "data.npz", "--label", "y"])
    assert plain.exit_code == 0, plain.output
    assert "of 120 samples are flagged" in plain.stdout
    assert (tmp_path / "runs" / "detect-data" / "report.html").is_file()
    options = ["--label", "y", "--features", "x", "--probs", "p", "--out", "other", "--json"]
    found = json.loads(runner.invoke(app, ["detect", "data.npz", *options]).stdout)
    assert found["probs"] == "out-of-sample"
    assert found["run"] == "other"
    assert abs(found["flagged"] - 12) <= 2
    known = [*options[:-3], "--out", "known", "--noise-rate", "0.25", "--json"]
    found = json.loads(runner.invoke(app, ["detect", "data.npz", *known]).stdout)
    assert found["noise_rate"]["value"] == pytest.approx(0.25, abs=0.01)
    report = runner.invoke(app, ["report", "other"])
    assert "# expunge detect: data.npz" in report.stdout
    # Answers of a review are in the next result, in the folder, and under the ids of the file.
    runner.invoke(app, ["review", "other", "--export", "q.csv", "--budget", "10"])
    questions = pa_csv.read_csv("q.csv").to_pylist()
    table = pa.Table.from_pylist([{**row, "verdict": "bad-input"} for row in questions])
    pa_csv.write_csv(table, "q.csv")
    said = runner.invoke(app, ["review", "other", "--import", "q.csv"]).output
    assert "10 of 10 questions are answered" in said
    assert "next: the same `expunge detect` again" in said
    runner.invoke(app, ["detect", "data.npz", *options])
    rows = pq.read_table("other/partition.parquet").to_pylist()
    assert {r["id"] for r in rows if r["reviewed"]} == {row["id"] for row in questions}
    assert all(
        r["p_input_fault"] == 1 and r["label_name"] == str(given[r["id"]])
        for r in rows
        if r["reviewed"]
    )
