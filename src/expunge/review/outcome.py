"""What a review comes to: a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expunge._core.arrays import Bools, Floats
from expunge.records import Partition
from expunge.review.rate import Rate

# A transition of more classes is not made: it has their square of entries.
MAX_TRANSITION_CLASSES = 1000


@dataclass(frozen=True, repr=False)
class Review:
    """What the answers of reviewers say.

    Parameters
    ----------
    partition
        The partition with recalibrated probabilities and threshold. Samples that a majority judged
        have the probability 0 or 1 and are marked in ``partition.reviewed``.
    noise_rate, label_rate, input_rate
        The share of noisy samples, of wrong labels and of corrupted inputs, with 95 % intervals.
    is_design_based
        Whether the intervals come from samples that were drawn by the queue. Otherwise they are
        those of the partition: answers about samples that were chosen for what they are say nothing
        about the others.
    n_answered
        The number of judged samples.
    mistakes
        The estimated rate of mistaken answers.
    pairs, disagreements
        How many pairs of answers about one sample there are, and how many disagree whether it is
        noisy.
    disputed
        Ids of samples without a majority. Their probabilities are recalibrated only.
    trusted, corrected, dropped
        ``bool[n]``: the given label was confirmed; another label was given; the input is bad.
    transition
        ``float64[c, c]``: the share of the samples of true class i that have the given label j.
        None above `MAX_TRANSITION_CLASSES` classes.
    before
        Noise rate, threshold and number of flagged samples before the review.
    """

    partition: Partition
    noise_rate: Rate
    label_rate: Rate
    input_rate: Rate
    is_design_based: bool
    n_answered: int
    mistakes: float
    pairs: int
    disagreements: int
    disputed: tuple[int | str, ...]
    trusted: Bools
    corrected: Bools
    dropped: Bools
    transition: Floats | None = None
    before: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        rate = self.noise_rate
        return (
            f"Review({self.n_answered:,} samples: {int(self.trusted.sum()):,} right, "
            f"{int(self.corrected.sum()):,} corrected, {int(self.dropped.sum()):,} dropped; "
            f"noise rate {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}])"
        )

    def summary(self) -> dict[str, object]:
        """Plain facts, for the report."""
        rates = {"noise": self.noise_rate, "label": self.label_rate, "input": self.input_rate}
        return {
            "answered": self.n_answered,
            "trusted": int(self.trusted.sum()),
            "corrected": int(self.corrected.sum()),
            "dropped": int(self.dropped.sum()),
            "disputed": len(self.disputed),
            "mistakes": self.mistakes,
            "design_based": self.is_design_based,
            "rates": {name: list(rate) for name, rate in rates.items()},
            "before": dict(self.before),
            "flagged": int(self.partition.flagged.sum()),
            "threshold": float(self.partition.threshold),
        }
