"""Which sources of evidence a partition believed, and what would narrow its noise rate."""

from __future__ import annotations

import numpy as np

from expunge.records import Partition, PooledEvidence, SourceReport
from expunge.reporting.formatting import percent

# Half the width of the noise rate's interval after a review.
REVIEW_HALF_WIDTH = 0.03
# Held-out labels that make the noise rate much more certain.
_N_HELD_OUT = 500


def source_rows(partition: Partition, pooled: PooledEvidence | None) -> list[SourceReport]:
    """The sources of the pooled evidence, those with the largest weight first.

    Empty if the partition was not made from it.
    """
    if pooled is None or not partition.rate_estimates:
        return []
    return sorted(pooled.sources, key=lambda s: (-s.weight, s.name))


def rate_lines(partition: Partition, pooled: PooledEvidence | None) -> list[str]:
    """What each estimator of the noise rate finds alone, and what would narrow the interval."""
    if pooled is None or not partition.rate_estimates:
        return []
    alone = ", ".join(f"{_words(k)} {percent(v)}" for k, v in partition.rate_estimates.items())
    lines = [f"noise rate by each estimator alone: {alone}"]
    if _has_model(pooled):
        lines.append(
            f"memorised: {percent(pooled.memorised_fraction)} of the given labels beyond the "
            f"{percent(pooled.expected_agreement)} that a model which has memorised none predicts"
        )
    lines += [f"to narrow the interval: {line}" for line in narrowing_lines(partition, pooled)]
    return lines


def narrowing_lines(partition: Partition, pooled: PooledEvidence | None) -> list[str]:
    """What would narrow the interval of the noise rate."""
    _, low, high = partition.noise_rate
    if pooled is None or high - low <= 2 * REVIEW_HALF_WIDTH:
        return []
    lines = [f"review {n_reviews_needed(partition):,} samples drawn at random (±3 points)"]
    if pooled.held_out_agreement is None and _has_model(pooled):
        lines.append(
            f"hold out {_N_HELD_OUT} labels of the same source that the model was not trained on"
        )
    return lines


def _has_model(pooled: PooledEvidence) -> bool:
    return any(source.name == "model" for source in pooled.sources)


def n_reviews_needed(partition: Partition) -> int:
    """How many reviewed samples, drawn at random, give the noise rate within 3 points (95 %)."""
    share = max(partition.noise_rate[0], 0.1)
    of_many = 1.96**2 * share * (1 - share) / REVIEW_HALF_WIDTH**2
    # Of few samples a review draws a large part, which tells more than its number does.
    return int(np.ceil(of_many / (1 + of_many / len(partition.ids))))


def _words(name: str) -> str:
    return name.replace("_", " ")
