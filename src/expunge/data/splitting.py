"""Hold some samples out of a training, so that their labels can judge what it did."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import Ints
from expunge._core.rng import generator
from expunge.data.dataset import DataLike, as_samples
from expunge.data.overlap import input_digests
from expunge.data.samples import Samples
from expunge.errors import ConfigError, DataError, check_range

# By default a tenth is held out, no more than this, and nothing of a smaller set than this.
_FRACTION, _MAX_HELD_OUT, _MIN_SAMPLES = 0.1, 1000, 1000
MAX_FRACTION = 0.5


class HeldOut(NamedTuple):
    """Two parts of a data set: what to train on, and what was held out; None if nothing was."""

    train: Samples
    held_out: Samples | None


def n_held_out(n: int, fraction: float | None = None) -> int:
    """How many of ``n`` samples `hold_out` holds out.

    Examples
    --------
    >>> [n_held_out(n) for n in (999, 2000, 50_000)], n_held_out(200, 0.25)
    ([0, 200, 1000], 50)
    """
    check_range(ConfigError, {"hold_out": (fraction, f"[0, {MAX_FRACTION}]")})
    if fraction is not None:
        return round(fraction * n)
    return min(round(_FRACTION * n), _MAX_HELD_OUT) if n >= _MIN_SAMPLES else 0


def hold_out(data: DataLike, *, fraction: float | None = None, seed: int = 0) -> HeldOut:
    """Hold samples out before a model is trained.

    Their labels have the source of the training labels and the model has not seen them: `repair`
    takes them as ``held_out``.

    Parameters
    ----------
    data
        The data to train on.
    fraction
        The fraction that is held out, in [0, 0.5]. Default: a tenth and at most 1,000 samples;
        nothing of fewer than 1,000.
    seed
        Seed of the draw.

    Returns
    -------
    HeldOut
        ``train`` and ``held_out``, each in the order of the data. Equal inputs are in one part, and
        every class keeps a sample in ``train``.

    Raises
    ------
    ConfigError
        If ``fraction`` is out of range.
    DataError
        If a fraction is given and nothing can be held out.

    Notes
    -----
    Cost: one pass over the inputs, 16 bytes of memory for each sample.

    Examples
    --------
    >>> x = np.arange(40, dtype=np.float32).reshape(20, 2)
    >>> train, held_out = hold_out((x, np.arange(20) % 2), fraction=0.2)
    >>> len(train), len(held_out)
    (16, 4)
    """
    samples = as_samples(data)
    n = n_held_out(len(samples), fraction)
    if not n:
        return HeldOut(samples, None)
    chosen = np.zeros(len(samples), dtype=bool)
    chosen[_draw(samples, n, seed)] = True
    if not chosen.any():
        if fraction is None:
            return HeldOut(samples, None)
        raise DataError(
            "nothing can be held out: the inputs are equal, or each class has one",
            where=samples.name,
            fix="hold out nothing: fraction 0",
        )
    apart = samples.subset(np.flatnonzero(chosen))
    apart = replace(apart, name="held-out data", skipped={})
    return HeldOut(samples.subset(np.flatnonzero(~chosen)), apart)


def _draw(samples: Samples, n: int, seed: int) -> Ints:
    """At most ``n`` positions; those of equal inputs together, and of no class all."""
    digests = np.fromiter(input_digests(samples), dtype="S16", count=len(samples))
    _, group, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    order, ends = np.argsort(group, kind="stable"), np.cumsum(sizes)
    left = np.bincount(samples.labels, minlength=len(samples.classes))
    found: list[Ints] = []
    for g in generator(seed, "hold out").permutation(len(sizes)):
        if sizes[g] > n:
            continue
        members = order[ends[g] - sizes[g] : ends[g]]
        labels, counts = np.unique(samples.labels[members], return_counts=True)
        if (left[labels] > counts).all():
            found.append(members)
            left[labels] -= counts
            n -= len(members)
        if not n:
            break
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
