"""Which partitioner decides by default."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_equal

from expunge.detection.auto_partitioner import auto
from expunge.detection.noise_model_partitioner import noise_model
from expunge.detection.pooled_partitioner import evidence_pool
from oracles_pooled import evidence, pooled_scores


@pytest.mark.parametrize(
    ("agreement", "expected", "method"),
    [
        ({"plain": 0.9}, 0.8, evidence_pool),
        ({"plain": 0.99}, 0.8, evidence_pool),
        ({"plain": 0.9}, 0.25, evidence_pool),
        ({"plain": 0.99}, 0.25, noise_model),
        ({"plain": 0.99}, 0.35, evidence_pool),
        ({"plain": 0.9, "augmented": 0.8}, 0.8, evidence_pool),
        ({"plain": 0.99, "augmented": 0.25}, 0.25, evidence_pool),
    ],
)
def test_views_and_the_strength_of_the_probes_decide_which_partitioner_is_used(
    agreement, expected, method
):
    pooled, labels, _ = evidence(n=300)
    wrong = np.arange(len(labels)) >= expected * len(labels)
    pooled = replace(pooled, probs=np.eye(pooled.probs.shape[1])[(labels + wrong) % 4])
    probs = pooled.probs[None]
    made = pooled_scores(pooled, labels, agreement=agreement, loo_probs=probs, model_probs=probs)
    found, wanted = auto(made, seed=0), method(made, seed=0)
    assert_equal(found.p_noisy, wanted.p_noisy)
    assert found.noise_rate == wanted.noise_rate
