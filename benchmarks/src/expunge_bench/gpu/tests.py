"""Tests and the demo on the GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from expunge.demo.digits import run_demo
from expunge_bench.gpu.setup import GpuRun, Row, pieces

# The repository: above benchmarks/src/expunge_bench/gpu.
_ROOT = Path(__file__).resolve().parents[4]
_TIME_LIMIT = 300


@pieces.register("demo", needs=("speed",))
def demo(run: GpuRun) -> Iterator[Row]:
    """Run the demo to its end."""
    is_small = run.sizes.n_speed < 1_000
    small: dict[str, object] | None = {"tune": {"epochs": 1}} if is_small else None
    result, truth = run_demo(overrides=small, baselines=("finetune-only",))
    assert result.before is not None
    assert result.after is not None
    yield {
        "name": "demo",
        "before": result.before.accuracy.value,
        "accuracy": result.after.accuracy.value,
        "auroc": truth["auroc"],
        "seconds": sum(result.seconds.values()),
    }


@pieces.register("tests", needs=("speed",))
def tests(run: GpuRun) -> Iterator[Row]:
    """Run the tests that use a GPU where there is one."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *run.sizes.tests]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        yield {"name": "tests", "note": f"stopped after {_TIME_LIMIT} seconds"}
        return
    summary = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    yield {
        "name": "tests",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "exit_code": done.returncode,
        "summary": " ".join(summary),
        "failed": len(failed),
    }
    for name in failed[:20]:
        yield {"name": name, "note": "failed"}
