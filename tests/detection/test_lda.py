"""Linear statistics of features, against leaving each sample out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import log_softmax
from sklearn.linear_model import Ridge

from expunge.detection.lda import (
    RIDGE,
    ashman_d,
    loo_lda_posteriors,
    loo_ridge_predictions,
    squared_mahalanobis,
)


@pytest.mark.parametrize("d", [3, 90])
def test_discriminant_posteriors_agree_with_leaving_each_sample_out(d):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 2], 60)
    features = rng.standard_normal((60, d)) + labels[:, None]
    x = (features - features.mean(axis=0)) / features.std(axis=0)

    def scatter(rows):
        residual = np.concatenate(
            [x[rows & (labels == k)] - x[rows & (labels == k)].mean(axis=0) for k in (0, 2)]
        )
        return residual.T @ residual / 60

    everyone = np.ones(60, dtype=bool)
    ridge = 0.1 * np.trace(scatter(everyone)) / d * np.eye(d)
    expected = []
    for i in range(60):
        others = np.arange(60) != i
        inverse = np.linalg.inv(scatter(others) + ridge)
        away = [x[i] - x[others & (labels == k)].mean(axis=0) for k in (0, 2)]
        expected.append([-0.5 * d @ inverse @ d for d in away])
    made = loo_lda_posteriors(features, labels, 3)
    assert_allclose(
        made[:, [0, 2]], np.maximum(np.exp(log_softmax(expected, axis=1)), 1e-4), rtol=1e-6
    )
    assert_allclose(made[:, 1], 1e-4)


@pytest.mark.parametrize("repeats", [1, 12])
def test_a_regression_leaves_each_sample_out_as_a_slow_loop_does(repeats):
    rng = np.random.default_rng(0)
    scale = np.tile([1, 10, 0.1, 0], repeats)
    x, y = rng.normal(size=(30, len(scale))) * scale, rng.normal(size=30)
    z, varies = np.zeros_like(x), scale > 0
    z[:, varies] = (x[:, varies] - x[:, varies].mean(axis=0)) / x[:, varies].std(axis=0)
    # The penalty is that of all samples: 0.03 of the mean variance, constant columns among them.
    penalty = 30 * RIDGE * 3 / 4
    expected = []
    for i in range(30):
        rest = np.arange(30) != i
        model = Ridge(alpha=penalty, fit_intercept=False).fit(z[rest], (y - y.mean())[rest])
        expected.append(model.predict(z[i : i + 1])[0])
    assert_allclose(loo_ridge_predictions(x, y), expected, rtol=1e-8)


def test_distances_to_the_mean_agree_with_the_inverse_covariance_for_few_samples_too():
    x = np.random.default_rng(0).normal(size=(20, 50))
    z = x - x.mean(axis=0)
    covariance = z.T @ z / 20
    covariance += 1e-3 * np.trace(covariance) / 50 * np.eye(50)
    expected = np.einsum("nd,de,ne->n", z, np.linalg.inv(covariance), z)
    assert_allclose(squared_mahalanobis(x), expected, rtol=1e-6)


def test_ashman_is_the_distance_in_pooled_deviations():
    assert float(ashman_d(3.0, 1.0, 0.0, 1.0)) == pytest.approx(3.0)
    assert float(ashman_d(0.0, 3.0, 10.0, 4.0)) == pytest.approx(np.sqrt(2) * 10 / 5)
