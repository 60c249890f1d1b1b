"""Metrics against scikit-learn, slow loops and repeated sampling."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from expunge.errors import DataError
from expunge.evaluation.metrics import (
    bootstrap,
    calibration_error,
    detection,
    evaluate,
    f1,
    paired_gain,
)
from expunge.records import Evaluation

CLASSES = ("ant", "bee", "cow", "dog")


def predictions(n=300, c=4, seed=0):
    """Labels, and probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    logits = rng.standard_normal((n, c)) + 1.5 * np.eye(c)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def evaluation(labels, probs, seed=0, ids=None):
    ids = np.arange(len(labels)) if ids is None else ids
    return evaluate(ids, labels, probs, CLASSES, seed=seed)


@pytest.mark.parametrize("present", [4, 3, 1])
def test_evaluation_agrees_with_scikit_learn(present):
    labels, probs = predictions()
    labels, probs = labels[labels < present], probs[labels < present]
    made = evaluation(labels, probs)
    predicted, there = probs.argmax(axis=1), list(range(present))
    recall = recall_score(labels, predicted, labels=there, average=None)
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_precision": precision_score(labels, predicted, labels=there, average="macro"),
        "macro_f1": f1_score(labels, predicted, labels=there, average="macro"),
        "top_3": top_k_accuracy_score(labels, probs, k=3, labels=range(4)),
        "worst_class": recall.min(),
        "calibration_error": slow_calibration_error(probs.max(axis=1), predicted == labels),
    }
    assert_allclose([made.metrics[k].value for k in expected], list(expected.values()), atol=1e-12)
    assert list(made.per_class) == list(CLASSES[:present])
    assert_allclose(list(made.per_class.values()), recall)
    assert (made.correct == (predicted == labels)).all()
    assert all(m.n == len(labels) for m in made.metrics.values())


def test_a_class_that_is_never_predicted_has_no_precision():
    labels = np.array([0, 0, 1, 2])
    probs = np.eye(4)[[0, 0, 0, 3]]
    found = evaluation(labels, probs).metrics["macro_precision"].value
    assert found == pytest.approx((2 / 3 + 0 + 0) / 3)


