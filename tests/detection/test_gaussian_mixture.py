"""Mixtures of evidence: posteriors and component rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from expunge.detection.gaussian_mixture import (
    Gaussians,
    fit_evidence,
    gap_rule,
    noisy_posterior,
    noisy_share_stderr,
    odds_rule,
    refit,
    standardise,
    weighted_evidence,
)
from expunge.records import Component, Fit
from oracles_detection import two_groups


def test_a_posterior_agrees_with_the_formula_between_the_means_and_never_turns():
    parts = (Component(0.7, 0.0, 2.0, False), Component(0.3, 4.0, 0.5, True))
    e = np.linspace(-20, 20, 401)
    made = noisy_posterior(e, parts)
    inside = (e >= 0) & (e <= 4)
    clean, noisy = 0.7 * norm.pdf(e, 0, 2), 0.3 * norm.pdf(e, 4, 0.5)
    raw = (noisy / (clean + noisy))[inside]
    assert_allclose(made[inside], np.maximum.accumulate(raw), atol=1e-12)
    assert (np.diff(made) >= 0).all()
    assert_allclose(made[e > 4], made[e <= 4].max())
    # Between two noisy components the clean one would come back.
    more = (Component(0.5, 0.0, 3.0, False), parts[1], Component(0.2, 12.0, 0.5, True))
    assert (np.diff(noisy_posterior(e, more)) >= 0).all()
    assert not noisy_posterior(e, parts[:1]).any()
    assert noisy_posterior(e, parts[1:]).all()


def hard(groups, k):
    """Responsibilities of samples that belong to one component each."""
    return np.eye(k)[groups]


@pytest.mark.parametrize(("factor", "noisy"), [(2.1, True), (1.9, False)])
def test_a_component_is_noisy_if_another_label_is_twice_as_likely(factor, noisy):
    groups = np.array([0, 0, 1, 1])
    # The geometric mean of the odds counts.
    odds = np.log([0.1, 0.2, factor * 4, factor / 4])
    rule = odds_rule(odds)
    assert rule(hard(groups, 2), np.zeros(2), np.ones(2)).tolist() == [False, noisy]


def test_every_component_above_a_noisy_one_is_noisy():
    odds = np.log([0.1, 5.0, 0.5])
    made = odds_rule(odds)(hard(np.arange(3), 3), np.zeros(3), np.ones(3))
    assert made.tolist() == [False, True, True]
    means = np.array([0.0, 5.0, 6.0])
    made = gap_rule(2.0)(hard(np.repeat(np.arange(3), [4, 1, 1]), 3), means, np.ones(3))
    assert made.tolist() == [False, True, True]


@pytest.mark.parametrize(("distance", "noisy"), [(2.1, True), (1.9, False)])
def test_inputs_above_a_gap_are_noisy(distance, noisy):
    groups = np.repeat([0, 1], [6, 4])
    made = gap_rule(2.0)(hard(groups, 2), np.array([0.0, distance]), np.ones(2))
    assert made.tolist() == [False, noisy]


@pytest.mark.parametrize(("above", "noisy"), [(66, True), (67, False)])
def test_more_than_two_thirds_of_the_inputs_are_no_minority(above, noisy):
    groups = np.repeat([0, 1], [100 - above, above])
    made = gap_rule(2.0)(hard(groups, 2), np.array([0.0, 9.0]), np.ones(2))
    assert made.tolist() == [False, noisy]


@pytest.mark.parametrize(("n", "components"), [(19, 1), (20, 2)])
def test_below_twenty_samples_no_mixture_is_fitted(n, components):
    e = np.where(np.arange(n) < n // 2, 0.0, 9.0) + 0.1 * np.random.default_rng(0).random(n)
    fit, p = fit_evidence(
        e,
        np.ones(n, dtype=bool),
        kind="input",
        components=2,
        rule=gap_rule(2.0),
        seed=0,
    )
    assert len(fit.components) == components
    assert p.any() == (components == 2)


def test_rows_that_are_not_usable_do_not_shape_the_mixture():
    e, bad = two_groups(400, 0.3, apart=8.0)
    usable = np.arange(400) >= 100
    odd = np.where(usable, e, 50.0)
    options = {"kind": "input", "components": 2, "rule": gap_rule(2.0), "seed": 0}
    fit, p = fit_evidence(odd, usable, **options)
    expected, _ = fit_evidence(e[usable], np.ones(300, dtype=bool), **options)
    assert fit == expected
    assert (p > 0.5)[~usable].all()
    assert ((p > 0.5) == bad)[usable].all()


def test_scores_are_weighted_by_how_well_they_separate_two_groups():
    sharp, _ = two_groups(1000, 0.3, apart=8.0)
    vague = two_groups(1000, 0.3, apart=2.0)[0]
    columns = [standardise(c) for c in (sharp, vague, np.zeros(1000))]
    made = weighted_evidence(columns, seed=0)
    weights = np.linalg.lstsq(np.stack(columns[:2], axis=1), made, rcond=None)[0]
    assert_allclose(weights.sum(), 1)
    assert weights[0] > 3 * weights[1]
    assert (weighted_evidence(columns[:1], seed=0) == columns[0]).all()
    few = [c[:19] for c in columns]
    assert_allclose(weighted_evidence(few, seed=0), np.mean(few, axis=0))


def test_standardised_values_ignore_outliers():
    values = np.append(np.random.default_rng(0).standard_normal(1000) + 3, 1e6)
    made = standardise(values)
    assert np.median(made) == 0
    low, high = np.quantile(values, [0.01, 0.99])
    limited = np.clip(values, low, high)
    assert_allclose(made, (limited - np.median(values)) / limited.std())


def test_the_standard_error_of_a_share_falls_with_the_root_of_n():
    few, many = (two_groups(n, 0.3, apart=6.0)[0] for n in (4_000, 64_000))
    parts = (Component(0.7, 0.0, 1.0, False), Component(0.3, 6.0, 1.0, True))
    fit = Fit("input", parts, {}, 6.0)
    errors = [noisy_share_stderr(e, fit, seed=0) for e in (few, many)]
    assert errors[0] == pytest.approx(np.sqrt(0.3 * 0.7 / 4_000), rel=0.3)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4)
    assert noisy_share_stderr(few, replace(fit, components=parts[:1]), seed=0) == 1 / 4_000


def test_refitted_mixtures_are_those_of_scikit_learn():
    e = two_groups(500, 0.3, apart=3.0)[0]
    rng = np.random.default_rng(0)
    samples = np.stack([e[rng.integers(0, 500, 500)] for _ in range(4)])
    start = Gaussians(np.array([0.6, 0.3, 0.1]), np.array([0.0, 3.0, 6.0]), np.array([1, 2, 0.1]))
    found = refit(samples, start, least=1e-3, max_steps=100)
    for i, sample in enumerate(samples):
        model = GaussianMixture(
            3,
            weights_init=start.weights,
            means_init=start.means[:, None],
            precisions_init=1 / start.variances[:, None, None],
            reg_covar=1e-3,
            tol=1e-5,
        ).fit(sample[:, None])
        assert_allclose(found.weights[i], model.weights_, atol=1e-9)
        assert_allclose(found.means[i], model.means_[:, 0], atol=1e-9)
        assert_allclose(found.variances[i], model.covariances_[:, 0, 0], atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_mixture_that_bic_chooses_is_that_of_scikit_learn(k):
    e, bad = two_groups(600, 0.3, apart=3.0)
    e = np.round(e, 1)
    expected = GaussianMixture(
        k, reg_covar=1e-4 * e.var(), random_state=5, tol=1e-5, max_iter=500
    ).fit(np.sort(e)[:, None])
    rule = odds_rule(np.where(bad, 5.0, -5.0))
    fit, _ = fit_evidence(e, np.full(600, True), kind="label", components=k, rule=rule, seed=5)
    assert fit.bic[k] == pytest.approx(expected.bic(e[:, None]))
    if len(fit.components) == k:
        assert_allclose([c.mean for c in fit.components], np.sort(expected.means_[:, 0]), atol=1e-8)


def test_rows_that_are_not_usable_do_not_decide_which_component_is_noisy():
    e, bad = two_groups(400, 0.3, apart=8.0)
    usable = np.arange(400) >= 100
    odds = np.where(bad, np.log(10), np.log(0.1))
    odds[~usable] = np.log(1e6)
    fit, _ = fit_evidence(e, usable, kind="label", components=2, rule=odds_rule(odds), seed=0)
    assert [c.noisy for c in fit.components] == [False, True]
