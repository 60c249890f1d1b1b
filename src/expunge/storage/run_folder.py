"""The run folder: what each stage made, kept so that an interrupted run goes on where it stopped.

    run.json                what the folder belongs to: settings, seed, fingerprints
    1-score/ … 5-tune/      a stage's tables (Parquet), tensors (safetensors) and stage.json
    result.json, report.md, report.html, model.safetensors

A stage appears by one rename, complete or not at all. It is reused only after its whole key was
compared; another key is an error that names the fields that differ.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge._core.distributed import broadcast_decision
from expunge.errors import RunError, format_ids
from expunge.storage.hashing import digest
from expunge.storage.json_files import read_json

SCHEMA = 2
_STAGES = ("1-score", "2-partition", "3-rank", "4-prune", "5-tune", "model")
# What a run makes in its folder; nothing else is ever deleted.
_MANAGED_FILES = frozenset(
    {*_STAGES, *(f"{name}.partial" for name in _STAGES)}
    | {"baselines", "controls", "rounds", "log.jsonl", "result.json"}
    | {"model.safetensors", "partition.parquet", "evaluation.parquet", "record.json"}
    | {"report.html", "report.md"}
)
_TEMPORARY = ".partial-"  # how files begin that are not yet whole


@dataclass(frozen=True)
class Artefact:
    """What a stage leaves behind: plain facts (JSON), tables and tensors."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """An open run. Without a folder nothing is kept and every stage is computed.

    In several processes all compute, and only the main one writes.
    """

    folder: Path | None
    accelerator: Accelerator | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    artefacts: dict[str, Artefact] = field(default_factory=dict)

    @property
    def writes(self) -> bool:
        """Whether this process touches the disk."""
        return self.accelerator is None or self.accelerator.is_main_process

    def stage(self, name: str, key: Mapping[str, Any], compute: Callable[[], Artefact]) -> Artefact:
        """The stage's artefact: read if it was made with this key, computed and kept if not.

        The key of a stage should hold the digests (`keys`) of the stages that it reads.
        """
        key = json.loads(json.dumps(dict(key), default=list))
        if self.keys.get(name) == digest(key):
            return self.artefacts[name]
        self.keys[name] = digest(key)
        self.artefacts[name] = self._stage(name, key, compute)
        return self.artefacts[name]

    def _stage(self, name: str, key: Any, compute: Callable[[], Artefact]) -> Artefact:
        done = self.folder / name if self.folder else None
        if done is not None and self._broadcast((done / "stage.json").exists()):
            note = read_json(done / "stage.json")
            _require_same(note.get("key"), key, f"{done}")
            self.seconds[name] = note["seconds"]
            return read_artefact(done)
        started = time.perf_counter()
        artefact = compute()
        spent = time.perf_counter() - started + self._elapsed_before(name)
        self.seconds[name] = spent
        if done is not None and self.writes:
            with wrap_io_errors(done):
                _write_stage(done, artefact, {"key": key, "seconds": spent})
                shutil.rmtree(self._checkpoint_dir(name), ignore_errors=True)
        return artefact

    def checkpoint(self, name: str, key: Mapping[str, Any]) -> EpochCheckpoint | None:
        """Where a stage can keep its state between epochs; gone once the stage is done."""
        if self.folder is None:
            return None
        return EpochCheckpoint(self._checkpoint_dir(name), digest(dict(key)), self.writes)

    def write(self, name: str, content: str | Callable[[Path], None]) -> None:
        """Write a file of the run in one rename: text, or a function that writes to a path."""
        if self.folder is None or not self.writes:
            return
        target = self.folder / name
        with wrap_io_errors(target):
            handle, temporary = tempfile.mkstemp(target.suffix, _TEMPORARY, self.folder)
            os.close(handle)
            try:
                if callable(content):
                    content(Path(temporary))
                else:
                    Path(temporary).write_text(content, encoding="utf-8")
                os.chmod(temporary, 0o644)
                os.replace(temporary, target)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def log(self, event: str, **facts: object) -> None:
        """Append a line to ``log.jsonl``."""
        if self.folder is None or not self.writes:
            return
        line = json.dumps({"time": time.time(), "event": event, **facts}, default=str)
        with wrap_io_errors(self.folder), (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def _broadcast(self, answer: bool) -> bool:
        """The main process's answer: the others must not read a disk that it is writing to."""
        return broadcast_decision(self.accelerator, lambda: answer) if self.accelerator else answer

    def _checkpoint_dir(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.partial"

    def _elapsed_before(self, name: str) -> float:
        """Seconds that an interrupted attempt at this stage has spent already."""
        note = self._checkpoint_dir(name) / "seconds.json" if self.folder else None
        return float(read_json(note)["before"]) if note is not None and note.exists() else 0.0


class EpochCheckpoint:
    """State between two epochs in one safetensors file, with the stage's key in its header."""

    def __init__(self, folder: Path, key: str, writes: bool) -> None:
        self._folder, self._key, self._writes = folder, key, writes
        self._file = folder / "epoch.safetensors"
        self._started = time.perf_counter()
        self._before = 0.0

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The last epoch and its tensors; None if there is none for this key."""
        if not self._file.exists():
            return None
        try:
            with safe_open(self._file, framework="pt") as file:
                note = file.metadata()
                if note.get("key") != self._key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise RunError(
                f"cannot be read: {error}", where=str(self._file), fix="delete this file"
            ) from error
        self._before = float(note["seconds"])
        self._note_seconds()
        return int(note["epoch"]), tensors

    def save(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Replace the state by that after ``epoch`` epochs."""
        if not self._writes:
            return
        spent = self._before + time.perf_counter() - self._started
        note = {"key": self._key, "epoch": str(epoch), "seconds": str(spent)}
        with wrap_io_errors(self._file):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(".tmp")
            save_file(tensors, temporary, metadata=note)
            os.replace(temporary, self._file)

    def _note_seconds(self) -> None:
        if self._writes:
            with wrap_io_errors(self._folder):
                text = json.dumps({"before": self._before})
                (self._folder / "seconds.json").write_text(text)


@contextmanager
def open_run(
    folder: str | Path | None,
    header: Mapping[str, Any],
    *,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
) -> Iterator[Run]:
    """Open (or make) a run folder for the run that the header describes, and lock it.

    A folder that holds another run, other files, or is used by another process is refused. fresh:
    throw away what an earlier run of this folder made, and nothing else.
    """
    if folder is None:
        yield Run(None)
        return
    path = Path(folder)
    if accelerator is not None and not accelerator.is_main_process:
        yield Run(path, accelerator)
        return
    with wrap_io_errors(path):
        if path.exists() and not path.is_dir():
            raise RunError("is a file, not a folder", where=str(path), fix="choose another folder")
        path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    with wrap_io_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                "another process works in this run folder",
                where=str(path),
                fix="wait for it to end",
            ) from None
    try:
        _write_header(path, header, overwrite)
        yield Run(path, accelerator)
    finally:
        lock.release()


