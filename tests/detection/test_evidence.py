"""Pooled evidence: what joins the pool and how far, novelty, contradicting copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from expunge.detection.evidence import (
    contradicting_fraction,
    log_mean_distance,
    pool_evidence,
    robust_deviation,
)
from expunge.detection.probes import nearest_others
from expunge.records import Signals


def blobs(n=300, c=3, seed=0, apart=3.0, d=5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    return (apart * rng.standard_normal((c, d))[y] + rng.standard_normal((n, d))), y


def signals(n=300, rate=0.2, seed=0, fitted=True):
    """Inputs in groups, some wrong labels, a model that has memorised them or knows nothing."""
    x, right = blobs(n, seed=seed)
    rng = np.random.default_rng(seed + 1)
    wrong = rng.random(n) < rate
    y = np.where(wrong, (right + rng.integers(1, 3, n)) % 3, right)
    logits = 8.0 * np.eye(3)[y if fitted else right]
    features = {"first": x @ rng.standard_normal((5, 8)), "last": np.eye(3)[y] + 0.1 * x[:, :3]}
    features = {k: v.astype(np.float32) for k, v in features.items()}
    made = Signals(np.arange(n) * 3, y, logits, features=features, inputs=x.astype(np.float32))
    return made, wrong


def test_wrong_labels_are_found_though_the_model_has_memorised_them():
    made, wrong = signals()
    pooled = pool_evidence(made)
    own = pooled.probs[np.arange(300), made.labels]
    assert roc_auc_score(wrong, -own) > 0.95
    assert pooled.memorised_fraction > 0.9
    weights = {source.name: source.weight for source in pooled.sources}
    assert weights["model"] < 1e-3
    assert weights["linear:last"] < 1e-3
    assert max(weights.values()) == 1.0
    assert weights["neighbours:input"] > 0.9


@pytest.mark.parametrize("n_outputs", [50, 1000])
def test_outputs_of_classes_without_samples_change_nothing(n_outputs):
    made, _ = signals(fitted=False)
    logits = np.full((300, n_outputs), 1.0)
    logits[:, [4, 9, 30]] = made.logits
    views = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([4, 9, 30])[made.labels]
    wide = replace(made, labels=labels, logits=logits, augmented_probs=views, views=2)
    shown = np.exp(made.logits) / np.exp(made.logits).sum(axis=1, keepdims=True)
    few = pool_evidence(replace(made, augmented_probs=shown, views=2))
    many = pool_evidence(wide)
    probs = np.asarray(many.probs[:])
    assert probs.shape == (300, n_outputs)
    assert_allclose(probs[:, [4, 9, 30]], few.probs, atol=1e-4)
    assert probs.sum(axis=1).max() < 1.001
    assert many.log_likelihood_gain == pytest.approx(few.log_likelihood_gain, abs=1e-3)


def test_a_model_that_has_not_memorised_joins():
    pooled = pool_evidence(signals(fitted=False)[0])
    assert {s.name: s.weight for s in pooled.sources}["model"] > 0.8


def test_a_weak_source_counts_little_and_a_strong_layer_much():
    rng = np.random.default_rng(0)
    made, _ = signals(fitted=False)
    noise = rng.standard_normal((300, 4)).astype(np.float32)
    views = np.eye(3)[made.logits.argmax(1)]
    weak = replace(made, inputs=noise, features={}, augmented_probs=views, views=2)
    weights = {s.name: s.weight for s in pool_evidence(weak).sources}
    assert weights["neighbours:input"] < 0.05
    assert weights["model"] > 0.9


def test_each_layer_is_judged_by_its_own_fit():
    made, _ = signals()
    first = made.features["first"]
    layers = {"first": first, "middle": first + 0.1, "last": made.features["last"]}
    weights = {s.name: s.weight for s in pool_evidence(replace(made, features=layers)).sources}
    assert weights["linear:middle"] > 0.3
    assert weights["linear:last"] < 1e-3


def test_a_weak_layer_of_a_model_that_has_not_memorised_is_no_evidence_of_noise():
    """It errs about a third of the samples at random, and is sure of them."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, 600)
    wrong = rng.random(600) < 0.2
    labels = np.where(wrong, (right + rng.integers(1, 3, 600)) % 3, right)
    seen = np.where(rng.random(600) < 0.4, rng.integers(0, 3, 600), right)
    features = {
        "first": rng.standard_normal((600, 4)),
        "weak": np.eye(3)[seen] + 0.05 * rng.standard_normal((600, 3)),
        "deep": np.eye(3)[right] + 0.05 * rng.standard_normal((600, 3)),
    }
    features = {k: v.astype(np.float32) for k, v in features.items()}
    inputs = rng.standard_normal((600, 5)).astype(np.float32)
    made = Signals(np.arange(600), labels, 8.0 * np.eye(3)[right], features=features, inputs=inputs)
    shown = 0.9 * np.eye(3)[right] + 0.1 / 3
    pooled = pool_evidence(replace(made, augmented_probs=shown, views=4))
    assert pooled.memorised_fraction < 0.1
    assert pooled.layer_rate > 0.35
    assert pooled.layer_weight < 0.2
    memorised = replace(made, logits=8.0 * np.eye(3)[labels], augmented_probs=shown, views=4)
    assert pool_evidence(memorised).layer_weight > 0.8


