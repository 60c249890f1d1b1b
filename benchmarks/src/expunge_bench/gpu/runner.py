"""Run pieces in processes of their own, beside each other, until a time limit; write as they go."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from expunge_bench.gpu.setup import GpuRun, Row, pieces
from expunge_bench.results import Table

ROWS, TABLE, LOG = "rows.jsonl", "table.md", "log.txt"
# The order in which pieces start; those that end last start first.
ORDER = (
    *("probe", "speed", "rlap-noisy", "human-model", "memorised-model", "tests", "demo"),
    *("rlap-expunge-partition", "rlap-published-partition", "human-ours", "memorised-ours"),
    *("human-semi", "memorised-semi", "rlap-expunge-fft", "rlap-published-fft"),
    *("human-oracles", "memorised-oracles", "rlap-expunge-retrain", "human-peers"),
    *("memorised-peers", "rlap-expunge-lft", "rlap-published-lft", "rlap-published-retrain"),
    *("human-divide-mix", "memorised-divide-mix"),
)
# Seconds between two looks at the processes, and those kept for writing at the end.
_INTERVAL, _RESERVE = 0.5, 8.0
# Columns that are fractions and shown in percent.
_PERCENT = ("accuracy", "before", "macro_f1", "macro_precision", "top_3", "worst_class")


@dataclass
class _Process:
    """A piece that runs; its rows come line by line to a file."""

    name: str
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: Path
    started: float
    rest: bytes = b""


@dataclass
class Runner:
    """The state of a run.

    Parameters
    ----------
    run
        Data, working folder and sizes.
    out
        Where rows, table and log go.
    arguments
        The arguments of a piece's process.
    max_processes
        How many pieces run beside each other.
    deadline
        `time.monotonic` at which everything ends.
    """

    run: GpuRun
    out: Path
    arguments: Sequence[str]
    max_processes: int
    deadline: float
    running: list[_Process] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def go(self, names: Sequence[str]) -> None:
        """Run the pieces that are not done yet."""
        self._read_earlier()
        try:
            while time.monotonic() < self.deadline:
                self._collect()
                waiting = [n for n in names if n not in self._known()]
                if not waiting and not self.running:
                    break
                if not self._start(waiting) and not self.running:
                    break  # what is left needs a piece that failed
                time.sleep(_INTERVAL)
        finally:
            self._collect()
            for process in self.running:
                _kill(process.process)
                process.stdout.close()
                self.failed[process.name] = "stopped at the time limit"
            self._collect_logs()
            self.write([n for n in names if n not in self.done])

    def _known(self) -> set[str]:
        return {*self.done, *self.failed, *(p.name for p in self.running)}

    def _start(self, waiting: Sequence[str]) -> bool:
        """Start what can start; returns whether anything did."""
        started = False
        for name in waiting:
            info = pieces.metadata(name)
            alone = any(pieces.metadata(p.name).alone for p in self.running)
            full = len(self.running) >= self.max_processes
            if alone or full or (info.alone and self.running):
                break
            if all(need in self.done for need in info.needs):
                self.running.append(self._launch(name))
                started = True
        return started

    def _launch(self, name: str) -> _Process:
        logs = self.run.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        output, errors = logs / f"{name}.jsonl", logs / f"{name}.txt"
        threads = max(1, (os.cpu_count() or 1) // self.max_processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "expunge_bench.gpu", "--piece", name, *self.arguments]
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
            )
        return _Process(name, process, output.open("rb"), errors, time.monotonic())

    def _collect(self) -> None:
        """Read new rows, and see which pieces have ended."""
        changed = False
        for process in list(self.running):
            code = process.process.poll()  # before reading, so that no row is missed
            lines = (process.rest + process.stdout.read()).split(b"\n")
            process.rest = lines.pop()
            for line in lines:
                changed = self._add(process.name, line) or changed
            if code is None:
                continue
            changed = True
            self.running.remove(process)
            process.stdout.close()
            if code == 0:
                self.done[process.name] = time.monotonic() - process.started
            else:
                tail = process.stderr.read_text(encoding="utf-8", errors="replace").strip()
                self.failed[process.name] = (tail.splitlines() or ["no message"])[-1]
        if changed:
            self._store()
            self.write([])

    def _add(self, piece: str, line: bytes) -> bool:
        try:
            row = json.loads(line)
        except ValueError:  # a message of a library
            return False
        if not isinstance(row, dict):
            return False
        same = [r for r in self.rows if (r["piece"], r["name"]) == (piece, row.get("name"))]
        self.rows = [r for r in self.rows if r not in same]
        self.rows.append({"piece": piece, **row})
        return True

    def _store(self) -> None:
        state = {"done": self.done, "rows": self.rows}
        (self.run.work / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _read_earlier(self) -> None:
        """Take over what an earlier call has finished."""
        file = self.run.work / "state.json"
        self.run.work.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            state = json.loads(file.read_text(encoding="utf-8"))
            self.done, self.rows = dict(state["done"]), list(state["rows"])

    def write(self, missing: Sequence[str]) -> None:
        """Write rows and tables."""
        self.out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"environment": environment()}), *(json.dumps(r) for r in self.rows)]
        (self.out / ROWS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.out / TABLE).write_text(self._markdown(missing), encoding="utf-8")

    def _markdown(self, missing: Sequence[str]) -> str:
        facts = "\n".join(f"- {key}: {value}" for key, value in environment().items())
        parts = [f"# GPU benchmark\n\n{facts}\n"]
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row["piece"].split("-")[0], []).append(row)
        parts += [f"## {name}\n\n{table_of(rows).markdown()}" for name, rows in groups.items()]
        parts += [f"- {name}: {seconds:.0f} s" for name, seconds in self.done.items()]
        parts += [f"- {name}: failed: {reason}" for name, reason in self.failed.items()]
        parts += [f"- {name}: not finished" for name in missing if name not in self.failed]
        return "\n".join(parts) + "\n"

    def _collect_logs(self) -> None:
        """Join the ends of the messages of all pieces into one file."""
        parts = []
        for file in sorted((self.run.work / "logs").glob("*.txt")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                parts.append(f"==== {file.stem}\n{text[-8_000:]}")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / LOG).write_text("\n".join(parts), encoding="utf-8")


def table_of(rows: Sequence[Row]) -> Table:
    """All columns of some rows; fractions in percent."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = tuple(tuple(_cell(c, row.get(c)) for c in columns) for row in rows)
    head = tuple(f"{c} (%)" if c in _PERCENT else c for c in columns)
    return Table(head, cells)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if column in _PERCENT:
        return f"{100 * value:.1f}"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.3g}"
        if value < 1e3
        else f"{value:,.0f}"
    )


def environment() -> Mapping[str, str]:
    """The machine, the software and the commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "GPU": gpu,
        "CPU cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return os.environ.get("EXPUNGE_COMMIT", "unknown")
    folder = Path(__file__).parent
    done = subprocess.run(
        [git, "-C", str(folder), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or os.environ.get("EXPUNGE_COMMIT", "unknown")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_all(
    run: GpuRun,
    *,
    out: Path,
    arguments: Sequence[str],
    seconds: float,
    max_processes: int = 6,
    names: Sequence[str] = ORDER,
) -> list[Row]:
    """Run pieces until they are done or the time is over; returns all rows.

    Parameters
    ----------
    run
        Data, working folder and sizes. A second call with the same working folder resumes.
    out
        Gets ``rows.jsonl``, ``table.md`` and ``log.txt``.
    arguments
        What a piece's process is called with, beside its name.
    seconds
        The time limit.
    max_processes
        How many pieces run beside each other.
    names
        The pieces, in the order in which they start.
    """
    deadline = time.monotonic() + seconds - min(_RESERVE, seconds / 10)
    runner = Runner(run, out, arguments, max_processes, deadline)
    runner.go(names)
    return runner.rows
