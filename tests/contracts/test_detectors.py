"""The laws that every registered detector keeps, and what each one computes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.data import from_arrays
from expunge.demo.noise import gaussian_inputs, wrong_labels
from expunge.detection.detectors import detect, detectors, needs_of
from expunge.detection.signals import collect
from expunge.errors import ExpungeError
from expunge.models.zoo import convnet
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets
from oracles_detection import signal_rows, signals

NAMES = detectors.names()
# Clusters do not find a few noisy digits; what they do find is tested by itself.
CLUSTERS = {"attribution_clusters", "feature_clusters"}
FINDING = [name for name in NAMES if name not in CLUSTERS]


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_finite_float64_a_sample_and_the_same_every_time(name):
    s = signals()
    made = detectors.get(name)(s)
    assert (made.score.shape, made.score.dtype) == ((80,), np.float64)
    assert np.isfinite(made.score).all()
    assert np.ptp(made.score) > 0 or name == "feature_clusters"  # which sees none here
    for probs in made.class_probs:
        assert probs.shape == (80, 4)
        assert (probs >= 0).all()
        assert_allclose(probs.sum(axis=1), 1, atol=1e-4)
    again = detectors.get(name)(signals())
    assert (again.score == made.score).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_follow_the_samples_whatever_their_order(name):
    far = np.random.default_rng(1).random(80) < 0.3
    s = signals(attributions=signals().attributions + 3 * far[:, None])
    order = np.random.default_rng(2).permutation(80)
    made, mixed = (detectors.get(name)(x) for x in (s, signal_rows(s, order)))
    assert_allclose(mixed.score, made.score[order], rtol=1e-5, atol=1e-6)
    for probs, others in zip(made.class_probs, mixed.class_probs, strict=True):
        assert_allclose(others, probs[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_detectors_change_neither_the_signals_nor_random_states(name):
    s, before = signals(), signals()
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    detectors.get(name)(s)
    assert (s.logits == before.logits).all()
    assert all((s.features[k] == before.features[k]).all() for k in s.features)
    assert (s.attributions == before.attributions).all()
    assert torch.equal(state, torch.get_rng_state())
    assert (legacy == np.random.get_state()[1]).all()  # noqa: NPY002


def odd_signals():
    n, c = 40, 3
    one = signals(n, c)
    half = np.arange(n) % 2
    dead = {k: v * (np.arange(v.shape[1]) == 0) for k, v in one.features.items()}
    return {
        "a single class": signals(n, c, labels=np.ones(n)),
        "a class that no prediction has": signals(n, c, logits=np.eye(c)[half]),
        "three samples": signals(3, c),
        "two samples": signals(2, 2),
        "one sample": signals(1, 2),
        "dead units": signals(n, c, features=dead, attributions=one.attributions * [1, 0, 0, 0, 0]),
        "no layer": signals(n, c, features={}),
        "all the same": signal_rows(one, np.arange(n)).__class__(
            np.arange(n),
            np.zeros(n),
            np.ones((n, c)),
            {k: np.ones(n) for k in one.per_sample},
            {k: np.full_like(v, 0.1) for k, v in one.features.items()},
            np.full((n, c), 1 / c),
            np.ones(n),
            np.full((n, 5), 0.1, dtype=np.float32),
        ),
        "all units dead": signals(
            n,
            c,
            features={k: np.zeros_like(v) for k, v in one.features.items()},
            attributions=np.zeros((n, 5)),
            per_sample={k: np.zeros(n) for k in one.per_sample},
        ),
        "two kinds of samples": signals(
            n,
            2,
            labels=half,
            logits=np.eye(2)[half] * 4,
            features={"late": np.eye(2)[half]},
            attributions=np.eye(2)[half],
            per_sample=dict.fromkeys(one.per_sample, 1.0 + half),
        ),
        "very certain": signals(
            n, c, logits=1e4 * one.logits, augmented_probs=np.eye(c)[np.zeros(n, int)]
        ),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", list(odd_signals()))
def test_odd_signals_give_finite_scores_or_an_error_of_ours(name, case):
    s = odd_signals()[case]
    try:
        made = detect(s, (name,))
    except ExpungeError:
        return
    assert made.values[name].shape == (len(s.ids),)
    assert np.isfinite(made.values[name]).all()
    assert np.isfinite(made.class_probs).all()
    if case == "all the same":
        assert np.ptp(made.values[name]) < 1e-6


# ------------------------------------------------------------------------------- planted faults


@pytest.fixture(scope="module")
def planted():
    """A network trained on digits with wrong labels and noisy inputs, its signals, the truth."""
    x, y = load_digits(return_X_y=True)
    x = x[:900].reshape(-1, 1, 8, 8).astype(np.float32) / 16
    x, bad_input = gaussian_inputs(x, rate=0.15, sigma=0.6, seed=0)
    labels = wrong_labels(y[:900], rate=0.2, noise="symmetric", classes=10, seed=0)
    data = from_arrays(x, labels, view="crop")
    folds = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01)),
        x.reshape(900, -1),
        labels,
        method="predict_proba",
    )
    data = replace(data, external_probs={"folds": folds})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = convnet(classes=10, channels=1, widths=(16, 32), hidden=32, convolutions=1)
    config = TuneConfig(targets="all", epochs=8, batch_size=64, lr=0.1, precision="float32")
    trained = tune(
        model, data, build_targets(data, None, TuneConfig(targets="all")), config, seed=0
    )
    made = collect(trained, data, needs=needs_of(tuple(NAMES)), views=4, precision="float32")
    return made, {"label": labels != y[:900], "input": bad_input}


@pytest.mark.parametrize("name", FINDING)
def test_detectors_find_planted_faults_of_their_kind(planted, name):
    made, truth = planted
    kind = detectors.metadata(name).kind
    # A wrong label on a bad input is nothing that one score could show.
    judged = ~truth["input"] if kind == "label" else np.ones(len(made.ids), dtype=bool)
    auroc = roc_auc_score(truth[kind][judged], detectors.get(name)(made).score[judged])
    assert auroc > (0.8 if kind == "label" else 0.7)


@pytest.mark.parametrize("name", ["augmented_margin", "knn_disagreement", "lda_margin"])
def test_class_distributions_hold_the_right_label_of_many_wrong_ones(planted, name):
    made, truth = planted
    wrong = truth["label"] & ~truth["input"]
    right = load_digits().target[:900][wrong]
    guessed = detect(made, (name,)).class_probs[wrong].argmax(axis=1)
    assert (guessed == right).mean() > 0.6
    assert (made.labels[wrong] != right).all()


def test_input_detectors_do_not_take_wrong_labels_for_bad_inputs(planted):
    made, _ = planted
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(made.ids)) < 0.4, rng.permutation(made.labels), made.labels)
    other = replace(made, labels=labels)
    for name in ("attribution_mass", "feature_distance"):
        assert (detectors.get(name)(other).score == detectors.get(name)(made).score).all()


def test_detectors_do_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detect(signals(), tuple(NAMES))
    assert caught == []


def test_bad_inputs_that_are_all_alike_are_worse_than_those_far_from_the_mean(planted):
    made, _ = planted
    rng = np.random.default_rng(0)
    bad = rng.random(len(made.ids)) < 0.5
    features = 3 * np.eye(10)[made.labels] + rng.standard_normal((len(bad), 10))
    features = np.where(bad[:, None], 0.1 * rng.standard_normal((len(bad), 10)), features)
    made = replace(made, features={"layer": features.astype(np.float32)})
    score = detectors.get("feature_distance")(made).score
    assert roc_auc_score(bad, score) > 0.95
