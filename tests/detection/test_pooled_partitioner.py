"""The partition from pooled evidence: order, flags, suggestions, input faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

import expunge
from expunge.detection.pooled_partitioner import evidence_pool, is_unusual_group, shift_to_rate
from expunge.models.zoo import mlp
from oracles_pooled import everyone, evidence, pooled_scores


def test_the_shift_gives_the_rate_and_keeps_the_order():
    odds = np.random.default_rng(0).standard_normal(200) * 9
    shifted = shift_to_rate(odds, everyone(odds), 0.13)
    assert_allclose(expit(shifted).mean(), 0.13, atol=1e-5)
    assert_allclose(np.argsort(shifted), np.argsort(odds))


def test_no_noise_lowers_probabilities_and_keeps_their_order():
    pooled, labels, _ = evidence(rate=0.0, spread=2.0)
    split = evidence_pool(pooled_scores(pooled, labels), seed=0)
    own = pooled.probs[np.arange(len(labels)), labels]
    assert split.flagged.mean() <= 0.02
    assert len(np.unique(split.p_noisy)) > 0.9 * len(labels)
    assert np.corrcoef(split.p_noisy.argsort().argsort(), own.argsort().argsort())[0, 1] < -0.8


def test_wrong_labels_are_flagged_and_the_right_ones_suggested():
    pooled, labels, wrong = evidence(rate=0.3)
    split = evidence_pool(pooled_scores(pooled, labels), seed=0)
    assert f1_score(wrong, split.flagged) > 0.85
    assert_allclose(split.p_noisy.mean(), split.noise_rate[0], atol=1e-9)
    trusted = np.arange(len(labels)) < 50
    split = evidence_pool(pooled_scores(pooled, labels, trusted=trusted), seed=0)
    assert (split.p_noisy[trusted] == 0).all()
    assert (split.suggested_label[trusted] == labels[trusted]).all()


@pytest.mark.parametrize("method", ["auto", "evidence-pool"])
def test_a_known_rate_takes_the_place_of_the_estimate(method):
    pooled, labels, _ = evidence(rate=0.1)
    scores = pooled_scores(pooled, labels)
    estimated = expunge.partition(scores, method=method)
    known = expunge.partition(scores, method=method, noise_rate=0.35)
    assert estimated.noise_rate[0] < 0.2
    assert_allclose(known.noise_rate, 0.35, atol=1e-5)
    assert_allclose(known.p_label_fault.mean(), 0.35, atol=1e-5)
    assert_allclose(np.argsort(known.p_noisy), np.argsort(estimated.p_noisy))
    moved = known.suggested_label != known.labels
    assert (moved <= known.flagged).all()
    assert moved.sum() > 2 * (estimated.suggested_label != labels).sum()
    assert {**estimated.rate_estimates, "known": 0.35} == known.rate_estimates


@pytest.mark.parametrize(
    ("method", "rate", "message"),
    [
        ("mixture", 0.2, "'mixture' has no option 'noise_rate'"),
        ("evidence-pool", 1.0, r"noise_rate .*\(0, 1\)"),
        ("auto", 0.2, "noise_rate needs scores of detector pooled_margin"),
    ],
)
def test_a_known_rate_that_cannot_be_used_is_refused(method, rate, message):
    pooled, labels, _ = evidence(n=60)
    scores = replace(pooled_scores(pooled, labels), pooled=None)
    with pytest.raises(expunge.ConfigError, match=message):
        expunge.partition(scores, method=method, noise_rate=rate)


def test_strange_inputs_are_faults_and_a_whole_class_is_not():
    pooled, labels, _ = evidence(rate=0.0)
    novelty = np.random.default_rng(0).standard_normal(len(labels))
    novelty[:100] = 8.0
    strange = evidence_pool(pooled_scores(replace(pooled, novelty=novelty), labels), seed=0)
    assert (strange.p_input_fault[:100] > 0.5).all()
    assert (strange.p_input_fault[100:] < 0.5).all()
    assert not is_unusual_group(labels == 0, novelty)
    assert is_unusual_group(np.arange(len(labels)) < 100, novelty)
    assert not is_unusual_group(np.zeros(5, dtype=bool), novelty[:5])


def fitted(model, x, y, epochs, lr=0.05):
    optimiser = torch.optim.SGD(model.parameters(), lr, 0.9)
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


@pytest.mark.parametrize("epochs", [20, 60, 100])
def test_wrong_labels_are_found_without_views_however_far_they_are_fitted(epochs):
    digits, rng = load_digits(), np.random.default_rng(0)
    at = rng.permutation(len(digits.target))[:800]
    x, y = (digits.images[at, None] / 16).astype(np.float32), digits.target[at].astype(np.int64)
    wrong = np.arange(800) < 240
    given = np.where(wrong, (y + rng.integers(1, 10, 800)) % 10, y)
    torch.manual_seed(0)
    model = fitted(mlp(inputs=64, classes=10, hidden=64), x, given, epochs)
    split = expunge.partition(expunge.score(model, (x, given)))
    assert roc_auc_score(wrong, split.p_noisy) > 0.97
    assert f1_score(wrong, split.flagged) > 0.9
    assert split.noise_rate[1] <= 0.3 <= split.noise_rate[2]


def test_clean_flowers_lose_no_class():
    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    torch.manual_seed(0)
    model = fitted(mlp(inputs=4, classes=3, hidden=32), x, y.astype(np.int64), 10)
    split = expunge.partition(expunge.score(model, (x, y)))
    assert split.flagged.mean() <= 0.02


def test_the_label_of_a_corrupted_input_carries_no_evidence():
    pooled, labels, _ = evidence(rate=0.2)
    novelty = np.where(np.arange(len(labels)) < 100, 8.0, 0.0)
    made = evidence_pool(pooled_scores(replace(pooled, novelty=novelty), labels), seed=0)
    assert_allclose(made.p_label_fault[:100], made.p_label_fault[100:].mean(), atol=0.03)
    assert (made.suggested_label[:100] == labels[:100]).all()