def test_the_top_three_need_more_than_three_classes():
    labels, probs = np.array([0, 3, 3]), np.array([[0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0, 0, 0, 1]])
    made = evaluation(labels, probs).metrics["top_3"]
    assert made.value == pytest.approx(2 / 3)  # of four that tie, the last is not among three
    assert made.low < made.value < made.high
    few = evaluate(np.arange(2), labels[:2] // 2, probs[:2, :3], CLASSES[:3], seed=0)
    assert "top_3" not in few.metrics


def test_perfect_predictions_have_an_interval_without_width():
    labels = np.arange(40) % 4
    made = evaluation(labels, np.eye(4)[labels])
    assert (made.accuracy.low, made.accuracy.value, made.accuracy.high) == (1.0, 1.0, 1.0)
    assert made.metrics["calibration_error"].value == 0.0


def test_an_evaluation_depends_on_its_seed_only():
    labels, probs = predictions()
    assert evaluation(labels, probs).metrics == evaluation(labels, probs).metrics
    assert evaluation(labels, probs).metrics != evaluation(labels, probs, seed=1).metrics
    order = np.random.default_rng(0).permutation(len(labels))
    again = evaluation(labels[order], probs[order]).metrics
    assert again["macro_f1"] == evaluation(labels, probs).metrics["macro_f1"]


def slow_calibration_error(probability, outcome, bins=15):
    total = 0.0
    for b in range(bins):
        inside = [
            i
            for i, p in enumerate(probability)
            if b / bins <= p and (p < (b + 1) / bins or b == bins - 1)
        ]
        if inside:
            gap = np.mean(probability[inside]) - np.mean(np.asarray(outcome)[inside])
            total += len(inside) / len(probability) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_agrees_with_a_slow_loop(bins):
    rng = np.random.default_rng(bins)
    probability = np.concatenate([rng.random(200), [0.0, 0.25, 0.5, 1.0, 1.0]])
    outcome = rng.random(205) < probability**2
    expected = slow_calibration_error(probability, outcome, bins)
    assert calibration_error(probability, outcome, bins=bins) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def slow_best_f1(truth, score):
    return max(f1_score(truth, score >= t) for t in np.unique(score))


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_detection_agrees_with_scikit_learn_also_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    truth = rng.random(150) < 0.3
    score = (rng.standard_normal(150) + truth).round(decimals)
    made = detection(truth, score)
    assert_allclose(made["auroc"], roc_auc_score(truth, score))
    assert_allclose(made["auprc"], average_precision_score(truth, score))
    assert_allclose(made["best_f1"], slow_best_f1(truth, score))


def test_tied_scores_cannot_be_cut_apart():
    truth = np.array([True, True, False, False])
    assert detection(truth, np.zeros(4)) == pytest.approx(
        {"auroc": 0.5, "auprc": 0.5, "best_f1": 2 / 3}
    )
    assert detection(truth, np.array([4.0, 3.0, 2.0, 1.0]))["best_f1"] == 1.0
    # Whichever of the tied comes first in the array, no cut lies between them.
    tied = np.array([2.0, 1.0, 1.0, 0.0])
    assert detection(truth, tied) == detection(truth[[0, 2, 1, 3]], tied)


def test_f1_of_a_decision_is_the_harmonic_mean():
    truth, flagged = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert f1(truth, flagged) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert f1(truth, np.zeros(5, bool)) == 0.0
    assert f1(np.zeros(5, bool), np.zeros(5, bool)) == 0.0


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say():
    truth, n, trials = 0.8, 200, 150
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(trials):
        labels = rng.integers(0, 4, n)
        predicted = np.where(rng.random(n) < truth, labels, (labels + 1) % 4)
        correct = (predicted == labels).astype(float)
        made = bootstrap(correct, lambda rows: float(rows.mean()), seed=trial, draws=200)
        covered += made.low <= truth <= made.high
    assert 0.89 <= covered / trials <= 0.99


def test_the_interval_of_accuracy_is_that_of_a_binomial_share():
    labels, probs = predictions(n=1000)
    made = evaluation(labels, probs).accuracy
    half = 1.96 * np.sqrt(made.value * (1 - made.value) / made.n)
    assert_allclose([made.value - made.low, made.high - made.value], half, rtol=0.15)


def test_a_bootstrap_agrees_with_a_slow_loop_of_the_same_draws():
    rows = np.random.default_rng(1).standard_normal((40, 2))
    seen = []
    made = bootstrap(rows, lambda r: seen.append(r.copy()) or float(r.mean()), seed=3, draws=50)
    assert len(seen) == 51
    assert all({tuple(r) for r in draw} <= {tuple(r) for r in rows} for draw in seen)
    means = [draw.mean() for draw in seen[:50]]
    assert_allclose([made.low, made.high], np.quantile(means, [0.025, 0.975]))
    assert made.value == pytest.approx(rows.mean())


def outcomes(correct, ids=None):
    correct = np.asarray(correct, dtype=bool)
    return Evaluation(np.arange(len(correct)) if ids is None else ids, correct, {}, {})


def test_a_paired_gain_is_the_difference_of_accuracies():
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.7, rng.random(500) < 0.8
    gain = paired_gain(outcomes(after), outcomes(before), seed=0)
    assert gain.value == pytest.approx(after.mean() - before.mean())
    deviation = (after.astype(float) - before).std() / np.sqrt(500)
    assert_allclose([gain.value - gain.low, gain.high - gain.value], 1.96 * deviation, rtol=0.15)
    reverse = paired_gain(outcomes(before), outcomes(after), seed=0)
    assert reverse.value == pytest.approx(-gain.value)


def test_pairing_makes_the_interval_narrow_where_models_agree():
    rng = np.random.default_rng(0)
    before = rng.random(1000) < 0.5
    after = before.copy()
    after[np.flatnonzero(~before)[:10]] = True
    gain = paired_gain(outcomes(after), outcomes(before), seed=0)
    assert gain.value == pytest.approx(0.01)
    assert 0 < gain.low < gain.high < 0.02
    same = paired_gain(outcomes(before), outcomes(before), seed=0)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_models_are_compared_on_the_same_samples_only():
    with pytest.raises(DataError, match="evaluated on different samples"):
        paired_gain(outcomes([1, 0]), outcomes([1, 0], ids=np.array([1, 0])), seed=0)


def test_memory_does_not_grow_with_the_square_of_the_classes():
    n, c = 200, 1_000
    labels = np.arange(n) * 5
    probs = np.full((n, c), 1 / (2 * c))
    probs[np.arange(n), (labels + (np.arange(n) % 4 == 0)) % c] += 0.5
    tracemalloc.start()
    found = evaluate(np.arange(n), labels, probs, tuple(map(str, range(c))), seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.accuracy.value == 0.75
    assert peak < 8 * c * c * 20  # a table of int64 for each of 1,000 resamples would be 1,000
