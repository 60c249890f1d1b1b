"""Actions that write files, and what is done to them: kills, small disks and flipped bits.

Each is done in a forked process, so that packages are loaded once.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

import expunge
from campaigns.readers import X, Y
from expunge import pipeline
from expunge._core.rng import temp_seed
from expunge.data import from_arrays
from expunge.errors import ExpungeError
from expunge.models.zoo import mlp
from expunge.nmtune import NMTune, NMTuneConfig, files

# What changes with the clock and the folder, and the digests of files that hold it.
CLOCKS = {"seconds", "digest", "files", "time", "run"}
_WRITES = ("open", "os.", "shutil.", "tempfile.")


class Action(NamedTuple):
    """What writes to a folder, and what a user reads there afterwards."""

    run: Callable[[Path], object]
    read: Callable[[Path], object]


def _repair(folder: Path) -> None:
    x = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    with temp_seed(0, "network"):
        model = mlp(inputs=4, classes=2, hidden=8)
    overrides = {
        "score": {"detectors": ["margin", "knn_disagreement"]},
        "prune": {"fraction": 0.2},
        "tune": {"epochs": 2, "batch_size": 16},
    }
    train = from_arrays(x[:40], y[:40])
    validation = from_arrays(x[40:], y[40:], ids=np.arange(100, 120))
    settings: dict[str, Any] = {"overrides": overrides, "baselines": ("finetune-only",)}
    pipeline.repair(model, train, validation, out=folder / "run", **settings)


def _read_repair(folder: Path) -> object:
    result = expunge.load_run(folder / "run")
    state = {k: v.tolist() for k, v in result.model.state_dict().items()}
    return [state, result.partition.p_noisy.tolist(), str(result.decision), str(result.flags)]


@cache
def _heads() -> tuple[NMTune, NMTune]:
    config = NMTuneConfig(hidden=False, learning_rates=(0.1,), epochs=2)
    return NMTune.fit(X, Y, config=config), NMTune.fit(X, 1 - Y, config=config)


def _save_head(folder: Path) -> None:
    _heads()[int((folder / "head").exists())].save(folder / "head")


def _apply_head(folder: Path) -> None:
    p = _heads()[0].probabilities(X)
    files.write(folder / "p.parquet", {"p": p}, source=folder / "none.npz")


def _export(folder: Path) -> None:
    how = {"constructor": "expunge.models:mlp", "arguments": {"inputs": 4, "classes": 2}}
    model = mlp(inputs=4, classes=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.5)
    if not (folder / "out").exists():
        expunge.export_model(model, (X, Y), folder / "out", **how)


ACTIONS: dict[str, Action] = {
    "repair": Action(_repair, _read_repair),
    "save head": Action(_save_head, lambda f: NMTune.load(f / "head").predict(X).tolist()),
    "apply head": Action(
        _apply_head, lambda f: files.read_embeddings(f / "p.parquet", column="p").tolist()
    ),
    "export": Action(_export, lambda f: expunge.load_exported_model(f / "out")(X).tolist()),
}


def content(folder: Path) -> dict[str, object]:
    """All files below a folder, without what a clock says in them."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = _without_clocks(json.loads(path.read_text("utf-8")))
        elif path.suffix in (".html", ".md", ".jsonl", ".lock"):
            found[name] = "text"
        elif path.suffix == ".safetensors":  # the order of its metadata varies
            with safe_open(path, framework="np") as file:
                tensors = {k: file.get_tensor(k).tobytes() for k in file.keys()}  # noqa: SIM118
                found[name] = [tensors, file.metadata()]
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [_without_clocks(v) for v in value] if isinstance(value, list) else value