def check_run_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot become this run's, before a model is trained for it in there."""
    path = Path(folder)
    if not path.is_dir():
        return
    if not (path / "run.json").exists():
        _check_folder_is_ours(path)
    elif not overwrite and not (path / "0-train").exists():
        raise RunError(
            "this folder belongs to a run whose model was not trained in it",
            where=str(path),
            fix="choose another folder with --out, or discard what is there with --overwrite",
        )


def _write_header(path: Path, header: Mapping[str, Any], overwrite: bool) -> None:
    """Check that the folder is empty or holds this very run; write run.json."""
    note = path / "run.json"
    header = json.loads(json.dumps({"schema": SCHEMA, **header}, default=list))
    if not note.exists():
        _check_folder_is_ours(path)
    else:
        found = read_json(note)
        if not {"schema", "versions"} <= {*found}:
            raise RunError(
                "the folder holds other files: its run.json is of another program",
                where=str(path),
                fix="choose an empty folder",
            )
        found.pop("versions", None)
        if not overwrite:
            _check_format(found, path)
            _require_same(found, header, str(path))
    with wrap_io_errors(path):
        for left_over in path.rglob(f"{_TEMPORARY}*"):  # by a process that was killed
            _delete(left_over)
        if note.exists() and not overwrite:
            return
        for name in _MANAGED_FILES if note.exists() else ():
            _delete(path / name)
        text = json.dumps({**header, "versions": {"torch": torch.__version__}}, indent=2)
        temporary = path / f"{_TEMPORARY}run.json"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, note)


