"""The noise model against planted transitions: its sources and its rate."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import approx_fprime
from scipy.special import softmax

from expunge.detection.noise_likelihood import NoiseLikelihood
from expunge.detection.noise_model import fit_noise_model, include_model_probs
from expunge.detection.transition import anchor_transition, transition_corrected
from oracles_detection import planted_labels, symmetric

N, C = 4000, 4


def test_gradients_agree_with_differences():
    rng = np.random.default_rng(0)
    logs = np.log(rng.dirichlet(np.ones(C), (3, 50)))
    problem = NoiseLikelihood(logs, rng.integers(0, C, 50), rng.random(50) < 0.2)
    x = 0.3 * rng.standard_normal(3 + C + C * C)
    x[:3] = np.abs(x[:3])
    value, gradient = problem.loss_and_gradient(x)
    assert_allclose(
        gradient, approx_fprime(x, lambda v: problem.loss_and_gradient(v)[0], 1e-7), atol=1e-5
    )
    assert np.isfinite(value)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_a_planted_transition_is_found_again(kind):
    pair = 0.7 * np.eye(C) + 0.3 * np.roll(np.eye(C), 1, axis=1)
    transition = symmetric(0.3) if kind == "symmetric" else pair
    sources, right, given = planted_labels(transition, sharp=4.0)
    model = fit_noise_model(sources, given, seed=0)
    assert model.has_noise
    assert abs(model.rate - (given != right).mean()) < 0.04
    assert_allclose(model.transition, transition, atol=0.08)
    q = model.posterior(sources, given)
    assert_allclose(q.sum(axis=1), 1)
    assert (q.argmax(axis=1) == right).mean() > (given == right).mean()


def test_classes_that_come_in_turns_are_all_seen():
    rng, n = np.random.default_rng(0), 15_000
    right = np.arange(n) % 2
    given = np.where(rng.random(n) < 0.22, 1 - right, right)
    sure = 0.5 + 0.5 * rng.random(n)
    guess = np.where(rng.random(n) < sure, right, 1 - right)
    q = np.where(np.eye(2, dtype=bool)[guess], sure[:, None], 1 - sure[:, None])
    model = fit_noise_model(q[None], given, seed=0)
    assert model.has_noise
    assert abs(model.rate - 0.22) < 0.02


def test_right_labels_are_found_to_be_right_however_hard_the_samples_are():
    sources, _, given = planted_labels(np.eye(C), sharp=1.0)
    assert not fit_noise_model(sources, given, seed=0).has_noise


def test_a_source_that_has_memorised_the_labels_is_not_the_reference():
    sources, right, given = planted_labels(symmetric(0.3), sharp=4.0)
    memorised = 0.98 * np.eye(C)[given] + 0.005
    model = fit_noise_model(np.concatenate([memorised[None], sources]), given, seed=0)
    assert model.sources == (1,)
    assert abs(model.rate - (given != right).mean()) < 0.04


def test_hard_samples_are_no_wrong_labels_where_a_stronger_source_explains_them():
    strong, right, given = planted_labels(np.eye(C), sharp=3.0)
    # As often wrong where it is sure as where it is not: alone, it needs a transition.
    rng = np.random.default_rng(1)
    guess = np.where(rng.random(N) < 0.3, rng.integers(0, C, N), right)
    weak = softmax(rng.uniform(0, 8, (N, 1)) * np.eye(C)[guess], axis=1)
    both = np.concatenate([weak[None], strong])
    assert fit_noise_model(weak[None], given, seed=0).has_noise
    assert not fit_noise_model(both, given, seed=0, n_model_sources=1).has_noise


def test_the_label_bias_restores_the_rate_that_a_biased_source_hides():
    honest, right, given = planted_labels(symmetric(0.3), sharp=4.0)
    biased = honest * np.exp(1.5 * np.eye(C)[given])
    biased /= biased.sum(axis=2, keepdims=True)
    both = np.concatenate([honest, biased])
    model = fit_noise_model(both, given, seed=0, n_model_sources=1)
    assert model.has_noise
    assert model.sources == (0, 1)
    assert model.label_bias > 0
    p = 1 - model.posterior(both, given)[np.arange(N), given]
    assert abs(p.mean() - (given != right).mean()) < 0.04


def test_predictions_of_pair_flips_are_corrected_for_the_transition():
    transition = 0.6 * np.eye(C) + 0.4 * np.roll(np.eye(C), 1, axis=1)
    honest, right, given = planted_labels(transition, sharp=4.0)
    model_probs, everyone = honest @ transition, np.ones(N, dtype=bool)
    stack = include_model_probs(honest[:0], model_probs, given, everyone)
    assert_allclose(stack[0], transition_corrected(model_probs[0]))
    assert (stack[0].argmax(axis=1) == right).mean() > (
        model_probs[0].argmax(axis=1) == right
    ).mean()
    q = fit_noise_model(stack, given, seed=0, n_model_sources=1).posterior(stack, given)
    assert (q.argmax(axis=1) == right).mean() > 0.9


def test_predictions_are_not_corrected_if_wrong_labels_scatter():
    transition = symmetric(0.3)
    honest, _, given = planted_labels(transition, sharp=4.0)
    model_probs = honest @ transition
    assert (
        include_model_probs(honest, model_probs, given, np.ones(N, dtype=bool))[1] == model_probs[0]
    ).all()


def test_where_no_label_is_wrong_the_least_likely_still_rank_first():
    sources, _, given = planted_labels(np.eye(C), sharp=1.0)
    p = (
        1
        - fit_noise_model(sources, given, seed=0, n_model_sources=0).posterior(sources, given)[
            np.arange(N), given
        ]
    )
    assert p.max() < 0.5
    assert np.corrcoef(p, sources[0][np.arange(N), given])[0, 1] < -0.2


def test_the_rate_of_a_biased_model_is_the_mean_of_what_the_other_sources_find_alone():
    honest, _, given = planted_labels(symmetric(0.3), sharp=4.0)
    biased = honest * np.exp(1.0 * np.eye(C)[given])
    biased /= biased.sum(axis=2, keepdims=True)
    vague = honest**0.3 / (honest**0.3).sum(axis=2, keepdims=True)
    model = fit_noise_model(
        np.concatenate([honest, vague, biased]), given, seed=0, n_model_sources=1
    )
    rates = [fit_noise_model(q, given, seed=0, n_model_sources=0).rate for q in (honest, vague)]
    assert model.rate == pytest.approx(np.mean(rates), abs=2e-3)


def test_a_trusted_label_is_right_for_the_rate_and_the_fit():
    sources, _, given = planted_labels(symmetric(0.3), sharp=4.0)
    trusted = np.arange(N) < N // 2
    model = fit_noise_model(sources, given, seed=0, trusted=trusted)
    p = 1 - model.posterior(sources, given)[np.arange(N), given]
    assert model.rate == pytest.approx(np.where(trusted, 0, p).mean(), abs=1e-9)


def test_information_criteria_count_the_transition_as_one_parameter():
    sources, _, given = planted_labels(symmetric(0.3), n=500, sharp=4.0)
    model = fit_noise_model(sources, given, seed=0, n_model_sources=0)
    parameters = 1 + C + 1
    assert model.bic[2] == pytest.approx(parameters * np.log(500) - 2 * model.log_likelihood)
    assert model.has_noise == (model.bic[2] < model.bic[1])


def test_the_standard_error_of_the_rate_falls_with_the_root_of_n():
    errors = []
    for n in (3000, 12_000):
        sources, _, given = planted_labels(symmetric(0.3), n=n, sharp=4.0)
        errors.append(fit_noise_model(sources, given, seed=0, n_model_sources=0).rate_stderr)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)
    assert 0.003 < errors[0] < 0.03


def test_anchors_are_the_most_confident_tenth_of_each_predicted_class():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 95)
    expected = np.eye(3)
    for c in range(3):
        rows = sorted(p[p.argmax(axis=1) == c].tolist(), key=lambda row: -row[c])
        expected[c] = np.mean(rows[: int(np.ceil(len(rows) / 10))], axis=0)
    assert_allclose(anchor_transition(p), expected)
    assert_allclose(anchor_transition(p[p.argmax(axis=1) < 2])[2], [0, 0, 1])
