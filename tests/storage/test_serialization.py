"""Records come back from a run folder as they were."""

from __future__ import annotations

from dataclasses import replace

from numpy.testing import assert_equal

from expunge.records import SourceReport
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
