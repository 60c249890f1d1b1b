"""What a review reads from a run folder, and the queue that it keeps there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.data import Samples
from expunge.errors import DataError, RunError, format_ids
from expunge.records import Partition, Scores
from expunge.review.answer_log import QUEUE, AnswerLog
from expunge.review.answers import RowIndex, answers_digest, latest
from expunge.review.estimation import reviewed
from expunge.review.queue import Queue, partition_digest
from expunge.storage import serialization
from expunge.storage.artefacts import NOTE, Artefact, read_artefact, read_note, read_table
from expunge.storage.atomic_files import write_file
from expunge.storage.cached_stages import FOLDERS, Stage
from expunge.storage.finished_run import RECORD, read_record
from expunge.storage.json_files import read_json
from expunge.storage.reading import is_file

_FIX = (
    "let `expunge partition SPEC`, `expunge repair SPEC` or `expunge detect DATA` run first, in "
    "this working directory"
)


@dataclass(frozen=True)
class ReviewedRun:
    """The stages of a run that a review shows.

    Parameters
    ----------
    folder
        The run folder.
    partition, scores
        Its first partition and the scores behind it.
    stamp
        When the partition was written: another one means that the run has changed.
    """

    folder: Path
    partition: Partition
    scores: Scores
    stamp: int

    def has_changed(self) -> bool:
        """Whether the run has another partition now."""
        return partition_stamp(self.folder) != self.stamp


def open_reviewed_run(folder: str | Path) -> ReviewedRun:
    """Read the scores and the partition of a run.

    Raises
    ------
    RunError
        If the run has no partition yet, or its files cannot be read.
    """
    path = Path(folder)
    if not (path / "run.json").is_file():
        raise RunError("is no run folder: it has no run.json", where=str(path), fix=_FIX)
    stages: tuple[Stage, ...] = ("score", "partition")
    for stage in stages:
        if not (path / FOLDERS[stage] / "stage.json").is_file():
            raise RunError(f"the stage '{stage}' is not done yet", where=str(path), fix=_FIX)
    stamp = partition_stamp(path)
    scores = serialization.SCORES.load(read_artefact(path / FOLDERS["score"]))
    partition = serialization.PARTITION.load(read_artefact(path / FOLDERS["partition"]))
    return ReviewedRun(path, partition, scores, stamp)


def require_data_of(folder: str | Path, partition: Partition, samples: Samples) -> None:
    """Raise RunError unless the data have all samples of a run's partition, with their labels."""
    rows = RowIndex(samples.ids).rows(partition.ids.tolist())
    gone = rows < 0
    changed = ~gone & (samples.labels[rows] != partition.labels)
    for bad, what in ((gone, "no longer have"), (changed, "have other labels for")):
        if bad.any():
            raise RunError(
                f"the data {what} {int(bad.sum())} of {len(rows)} samples of the run: ids "
                f"{format_ids(partition.ids[bad])}",
                where=str(folder),
                fix="undo the change of the data, or let `expunge repair SPEC --out FOLDER` run on "
                "them as they are now",
            )


def partition_stamp(folder: Path) -> int:
    """The time at which the partition of a run was written; 0 if there is none."""
    try:
        return (folder / FOLDERS["partition"] / "stage.json").stat().st_mtime_ns
    except OSError:
        return 0


def class_names(folder: str | Path, n_classes: int) -> tuple[str, ...]:
    """The class names of a finished run; of another one their numbers."""
    path = Path(folder)
    names: Sequence[str] = read_record(path)["classes"] if (path / RECORD).is_file() else ()
    return tuple(names) or tuple(str(k) for k in range(n_classes))


def read_queue(folder: str | Path, partition: Partition) -> Queue | None:
    """The queue of a run; None if there is none, or one of another partition."""
    path = Path(folder) / QUEUE
    if not path.is_file():
        return None
    found = read_json(path, fix="delete this file; a new queue is then drawn")
    try:
        queue = Queue.from_json(found)
        if queue.partition != partition_digest(partition):
            return None
        if (RowIndex(partition.ids).rows([item.id for item in queue.items]) < 0).any():
            raise ValueError("it asks about samples that are not in the run")
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise RunError(
            f"is no queue of a review: {error!r}",
            where=str(path),
            fix="delete this file; a new queue is then drawn",
        ) from error
    return queue


def write_queue(folder: str | Path, queue: Queue) -> None:
    """Replace the queue of a run in one rename."""
    write_file(Path(folder) / QUEUE, json.dumps(queue.to_json(), indent=1) + "\n")


def current_partition(folder: str | Path, classes: Sequence[str]) -> Partition:
    """The last partition of a run, with all answers that it holds by now.

    That of the finished repair if it knows these answers; otherwise its first partition, reviewed.

    Raises
    ------
    RunError
        If the run has no partition yet, or its files or answers cannot be read.
    """
    run = open_reviewed_run(folder)
    answers = latest(AnswerLog(folder, classes).read())
    used = run.folder / FOLDERS["review"]
    reviews = str(read_note(used)["key"].get("reviews")) if is_file(used / NOTE) else ""
    if (run.folder / RECORD).is_file() and reviews == answers_digest(answers):
        record = read_record(run.folder, "partition.parquet")
        table = read_table(run.folder / "partition.parquet")
        return serialization.PARTITION.load(Artefact(record["partition"], {"partition": table}))
    return reviewed(run.partition, answers, n_classes=len(classes)).partition
