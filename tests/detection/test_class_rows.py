"""Numbers of the best classes give what the array gives that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score

import expunge
from expunge.detection import class_arithmetic, class_rows
from expunge.records import TopClasses

N, CLASSES = 40, 130


def rows(seed=0, n_high=10):
    """Log probabilities of which a few of each row are above a floor, and labels."""
    rng = np.random.default_rng(seed)
    logs = np.full((N, CLASSES), -6.0)
    for row in logs:
        row[rng.choice(CLASSES, n_high, replace=False)] = rng.uniform(-5, 0, n_high)
    return logs, rng.integers(0, CLASSES, N)


def test_the_best_classes_and_the_given_one_are_kept_and_the_rest_has_their_mean():
    probs = softmax(np.random.default_rng(1).standard_normal((N, CLASSES)), axis=1)
    labels = np.arange(N)
    top = class_rows.keep_top(probs, labels)
    assert isinstance(top, TopClasses)
    assert top.shape == probs.shape
    for i in range(N):
        best = set(np.argsort(-probs[i])[:31].tolist()) | {labels[i]}
        assert best <= set(top.classes[i].tolist())
        others = np.delete(probs[i], top.classes[i])
        assert_allclose(top.rest[i], others.mean(), rtol=1e-5)
    assert_allclose(np.asarray(top).sum(axis=1), 1.0, rtol=1e-5)
    assert class_rows.keep_top(probs[:, :100], labels) is not top


def test_the_rest_of_logarithms_keeps_the_sum_of_their_exponentials():
    logits = np.random.default_rng(1).standard_normal((N, CLASSES)).astype(np.float32)
    top = class_rows.keep_top(logits, np.arange(N), in_logs=True)
    expected = log_softmax(logits, axis=1)[np.arange(N), np.arange(N)]
    assert_allclose(class_arithmetic.log_at_label(top, np.arange(N)), expected, rtol=1e-5)


TRANSITION = softmax(np.random.default_rng(2).standard_normal((CLASSES, CLASSES)), axis=1)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y: class_arithmetic.softmax(z),
        class_arithmetic.log_at_label,
        class_arithmetic.label_margin,
        class_arithmetic.at_label,
        lambda z, y: class_arithmetic.row_sum(z),
        lambda z, y: class_rows.largest(z),
        lambda z, y: class_rows.predicted(z),
        lambda z, y: class_arithmetic.row_sum(class_arithmetic.joint_with(z, y, TRANSITION)),
        lambda z, y: class_arithmetic.replace_label(z, y, np.arange(N)),
    ],
)
def test_what_is_computed_on_the_best_classes_is_what_their_array_gives(function):
    logs, labels = rows()
    top = class_rows.keep_top(logs, labels)
    found, expected = function(top, labels), function(np.asarray(top, dtype=np.float64), labels)
    assert_allclose(np.asarray(found), expected, rtol=2e-5)


def test_sums_of_the_best_classes_are_those_of_the_arrays():
    (first, labels), (second, _) = rows(0), rows(1)
    total = class_rows.zero_rows(labels, CLASSES)
    for table, weight in ((first, 0.5), (second, 2.0)):
        total = class_arithmetic.add_scaled(
            total, class_rows.keep_top(table, labels), labels, weight
        )
    assert_allclose(np.asarray(total), 0.5 * first + 2 * second, rtol=1e-5)
    dense = class_arithmetic.add_scaled(np.zeros((N, CLASSES), np.float32), first, labels, 0.5)
    assert_allclose(dense, 0.5 * first, rtol=1e-6)


def test_of_a_sum_with_too_many_classes_the_given_and_the_best_are_kept():
    first, second = (np.random.default_rng(k).standard_normal((N, CLASSES)) for k in (0, 1))
    labels = (first + second).argmin(axis=1)
    parts = [class_rows.keep_top(table, labels, in_logs=True) for table in (first, second)]
    total = class_arithmetic.add_scaled(parts[0], parts[1], labels, 1.0)
    expected = np.asarray(parts[0]) + np.asarray(parts[1])
    assert_allclose(total.at(labels), expected[np.arange(N), labels], rtol=1e-5)
    assert_array_equal(total.argmax(axis=1), expected.argmax(axis=1))


def test_signals_of_many_classes_become_compact_and_others_stay():
    signals = expunge.Signals(np.arange(N), np.arange(N), rows()[0])
    found = class_rows.compact(signals)
    assert isinstance(found.logits, TopClasses)
    assert class_rows.compact(found) is found
    few = expunge.Signals(np.arange(3), np.arange(3), np.zeros((3, 100)))
    assert class_rows.compact(few) is few
    with_probs = replace(few, external_probs={"p": np.full((3, 100), 0.01)})
    assert class_rows.compact(with_probs) is with_probs


def test_the_best_of_many_classes_decide_as_all_of_them(monkeypatch):
    rng = np.random.default_rng(0)
    right = rng.integers(0, 110, 1300)
    x = rng.standard_normal((110, 24))[right] + 0.9 * rng.standard_normal((1300, 24))
    given = np.where(rng.random(1300) < 0.3, rng.integers(0, 110, 1300), right)
    with monkeypatch.context() as patch:
        patch.setattr(TopClasses, "__array__", None)  # a table of all classes is never made
        top = expunge.detect(x, given)
    assert isinstance(top.pooled.probs, TopClasses)
    for module in (class_rows, expunge.detection.lda, expunge.detection.probes):
        monkeypatch.setattr(module, "MAX_DENSE_CLASSES", 200)
    everything = expunge.detect(x, given)
    assert isinstance(everything.pooled.probs, np.ndarray)
    auroc = [roc_auc_score(given != right, found.p_noisy) for found in (top, everything)]
    assert auroc[0] > 0.95
    assert abs(auroc[0] - auroc[1]) < 0.01
    assert abs(top.noise_rate[0] - everything.noise_rate[0]) < 0.03
    assert (top.suggested_label == everything.suggested_label).mean() > 0.95