def in_child(work: Callable[[], str]) -> str:
    """Run in a forked process; its answer, or ``killed``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = work()
        except ExpungeError as error:
            answer = f"refused: {error}"
        except BaseException as error:  # noqa: BLE001
            answer = f"foreign: {type(error).__name__}: {error}"
        os.write(writing, answer.encode(errors="replace")[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    return answer or "killed"


def killed(action: Action, folder: Path, *, access: int = 0, after: float = 0.0) -> str:
    """Run an action that is killed at an access to the disk, by number, or after some seconds."""

    folder.mkdir(parents=True, exist_ok=True)

    def work() -> str:
        count = 0

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event.startswith(_WRITES) and any(str(folder) in str(a) for a in arguments[:2]):
                count += 1
                if count == access:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        if after:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        action.run(folder)
        return str(count)

    return in_child(work)


def check_kill(name: str, folder: Path, reference: Path, **how: Any) -> str:
    """Kill an action and run it again: the folder is that of an undisturbed run. "" if so."""
    action = ACTIONS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    killed(action, folder, **how)
    if name == "save head":  # a head is there or not; it is never half of one
        shutil.rmtree(folder)
        folder.mkdir()
        action.run(folder)
        killed(action, folder, **how)
        wholes = [head.predict(X).tolist() for head in _heads()]
        return "" if action.read(folder) in wholes else f"{name} {how}: another head"
    again = in_child(lambda: action.run(folder) or "done")
    if again != "done":
        return f"{name} {how}: {again}"
    return _difference(name, folder, reference, how)


def _difference(name: str, folder: Path, reference: Path, how: object) -> str:
    found, expected = content(folder), content(reference)
    differing = [k for k in sorted({*found, *expected}) if found.get(k) != expected.get(k)]
    return f"{name} {how}: {', '.join(differing)} differ" if differing else ""


def check_small_disk(name: str, folder: Path, reference: Path, size: int) -> str:
    """Run an action on a disk of this size, then with more: our error, then the result."""
    action = ACTIONS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def work() -> str:
        grow = _small_disk(folder, size)
        try:
            action.run(folder)
        except ExpungeError as error:
            if "fix:" not in str(error):
                return f"no advice: {error}"
        grow()
        if not (name == "save head" and (folder / "head").exists()):
            action.run(folder)
        return _difference(name, folder, reference, f"on a disk of {size:,} bytes") or "done"

    answer = in_child(work)
    return "" if answer == "done" else f"{name} on a disk of {size:,} bytes: {answer}"


def _small_disk(folder: Path, size: int) -> Callable[[], object]:
    """A file system of a size, or, where mounting is forbidden, a limit on the size of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if sys.platform == "linux" and libc.unshare(0x10000000 | 0x00020000) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=%d" % size) == 0:
            remount = (b"tmpfs", str(folder).encode(), b"tmpfs", 32, b"size=64m")
            return lambda: libc.mount(*remount)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def check_flip(name: str, folder: Path, reference: Path, seed: int) -> str:
    """Flip one bit of a finished action's files: the result is refused or the same."""
    action, random = ACTIONS[name], np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reference, folder)
    sizes = {p: p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    chosen = [p for p, size in sizes.items() if size and p.suffix not in (".md", ".html", ".jsonl")]
    path = chosen[int(random.integers(len(chosen)))]
    changed = bytearray(path.read_bytes())
    changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    path.write_bytes(changed)

    def work(do: Callable[[Path], object]) -> str:
        do(folder)
        return "done"

    where = f"{name}, seed {seed}, {path.relative_to(folder)}"
    expected = json.dumps(action.read(reference))
    answer = in_child(lambda: json.dumps(action.read(folder)))
    if not answer.startswith("refused") and answer[:60_000] != expected[:60_000]:
        return f"{where}: {answer[:200]}"
    if name != "repair":
        return ""
    answer = in_child(lambda: work(action.run))
    if answer.startswith("refused"):
        return ""
    return (
        f"{where}: {answer[:200]}"
        if answer != "done"
        else _difference(name, folder, reference, where)
    )


def seconds_of(name: str, folder: Path) -> float:
    """Run an action to the end, as the reference; the seconds that it takes."""
    folder.mkdir(parents=True)
    started = time.perf_counter()
    ACTIONS[name].run(folder)
    return time.perf_counter() - started
