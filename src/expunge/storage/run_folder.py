"""The run folder: what each stage made, kept so that an interrupted run goes on where it stopped.

    run.json                what the folder belongs to: settings, seed, fingerprints
    1-score/ … 5-tune/      a stage's tables (Parquet), tensors (safetensors) and stage.json
    result.json, report.md, report.html, model.safetensors

A stage appears by one rename, complete or not at all. It is reused only after its whole key and the
SHA-256 of its files were compared; another key is an error that names the fields that differ.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from expunge._core.distributed import broadcast_decision
from expunge.errors import RunError, format_ids
from expunge.storage.artefacts import FIX, NOTE, Artefact, read_artefact, read_note, write_artefact
from expunge.storage.atomic_files import TEMPORARY, delete, new_folder, wrap_io_errors, write_file
from expunge.storage.digests import digest, file_digest
from expunge.storage.epoch_checkpoint import EpochCheckpoint
from expunge.storage.json_files import SEAL, read_json, read_sealed, seal
from expunge.storage.reading import reading

SCHEMA = 3
HEADER = "run.json"
_STAGES = ("1-score", "2-partition", "2-review", "3-rank", "4-prune", "4-edit", "5-tune", "model")
# A training in the folder has a header of its own.
_WITHOUT_RESULTS = {HEADER, ".lock", "log.jsonl", "0-train"}
# What a run makes in its folder; nothing else is ever deleted.
_MANAGED_FILES = frozenset(
    {*_STAGES, *(f"{name}.partial" for name in _STAGES)}
    | {"baselines", "controls", "rounds", "log.jsonl", "result.json"}
    | {"model.safetensors", "partition.parquet", "evaluation.parquet", "record.json"}
    | {"report.html", "report.md"}
)


@dataclass
class Run:
    """An open run. Without a folder nothing is kept and every stage is computed.

    In several processes all compute, and only the main one writes. keys, seconds and artefacts are
    those of the stages by name; files are the SHA-256 of the files that `write` wrote.
    """

    folder: Path | None
    accelerator: Accelerator | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    artefacts: dict[str, Artefact] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    _checkpoints: dict[str, EpochCheckpoint] = field(default_factory=dict)

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
        if done is not None and self._broadcast((done / NOTE).exists()):
            note = read_note(done)
            _require_same(note["key"], key, f"{done}")
            with reading(done, RunError, fix=FIX):
                self.seconds[name] = float(note["seconds"])
            self._clear_checkpoint(name)  # of a process that was killed after its last epoch
            return read_artefact(done)
        started = time.perf_counter()
        artefact = compute()
        resumed = self._checkpoints.get(name)
        spent = time.perf_counter() - started + (resumed.seconds_before if resumed else 0.0)
        if self.accelerator is not None:  # budgets and decisions depend on it
            spent = broadcast_decision(self.accelerator, lambda: spent)
        self.seconds[name] = spent
        if done is not None and self.writes:
            self._write_stage(done, artefact, {"key": key, "seconds": spent})
            self._clear_checkpoint(name)
        return artefact

    def checkpoint(self, name: str, key: Mapping[str, Any]) -> EpochCheckpoint | None:
        """Where a stage can keep its state between epochs; gone once the stage is done."""
        if self.folder is None:
            return None
        before_write = self._require_folder if self.writes else None
        self._checkpoints[name] = EpochCheckpoint(
            self._checkpoint_dir(name), digest(dict(key)), before_write
        )
        return self._checkpoints[name]

    def discard(self, *patterns: str) -> None:
        """Delete stages and their checkpoints, by patterns of their folders, in this order."""
        if self.folder is None or not self.writes:
            return
        with wrap_io_errors(self.folder):
            for pattern in patterns:
                for path in sorted(self.folder.glob(pattern)):
                    delete(path)

    def clear_checkpoints(self) -> None:
        """Delete the states between epochs that are left, those of trainings that failed."""
        for name in self._checkpoints:
            self._clear_checkpoint(name)

    def write(self, name: str, content: str | Callable[[Path], object]) -> None:
        """Write a file of the run in one rename: text, or a function that writes to a path."""
        if self.folder is None or not self.writes:
            return
        self._require_folder()
        write_file(self.folder / name, content)
        with wrap_io_errors(self.folder / name):
            self.files[name] = file_digest(self.folder / name)

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

    def _write_stage(self, done: Path, artefact: Artefact, note: Mapping[str, Any]) -> None:
        self._require_folder()
        with wrap_io_errors(done):
            done.parent.mkdir(parents=True, exist_ok=True)
            if done.exists():  # without a stage.json: not a whole stage
                shutil.rmtree(done)
        with new_folder(done) as temporary:
            write_artefact(temporary, artefact, note)

    def _require_folder(self) -> None:
        """Refuse to go on in a folder that was removed: what was written before is lost."""
        if self.folder is not None and not (self.folder / HEADER).is_file():
            raise RunError(
                "the run folder was removed while the run used it",
                where=str(self.folder),
                fix="start the run again",
            )

    def _clear_checkpoint(self, name: str) -> None:
        if self.writes:
            shutil.rmtree(self._checkpoint_dir(name), ignore_errors=True)

    def _checkpoint_dir(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.partial"


@contextmanager
def open_run(
    folder: str | Path | None,
    header: Mapping[str, Any],
    *,
    overwrite: bool = False,
    accelerator: Accelerator | None = None,
) -> Iterator[Run]:
    """Open (or make) a run folder for the run that the header describes, and lock it.

    A folder that holds another run, other files, or is used by another process is refused.
    overwrite: throw away what an earlier run of this folder made, and nothing else.
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
    message = "another process works in this run folder"
    with locked(path / ".lock", message=message, fix="wait for it to end"):
        with wrap_io_errors(path):
            _write_header(path, header, overwrite)
        yield Run(path, accelerator)


