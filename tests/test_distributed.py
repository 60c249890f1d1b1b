"""Several CPU processes do what one does, and what happens if one of them dies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import oracles_processes
from expunge import pipeline


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process, this one, finds."""
    return oracles_processes.detection(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    out = tmp_path_factory.mktemp("two")
    assert oracles_processes.start(2, oracles_processes.repair, out) == [0, 0]
    return out


def test_all_processes_end_with_the_same_models_and_decisions(two: Path) -> None:
    facts = json.loads((two / "repair.json").read_text())
    assert facts == {"stopped": True, "agree": True, "resumed equals read": True}


def test_two_processes_give_the_partition_of_one(two: Path, one: dict[str, np.ndarray]) -> None:
    check_detection(two / "detection-2.npz", one)


def test_four_processes_give_the_partition_of_one(
    tmp_path: Path, one: dict[str, np.ndarray]
) -> None:
    assert oracles_processes.start(4, oracles_processes.detect_only, tmp_path) == [0] * 4
    check_detection(tmp_path / "detection-4.npz", one)


def check_detection(file: Path, one: dict[str, np.ndarray]) -> None:
    """Scores and partition are equal to the last bit, the ranking to rounding."""
    found = np.load(file)
    assert set(found) == set(one)
    for name in sorted(set(one) - {"effect"}):
        np.testing.assert_array_equal(found[name], one[name], err_msg=name)
    scale = np.abs(one["effect"]).max()
    np.testing.assert_allclose(found["effect"], one["effect"], rtol=1e-2, atol=1e-3 * scale)


def test_one_run_folder_holds_one_whole_run(two: Path) -> None:
    names = {p.name for p in (two / "run").iterdir()}
    assert {"1-score", "2-partition", "3-rank", "4-prune", "5-tune", "result.json"} <= names
    assert not any(name.startswith(".partial") or name.endswith(".partial") for name in names)
    lines = (two / "run" / "log.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["start", "start", "end", "start", "end"]
    found = json.loads((two / "run" / "result.json").read_text())
    assert found["baselines"]["random-units"]["accuracy"]["n"] == 101


def test_a_killed_process_ends_the_run_which_another_number_of_processes_resumes(
    tmp_path: Path,
) -> None:
    assert oracles_processes.start(2, oracles_processes.killed, tmp_path) == [1, -9]
    message = (tmp_path / "error.txt").read_text()
    assert "another process of this run has ended" in message
    assert "fix: run the same command again" in message
    stages = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("[1-4]-*")}
    assert "1-score" in stages
    model, train, validation, _ = oracles_processes.case()
    result = pipeline.repair(model, train, validation, **oracles_processes.settings(tmp_path))
    assert (tmp_path / "run" / "5-tune" / "stage.json").is_file()
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("[1-4]-*")} == stages
    assert result.after.accuracy.n == 101
