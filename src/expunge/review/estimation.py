"""What answers say about all samples: the rate, the probabilities, the threshold, the labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from expunge._core.arrays import Bools, Floats, Ints
from expunge.errors import ConfigError, check_range
from expunge.records import Partition
from expunge.review.answers import Answer, Judgements, RowIndex, judge
from expunge.review.outcome import MAX_TRANSITION_CLASSES, Review
from expunge.review.rate import Mistakes, Rate, estimate_mistakes, estimate_rate
from expunge.review.recalibration import (
    Features,
    input_features,
    label_features,
    recalibrate,
)

# Answers from which on the probabilities of other samples are recalibrated.
MIN_ANSWERS = 10
# The number of answers that count as given before the first one: half of them agree with
# suggestions that were as likely right as not.
_SUGGESTION_PRIOR = 4


class ReviewModel:
    """The evidence of a partition, prepared once; `apply` turns answers into a `Review`.

    Parameters
    ----------
    partition
        The partition to review.
    n_classes
        The number of classes. Default: the largest label or suggestion and one.
    """

    def __init__(self, partition: Partition, n_classes: int | None = None) -> None:
        largest = max(int(partition.labels.max()), int(partition.suggested_label.max()))
        self.partition, self.n_classes = partition, n_classes or largest + 1
        self.index = RowIndex(partition.ids)
        self._label, self._input = label_features(partition), input_features(partition)

    def judge(self, answers: Iterable[Answer]) -> Judgements:
        """Bring the answers about every sample together; see `answers.judge`."""
        return judge(self.partition, answers, n_classes=self.n_classes, index=self.index)

    def apply(
        self, answers: Iterable[Answer], *, mistakes: float | None = None, seed: int = 0
    ) -> Review:
        """Estimate everything that follows from the answers; see `reviewed`."""
        check_range(ConfigError, {"mistakes": (mistakes, "[0, 0.5)")}, where="review")
        found = self.judge(answers)
        error = estimate_mistakes(found.pairs, found.disagreements, known=mistakes, seed=seed)
        p_label = self._recalibrated(self._label, found, "label_fault", error)
        p_input = self._recalibrated(self._input, found, "input_fault", error)
        p_noisy = 1 - (1 - p_label) * (1 - p_input)
        rates = [
            self._rate(found, faults, p, error, seed=seed)
            for faults, p in (
                (found.column("noisy"), p_noisy),
                (np.nan_to_num(found.column("label_fault")), p_label),
                (found.column("input_fault"), p_input),
            )
        ]
        is_design_based = rates[0][1]
        noise, label, input_ = (rate for rate, _ in rates)
        if not is_design_based:
            noise = Rate(*self.partition.noise_rate)
        partition = self._partition(found, p_label, p_input, noise)
        return Review(
            partition,
            noise,
            label,
            input_,
            is_design_based,
            len(found.judged),
            error.rate,
            found.pairs,
            found.disagreements,
            found.disputed,
            *self._verdicts(found),
            _transition(partition, self.n_classes),
            _state(self.partition),
        )

    def _verdicts(self, found: Judgements) -> tuple[Bools, Bools, Bools]:
        """Which samples are trusted, corrected and dropped."""
        rows, answer = found.rows[found.settled], found.column("label")[found.settled]
        given = self.partition.labels[rows]
        masks = [np.zeros(len(self.partition.ids), dtype=bool) for _ in range(3)]
        chosen = (answer == given, (answer >= 0) & (answer != given), answer < 0)
        for mask, which in zip(masks, chosen, strict=True):
            mask[rows[which]] = True
        trusted, corrected, dropped = masks
        return trusted, corrected, dropped

    def _recalibrated(
        self, features: Features, found: Judgements, fault: str, error: Mistakes
    ) -> Floats:
        """Probabilities of a fault by the answers; as they were where no answer speaks of it."""
        own = (
            self.partition.p_label_fault if fault == "label_fault" else self.partition.p_input_fault
        )
        faults = found.column(fault)
        known = np.isfinite(faults)
        # What a reviewer looked for by himself was chosen for what it is.
        known &= np.array([j.draw is not None for j in found.judged], dtype=bool)
        if known.sum() < MIN_ANSWERS or (
            fault == "input_fault" and not own.any() and not faults.any()
        ):
            return np.array(own)
        rows = found.rows[known]
        model = recalibrate(features.at(rows), faults[known], mistakes=error.rate)
        return model(features)

    def _rate(
        self, found: Judgements, faults: Floats, p: Floats, error: Mistakes, *, seed: int
    ) -> tuple[Rate, bool]:
        """The rate of a fault, and whether it is design-based."""
        rate = estimate_rate(found, faults, p, error, seed=seed) if len(faults) else None
        if rate is not None:
            return rate, True
        _, low, high = self.partition.noise_rate
        value = float(p.mean())
        return Rate(value, min(low, value), max(high, value)), False

    def _partition(
        self, found: Judgements, p_label: Floats, p_input: Floats, noise: Rate
    ) -> Partition:
        """The partition with the recalibrated probabilities and the answers themselves."""
        old = self.partition
        suggested, probability = self._suggestions(found, p_label)
        p_label, p_input = p_label.copy(), p_input.copy()
        is_reviewed = np.zeros(len(p_label), dtype=bool)
        for judged in found.judged:
            if not judged.settled:
                continue
            row, given = judged.row, int(old.labels[judged.row])
            is_reviewed[row] = True
            p_input[row] = float(judged.label < 0)
            p_label[row] = float(judged.label >= 0 and judged.label != given)
            suggested[row] = given if judged.label < 0 else judged.label
            probability[row] = float(judged.label >= 0)
        p_noisy = 1 - (1 - p_label) * (1 - p_input)
        drawn = sum(judged.draw is not None for judged in found.judged)
        threshold = best_threshold(p_noisy) if drawn >= MIN_ANSWERS else old.threshold
        return replace(
            old,
            p_noisy=p_noisy,
            p_label_fault=p_label,
            p_input_fault=p_input,
            suggested_label=suggested,
            suggested_probability=probability,
            threshold=threshold,
            noise_rate=(noise.value, noise.low, noise.high),
            rate_estimates={**old.rate_estimates, "review": noise.value},
            reviewed=is_reviewed,
        )

    def _suggestions(self, found: Judgements, p_label: Floats) -> tuple[Ints, Floats]:
        """Suggested labels, and their probabilities shifted to how often they were right."""
        old = self.partition
        suggested, probability = old.suggested_label.copy(), old.suggested_probability.copy()
        differs = suggested != old.labels
        probability[~differs] = 1 - p_label[~differs]
        judged = [
            j
            for j in found.judged
            if differs[j.row] and j.label >= 0 and j.label != old.labels[j.row]
        ]
        if judged:
            # Of those whose given label is wrong.
            share = probability / np.maximum(old.p_label_fault, probability)
            rows = np.array([j.row for j in judged])
            right = np.array([j.label for j in judged]) == suggested[rows]
            probability[differs] = (_shifted(share, rows, right) * p_label)[differs]
        return suggested, probability


def reviewed(
    partition: Partition,
    answers: Iterable[Answer],
    *,
    n_classes: int | None = None,
    mistakes: float | None = None,
    seed: int = 0,
) -> Review:
    """Bring a partition and the answers of reviewers together.

    Parameters
    ----------
    partition
        The partition that was reviewed, as `expunge.partition` made it.
    answers
        In the order in which they were given; see `Answer`. The last one of a reviewer about a
        sample counts.
    n_classes
        The number of classes. Default: the largest label or suggestion and one.
    mistakes
        The rate at which reviewers are mistaken, in [0, 0.5). Default: estimated from samples that
        were answered twice, starting from 0.025.
    seed
        Seed of the draws that make the intervals.

    Returns
    -------
    Review
        ``.partition`` is what the next stages take: samples that a majority found right are
        trusted, wrong labels are corrected, bad inputs dropped. From `MIN_ANSWERS` answers to the
        queue on, all others have probabilities that a logistic regression has recalibrated, and the
        threshold is the one that maximises the F1 to expect.

    Raises
    ------
    DataError
        If an id is not in the partition or a label is no class.
    ConfigError
        If ``mistakes`` is out of range.

    Notes
    -----
    Cost: O(n log n) once, and O(n) for every call. The rate is a stratified estimate with a
    model's help, so that it holds whatever the partition has wrong; fails if reviewers share a
    mistake, or if they confirm what is suggested without looking.

    References
    ----------
    Model-assisted estimation: Särndal, Swensson, Wretman, 1992, doi:10.1007/978-1-4612-4378-6.

    Examples
    --------
    >>> import numpy as np
    >>> from expunge.records import Partition
    >>> from expunge.review import Answer, plan_queue
    >>> rng = np.random.default_rng(0)
    >>> wrong = rng.random(1000) < 0.3
    >>> p = np.where(wrong, 0.4, 0.1)  # the right order, probabilities that are too low
    >>> partition = Partition(
    ...     ids=np.arange(1000),
    ...     labels=np.zeros(1000, dtype=int),
    ...     p_noisy=p,
    ...     p_label_fault=p,
    ...     p_input_fault=np.zeros(1000),
    ...     suggested_label=wrong.astype(int),
    ...     suggested_probability=np.full(1000, 0.8),
    ...     threshold=0.5,
    ...     noise_rate=(0.1, 0.09, 0.11),
    ... )
    >>> queue = plan_queue(partition, budget=100, first_share=1.0)
    >>> answers = [
    ...     Answer(i.id, "wrong" if wrong[i.id] else "right", label=int(wrong[i.id]), draw=i.draw)
    ...     for i in queue.items
    ... ]
    >>> review = reviewed(partition, answers, n_classes=2)
    >>> bool(review.noise_rate.low < wrong.mean() < review.noise_rate.high)
    True
    >>> bool((review.partition.flagged == wrong).all())
    True
    """
    return ReviewModel(partition, n_classes).apply(answers, mistakes=mistakes, seed=seed)


def _shifted(p: Floats, rows: Ints, right: Bools) -> Floats:
    """Probabilities with the shift of their log-odds that explains how many of some were right."""
    log_odds = logit(np.clip(p, 0.01, 0.99))
    known = np.append(log_odds[rows], np.zeros(_SUGGESTION_PRIOR))
    n_right = right.sum() + _SUGGESTION_PRIOR / 2
    shifted: Floats = expit(log_odds + brentq(lambda s: expit(known + s).sum() - n_right, -60, 60))
    return shifted


def best_threshold(p: Floats) -> float:
    """The threshold that maximises the F1 to expect of calibrated probabilities.

    ``F1(k) = 2 Σ_{top k} p / (k + Σ p)``; ties are flagged together. At most 0.5: a sample that is
    more likely noisy than not is flagged.

    Examples
    --------
    >>> best_threshold(np.array([0.9, 0.8, 0.1, 0.1]))
    0.45
    """
    ordered = np.sort(p)[::-1]
    total = ordered.sum()
    f1 = 2 * np.cumsum(ordered) / (np.arange(1, len(p) + 1) + total)
    ends = np.append(ordered[1:] < ordered[:-1], True)
    k = int(np.where(ends, f1, -1.0).argmax())
    lower = ordered[k + 1] if k + 1 < len(p) else 0.0
    return float(min((ordered[k] + lower) / 2, 0.5))


def _transition(partition: Partition, c: int) -> Floats | None:
    """The transition that the probabilities give: rows are true classes."""
    if c > MAX_TRANSITION_CLASSES:
        return None
    counts = np.zeros((c, c))
    given, suggested, p = partition.labels, partition.suggested_label, partition.p_label_fault
    moved = np.where(suggested != given, np.minimum(partition.suggested_probability, p), 0.0)
    clean = 1 - partition.p_input_fault
    np.add.at(counts, (given, given), clean * (1 - p))
    np.add.at(counts, (suggested, given), clean * moved)
    # What is wrong and has no suggestion is spread as the true classes are.
    rest = np.bincount(given, clean * (p - moved), minlength=c)
    prior = counts.sum(axis=1) / max(counts.sum(), 1e-12)
    others = np.tile(prior[:, None], (1, c))
    np.fill_diagonal(others, 0.0)
    counts += others / np.maximum(others.sum(axis=0), 1e-12) * rest
    totals = counts.sum(axis=1, keepdims=True)
    transition: Floats = np.where(totals > 0, counts / np.maximum(totals, 1e-12), np.eye(c))
    return transition


def _state(partition: Partition) -> dict[str, float]:
    return {
        "noise_rate": float(partition.noise_rate[0]),
        "threshold": float(partition.threshold),
        "flagged": int(partition.flagged.sum()),
    }
