"""The noise model where classes are many: rates and confusions that were planted are found."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from expunge.detection.class_rows import keep_top, stack
from expunge.detection.many_class_noise import TopClassRows, shrink, symmetric
from expunge.detection.noise_model import fit_noise_model
from expunge.detection.noise_model_partitioner import noise_model
from expunge.records import Scores

CLASSES = 120


def planted(n=1500, rate=0.3, pairs=False, seed=0):
    """Two sources of class probabilities, given labels and the right ones."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, CLASSES, n)
    other = right + 1 if pairs else right + rng.integers(1, CLASSES, n)
    given = np.where(rng.random(n) < rate, other % CLASSES, right)
    sources = []
    for strength in (4.0, 2.0):
        logits = rng.standard_normal((n, CLASSES))
        logits[np.arange(n), right] += strength
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        sources.append(keep_top(probs, given))
    return stack(sources), given, right


def test_the_rate_of_symmetric_noise_is_found_and_its_error_estimated():
    sources, given, right = planted()
    model = fit_noise_model(sources, given, seed=0, n_model_sources=0)
    assert model.has_noise
    assert abs(model.rate - (given != right).mean()) < 0.04
    assert 0.001 < model.rate_stderr < 0.05
    assert model.weights[0] > model.weights[1]


def test_pair_flips_are_found_as_confusions():
    sources, given, right = planted(pairs=True)
    model = fit_noise_model(sources, given, seed=0, n_model_sources=0)
    next_class = model.transition[np.arange(CLASSES), (np.arange(CLASSES) + 1) % CLASSES]
    assert next_class.mean() > 0.15
    posterior = model.posterior(np.asarray(sources), given)
    assert (posterior.argmax(axis=1) == right).mean() > 0.85


def test_right_labels_need_no_transition():
    sources, given, _ = planted(rate=0.0)
    model = fit_noise_model(sources, given, seed=0, n_model_sources=0)
    assert model.rate < 0.01


def test_the_partition_flags_planted_labels_and_suggests_right_ones():
    sources, given, right = planted(n=800)
    scores = Scores(
        ids=np.arange(800),
        labels=given,
        values={"lda_margin": np.zeros(800)},
        kinds={"lda_margin": "label"},
        class_probs=sources[0],
        agreement={"plain": 1.0},
        loo_probs=sources,
    )
    partition = noise_model(scores, seed=0)
    assert (partition.flagged == (given != right)).mean() > 0.85
    assert (partition.suggested_label == right).mean() > 0.8


def test_a_trusted_label_is_right():
    sources, given, right = planted(n=1500)
    rows = TopClassRows(sources, given, given == right)
    weights, offsets, transition = rows.fit((0, 1))
    share = rows.posterior(rows.log_probs((0, 1), weights, offsets), transition)
    assert_allclose(share[rows.is_label][given == right], 1.0)


def test_the_posterior_of_the_best_classes_is_that_of_all():
    sources, given, _ = planted(n=200)
    rows = TopClassRows(sources, given, np.zeros(200, dtype=bool))
    transition = shrink(np.random.default_rng(0).uniform(0, 1, (CLASSES, CLASSES)), 0.2)
    log_pi = rows.log_probs((0,), np.ones(1), np.zeros(CLASSES))
    found = rows.posterior(log_pi, transition)[rows.is_label]
    pi = np.maximum(np.asarray(sources)[0].astype(float), 1e-4)
    joint = pi / pi.sum(axis=1, keepdims=True) * transition[:, given].T
    expected = joint[np.arange(200), given] / joint.sum(axis=1)
    assert_allclose(found, expected, rtol=0.05)
    assert_allclose(transition.sum(axis=1), 1.0)
    assert_allclose(symmetric(4, 0.3).sum(axis=1), 1.0)
