"""Records come back from a run folder as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.testing import assert_equal

from expunge.detection.class_rows import keep_top, stack
from expunge.records import PooledEvidence, SourceReport
from expunge.storage import serialization
from oracles_pooled import evidence, pooled_scores


def test_stored_evidence_comes_back_as_it_was():
    pooled, labels, _ = evidence(n=60)
    pooled = replace(pooled, sources=(SourceReport("model", 0.5, 0.9),), log_likelihood_gain=0.3)
    held = replace(pooled, held_out_agreement=0.8, probe_probs=pooled.probs)
    for made in (None, pooled, held):
        found = serialization.load_scores(
            serialization.store_scores(pooled_scores(pooled, labels, pooled=made))
        )
        if made is None:
            assert found.pooled is None
            continue
        for name, value in vars(made).items():
            assert_equal(getattr(found.pooled, name), value)


def test_the_best_of_many_classes_come_back_as_they_were():
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(150), 40), rng.integers(0, 150, 40)
    top = keep_top(probs, labels)
    pooled = PooledEvidence(top, np.zeros(40), probe_probs=top)
    scores = replace(
        pooled_scores(evidence(n=40)[0], labels, pooled=pooled),
        class_probs=top,
        loo_probs=stack([top, top]),
        model_probs=None,
        external_probs=None,
    )
    found = serialization.load_scores(serialization.store_scores(scores))
    pairs = [(found.pooled.probs, top), (found.class_probs, top), (found.loo_probs[1], top)]
    for a, b in [*pairs, (found.pooled.probe_probs, top)]:
        for name in ("values", "classes", "rest", "n_classes"):
            assert_equal(getattr(a, name), getattr(b, name))
    assert found.model_probs.shape == (0, 40, 150)
