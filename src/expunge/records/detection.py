"""What `expunge.detect` finds: a partition, and what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from expunge._core.arrays import Array
from expunge.records.arrays import freeze
from expunge.records.partition import Partition, with_class_names
from expunge.records.result import Flag
from expunge.records.scores import PooledEvidence, Scores

ProbsKind = Literal["none", "out-of-sample", "in-sample"]
# Samples and pairs of classes that a summary names.
_MAX_NAMED = 5


@dataclass(frozen=True, repr=False)
class DetectionResult(Partition):
    """A partition of labelled features that no model was needed for.

    Parameters
    ----------
    ids, labels, p_noisy, p_label_fault, p_input_fault, suggested_label, suggested_probability
        See `Partition`. Labels are indices of ``classes``.
    threshold, noise_rate, fits, evidence, memorised, rate_estimates, reviewed
        See `Partition`.
    classes
        The names of the classes.
    class_values
        ``[c]``: the classes as the labels gave them, integers or texts.
    scores
        The evidence of the cross-fitted probes, and of ``probs`` if given.
    probs
        What the given probabilities were taken for: ``"in-sample"`` ones have seen the labels that
        they predict, and count less; ``"none"`` if none were given.
    flags
        Reasons to doubt the numbers.
    notes
        What was filled in or left out of the features.

    Examples
    --------
    >>> from expunge import detect
    >>> rng = np.random.default_rng(0)
    >>> right = np.arange(200) % 2
    >>> x = right[:, None] + 0.1 * rng.standard_normal((200, 3))
    >>> given = np.where(np.arange(200) < 20, 1 - right, right)
    >>> result = detect(x, np.array(["cat", "dog"])[given])
    >>> result.classes, result.suggested[:2].tolist()
    (('cat', 'dog'), ['cat', 'dog'])
    """

    classes: tuple[str, ...] = ()
    class_values: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    scores: Scores | None = None
    probs: ProbsKind = "none"
    flags: tuple[Flag, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze(self, class_values=(self.class_values, None))

    def __repr__(self) -> str:
        return self.summary()

    @property
    def partition(self) -> Partition:
        """The result itself, which is a partition."""
        return self

    @property
    def pooled(self) -> PooledEvidence | None:
        """The pool of the evidence."""
        return None if self.scores is None else self.scores.pooled

    @property
    def suggested(self) -> Array:
        """``[n]``: the suggested labels, as values of the labels that were given."""
        values: Array = self.class_values[self.suggested_label]
        return values

    def to_table(self) -> pa.Table:
        """The columns of `Partition.to_table`, with class names beside the indices."""
        return with_class_names(super().to_table(), self.classes)

    def summary(self) -> str:
        """Return a few lines for people: how many are flagged, the rate, confusions, samples."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        n, n_flagged, (rate, low, high) = len(self.ids), int(self.flagged.sum()), self.noise_rate
        yield (
            f"{n_flagged:,} of {n:,} samples are flagged ({n_flagged / n:.1%}); "
            f"{len(self.classes):,} classes."
        )
        yield f"Estimated noise rate: {rate:.1%} ({low:.1%} to {high:.1%})."
        if self.probs != "none":
            yield f"The given probabilities were taken for {self.probs} ones."
        if pairs := self._confusions():
            named = ", ".join(f"{given} → {other} ({count:,})" for given, other, count in pairs)
            yield f"Most frequent corrections: {named}."
        order = np.lexsort((self.ids, -self.p_noisy))[: min(_MAX_NAMED, n_flagged)]
        for i in order:
            why = f"suggested {self.classes[self.suggested_label[i]]}"
            if self.suggested_label[i] == self.labels[i]:
                is_input = self.p_input_fault[i] > self.p_label_fault[i]
                why = "unusual features" if is_input else "no better label"
            yield (
                f"  id {self.ids[i]}: {self.classes[self.labels[i]]}, {why}, "
                f"p_noisy {self.p_noisy[i]:.2f}"
            )
        yield from (f"Red flag {flag.code}: {flag.message}" for flag in self.flags)
        yield from (f"Note: {note}." for note in self.notes)

    def _confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent pairs of given and suggested class among the flagged samples."""
        changed = self.flagged & (self.labels != self.suggested_label)
        pairs, counts = np.unique(
            np.stack([self.labels[changed], self.suggested_label[changed]]),
            axis=1,
            return_counts=True,
        )
        order = np.argsort(-counts, kind="stable")[:_MAX_NAMED]
        names = self.classes
        return [(names[pairs[0, k]], names[pairs[1, k]], int(counts[k])) for k in order]
