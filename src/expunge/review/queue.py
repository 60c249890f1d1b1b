"""Which samples are shown: batches of stratified samples, with the probability of each draw.

The first batch spreads over the whole order of suspicion, because a partition can be wrong about
the rate. Later batches draw in proportion to ``√(p (1 − p))`` of the recalibrated probabilities
(Neyman's allocation), and more where a class or a kind of fault has few answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from expunge._core.arrays import Bools, Floats, Ints
from expunge._core.rng import generator
from expunge.errors import ConfigError, check_range
from expunge.records import Partition
from expunge.review.answers import Answer, Draw, RowIndex
from expunge.review.recalibration import normal_scores
from expunge.storage.hashing import content_of, digest

DEFAULT_BUDGET = 100
# The share of the budget that is drawn before there are answers to learn from.
FIRST_SHARE = 0.4
# The share of a batch that asks a sample of it again.
_REPEAT_SHARE = 0.05
# Draws for each stratum, and the number of strata at most.
_DRAWS_PER_STRATUM, _MAX_STRATA = 4, 16
# What every sample has of the standard deviation that drives the allocation: p can be wrong.
_FIRST_FLOOR, _LATER_FLOOR = 0.5, 0.1
# How much more a group with few answers is drawn.
_FEW_ANSWERS_WEIGHT = 2.0


@dataclass(frozen=True)
class Item:
    """One question of the queue: a sample, and how it was drawn.

    Parameters
    ----------
    id
        The sample.
    draw
        The stratum and the probability.
    repeat
        Whether the sample was shown before, to measure mistakes.
    """

    id: int | str
    draw: Draw
    repeat: bool = False


@dataclass(frozen=True)
class Queue:
    """The questions of a review, in their order.

    Parameters
    ----------
    items
        The questions.
    partition
        A digest of the partition that they were drawn from.
    seed
        Seed of the draws.
    budget
        The number of questions planned.
    earlier
        Samples that the queue of an earlier partition drew, and their batch. They are not drawn
        again.
    """

    items: tuple[Item, ...]
    partition: str
    seed: int = 0
    budget: int = DEFAULT_BUDGET
    earlier: tuple[tuple[int | str, int], ...] = ()

    @property
    def n_batches(self) -> int:
        """The number of batches drawn, those of earlier partitions included."""
        earlier = [batch for _, batch in self.earlier]
        return 1 + max([*earlier, *(item.draw.batch for item in self.items)], default=-1)

    def to_json(self) -> dict[str, Any]:
        """Plain facts, for a JSON file."""
        return {
            "partition": self.partition,
            "seed": self.seed,
            "budget": self.budget,
            "earlier": [list(pair) for pair in self.earlier],
            "items": [{"id": i.id, "repeat": i.repeat, **asdict(i.draw)} for i in self.items],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Queue:
        """Read what `to_json` made.

        Raises
        ------
        KeyError, TypeError, ValueError, DataError
            If it is something else.
        """
        items = []
        for fact in found["items"]:
            numbers = {k: int(fact[k]) for k in ("batch", "stratum", "stratum_size", "order")}
            draw = Draw(**numbers, probability=float(fact["probability"]))
            items.append(Item(_sample_id(fact["id"]), draw, bool(fact["repeat"])))
        earlier = tuple((_sample_id(name), int(batch)) for name, batch in found["earlier"])
        seed, budget = int(found["seed"]), int(found["budget"])
        if budget < 1:
            raise ValueError(f"a budget of {budget}")
        return cls(tuple(items), str(found["partition"]), seed, budget, earlier)


def _sample_id(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is no id")
    return value


def partition_digest(partition: Partition) -> str:
    """A digest of the samples, labels and probabilities of a partition."""
    parts = (partition.ids, partition.labels, partition.p_noisy)
    return digest(content_of([*parts, partition.threshold]))


def plan_queue(
    partition: Partition,
    *,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    first_share: float = FIRST_SHARE,
    answers: Iterable[Answer] = (),
) -> Queue:
    """Draw the first batch of questions.

    Parameters
    ----------
    partition
        The partition to review.
    budget
        The number of questions in all, 1 or more; never more than there are samples.
    seed
        Seed of the draws.
    first_share
        The share of the budget that is drawn now; `extend_queue` draws the others where the answers
        show that they tell most. 1: all, for a tool that cannot ask for more.
    answers
        Answers to the queue of an earlier partition of these samples. They go on counting.

    Returns
    -------
    Queue
        In the order in which to ask. Any number of answers from its start is a stratified sample.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """
    check_range(
        ConfigError,
        {"budget": (budget, "[1, inf)"), "first_share": (first_share, "(0, 1]")},
        where="review",
    )
    budget = min(budget, len(partition.ids))
    size = min(budget, max(int(np.ceil(first_share * budget)), min(budget, 10)))
    earlier = {a.id: a.draw.batch for a in answers if a.draw is not None}
    queue = Queue((), partition_digest(partition), seed, budget, tuple(earlier.items()))
    return _add_batch(queue, partition, size, floor=_FIRST_FLOOR)


def extend_queue(
    queue: Queue,
    partition: Partition,
    *,
    size: int,
    answered_classes: Ints | None = None,
    n_answered_inputs: int = 0,
) -> Queue:
    """Draw one more batch, where the answers so far show that it tells most.

    Parameters
    ----------
    queue
        The questions so far. Their samples are not drawn again.
    partition
        The partition, recalibrated by the answers so far: that of `expunge.reviewed`.
    size
        The number of new questions, 1 or more; fewer if there are not as many samples left.
    answered_classes
        The given label of every sample that was answered.
    n_answered_inputs
        How many samples with a suspected input were answered.
    """
    check_range(ConfigError, {"size": (size, "[1, inf)")}, where="review")
    weight = _few_answers(partition, answered_classes, n_answered_inputs)
    return _add_batch(queue, partition, size, floor=_LATER_FLOOR, few=weight)


def _few_answers(
    partition: Partition, answered_classes: Ints | None, n_answered_inputs: int
) -> Ints:
    """The group of every sample: 0, 1 for a class and 2 for a kind with few answers."""
    group = np.zeros(len(partition.ids), dtype=np.int64)
    if answered_classes is None or not len(answered_classes):
        return group
    c = int(partition.labels.max()) + 1
    counts = np.bincount(answered_classes[answered_classes < c], minlength=c)
    if c <= len(answered_classes):
        group[counts[partition.labels] < 0.5 * len(answered_classes) / c] = 1
    suspected = partition.p_input_fault > np.maximum(partition.p_label_fault, 0.05)
    if n_answered_inputs < 0.5 * suspected.mean() * len(answered_classes):
        group[suspected] = 2
    return group


def _add_batch(
    queue: Queue, partition: Partition, size: int, *, floor: float, few: Ints | None = None
) -> Queue:
    """Draw a batch: strata of equal total standard deviation, the same number of draws in each."""
    number, rng = queue.n_batches, generator(queue.seed, "review", queue.n_batches)
    free = np.ones(len(partition.ids), dtype=bool)
    drawn = {*(item.id for item in queue.items), *(name for name, _ in queue.earlier)}
    rows = RowIndex(partition.ids).rows(list(drawn))
    free[rows[rows >= 0]] = False
    n_repeats = round(_REPEAT_SHARE * size)
    n_draws = min(size - n_repeats, int(free.sum()))
    if n_draws < 1:
        return queue
    strata = _strata(partition, free, n_draws, floor=floor, few=few)
    items: list[tuple[int, float, Item]] = []
    for h, (rows, n) in enumerate(strata):
        for order, row in enumerate(rng.permutation(rows)[:n]):
            draw = Draw(number, h, len(rows), order, n / len(rows))
            items.append((order, float(rng.random()), Item(partition.ids[row].item(), draw)))
    items.sort(key=lambda x: x[:2])
    ordered = [item for _, _, item in items]
    return replace(queue, items=(*queue.items, *_with_repeats(ordered, n_repeats, rng)))


def _with_repeats(items: list[Item], n: int, rng: np.random.Generator) -> list[Item]:
    """Ask some samples of the first half again, in the last quarter."""
    first = max(len(items) // 2, 1)
    again = rng.permutation(first)[:n]
    late = items[-max(len(items) // 4, 1) :]
    mixed: list[Item] = [*late, *(replace(items[k], repeat=True) for k in again)]
    mixed = [mixed[k] for k in rng.permutation(len(mixed))]
    # The order within a stratum stays: the random order decides which answers count.
    remaining = iter(late)
    return [*items[: len(items) - len(late)], *(m if m.repeat else next(remaining) for m in mixed)]


def _strata(
    partition: Partition, free: Bools, n_draws: int, *, floor: float, few: Ints | None
) -> list[tuple[Ints, int]]:
    """Rows and number of draws of every stratum, from the least suspicious on."""
    rows = np.flatnonzero(free)
    p = partition.p_noisy[rows]
    weight: Floats = np.sqrt(p * (1 - p)) + floor
    group = np.zeros(len(rows), dtype=np.int64) if few is None else few[rows]
    weight = np.where(group > 0, _FEW_ANSWERS_WEIGHT * weight, weight)
    order = np.lexsort((partition.ids[rows], suspicion(partition)[rows], group))
    rows, weight, group = rows[order], weight[order], group[order]
    found: list[tuple[Ints, int]] = []
    totals = [float(weight[group == g].sum()) for g in np.unique(group)]
    sizes = [int((group == g).sum()) for g in np.unique(group)]
    for g, n in zip(np.unique(group), allocate(totals, n_draws, sizes), strict=True):
        inside = group == g
        found += _cut(rows[inside], weight[inside], n)
    return found


def _cut(rows: Ints, weight: Floats, n_draws: int) -> list[tuple[Ints, int]]:
    """Cut ordered rows into strata of equal weight."""
    n_strata = int(np.clip(n_draws // _DRAWS_PER_STRATUM, 1, min(_MAX_STRATA, len(rows))))
    reached = np.cumsum(weight) - weight / 2
    place = np.minimum((reached / weight.sum() * n_strata).astype(np.int64), n_strata - 1)
    parts = [rows[place == h] for h in range(n_strata)]
    parts = [part for part in parts if len(part)]
    draws = allocate([1.0] * len(parts), n_draws, [len(part) for part in parts])
    return [(part, n) for part, n in zip(parts, draws, strict=True)]


def allocate(weights: Sequence[float], total: int, limits: Sequence[int]) -> list[int]:
    """Share a number by weights: largest remainders, at least one each, at most the limits.

    Examples
    --------
    >>> allocate([1.0, 1.0, 2.0], 8, [10, 10, 10]), allocate([1.0, 1.0], 5, [1, 10])
    ([2, 2, 4], [1, 4])
    """
    w, room = np.asarray(weights, dtype=np.float64), np.asarray(limits)
    total = min(total, int(room.sum()))
    found = np.minimum(np.ones(len(w), dtype=np.int64), room) if total >= len(w) else 0 * room
    while found.sum() < total:
        wanted = np.where(found < room, w * total / w.sum() - found, -np.inf)
        found[int(wanted.argmax())] += 1
    return [int(n) for n in found]


def suspicion(partition: Partition) -> Floats:
    """The order of the samples: ``p_noisy``, and the evidence where that is equal.

    Returns
    -------
    ndarray
        ``float64[n]``; higher = more suspicious.
    """
    columns = [normal_scores(v) for v in partition.evidence.values()]
    # A partition without differences still has evidence that differs.
    tie_breaker = np.tanh(np.mean(columns, axis=0)) if columns else 0.0
    return partition.p_noisy + 1e-6 * tie_breaker
