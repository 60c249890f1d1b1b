"""A simulated reviewer, who knows the true labels and is sometimes mistaken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from expunge._core.rng import generator
from expunge.demo.noise import GroundTruth
from expunge.errors import ConfigError, check_range, did_you_mean
from expunge.records import Partition
from expunge.review import Answer, Draw, Item, extend_queue, plan_queue
from expunge.review.estimation import ReviewModel
from expunge.review.queue import suspicion

# How samples are chosen: as `expunge review` does, at random, or the most suspicious first.
Asking = Literal["queue", "random", "suspicious"]
ASKING: tuple[Asking, ...] = get_args(Asking)


@dataclass(frozen=True)
class Reviewer:
    """How a simulated reviewer answers.

    Parameters
    ----------
    mistakes
        The rate of mistaken answers: a right label is called wrong, a noisy sample right.
    lazy
        The share of the questions at which the suggested label is confirmed without a look.
    suggestions
        When suggestions are shown: ``"at-once"``, or ``"after"`` the given label was called wrong,
        so that a lazy answer confirms the suggested label only there.

    Raises
    ------
    ConfigError
        If a rate lies outside [0, 1).
    """

    mistakes: float = 0.03
    lazy: float = 0.0
    suggestions: Literal["at-once", "after"] = "at-once"

    def __post_init__(self) -> None:
        rates = {"mistakes": (self.mistakes, "[0, 1)"), "lazy": (self.lazy, "[0, 1)")}
        check_range(ConfigError, rates, where="reviewer")


def simulate_review(
    partition: Partition,
    truth: GroundTruth,
    *,
    n: int,
    reviewer: Reviewer | None = None,
    asking: Asking = "queue",
    seed: int = 0,
) -> list[Answer]:
    """Answer ``n`` questions about a partition from the ground truth.

    Parameters
    ----------
    partition, truth
        Of the same samples, in the same order.
    n
        The number of answers.
    reviewer
        Who answers. Default: with 3 % mistakes.
    asking
        How the samples are chosen.
    seed
        Seed of the choice and of the mistakes.

    Returns
    -------
    list of Answer
        For `expunge.reviewed`.
    """
    if asking not in ASKING:
        raise ConfigError(f"unknown asking '{asking}': {did_you_mean(asking, ASKING)}")
    model = ReviewModel(partition, n_classes_of(partition, truth))
    answer = _Answering(partition, truth, reviewer or Reviewer(), seed)
    if asking != "queue":
        rows = generator(seed, "random asking").permutation(len(partition.ids))
        if asking == "suspicious":
            rows = np.argsort(-suspicion(partition), kind="stable")
        size = len(rows)
        items = [(r, Draw(0, 0, size, k, n / size)) for k, r in enumerate(rows[:n])]
        is_random = asking == "random"
        found = [(partition.ids[r].item(), d if is_random else None) for r, d in items]
        return [answer(name, draw, repeat=False) for name, draw in found]
    queue = plan_queue(partition, budget=n, seed=seed)
    answers = answer.all(queue.items)
    while len(answers) < n:
        review, judged = model.apply(answers, seed=seed), model.judge(answers)
        n_queued = len(queue.items)
        queue = extend_queue(
            queue,
            review.partition,
            size=n - n_queued,
            answered_classes=partition.labels[judged.rows],
        )
        if len(queue.items) == n_queued:
            break
        answers += answer.all(queue.items[n_queued:])
    return answers


class _Answering:
    """Answers questions one by one."""

    def __init__(
        self, partition: Partition, truth: GroundTruth, reviewer: Reviewer, seed: int
    ) -> None:
        self._partition, self._truth, self._reviewer = partition, truth, reviewer
        self._rng = generator(seed, "reviewer")
        self._row = {name: k for k, name in enumerate(partition.ids.tolist())}
        self._n_classes = n_classes_of(partition, truth)

    def all(self, items: Iterable[Item]) -> list[Answer]:
        return [self(item.id, item.draw, repeat=item.repeat) for item in items]

    def __call__(self, name: int | str, draw: Draw | None, *, repeat: bool) -> Answer:
        row = self._row[name]
        given, true = int(self._partition.labels[row]), int(self._truth.labels[row])
        is_lazy, is_mistaken = self._rng.random(2) < (self._reviewer.lazy, self._reviewer.mistakes)
        is_bad = bool(self._truth.input_fault[row])
        suggested = int(self._partition.suggested_label[row])
        is_shown = self._reviewer.suggestions == "at-once"
        if is_lazy and is_shown:
            true, is_bad = suggested, False
        elif is_mistaken:
            is_noisy = is_bad or true != given
            other = (given + 1 + int(self._rng.integers(self._n_classes - 1))) % self._n_classes
            true, is_bad = given if is_noisy else other, False
        if is_lazy and not is_shown and given not in (true, suggested):
            true = suggested
        if is_bad:
            return Answer(name, "bad-input", reviewer="simulated", repeat=repeat, draw=draw)
        verdict: Literal["right", "wrong"] = "right" if true == given else "wrong"
        return Answer(name, verdict, true, "simulated", repeat=repeat, draw=draw)


def n_classes_of(partition: Partition, truth: GroundTruth) -> int:
    """The number of classes that occur."""
    largest = (truth.labels.max(), partition.labels.max(), partition.suggested_label.max())
    return int(max(largest)) + 1