def _check_format(header: Mapping[str, Any], path: Path) -> None:
    """Refuse a folder that another version of the run folder's format has made."""
    if header["schema"] != SCHEMA:
        raise RunError(
            f"the folder holds a run of format {header['schema']}, this version reads {SCHEMA}",
            where=str(path),
            fix="choose another folder with --out, or discard the run with --overwrite",
        )


def _check_folder_is_ours(path: Path) -> None:
    """A folder without run.json holds a training at most (and what a killed process left)."""
    names = sorted(p.name for p in path.iterdir() if p.name not in (".lock", "0-train"))
    strangers = [name for name in names if not name.startswith(_TEMPORARY)]
    if strangers:
        raise RunError(
            f"the folder holds other files: {format_ids(strangers)}",
            where=str(path),
            fix="choose an empty folder",
        )


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _require_same(found: Any, wanted: Any, where: str) -> None:
    """Raise with every field that differs between what is there and what is asked for."""
    differing = list(_differences(found, wanted, ""))
    if differing:
        listed = "\n".join(f"  {line}" for line in differing[:12])
        raise RunError(
            f"this folder belongs to a run with other inputs; what differs:\n{listed}",
            where=where,
            fix="choose another folder with --out, undo the change, or discard what is there "
            "with --overwrite",
        )


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(found.get(key), wanted.get(key), inner)
    elif found != wanted:
        yield f"{path}: {_short(found)} there, {_short(wanted)} asked for"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _write_stage(done: Path, artefact: Artefact, note: Mapping[str, Any]) -> None:
    done.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=done.parent, prefix=_TEMPORARY))
    try:
        for name, table in artefact.tables.items():
            pq.write_table(table, temporary / f"{name}.parquet")
        if artefact.tensors:
            tensors = {k: v.detach().cpu().contiguous() for k, v in artefact.tensors.items()}
            save_file(tensors, temporary / "tensors.safetensors")
        text = json.dumps({**note, "metadata": artefact.metadata}, indent=2, default=list)
        (temporary / "stage.json").write_text(text + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if done.exists():  # without a stage.json: not a whole stage
            shutil.rmtree(done)
        temporary.rename(done)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_artefact(done: Path) -> Artefact:
    """Read what a finished stage left in its folder.

    Raises
    ------
    RunError
        If a file is missing or damaged.
    """
    tensors = {}
    try:
        if (done / "tensors.safetensors").exists():
            with safe_open(done / "tensors.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot be read: {error}",
            where=str(done),
            fix="delete this folder; the stage is then done again",
        ) from error
    tables = {p.stem: read_table(p) for p in sorted(done.glob("*.parquet"))}
    return Artefact(read_json(done / "stage.json")["metadata"], tables, tensors)


def read_table(file: Path) -> pa.Table:
    """Read a Parquet file of a run; RunError if it is missing or damaged."""
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"cannot be read: {error}",
            where=str(file.parent),
            fix="delete this folder; the stage is then done again",
        ) from error


@contextmanager
def wrap_io_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk (full, read-only, forbidden) into one of ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            fix="free some space or choose another folder with --out",
        ) from error
