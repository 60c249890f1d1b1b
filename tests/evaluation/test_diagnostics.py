"""Red flags by themselves; those of a whole repair are in tests/reporting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expunge.evaluation import diagnostics
from expunge.records import Metric
from oracles_pooled import evidence, pooled_scores
from oracles_results import make_evaluation, make_partition


def codes(made):
    return [flag.code for flag in diagnostics.hopeless(made)]


def test_hopeless_data_are_said_to_be_hopeless():
    pooled, labels, _ = evidence()
    pooled = replace(pooled, log_likelihood_gain=0.5)
    assert codes(pooled_scores(pooled, labels)) == []
    assert codes(pooled_scores(replace(pooled, contradicting_fraction=0.1), labels)) == [
        "labels-contradict"
    ]
    blind = replace(pooled, log_likelihood_gain=0.0)
    assert codes(pooled_scores(blind, labels)) == ["labels-independent-of-inputs"]
    constant = replace(pooled, probs=np.full_like(pooled.probs, 1 / pooled.probs.shape[1]))
    assert codes(pooled_scores(constant, labels)) == ["labels-independent-of-inputs"]
    few, own, _ = evidence(n=24)
    assert "too-few-samples" in codes(pooled_scores(replace(few, log_likelihood_gain=0.5), own))
    assert diagnostics.hopeless(pooled_scores(pooled, labels, pooled=None)) == ()


def test_a_model_that_does_not_know_its_training_data_is_flagged():
    pooled, labels, _ = evidence()
    majority = np.bincount(labels).max() / len(labels)
    for agreement, flagged in ((0.1, True), (majority, True), (0.6, False), (0.98, False)):
        scores = pooled_scores(pooled, labels, agreement={"plain": agreement})
        found = diagnostics.unfamiliar(scores)
        assert [f.code for f in found] == ["model-disagrees-with-labels"] * flagged
        assert not flagged or found[0].message.startswith("The model predicts ")


def flag_codes(**changes):
    given = dict.fromkeys(("partition", "plan", "before", "after")) | {"baselines": {}} | changes
    return [flag.code for flag in diagnostics.find_flags(**given)]


@pytest.mark.parametrize(("high", "expected"), [(-0.001, ["clean-accuracy-fell"]), (0.0, [])])
def test_harm_is_a_paired_gain_below_zero(high, expected):
    pair = {"before": make_evaluation(0.8), "after": make_evaluation(0.7)}
    assert flag_codes(**pair, gain=Metric(-0.1, -0.2, high, 100)) == expected


@pytest.mark.parametrize(("width", "flagged"), [(0.24, False), (0.26, True)])
def test_a_wide_interval_of_the_rate_is_flagged(width, flagged):
    partition = make_partition(noise_rate=(0.2, 0.1, 0.1 + width))
    assert ("noise-rate-not-identified" in flag_codes(partition=partition)) == flagged


def test_memorisation_without_views_is_flagged_if_the_partition_says_so():
    pooled, labels, _ = evidence(n=200)
    made = pooled_scores(replace(pooled, expected_agreement=0.7), labels, agreement={"plain": 0.99})
    partition = make_partition(memorised=True)
    (flag,) = diagnostics.memorised(made, partition)
    assert "99.0% of the given labels, where 70.0% are to be expected" in flag.message
    assert diagnostics.memorised(made, replace(partition, memorised=False)) == ()
    assert np.isfinite(made.class_probs).all()


def test_a_model_that_does_not_tolerate_views_has_memorised_only_if_it_predicts_wrong_labels():
    pooled, labels, _ = evidence(n=200)
    made = pooled_scores(pooled, labels, agreement={"plain": 0.6, "augmented": 0.4})
    for is_memorised in (True, False):
        found = diagnostics.memorised(made, make_partition(memorised=is_memorised))
        assert len(found) == is_memorised
