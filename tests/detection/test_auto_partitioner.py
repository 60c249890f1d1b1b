"""Which partitioner decides by default."""

from __future__ import annotations

import pytest
from numpy.testing import assert_equal

from expunge.detection.auto_partitioner import auto
from expunge.detection.noise_model_partitioner import noise_model
from expunge.detection.pooled_partitioner import evidence_pool
from oracles_pooled import evidence, pooled_scores


@pytest.mark.parametrize(
    ("agreement", "method"),
    [
        ({"plain": 0.9}, evidence_pool),
        ({"plain": 0.99}, evidence_pool),
        ({"plain": 0.9, "augmented": 0.8}, noise_model),
    ],
)
def test_views_decide_which_partitioner_is_used(agreement, method):
    pooled, labels, _ = evidence(n=300)
    probs = pooled.probs[None]
    made = pooled_scores(pooled, labels, agreement=agreement, loo_probs=probs, model_probs=probs)
    found, expected = auto(made, seed=0), method(made, seed=0)
    assert_equal(found.p_noisy, expected.p_noisy)
    assert found.noise_rate == expected.noise_rate