def test_external_probabilities_that_were_fitted_on_the_labels_have_no_weight():
    made, wrong = signals()
    right = np.where(wrong, (made.labels + 1) % 3, made.labels)
    for labels, low, high in ((made.labels, 0.0, 0.0), (right, 0.8, 1.0)):
        probs = 0.97 * np.eye(3)[labels] + 0.01
        found = pool_evidence(replace(made, external_probs={"other": probs}))
        weight = {s.name: s.weight for s in found.sources}["external:other"]
        assert low <= weight <= high


def test_the_pool_does_not_depend_on_the_order_of_the_samples():
    made, _ = signals(120)
    at = np.random.default_rng(5).permutation(120)
    shuffled = Signals(
        made.ids[at],
        made.labels[at],
        made.logits[at],
        features={k: v[at] for k, v in made.features.items()},
        inputs=made.inputs[at],
    )
    first, second = pool_evidence(made), pool_evidence(shuffled)
    assert_allclose(first.probs[at], second.probs, atol=1e-4)
    assert_allclose(first.novelty[at], second.novelty, atol=1e-3)


@pytest.mark.parametrize(("scale", "held_out"), [(1.0, None), (0.3, 0.6)])
def test_a_first_layer_that_agrees_with_nearly_all_labels_is_not_believed(scale, held_out):
    """Nor counts its agreement as expected: the input shows noise, or held-out labels do."""
    made, wrong = signals()
    rng = np.random.default_rng(2)
    first = np.eye(3)[made.labels] + 0.1 * rng.standard_normal((300, 3))
    inputs = scale * made.inputs + rng.standard_normal(made.inputs.shape)
    made = replace(
        made,
        features={"first": first.astype(np.float32), "last": made.features["last"]},
        inputs=inputs.astype(np.float32),
    )
    pooled = pool_evidence(made, held_out_agreement=held_out)
    sources = {s.name: s for s in pooled.sources}
    assert sources["linear:first"].agreement > 0.99
    assert sources["linear:first"].weight < 1e-3
    assert pooled.expected_agreement < 0.87
    assert pooled.memorised_fraction > 0.9
    assert roc_auc_score(wrong, -pooled.probs[np.arange(300), made.labels]) > 0.8


def test_a_first_layer_that_has_memorised_counts_no_more_than_the_input():
    """Two classes, 40 % wrong: what was memorised is a large part of what agrees."""
    rng = np.random.default_rng(0)
    x, right = blobs(600, c=2, apart=1.0)
    y = np.where(rng.random(600) < 0.4, 1 - right, right)
    first = x @ rng.standard_normal((5, 12)) + 0.7 * (2 * y - 1)[:, None] * rng.random(12)
    first += rng.standard_normal((600, 12))
    logits = 3.0 * np.eye(2)[np.where(rng.random(600) < 0.9, y, 1 - y)]
    features = {"first": first.astype(np.float32)}
    made = Signals(np.arange(600), y, logits, features=features, inputs=x.astype(np.float32))
    pooled = pool_evidence(made)
    assert 0.5 < pooled.memorised_fraction < 0.9
    sources = {s.name: s for s in pooled.sources}
    assert sources["linear:first"].agreement > sources["linear:input"].agreement + 0.1
    assert sources["linear:first"].weight < sources["linear:input"].weight
    assert (pooled.probs.argmax(1) == right).mean() > 0.8


