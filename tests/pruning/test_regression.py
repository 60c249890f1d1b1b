"""Layers and directions that predict the noise, against scikit-learn and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from expunge.pruning.regression import RegressionSums, rank_directions, rank_layers


def sums_of(x, y):
    ones = np.ones(x.shape[1])
    return RegressionSums(len(y), x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, ones)


def planted(seed=0, n=300):
    """Five units that share one strong direction; y follows a weak one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5)) + 3 * rng.standard_normal((n, 1)) * np.ones(5)
    y = x[:, 0] - x[:, 1] + 0.1 * rng.standard_normal(n)
    return x, y


def test_directions_are_the_principal_components_and_their_correlations_with_the_noise():
    x, y = planted()
    scores = PCA().fit_transform(StandardScaler().fit_transform(x))
    expected = {k: np.corrcoef(scores[:, k], y)[0, 1] ** 2 for k in range(5)}
    share = PCA().fit(StandardScaler().fit_transform(x)).explained_variance_ratio_
    found = rank_directions({"layer": sums_of(x, y)})
    assert len(found) == 3
    assert [e.r_squared for e in found] == sorted((e.r_squared for e in found), reverse=True)
    for effect in found:
        assert_allclose(effect.r_squared, expected[effect.number], atol=1e-9)
        assert_allclose(effect.variance_share, share[effect.number], atol=1e-9)
    assert found[0].q_value < 1e-6
    assert sum(e.variance_share for e in found if e.r_squared > 0.1) < 0.1


def test_a_layer_has_the_error_of_generalised_cross_validation_of_its_best_ridge():
    x, y = planted(n=40)
    z = (x - x.mean(0)) / x.std(0)
    t = (y - y.mean()) / y.std()
    errors = []
    for penalty in np.logspace(-4, 1, 21):
        hat = z @ np.linalg.solve(z.T @ z + 40 * penalty * np.eye(5), z.T)
        residual = ((t - hat @ t) ** 2).mean()
        errors.append(residual / (1 - np.trace(hat) / 40) ** 2)
    ((effect,),) = [rank_layers({"layer": sums_of(x, y)})]
    assert_allclose(effect.r_squared, 1 - min(errors), atol=1e-9)


def test_layers_and_directions_of_noise_predict_nothing_however_many_units_they_have():
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sums = {"layer": sums_of(rng.standard_normal((100, 60)), rng.standard_normal(100))}
        (layer,) = rank_layers(sums)
        found.append((layer.r_squared, min(e.q_value for e in rank_directions(sums))))
    r_squared, q_values = np.array(found).T
    assert np.mean(r_squared) < 0.1
    assert np.mean(q_values < 0.05) < 0.2  # a false discovery in one of twenty


def test_layers_are_sorted_and_those_without_evidence_are_left_out():
    x, y = planted()
    rng = np.random.default_rng(2)
    empty = np.zeros(0)
    sums = {
        "noise": sums_of(rng.standard_normal(x.shape), y),
        "signal": sums_of(x, y),
        "dead": sums_of(np.zeros_like(x), y),
        "weights": RegressionSums(0, empty, 0.0, 0.0, empty, empty, np.ones(3)),
    }
    assert [e.layer for e in rank_layers(sums)] == ["signal", "noise"]
    assert {e.layer for e in rank_directions(sums)} == {"signal", "noise"}


@pytest.mark.parametrize("rank", [rank_layers, rank_directions])
def test_a_constant_noise_probability_ranks_nothing(rank):
    x, _ = planted()
    assert rank({"layer": sums_of(x, np.full(len(x), 0.25))}) == ()
