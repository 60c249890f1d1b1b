"""What reviewers answer, and what several answers about one sample come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from expunge._core.arrays import Array, Bools, Floats, Ints
from expunge.errors import DataError, did_you_mean, format_ids, raise_all
from expunge.records import Partition
from expunge.storage.hashing import digest

Verdict = Literal["right", "wrong", "bad-input", "cannot-tell", "skip", "undo"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Verdicts that say whether a sample is noisy.
DECIDED = ("right", "wrong", "bad-input")


@dataclass(frozen=True)
class Draw:
    """How a sample came into the queue: a simple random sample of a stratum.

    Parameters
    ----------
    batch
        The number of the batch, from 0. Every batch is a stratified sample of all samples that
        no earlier batch has drawn.
    stratum
        The number of the stratum in the batch.
    stratum_size
        The number of samples of the stratum.
    order
        The position in the random order of the stratum, from 0.
    probability
        The probability of being drawn, given the batches before, in (0, 1].

    Raises
    ------
    DataError
        If a number is out of range.
    """

    batch: int
    stratum: int
    stratum_size: int
    order: int
    probability: float

    def __post_init__(self) -> None:
        is_place = min(self.batch, self.stratum, self.order) >= 0 and self.stratum_size > self.order
        if not (is_place and 0 < self.probability <= 1):
            raise DataError("how a sample was drawn is out of range")


@dataclass(frozen=True)
class Answer:
    """One answer about one sample.

    Parameters
    ----------
    id
        The sample.
    verdict
        ``"right"``: the given label is right. ``"wrong"``: ``label`` is right. ``"bad-input"``: no
        label is right. ``"cannot-tell"``. ``"skip"``: not now. ``"undo"``: withdraws the reviewer's
        last answer about the sample.
    label
        The index of the true class; needed by ``"wrong"``, and set by the review for ``"right"``.
        ``"wrong"`` with the label that the data give by now counts as right: they were corrected.
    reviewer
        Who answered.
    time
        When, as ISO 8601 text.
    repeat
        Whether the sample was shown a second time, to measure mistakes.
    draw
        How the sample came into the queue; None if the reviewer chose it.

    Raises
    ------
    DataError
        If the verdict is unknown or ``label`` is missing.

    Examples
    --------
    >>> Answer(7, "wrong", label=2).reviewer
    ''
    >>> Answer(7, "rigth")
    Traceback (most recent call last):
    expunge.errors.DataError: answer about 7: unknown verdict 'rigth': did you mean 'right'?
    """

    id: int | str
    verdict: Verdict
    label: int | None = None
    reviewer: str = ""
    time: str = ""
    repeat: bool = False
    draw: Draw | None = None

    def __post_init__(self) -> None:
        where = f"answer about {self.id}"
        if self.verdict not in VERDICTS:
            hint = did_you_mean(str(self.verdict), VERDICTS)
            raise DataError(f"unknown verdict '{self.verdict}': {hint}", where=where)
        if self.verdict == "wrong" and self.label is None:
            raise DataError(
                "the verdict 'wrong' needs the right label",
                where=where,
                fix="give label=…, or the verdict 'cannot-tell'",
            )


class Judged(NamedTuple):
    """A sample that was judged: what its reviewers say together.

    row: position in the partition. noisy, label_fault, input_fault: share of the reviewers who say
    so; label_fault is None where all say that the input is bad. label: the class that most say, −1
    if none. settled: whether a majority agrees. draw: of the first answer.
    """

    row: int
    noisy: float
    label_fault: float | None
    input_fault: float
    label: int
    settled: bool
    draw: Draw | None


@dataclass(frozen=True)
class Judgements:
    """All answers, sample by sample.

    Parameters
    ----------
    judged
        The samples with a decided verdict, in order of their rows.
    undecided
        The draws of samples that were skipped or that nobody could tell.
    pairs, disagreements
        How many pairs of answers about one sample there are (two reviewers, or one reviewer
        twice), and in how many of them one says that it is noisy and the other that it is not.
    disputed
        Ids of the samples without a majority.
    """

    judged: tuple[Judged, ...]
    undecided: tuple[Draw, ...] = ()
    pairs: int = 0
    disagreements: int = 0
    disputed: tuple[int | str, ...] = field(default=())

    @property
    def rows(self) -> Ints:
        """``int64[m]``, positions of the judged samples."""
        return np.array([j.row for j in self.judged], dtype=np.int64)

    def column(self, name: str) -> Floats:
        """One field of all judged samples, ``float64[m]``; None becomes NaN."""
        return np.array([getattr(j, name) for j in self.judged], dtype=np.float64)

    @property
    def settled(self) -> Bools:
        """``bool[m]``, whether a majority agrees."""
        return np.array([j.settled for j in self.judged], dtype=bool)


def latest(answers: Iterable[Answer]) -> list[Answer]:
    """The answers that stand: the last of every reviewer about a sample, unless undone.

    Examples
    --------
    >>> latest([Answer(1, "right"), Answer(2, "right"), Answer(1, "undo")])[0].id
    2
    """
    standing: dict[tuple[int | str, str, bool], Answer] = {}
    for answer in answers:
        key = (answer.id, answer.reviewer, answer.repeat)
        standing.pop(key, None)
        if answer.verdict != "undo":
            standing[key] = answer
    return list(standing.values())


def answers_digest(answers: Sequence[Answer]) -> str:
    """A digest of what answers say, whenever they were given; empty if there are none."""
    return digest([{**asdict(a), "time": ""} for a in answers]) if answers else ""


def judge(
    partition: Partition,
    answers: Iterable[Answer],
    *,
    n_classes: int,
    index: RowIndex | None = None,
) -> Judgements:
    """Bring the answers about every sample together.

    Parameters
    ----------
    partition
        The partition that was reviewed.
    answers
        In the order in which they were given.
    n_classes
        The number of classes.
    index
        The rows of the partition by id, to build it once for many calls.

    Raises
    ------
    DataError
        If an id is not in the partition, or a label is no class; all of them in one error.
    """
    standing = latest(answers)
    rows = (index or RowIndex(partition.ids)).rows([a.id for a in standing])
    unknown = [a.id for a, row in zip(standing, rows, strict=True) if row < 0]
    foreign = [a.label for a in standing if a.label is not None and not 0 <= a.label < n_classes]
    problems = []
    if unknown:
        problems.append(f"no sample has the id {format_ids(unknown)}")
    if foreign:
        problems.append(f"label {format_ids(foreign)}: expected a class in 0 … {n_classes - 1}")
    raise_all(DataError, problems, where="answers")
    by_row: dict[int, list[Answer]] = {}
    for answer, row in zip(standing, rows, strict=True):
        by_row.setdefault(int(row), []).append(answer)
    judged, undecided, disputed = [], [], []
    pairs = disagreements = 0
    for row in sorted(by_row):
        given = int(partition.labels[row])
        decided = [a for a in by_row[row] if a.verdict in DECIDED]
        verdicts = [_true_label(a, given) for a in decided]
        n = len(decided)
        n_right = verdicts.count(given)
        pairs += n * (n - 1) // 2
        disagreements += n_right * (n - n_right)
        if not decided:
            undecided += [a.draw for a in by_row[row] if a.draw is not None][:1]
            continue
        judged.append(_together(row, given, verdicts, _draw_of(by_row[row])))
        if not judged[-1].settled:
            disputed.append(by_row[row][0].id)
    return Judgements(tuple(judged), tuple(undecided), pairs, disagreements, tuple(disputed))


BAD_INPUT = -1


def _true_label(answer: Answer, given: int) -> int:
    """The class that an answer names, or `BAD_INPUT`."""
    if answer.verdict == "bad-input":
        return BAD_INPUT
    return given if answer.label is None else answer.label


def _together(row: int, given: int, verdicts: Sequence[int], draw: Draw | None) -> Judged:
    values, counts = np.unique(verdicts, return_counts=True)
    most = int(counts.argmax())
    settled = bool(2 * counts[most] > len(verdicts))
    bad = sum(v == BAD_INPUT for v in verdicts)
    wrong = sum(v not in (BAD_INPUT, given) for v in verdicts)
    readable = len(verdicts) - bad
    return Judged(
        row,
        noisy=(bad + wrong) / len(verdicts),
        label_fault=wrong / readable if readable else None,
        input_fault=bad / len(verdicts),
        label=int(values[most]),
        settled=settled,
        draw=draw,
    )


def _draw_of(answers: Sequence[Answer]) -> Draw | None:
    return next((a.draw for a in answers if a.draw is not None and not a.repeat), None)


class RowIndex:
    """Rows of samples by id; numbers may be given as text.

    Examples
    --------
    >>> RowIndex(np.array([30, 10])).rows(["10", 30, 7]).tolist()
    [1, 0, -1]
    """

    def __init__(self, ids: Array) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def rows(self, ids: Sequence[int | str]) -> Ints:
        """The row of every id, −1 where there is none."""
        found = np.full(len(ids), -1, dtype=np.int64)
        if not len(ids) or not len(self._sorted):
            return found
        is_text = self._sorted.dtype.kind == "U"
        kept = [k for k, i in enumerate(ids) if is_text or _is_integer(i)]
        if not kept:
            return found
        wanted = np.array([str(ids[k]) if is_text else int(ids[k]) for k in kept])
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        found[kept] = np.where(self._sorted[at] == wanted, self._order[at], -1)
        return found


def _is_integer(value: int | str) -> bool:
    """Whether an id is an integer of 63 bits."""
    text = str(value)
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19
