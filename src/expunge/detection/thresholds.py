"""Rules that set the threshold on the probability of noise. Pure."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import Floats


def fdr_threshold(p_noisy: Floats, fdr: float) -> float:
    """Return the lowest threshold that keeps the Bayesian false-discovery rate.

    With the samples sorted by ``p_noisy``, the most suspicious first, the largest k is flagged for
    which ``Σ_{i ≤ k} (1 − p_i) / k ≤ fdr``; of equal probabilities all or none.

    Parameters
    ----------
    p_noisy
        ``float64[n]`` in [0, 1], n ≥ 1. Samples above the threshold are flagged.
    fdr
        The largest expected share of clean samples among the flagged, in (0, 1).

    Returns
    -------
    float
        A threshold in [0, 1]; 1, which flags nothing, if there is no such k.

    Notes
    -----
    As good as the probabilities are calibrated. Cost: O(n log n).

    References
    ----------
    Bayesian false-discovery rate: doi 10.1198/016214507000000941.

    Examples
    --------
    >>> import numpy as np
    >>> fdr_threshold(np.array([0.99, 0.95, 0.5, 0.1]), 0.05)
    0.5
    """
    p = np.sort(p_noisy)[::-1]
    expected = np.cumsum(1 - p) / np.arange(1, len(p) + 1)
    allowed = np.flatnonzero((expected <= fdr) & np.append(p[:-1] > p[1:], True))
    if not len(allowed):
        return 1.0
    k = int(allowed[-1]) + 1
    return float(p[k]) if k < len(p) else 0.0
