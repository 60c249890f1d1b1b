"""`expunge review` and `expunge clean` from end to end, without the page."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from expunge import cli, specs
from oracles_digits import digits
from oracles_specs import write_spec

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """``expunge …`` in this process and in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return run


def answer_all(file: Path, given: np.ndarray, true: np.ndarray, row_of: dict[str, int]) -> int:
    """Fill in the verdicts of an exported CSV file; returns their number."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    for row in rows:
        k = row_of[row["id"]]
        is_right = given[k] == true[k]
        row |= {"verdict": "right" if is_right else "wrong", "reviewer": "me"}
        row["label"] = "" if is_right else str(true[k])
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def test_a_review_by_files_changes_the_repair_and_the_corrected_data(call, tmp_path):
    spec = write_spec(tmp_path / "s", {"out": str(tmp_path / "run")})
    assert call("review", spec)[0] == 1  # there is no run yet
    assert call("partition", spec)[0] == 0
    assert specs.noted_spec(tmp_path / "run").resolve() == spec.resolve()
    code, out, _ = call("review", tmp_path / "run", "--export", "q.csv", "--budget", "60")
    assert (code, "questions and answers written" in out) == (0, True)
    stored = np.load(tmp_path / "s" / "train.npz")
    row_of = {str(i): k for k, i in enumerate(stored["ids"])}
    true = digits()[1][:200]
    n = answer_all(tmp_path / "q.csv", stored["y"], true, row_of)
    code, out, _ = call("review", spec, "--import", "q.csv", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["answered"] >= n - 5  # some samples are shown twice
    code, out, _ = call("review", spec, "--export", "more.csv")  # the second batch
    assert (code, "60 questions and answers" in out) == (0, n < 60)
    assert found["design_based"]
    code, out, _ = call("repair", spec, "--json")
    assert code == 0
    assert json.loads(out)["review"]["answered"] == found["answered"]
    code, out, _ = call("clean", spec, "--out", "new.csv", "--json")
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text().splitlines()))
    reviewed = [r for r in rows if r["reviewed"] == "True"]
    assert len(reviewed) == found["answered"]
    assert all(int(r["label"]) == true[row_of[r["id"]]] for r in reviewed)
    code, _, err = call("clean", spec, "--out", "new.csv")
    assert (code, "exists already" in err) == (1, True)
    code, out, _ = call("clean", spec, "--out", "new.csv", "--overwrite")
    assert (code, "moved out" in out) == (0, True)


def test_the_repair_that_uses_the_answers_is_that_of_the_reviewed_folder(call, tmp_path):
    spec = write_spec(tmp_path / "s", {"out": str(tmp_path / "run")})
    (tmp_path / "q.csv").write_text("id,verdict,label\n1000,,\n")
    for folder, options in (("run", ""), ("other", " --out other")):
        assert call("partition", spec, "--out", folder)[0] == 0
        found = call("review", folder, "--import", "q.csv")
        name = spec.relative_to(tmp_path)
        assert f"next: expunge repair {name}{options}, which uses" in found[1], found


def test_data_that_changed_since_the_run_are_refused(call, tmp_path):
    spec = write_spec(tmp_path / "s", {"out": str(tmp_path / "run")})
    assert call("partition", spec)[0] == 0
    stored = dict(np.load(tmp_path / "s" / "train.npz"))
    other = {**stored, "y": np.roll(stored["y"], 1)}
    fewer = {name: values[5:] for name, values in stored.items()}
    for data, message in ((other, "have other labels for"), (fewer, "no longer have 5 of 200")):
        np.savez(tmp_path / "s" / "train.npz", **data)
        for command in (["clean", spec, "--out", "new.csv"], ["review", spec, "--json"]):
            code, _, err = call(*command)
            assert (code, message in err) == (1, True), err


def test_doubts_about_the_flags_stand_beside_the_corrected_data(call, tmp_path):
    spec = write_spec(tmp_path / "s", {"out": str(tmp_path / "run"), "score": {"detectors": None}})
    stored = dict(np.load(tmp_path / "s" / "train.npz"))
    labels = np.random.default_rng(0).integers(0, 10, len(stored["y"]))
    np.savez(tmp_path / "s" / "train.npz", **{**stored, "y": labels})
    assert call("partition", spec)[0] == 0
    assert "⚑ noise-rate-not-identified: " in call("clean", spec, "--out", "a.csv")[1]
    found = json.loads(call("clean", spec, "--out", "b.csv", "--json")[1])
    assert "noise-rate-not-identified" in [flag["code"] for flag in found["flags"]]


def test_two_servers_on_one_run_and_other_folders_are_refused(call, tmp_path):
    spec = write_spec(tmp_path / "s", {"out": str(tmp_path / "run")})
    assert call("partition", spec)[0] == 0
    with FileLock(tmp_path / "run" / ".review-server.lock"):
        code, _, err = call("review", tmp_path / "run", "--json")
    assert (code, "another review of this run is open" in err) == (1, True)
    code, _, err = call("review", tmp_path / "s", "--json")
    assert (code, "has no run.json" in err) == (1, True)
    code, _, err = call("review", tmp_path / "nothing", "--json")
    assert (code, "neither a run folder nor a spec" in err) == (1, True)
    code, _, err = call("review", spec, "--json", "--text", "x.csv")
    assert (code, "FILE:COLUMN" in err) == (1, True)
    (tmp_path / "other.csv").write_text("id,text\nnone,a\n")
    code, _, err = call("review", spec, "--json", "--text", f"{tmp_path / 'other.csv'}:text")
    assert (code, "no id of it is one of the run's" in err) == (1, True)
