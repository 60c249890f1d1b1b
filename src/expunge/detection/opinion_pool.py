"""One class distribution out of those of several sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from expunge._core.arrays import Bools, Floats, Ints
from expunge._core.rng import subsample
from expunge.detection.class_arithmetic import add_scaled, log_softmax, softmax
from expunge.detection.class_rows import (
    ClassRows,
    LazyRows,
    RowSource,
    apply,
    by_chunks,
    zero_rows,
)
from expunge.records.top_classes import MAX_DENSE_CLASSES, TopClasses

# The weights are fitted on at most this many samples.
_MAX_ROWS = 20_000
# The most samples times classes that they are fitted on.
_MAX_SIZE = 2_000_000
# The penalty on the weights keeps those of certain sources finite.
_RIDGE = 1e-3
# From this many trusted samples on, only they fit the weights.
MIN_TRUSTED = 100


def opinion_pool(
    sources: Sequence[RowSource], labels: Ints, trusted: Bools | None = None
) -> ClassRows:
    """Pool class probabilities of several sources: ``p ∝ Π_s q_s^{β_s}``.

    The weights ``β ≥ 0`` maximise the likelihood of the given labels (a logarithmic opinion pool),
    with a ridge of 10⁻³. A poor or overconfident source gets little weight, and the result is
    calibrated for labels as noisy as the given ones. The most likely class is that of right labels,
    as long as wrong labels scatter over classes.

    Parameters
    ----------
    sources
        One or more sources ``[n, c]`` of class probabilities.
    labels
        ``int[n]``, the given labels.
    trusted
        ``bool[n]``, samples whose label is right. If there are 100 or more, only they fit the
        weights: the result is then calibrated for right labels.

    Returns
    -------
    NDArray[float64] or TopClasses
        ``[n, c]``; rows sum to one.

    Notes
    -----
    Convex, one parameter a source; fitted on at most 20,000 samples, fewer of many classes. Cost:
    some 20 evaluations of ``O(s · min(n, 20,000) · c)``.

    References
    ----------
    Genest and Zidek 1986, doi 10.1214/ss/1177013825.

    Examples
    --------
    A source without information gets no weight:

    >>> import numpy as np
    >>> labels = np.arange(90) % 3
    >>> good, uniform = 0.5 * np.eye(3)[labels] + 0.5 / 3, np.full((90, 3), 1 / 3)
    >>> pooled = opinion_pool([good, uniform], labels)
    >>> bool(np.allclose(pooled, opinion_pool([good], labels), atol=1e-3))
    True
    """
    from scipy.optimize import minimize

    logs = [LazyRows(q, _safe_logs) for q in sources]
    rows = _fitting_rows(labels, trusted, sources[0].shape[1])
    beta = minimize(
        _loss_and_gradient(np.stack([np.asarray(q[rows]) for q in logs]), labels[rows]),
        np.full(len(sources), 1 / len(sources)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * len(sources),
    ).x

    def pooled(chunk: slice) -> ClassRows:
        blocks, given = [q[chunk] for q in logs], labels[chunk]
        if not isinstance(blocks[0], TopClasses):
            return softmax(np.tensordot(beta, np.stack(blocks), axes=1))
        total = zero_rows(given, blocks[0].n_classes)
        for weight, block in zip(beta, blocks, strict=True):
            total = add_scaled(total, block, given, weight)
        return softmax(total)

    return by_chunks(pooled, len(labels))


def _safe_logs(probs: ClassRows) -> ClassRows:
    return apply(lambda p: np.log(np.maximum(p, 1e-12)), probs)


def _fitting_rows(labels: Ints, trusted: Bools | None, classes: int) -> Ints:
    usable = np.arange(len(labels))
    if trusted is not None and trusted.sum() >= MIN_TRUSTED:
        usable = np.flatnonzero(trusted)
    most = _MAX_ROWS if classes <= MAX_DENSE_CLASSES else _MAX_SIZE // classes
    return subsample(usable, most, 0, "opinion pool")


def _loss_and_gradient(logs: Floats, labels: Ints) -> Callable[[Floats], tuple[float, Floats]]:
    """Return the penalised mean cross-entropy as a function of the weights, with its gradient."""
    rows = np.arange(len(labels))

    def evaluate(beta: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(np.tensordot(beta, logs, axes=1))
        expected = (logs * np.exp(log_p)).sum(axis=2).mean(axis=1)
        gradient = expected - logs[:, rows, labels].mean(axis=1)
        cross_entropy = -log_p[rows, labels].mean()
        return cross_entropy + _RIDGE * beta @ beta, gradient + 2 * _RIDGE * beta

    return evaluate


def smooth(probs: ClassRows) -> ClassRows:
    """Shrink probabilities towards uniform, as one more vote in twenty: ``(20 p + 1/c) / 21``."""
    c = probs.shape[1]
    return apply(lambda p: (20 * p.astype(np.float64) + 1 / c) / 21, probs)