@contextmanager
def locked(file: Path, *, message: str, fix: str) -> Iterator[None]:
    """Hold the lock of a file in a folder; RunError at once if another process holds it."""
    lock = FileLock(file)
    with wrap_io_errors(file.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(message, where=str(file.parent), fix=fix) from None
    try:
        yield
    finally:
        lock.release()


def check_run_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot become this run's, before a model is trained for it in there."""
    path = Path(folder)
    with wrap_io_errors(path):
        is_new = not path.is_dir()
        is_ours = not is_new and (path / HEADER).exists()
        if not is_new and not is_ours:
            _check_folder_is_ours(path)
    if not is_ours:
        return
    if not overwrite and not (path / "0-train").exists():
        raise RunError(
            "this folder belongs to a run whose model was not trained in it",
            where=str(path),
            fix="choose another folder: out=…; or discard what is there: overwrite=True",
        )


def _write_header(path: Path, header: Mapping[str, Any], overwrite: bool) -> None:
    """Check that the folder is empty or holds this very run; write run.json.

    A run.json that says the same and has changed nevertheless, by a flipped bit, is written again.
    """
    note, is_intact = path / HEADER, False
    header = json.loads(json.dumps({"schema": SCHEMA, **header}, default=list))
    if not note.exists():
        _check_folder_is_ours(path)
    else:
        found = read_json(note, fix="choose another folder: out=…")
        if not {"schema", "versions"} <= {*found}:
            raise RunError(
                "the folder holds other files: its run.json is of another program",
                where=str(path),
                fix="choose an empty folder",
            )
        is_intact = found.pop(SEAL, None) == digest(found)
        found.pop("versions")
        # A run that failed before its first result left nothing that could be taken for another's.
        overwrite |= found != header and {f.name for f in path.iterdir()} <= _WITHOUT_RESULTS
        if not overwrite:
            _check_format(found, path)
            _require_same(found, header, str(path))
    for left_over in path.rglob(f"{TEMPORARY}*"):  # by a process that was killed
        delete(left_over)
    if is_intact and not overwrite:
        return
    for name in _MANAGED_FILES if note.exists() and overwrite else ():
        delete(path / name)
    sealed = seal({**header, "versions": {"torch": torch.__version__}})
    write_file(note, json.dumps(sealed, indent=2) + "\n")


def read_header(folder: Path) -> dict[str, Any]:
    """Read what identifies the run of a folder; RunError if it is missing or has changed."""
    return read_sealed(folder / HEADER, fix="start the run again: overwrite=True")


def _check_format(header: Mapping[str, Any], path: Path) -> None:
    """Refuse a folder that another version of the run folder's format has made."""
    if header["schema"] != SCHEMA:
        raise RunError(
            f"the folder holds a run of format {header['schema']}, this version reads {SCHEMA}",
            where=str(path),
            fix="choose another folder: out=…; or discard the run: overwrite=True",
        )


def _check_folder_is_ours(path: Path) -> None:
    """A folder without run.json holds a training at most (and what a killed process left)."""
    names = sorted(p.name for p in path.iterdir() if p.name not in (".lock", "0-train"))
    strangers = [name for name in names if not name.startswith(TEMPORARY)]
    if strangers:
        raise RunError(
            f"the folder holds other files: {format_ids(strangers)}",
            where=str(path),
            fix="choose an empty folder",
        )


def _require_same(found: Any, wanted: Any, where: str) -> None:
    """Raise with every field that differs between what is there and what is asked for."""
    differing = differences(found, wanted)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing[:12])
        if any("max_minutes" in line for line in differing):
            listed += "\n  (max_minutes is what `minutes` left for this tuning)"
        raise RunError(
            f"this folder belongs to a run with other inputs; what differs:\n{listed}",
            where=where,
            fix="undo the change; or choose another folder: out=…; or discard what is there: "
            "overwrite=True",
        )


def differences(found: Any, wanted: Any) -> list[str]:
    """Name every value that differs between stored settings and the wanted ones, by its keys."""
    return list(_differences(found, wanted, ""))


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(found.get(key), wanted.get(key), inner)
    elif found != wanted:
        yield f"{path}: was {_short(found)}, is {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
