"""The partitioner by a noise model: which sources and samples it uses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from expunge.detection.mixture_partitioner import mixture
from expunge.detection.noise_model_partitioner import noise_model
from expunge.records import Scores
from oracles_detection import planted_labels, symmetric

N, C = 4000, 4
MEMORISED, GENERALISES = {"plain": 1.0, "augmented": 0.5}, {"plain": 0.7, "augmented": 0.7}


def evidence(n=600, rate=0.3, **changes):
    """Scores whose sources predict the right labels, and the right labels."""
    sources, right, given = planted_labels(symmetric(rate), n=n, sharp=4.0)
    fields = {
        "ids": np.arange(n),
        "labels": given,
        "values": {"lda_margin": np.random.default_rng(1).standard_normal(n)},
        "kinds": {"lda_margin": "label"},
        "class_probs": sources[0],
        "agreement": MEMORISED,
        "loo_probs": sources,
    }
    return Scores(**{**fields, **changes}), right


@pytest.mark.parametrize(
    "changes",
    [{"loo_probs": None}, {"agreement": {"plain": 0.7}}, {"agreement": {}}],
    ids=["no source", "no views and no perfect fit", "no agreement"],
)
def test_without_what_a_noise_model_needs_the_result_is_that_of_the_mixture(changes):
    scores, _ = evidence(**changes)
    made, expected = noise_model(scores, seed=0), mixture(scores, seed=0)
    assert (made.p_noisy == expected.p_noisy).all()
    assert (made.suggested_label == expected.suggested_label).all()
    assert not (noise_model(evidence()[0], seed=0).p_noisy == expected.p_noisy).all()


@pytest.mark.parametrize(("n", "is_mixture"), [(19, True), (20, False)])
def test_below_twenty_samples_the_result_is_that_of_the_mixture(n, is_mixture):
    scores, _ = evidence(n)
    made, expected = noise_model(scores, seed=0), mixture(scores, seed=0)
    assert (made.evidence["label_evidence"] == expected.evidence["label_evidence"]).all() == (
        is_mixture
    )


def test_bad_inputs_do_not_take_part_in_the_fit():
    scores, _ = evidence()
    bad = np.arange(600) >= 400
    loo_probs = scores.loo_probs.copy()
    loo_probs[:, bad] = np.eye(C)[np.random.default_rng(0).integers(0, C, 200)]
    values = {**scores.values, "distance": np.random.default_rng(2).standard_normal(600) + 12 * bad}
    kinds = {**scores.kinds, "distance": "input"}
    made = noise_model(replace(scores, values=values, kinds=kinds, loo_probs=loo_probs), seed=0)
    assert ((made.p_input_fault > 0.5) == bad).all()
    few = replace(
        scores,
        ids=scores.ids[~bad],
        labels=scores.labels[~bad],
        values={k: v[~bad] for k, v in scores.values.items()},
        class_probs=scores.class_probs[~bad],
        loo_probs=scores.loo_probs[:, ~bad],
        trusted=None,
        model_probs=None,
        external_probs=None,
    )
    assert_allclose(made.p_label_fault[~bad], noise_model(few, seed=0).p_label_fault, atol=1e-9)


def test_the_predictions_of_a_model_that_memorised_are_not_used_and_those_of_others_are():
    for agreement, is_used in ((MEMORISED, False), (GENERALISES, True)):
        scores, right = evidence(agreement=agreement)
        plain = noise_model(scores, seed=0)
        rng = np.random.default_rng(0)
        predictions = 0.9 * np.eye(C)[np.where(rng.random(600) < 0.2, 0, right)] + 0.1 / C
        made = noise_model(replace(scores, model_probs=predictions[None]), seed=0)
        assert (made.p_label_fault != plain.p_label_fault).any() == is_used


def test_trusted_samples_keep_their_labels():
    scores, right = evidence()
    wrong = np.flatnonzero(scores.labels != right)[:10]
    trusted = np.isin(np.arange(600), wrong)
    made = noise_model(replace(scores, trusted=trusted), seed=0)
    assert not made.p_label_fault[trusted].any()
    assert (made.suggested_label == scores.labels)[trusted].all()
    assert (made.suggested_probability[trusted] == 1).all()
    assert (noise_model(scores, seed=0).suggested_label == right)[trusted].mean() > 0.7


@pytest.mark.parametrize(("agreement", "ranks"), [(MEMORISED, False), (GENERALISES, True)])
def test_where_no_label_is_wrong_only_a_model_that_generalises_ranks_samples(agreement, ranks):
    scores, _ = evidence(rate=0.0, agreement=agreement)
    made = noise_model(scores, seed=0)
    assert not made.flagged.any()
    assert made.p_label_fault.any() == ranks


def test_out_of_sample_probabilities_are_used_although_the_network_memorised():
    """The layers carry little information; the model's own predictions carry none."""
    honest, right, given = planted_labels(symmetric(0.3), sharp=4.0)
    vague = honest**0.05 / (honest**0.05).sum(axis=2, keepdims=True)
    scores = Scores(
        ids=np.arange(N),
        labels=given,
        values={"lda_margin": np.zeros(N)},
        kinds={"lda_margin": "label"},
        class_probs=vague[0],
        agreement={"plain": 1.0, "augmented": 0.5},
        loo_probs=vague,
        model_probs=np.eye(C)[given][None],
    )
    alone, both = (
        noise_model(scores, seed=0),
        noise_model(replace(scores, external_probs=honest), seed=0),
    )
    hits = [(split.suggested_label == right).mean() for split in (alone, both)]
    assert hits[1] > max(hits[0], (given == right).mean()) + 0.1
