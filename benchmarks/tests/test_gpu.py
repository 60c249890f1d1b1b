"""The GPU benchmark, small and on a CPU."""

from __future__ import annotations

import json
import time

import pytest

from expunge_bench.gpu import runner
from expunge_bench.gpu.setup import SMALL, GpuRun, pieces

pytestmark = pytest.mark.usefixtures("few_trees")


def test_every_piece_has_its_place_in_the_order():
    assert sorted(runner.ORDER) == pieces.names()
    seen: set[str] = set()
    for name in runner.ORDER:
        assert set(pieces.metadata(name).needs) <= seen
        seen.add(name)


@pytest.mark.parametrize("name", ["probe", "speed", "rlap-noisy", "human-model"])
def test_a_piece_gives_rows_that_json_can_hold(cifar_folder, tmp_path, name):
    rows = list(pieces.get(name)(GpuRun(cifar_folder, tmp_path, SMALL)))
    assert rows
    assert all(json.loads(json.dumps(row, default=float))["name"] for row in rows)
    assert "|" in runner.table_of(rows).markdown()


def test_a_run_ends_in_time_writes_what_it_has_and_goes_on(cifar_folder, tmp_path):
    run, names = GpuRun(cifar_folder, tmp_path / "work", SMALL), ("probe", "demo")
    settings = {
        "out": tmp_path / "out",
        "arguments": ["--data", str(cifar_folder), "--work", str(run.work), "--small"],
        "names": names,
    }
    started = time.monotonic()
    runner.run_all(run, seconds=1.0, **settings)
    assert time.monotonic() - started < 10
    table = (tmp_path / "out" / "table.md").read_text()
    assert "probe: failed: stopped at the time limit" in table
    rows = runner.run_all(run, seconds=120.0, **{**settings, "names": ("probe",)})
    assert {row["name"] for row in rows} == {"eager", "CUDA graphs"}
    again = time.monotonic()
    assert runner.run_all(run, seconds=60.0, **{**settings, "names": ("probe",)}) == rows
    assert time.monotonic() - again < 5  # nothing is run again
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 1 + len(rows)