def test_without_inputs_there_is_no_pool():
    assert pool_evidence(replace(signals()[0], inputs=None)) is None


def test_contradicting_copies_are_a_lower_bound():
    inputs = np.repeat([[0.1, 0.9], [0.2, 0.7], [0.3, 0.4]], [3, 2, 1], axis=0)
    assert_allclose(contradicting_fraction(inputs, np.array([0, 0, 1, 1, 0, 1])), 2 / 6)
    assert contradicting_fraction(inputs, np.array([0, 0, 0, 1, 1, 0])) == 0


def test_rows_that_are_equal_by_chance_are_no_copies():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    answers = rng.integers(0, 4, (400, 4)).astype(float)
    assert contradicting_fraction(answers, labels) == 0
    assert contradicting_fraction(answers[:, :1], labels) == 0
    copies = np.concatenate([rng.normal(size=(200, 4))] * 2)
    assert_allclose(
        contradicting_fraction(copies, labels), (labels[:200] != labels[200:]).sum() / 400
    )


def test_far_samples_are_strange_for_their_class_and_tight_classes_are_not():
    rng = np.random.default_rng(0)
    x = np.concatenate([0.1 * rng.standard_normal((100, 3)), 5 + rng.standard_normal((100, 3))])
    x[0] += 3.0
    _, distance = nearest_others(x, 5)(slice(0, 200))
    novelty = robust_deviation(log_mean_distance(distance.mean(axis=1)), np.repeat([0, 1], 100))
    assert novelty.argmax() == 0
    assert novelty[0] > 4
    assert (np.abs(novelty[1:]) < 4).mean() > 0.97


def test_a_row_without_a_copy_is_not_unusual_in_a_table_whose_rows_repeat():
    distance = np.concatenate([np.zeros(600), np.random.default_rng(0).uniform(1, 2, 400)])
    assert not log_mean_distance(distance).any()
    assert np.ptp(log_mean_distance(distance[600:])) > 0
    assert not log_mean_distance(np.zeros(5)).any()


def test_what_the_model_should_fit_is_measured_by_views_held_out_labels_or_the_pool():
    made, _ = signals()
    found = pool_evidence(made)
    own = found.sources[0]
    assert own.name == "neighbours:input"
    assert 0.6 < found.expected_agreement < 0.9
    probes = found.expected_agreement
    assert pool_evidence(made, held_out_agreement=0.3).expected_agreement == probes
    clean, _ = signals(rate=0.0)
    assert pool_evidence(clean, held_out_agreement=0.93).expected_agreement >= 0.98
    views = np.roll(np.eye(3)[made.labels], 1, axis=1).astype(np.float32)
    seen = replace(made, augmented_probs=views, augmented_loss=np.ones(300), views=2)
    assert pool_evidence(seen, held_out_agreement=0.3).expected_agreement == probes
    memorised = replace(seen, augmented_probs=np.eye(3)[made.labels])
    assert pool_evidence(memorised).expected_agreement < 0.9


def test_views_that_were_memorised_too_are_not_believed_where_probes_show_noise():
    made, wrong = signals()
    views = (0.96 * np.eye(3)[made.labels] + 0.02).astype(np.float32)
    seen = replace(made, augmented_probs=views, augmented_loss=np.ones(300), views=2)
    pooled = pool_evidence(seen)
    assert pooled.memorised_fraction > 0.8
    assert roc_auc_score(wrong, -pooled.probs[np.arange(300), made.labels]) > 0.95


def test_held_out_labels_bound_what_views_agree_with():
    rng = np.random.default_rng(0)
    made, _ = signals(fitted=False)
    weak = replace(made, inputs=rng.standard_normal((300, 4)).astype(np.float32), features={})
    views = np.eye(3)[made.labels].astype(np.float32)
    seen = replace(weak, augmented_probs=views, augmented_loss=np.ones(300), views=2)
    assert pool_evidence(seen).expected_agreement == 1.0
    assert_allclose(pool_evidence(seen, held_out_agreement=0.8).expected_agreement, 0.9)


def test_sources_report_the_rate_that_they_would_give_alone():
    made, wrong = signals()
    rates = {s.name: s.noise_rate for s in pool_evidence(made).sources}
    assert_allclose(rates["kernel:input"], wrong.mean(), atol=0.05)
    assert rates["model"] < 0.01
