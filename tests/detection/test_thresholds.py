"""Thresholds by the false-discovery rate, against counting."""

from __future__ import annotations

import numpy as np

from expunge.detection.thresholds import fdr_threshold


def test_the_threshold_keeps_the_expected_share_of_clean_samples_as_counting_does():
    rng = np.random.default_rng(0)
    p = np.round(rng.random(200), 2)  # with ties
    for fdr in (0.01, 0.05, 0.2):
        threshold = fdr_threshold(p, fdr)
        cuts = [t for t in np.unique([0.0, *p]) if (p > t).any() and (1 - p[p > t]).mean() <= fdr]
        assert (p > threshold).sum() == max([(p > t).sum() for t in cuts], default=0)


def test_where_nothing_is_sure_enough_nothing_is_flagged():
    p = np.full(5, 0.6)
    assert not (p > fdr_threshold(p, 0.05)).any()
