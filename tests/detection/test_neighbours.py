"""Nearest neighbours, against slow loops."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from expunge.detection.feature_detectors import knn_disagreement
from expunge.detection.neighbours import neighbour_mean, neighbour_votes
from oracles_detection import signals


def test_neighbour_votes_agree_with_a_slow_loop():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 4)).astype(np.float32) + 5
    labels, k, c = rng.integers(0, 3, 50), 7, 3
    centred = features.astype(float) - features.astype(float).mean(axis=0)
    expected = np.zeros((50, c))
    for i in range(50):
        cosine = [
            -np.inf if j == i else a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            for j, (a, b) in enumerate((centred[i], b) for b in centred)
        ]
        for j in np.argsort(cosine)[-k:]:
            expected[i, labels[j]] += 1
    expected = (expected + 1 / c) / (k + 1)
    assert_allclose(neighbour_votes(features, labels, c, k=k, chunk_size=1024), expected, rtol=1e-6)
    assert_allclose(neighbour_votes(features, labels, c, k=k, chunk_size=16), expected, rtol=1e-6)


def test_the_approximate_search_finds_nearly_the_same_neighbours_and_never_the_sample_itself():
    rng = np.random.default_rng(0)
    labels = np.arange(2000)  # a class each: the votes name the neighbours
    features = rng.standard_normal((2000, 8)).astype(np.float32)
    exact, near = (
        np.asarray(
            neighbour_votes(features, labels, 2000, k=10, neighbour_search=search, chunk_size=300)
        )
        > 0.05
        for search in ("exact", "approximate")
    )
    assert (exact & near).sum() / exact.sum() > 0.9
    assert not near.diagonal().any()
    twice = neighbour_votes(
        features, labels, 2000, k=10, neighbour_search="approximate", chunk_size=2000
    )
    assert_allclose(np.asarray(twice) > 0.05, near)


def test_more_neighbours_than_samples_means_all_others():
    labels = np.array([0, 0, 1])
    votes = neighbour_votes(np.eye(3, dtype=np.float32), labels, 2, k=50, chunk_size=10)
    assert_allclose(votes, (np.array([[1, 1], [1, 1], [2, 0]]) + 0.5) / 3)


def test_a_constant_layer_does_not_change_who_the_neighbours_are():
    s = signals()
    wide = np.concatenate([s.features["late"], np.full((80, 9), 0.1, np.float32)], axis=1)
    made = neighbour_votes(wide, s.labels, 4, k=5, chunk_size=1024)
    assert_allclose(made, neighbour_votes(s.features["late"], s.labels, 4, k=5, chunk_size=1024))


def test_the_mean_of_neighbours_is_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    x, values = rng.normal(size=(60, 4)) * [1, 10, 0.1, 3], rng.normal(size=60)
    z, reference_rows = x / x[:40].std(axis=0), np.arange(40)
    expected = []
    for i in range(60):
        others = [j for j in reference_rows if j != i]
        near = sorted(others, key=lambda j: float(((z[i] - z[j]) ** 2).sum()))[:7]
        expected.append(np.mean(values[near]))
    made = neighbour_mean(x, values, reference_rows, k=7, components=8)
    assert_allclose(made, expected, rtol=1e-9)


def test_chunks_and_their_size_do_not_change_the_score():
    s = signals()
    made = knn_disagreement(s)
    for chunk in (1, 7, 80):
        assert_allclose(knn_disagreement(s, chunk_size=chunk).score, made.score, rtol=1e-6)
