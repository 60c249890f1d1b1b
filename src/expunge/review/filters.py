"""Which samples a list shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Array, Bools
from expunge.records import Partition

_MAX_TEXT = 100


class Filters(NamedTuple):
    """What a list is narrowed to; None: no matter.

    low, high: bounds of p_noisy. text: a part of the id. status: ``"answered"``, ``"open"``
    or ``"disputed"``.
    """

    label: int | None = None
    kind: str | None = None
    low: float = 0.0
    high: float = 1.0
    flagged: bool | None = None
    text: str = ""
    status: str = ""


def passing(partition: Partition, filters: Filters, text_ids: Array | None = None) -> Bools:
    """Which samples pass the filters on a partition; the state of the answers is not among them.

    Parameters
    ----------
    partition
        With the probabilities by now.
    filters
        What to narrow to.
    text_ids
        ``str[n]``, the ids as text; needed for ``filters.text``.
    """
    passed: Bools = (partition.p_noisy >= filters.low) & (partition.p_noisy <= filters.high)
    if filters.label is not None:
        passed &= partition.labels == filters.label
    if filters.kind in ("label", "input"):
        is_input = partition.p_input_fault > partition.p_label_fault
        passed &= is_input == (filters.kind == "input")
    if filters.flagged is not None:
        passed &= partition.flagged == filters.flagged
    if filters.text and text_ids is not None:
        passed &= np.strings.find(text_ids, filters.text[:_MAX_TEXT]) >= 0
    return passed
