"""A review in progress: each reviewer's next question, the answers, and the estimates from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Array, Bools, Ints
from expunge.errors import DataError, RunError, check_range
from expunge.review.answer_log import AnswerLog, now
from expunge.review.answers import Answer, Draw, Verdict, latest
from expunge.review.estimation import ReviewModel
from expunge.review.filters import Filters, passing
from expunge.review.outcome import Review
from expunge.review.queue import (
    DEFAULT_BUDGET,
    Queue,
    extend_queue,
    plan_queue,
    suspicion,
)
from expunge.review.run_files import ReviewedRun, read_queue, write_queue

# Seconds for which a question that one reviewer was shown is not shown to others.
_LEASE = 600.0
# The next batch is drawn when this few questions are open, so that nobody waits for it.
_OPEN_BEFORE_NEXT_BATCH = 3
_MAX_REVIEWER = 80
MAX_PAGE = 200


class Question(NamedTuple):
    """A question for a reviewer: a row, and whether it is a repeat."""

    row: int
    repeat: bool


class Progress(NamedTuple):
    """How far a review is, and what its answers say by now."""

    answered: int
    budget: int
    skipped: int
    disputed: int
    review: Review
    version: int


class ReviewSession:
    """Answers, queue and estimates of one run. Threads may share it.

    Parameters
    ----------
    run
        The run that is reviewed.
    classes
        The names of its classes.
    budget
        The number of questions planned. By default as many as the review in the run folder has,
        or 100. A smaller number than that changes nothing.
    seed
        Seed of the draws.
    mistakes
        See `expunge.reviewed`.

    Raises
    ------
    RunError
        If the answers or the queue in the folder cannot be read.
    """

    def __init__(
        self,
        run: ReviewedRun,
        classes: Sequence[str],
        *,
        budget: int | None = None,
        seed: int = 0,
        mistakes: float | None = None,
    ) -> None:
        self.run, self.classes, self.partition = run, tuple(classes), run.partition
        self.log = AnswerLog(run.folder, classes)
        self._lock, self._changed = threading.RLock(), threading.Event()
        self._model = ReviewModel(run.partition, len(self.classes))
        self._answers = self.log.read()
        self._model.judge(self._answers)  # answers about other samples are refused here
        self._mistakes = mistakes
        self._queue = self._read_queue(budget, seed)
        self._leases: dict[int, tuple[str, float]] = {}
        self._text_ids: Array | None = None
        self._order: Ints | None = None
        self._version = len(self._answers)
        self._progress = self._estimate()
        self._closed = False
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def _read_queue(self, budget: int | None, seed: int) -> Queue:
        queue = read_queue(self.run.folder, self.partition)
        if queue is None:
            planned = budget or DEFAULT_BUDGET
            queue = plan_queue(self.partition, budget=planned, seed=seed, answers=self._answers)
        elif budget and budget > queue.budget:
            queue = replace(queue, budget=min(budget, len(self.partition.ids)))
        write_queue(self.run.folder, queue)
        return queue

    def close(self) -> None:
        """Stop the thread that estimates."""
        self._closed = True
        self._changed.set()
        self._worker.join()

    @property
    def queue(self) -> Queue:
        """The questions so far."""
        return self._queue

    def rows(self, ids: Sequence[int | str]) -> Ints:
        """The row of every id, −1 where there is none."""
        return self._model.index.rows(ids)

    def draw_of(self, name: int | str) -> Draw | None:
        """How a sample came into the queue; None if it is not in it."""
        return next((item.draw for item in self._queue.items if item.id == name), None)

    # Questions

    def next(self, reviewer: str, *, with_skipped: bool = False) -> Question | None:
        """The next question of a reviewer; None if all are answered.

        A question that another reviewer was shown comes last.
        """
        with self._lock:
            found = self._open_question(reviewer, with_skipped)
            if found is None and self._extend():
                found = self._open_question(reviewer, with_skipped)
            if found is None:
                found = self._open_question(None, with_skipped)
            if found is not None:
                self._leases[found.row] = (reviewer, time.monotonic())
            return found

    def _open_question(self, reviewer: str | None, with_skipped: bool) -> Question | None:
        """The first question that is open; for a reviewer, one that no other was shown."""
        done, skipped = self._done()
        moment = time.monotonic()
        rows = self.rows([item.id for item in self._queue.items]).tolist()
        for item, row in zip(self._queue.items, rows, strict=True):
            key = (item.id, item.repeat)
            if key in done or (key in skipped and not with_skipped):
                continue
            holder, since = self._leases.get(row, (reviewer or "", moment))
            if reviewer in (None, holder) or moment - since > _LEASE:
                return Question(row, item.repeat)
        return None

    def _done(self) -> tuple[set[tuple[int | str, bool]], set[tuple[int | str, bool]]]:
        """The questions that were answered, and those that were only skipped."""
        done: set[tuple[int | str, bool]] = set()
        skipped: set[tuple[int | str, bool]] = set()
        standing = latest(self._answers)
        names = self.partition.ids[self.rows([answer.id for answer in standing])].tolist()
        for name, answer in zip(names, standing, strict=True):
            (skipped if answer.verdict == "skip" else done).add((name, answer.repeat))
        return done, skipped - done

    def _extend(self, estimated: Progress | None = None) -> bool:
        """Draw the next batch, by the answers so far; whether there is one."""
        with self._lock:
            queue, answers = self._queue, list(self._answers)
        size = queue.budget - len(queue.items)
        if size < 1:
            return False
        review = (estimated or self._estimate()).review
        rows = self._model.judge(answers).rows
        suspected = self.partition.p_input_fault > self.partition.p_label_fault
        longer = extend_queue(
            queue,
            review.partition,
            size=size,
            answered_classes=self.partition.labels[rows],
            n_answered_inputs=int(suspected[rows].sum()),
        )
        with self._lock:
            # Another thread may have drawn it, or the budget may have been raised.
            if self._queue is queue and len(longer.items) > len(queue.items):
                write_queue(self.run.folder, longer)
                self._queue = longer
            return len(self._queue.items) > len(queue.items)

    def more(self, n: int) -> int:
        """Raise the budget by ``n`` questions; returns the new budget."""
        check_range(DataError, {"n": (n, "[1, 10000]")}, where="review")
        with self._lock:
            budget = min(self._queue.budget + n, len(self.partition.ids))
            self._queue = replace(self._queue, budget=budget)
            write_queue(self.run.folder, self._queue)
            return budget

    # Answers

    def answer(
        self, row: int, verdict: Verdict, label: int | None, reviewer: str, *, repeat: bool = False
    ) -> Answer:
        """Record an answer. It is on the disk when this returns.

        Raises
        ------
        DataError
            If the row, the class, the verdict or the reviewer is not valid.
        RunError
            If the run has changed since the review began, or the answer cannot be written.
        """
        self.check_row(row)
        check_reviewer(reviewer)
        if label is not None and not 0 <= label < len(self.classes):
            raise DataError(f"there is no class {label}: expected 0 … {len(self.classes) - 1}")
        if self.run.has_changed():
            raise RunError(
                "the run has another partition than when this review began",
                where=str(self.run.folder),
                fix="stop the server and start `expunge review` again; no answer is lost",
            )
        name, given = self.partition.ids[row].item(), int(self.partition.labels[row])
        if verdict == "right":
            label = given
        elif verdict == "wrong" and label == given:
            raise DataError(f"'{self.classes[given]}' is the given label: the verdict is 'right'")
        elif verdict != "wrong":
            label = None
        with self._lock:
            answer = Answer(name, verdict, label, reviewer, now(), repeat, self.draw_of(name))
            self.log.append([answer])
            self._answers.append(answer)
            self._leases.pop(row, None)
            self._version += 1
        self._changed.set()
        return answer

    def add(self, answers: Sequence[Answer]) -> None:
        """Record answers that were given elsewhere, all or none.

        Raises
        ------
        DataError
            If an id is not in the run.
        """
        self._model.judge(answers)
        with self._lock:
            self.log.append(answers)
            self._answers += answers
            self._version += len(answers)
            self._update()

    def undo(self, reviewer: str) -> Question | None:
        """Withdraw the last answer of a reviewer; None if there is none."""
        check_reviewer(reviewer)
        with self._lock:
            own = [a for a in latest(self._answers) if a.reviewer == reviewer]
            if not own:
                return None
            last = own[-1]
            undo = Answer(last.id, "undo", reviewer=reviewer, time=now(), repeat=last.repeat)
            self.log.append([undo])
            self._answers.append(undo)
            self._version += 1
        self._changed.set()
        row = int(self.rows([last.id])[0])
        self._leases[row] = (reviewer, time.monotonic())
        return Question(row, last.repeat)

    def answers_of(self, row: int) -> list[Answer]:
        """The standing answers about a sample."""
        with self._lock:
            name = str(self.partition.ids[row])
            return latest(a for a in self._answers if str(a.id) == name)

    def check_row(self, row: int) -> None:
        """Raise DataError if there is no such row."""
        if not 0 <= row < len(self.partition.ids):
            raise DataError(f"there is no sample {row}: expected 0 … {len(self.partition.ids) - 1}")

    # Estimates

    def progress(self) -> Progress:
        """The last estimate; a thread brings it up to date after every answer."""
        return self._progress

    def _estimate(self) -> Progress:
        with self._lock:
            answers, version, queue = list(self._answers), self._version, self._queue
        review = self._model.apply(answers, mistakes=self._mistakes)
        done, skipped = self._done()
        queued = {(i.id, i.repeat) for i in queue.items}
        return Progress(
            len(done & queued), queue.budget, len(skipped), len(review.disputed), review, version
        )

    def _work(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._closed:
                return
            with suppress(RunError):  # the next question says what is wrong
                self._update()

    def _update(self) -> None:
        """Estimate by the answers so far, and draw the next batch if few questions are open."""
        found = self._progress = self._estimate()
        with self._lock:
            n_open = len(self._queue.items) - found.answered - found.skipped
        if n_open <= _OPEN_BEFORE_NEXT_BATCH:
            self._extend(found)

    @property
    def version(self) -> int:
        """The number of changes; that of `progress` is behind while it is being estimated."""
        return self._version

    # Lists

    def select(self, filters: Filters, *, offset: int = 0, limit: int = 50) -> tuple[Ints, int]:
        """Rows that pass the filters, most suspicious first, and how many there are in all."""
        bounds = {"offset": (offset, "[0, inf)"), "limit": (limit, f"[1, {MAX_PAGE}]")}
        check_range(DataError, bounds, where="review")
        if self._order is None:
            self._order = np.argsort(-suspicion(self.partition), kind="stable")
        passed = self._passing(filters)
        rows = self._order if passed is None else self._order[passed[self._order]]
        return rows[offset : offset + limit], len(rows)

    def _passing(self, filters: Filters) -> Bools | None:
        """Which rows pass; None if there is no filter."""
        if filters == Filters():
            return None
        if filters.text and self._text_ids is None:
            self._text_ids = self.partition.ids.astype(str)
        passed = passing(self._progress.review.partition, filters, self._text_ids)
        return passed & self._with_status(filters.status) if filters.status else passed

    def _with_status(self, status: str) -> Bools:
        marked = np.zeros(len(self.partition.ids), dtype=bool)
        with self._lock:
            standing = latest(self._answers)
        ids: Sequence[int | str] = [a.id for a in standing if a.verdict != "skip"]
        if status == "disputed":
            ids = self._progress.review.disputed
        marked[self.rows(ids)] = True
        return ~marked if status == "open" else marked


def check_reviewer(name: str) -> None:
    """Raise DataError if a reviewer's name is too long or no text of one line."""
    if len(name) > _MAX_REVIEWER or not name.isprintable():
        raise DataError(f"expected a reviewer's name of at most {_MAX_REVIEWER} printable signs")


def projected_half_width(review: Review, answered: int, more: int) -> float:
    """Half the width of the interval of the rate to expect after more answers."""
    half = (review.noise_rate.high - review.noise_rate.low) / 2
    return float(half * np.sqrt(max(answered, 1) / (max(answered, 1) + more)))
