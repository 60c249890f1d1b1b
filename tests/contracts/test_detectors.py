"""The laws that every registered detector keeps, and what each one computes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial.distance import mahalanobis
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.data import from_arrays
from expunge.demo.noise import gaussian_inputs, wrong_labels
from expunge.detection.detectors import Detection, detect, detectors, needs_of
from expunge.detection.feature_detectors import knn_disagreement
from expunge.detection.label_detectors import augmented_margin, label_margin
from expunge.detection.lda import RIDGE, loo_lda_posteriors, loo_ridge_predictions
from expunge.detection.memorisation import informative_sources
from expunge.detection.neighbours import neighbour_mean, neighbour_votes
from expunge.detection.opinion_pool import opinion_pool
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.models.zoo import convnet
from expunge.records import Signals
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets

NAMES = detectors.names()
# Clusters do not find a few noisy digits; what they do find is tested by itself.
CLUSTERS = {"attribution_clusters", "feature_clusters"}
FINDING = [name for name in NAMES if name not in CLUSTERS]


def signals(n=80, c=4, seed=0, **changes):
    """Every signal there is, without anything planted."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, c))
    fields = {
        "ids": np.arange(n) * 3,
        "labels": rng.integers(0, c, n),
        "logits": logits,
        "per_sample": {
            "attribution": rng.standard_normal(n),
            "attribution_mass": rng.random(n) + 0.5,
            "head_input_norm": rng.random(n) + 1,
        },
        "features": {
            "early": rng.standard_normal((n, 6)).astype(np.float32),
            "late": rng.standard_normal((n, 3)).astype(np.float32),
        },
        "augmented_probs": softmax(logits + rng.standard_normal((n, c)), axis=1).astype(np.float32),
        "augmented_loss": rng.random(n).astype(np.float32),
        "attributions": rng.random((n, 5)).astype(np.float32),
        "external_probs": {
            "folds": softmax(rng.standard_normal((n, c)), axis=1).astype(np.float32)
        },
        "attribution_features": {"early": rng.standard_normal((n, 6)).astype(np.float32)},
    }
    fields["per_sample"]["attribution.early"] = rng.standard_normal(n)
    fields["per_sample"]["attribution.late"] = rng.standard_normal(n)
    return Signals(**{**fields, **changes})


def rows(s, at):
    """The same signals for some of the samples, in another order."""
    part = lambda table: {k: v[at] for k, v in table.items()}  # noqa: E731
    return Signals(
        s.ids[at],
        s.labels[at],
        s.logits[at],
        part(s.per_sample),
        part(s.features),
        s.augmented_probs[at],
        s.augmented_loss[at],
        s.attributions[at],
        part(s.external_probs),
        attribution_features=part(s.attribution_features),
    )


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
    made, mixed = (detectors.get(name)(x) for x in (s, rows(s, order)))
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
        "all the same": rows(one, np.arange(n)).__class__(
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


# ------------------------------------------------------------------------------- single detectors


def test_loss_margin_and_error_norm_agree_with_slow_loops():
    s = signals()
    loss, margin, el2n, influence, view = [], [], [], [], []
    for z, y, h, v in zip(
        s.logits.astype(float),
        s.labels,
        s.per_sample["head_input_norm"],
        s.augmented_probs,
        strict=True,
    ):
        p = np.exp(z) / np.exp(z).sum()
        loss.append(-np.log(p[y]))
        margin.append(max(z[c] for c in range(4) if c != y) - z[y])
        error = np.array([p[c] - (c == y) for c in range(4)])
        el2n.append(np.sqrt((error**2).sum()))
        # Gradient of the loss by the last layer's weights and biases.
        influence.append(np.sqrt((np.outer(error, h) ** 2).sum() + (error**2).sum()))
        q = (20 * v.astype(float) + 0.25) / 21
        view.append(np.log(max(q[c] for c in range(4) if c != y) / q[y]))
    expected = {
        "loss": loss,
        "margin": margin,
        "el2n": el2n,
        "self_influence": influence,
        "augmented_margin": view,
        "augmented_loss": s.augmented_loss,
        "attribution": -s.per_sample["attribution"],
    }
    for name, values in expected.items():
        assert_allclose(detectors.get(name)(s).score, values, rtol=1e-6, err_msg=name)


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
        neighbour_votes(features, labels, 2000, k=10, neighbour_search=search, chunk_size=300)
        > 0.05
        for search in ("exact", "approximate")
    )
    assert (exact & near).sum() / exact.sum() > 0.9
    assert not near.diagonal().any()
    twice = neighbour_votes(
        features, labels, 2000, k=10, neighbour_search="approximate", chunk_size=2000
    )
    assert_allclose(twice > 0.05, near)


def test_more_neighbours_than_samples_means_all_others():
    labels = np.array([0, 0, 1])
    votes = neighbour_votes(np.eye(3, dtype=np.float32), labels, 2, k=50, chunk_size=10)
    assert_allclose(votes, (np.array([[1, 1], [1, 1], [2, 0]]) + 0.5) / 3)


def test_a_constant_layer_does_not_change_who_the_neighbours_are():
    s = signals()
    wide = np.concatenate([s.features["late"], np.full((80, 9), 0.1, np.float32)], axis=1)
    made = neighbour_votes(wide, s.labels, 4, k=5, chunk_size=1024)
    assert_allclose(made, neighbour_votes(s.features["late"], s.labels, 4, k=5, chunk_size=1024))


def test_discriminant_posteriors_agree_with_leaving_each_sample_out():
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 2], 60)
    features = rng.standard_normal((60, 3)) + labels[:, None]
    x = (features - features.mean(axis=0)) / features.std(axis=0)

    def scatter(rows):
        residual = np.concatenate(
            [x[rows & (labels == k)] - x[rows & (labels == k)].mean(axis=0) for k in (0, 2)]
        )
        return residual.T @ residual / 60

    everyone = np.ones(60, dtype=bool)
    ridge = 0.1 * np.trace(scatter(everyone)) / 3 * np.eye(3)
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


def test_feature_distance_agrees_with_scipy():
    s = signals()
    expected = []
    for f in (v.astype(float) for v in s.features.values()):
        covariance = np.cov(f.T, bias=True)
        covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        inverse, mean = np.linalg.inv(covariance), f.mean(axis=0)
        expected.append([2 * np.log(mahalanobis(row, mean, inverse)) for row in f])
    made = detectors.get("feature_distance")(s).score
    assert_allclose(made, np.mean(expected, axis=0), rtol=1e-6)


def test_a_regression_leaves_each_sample_out_as_a_slow_loop_does():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)) * [1, 10, 0.1, 0], rng.normal(size=30)
    z = np.zeros_like(x)
    z[:, :3] = (x[:, :3] - x[:, :3].mean(axis=0)) / x[:, :3].std(axis=0)
    # The penalty is that of all samples: 0.03 of the mean variance, a constant column among them.
    penalty = 30 * RIDGE * 3 / 4
    expected = []
    for i in range(30):
        rest = np.arange(30) != i
        model = Ridge(alpha=penalty, fit_intercept=False).fit(z[rest], (y - y.mean())[rest])
        expected.append(model.predict(z[i : i + 1])[0])
    assert_allclose(loo_ridge_predictions(x, y), expected, rtol=1e-8)


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


def test_bad_inputs_that_are_common_and_alike_share_their_uncertainty():
    rng = np.random.default_rng(0)
    n = 600
    labels, bad = rng.integers(0, 3, n), rng.random(n) < 0.5
    # They are near the middle, where the features say little of the class, and nearer each other.
    centres = np.concatenate([3 * np.eye(3), np.zeros((3, 5))], axis=1)[labels]
    f = rng.normal(size=(n, 8)) + centres
    f[bad] = 0.8 * rng.normal(size=(bad.sum(), 8)) + [0, 0, 0, 2, 2, 0, 0, 0]
    logits = np.log(softmax(f[:, :3], axis=1))
    wrong = rng.random(n) < 0.3
    given = np.where(wrong, rng.integers(0, 3, n), labels)
    s = Signals(np.arange(n), given, logits, features={"a": f, "b": f @ rng.normal(size=(8, 8))})
    found = detectors.get("local_uncertainty")(s).score
    assert roc_auc_score(bad, found) > 0.97
    assert abs(roc_auc_score(wrong, found) - 0.5) < 0.1
    assert (detectors.get("local_uncertainty")(replace(s, features={})).score == 0).all()


@pytest.mark.parametrize(
    ("apart", "doubtful", "found"),
    [(40.0, True, True), (40.0, False, False), (4.0, True, False)],
    ids=["far and in doubt", "far and clear", "near and in doubt"],
)
def test_a_group_that_is_far_off_and_in_doubt_is_bad(apart, doubtful, found):
    rng = np.random.default_rng(0)
    n = 600
    labels, bad = rng.integers(0, 3, n), rng.random(n) < 0.5
    clear = np.where(bad & doubtful, 1.0, 3.0)[:, None]
    f = rng.normal(size=(n, 8)) + clear * np.eye(3, 8)[labels]
    f[:, 7] += apart * bad
    logits = np.log(softmax(f[:, :3], axis=1))
    s = Signals(np.arange(n), labels, logits, features={"a": f, "b": f @ rng.normal(size=(8, 8))})
    score = detectors.get("feature_clusters")(s).score
    assert roc_auc_score(bad, score) == (1.0 if found else 0.5)
    assert np.ptp(score) > 0 or not found
    assert (detectors.get("feature_clusters")(replace(s, features={})).score == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_mass_is_compared_within_the_predicted_class_and_points_at_doubt(sign):
    rng = np.random.default_rng(0)
    n = 300
    predicted = rng.integers(0, 3, n)
    bad = rng.random(n) < 0.3
    logits = np.eye(3)[predicted] * np.where(bad, 1.0, 5.0)[:, None]
    # Classes differ in their mass far more than bad samples do.
    log_mass = 10 * predicted + sign * 2 * bad + 0.1 * rng.standard_normal(n)
    columns = {**signals(n, 3).per_sample, "attribution_mass": np.exp(log_mass)}
    s = signals(n, 3, logits=logits, per_sample=columns)
    score = detectors.get("attribution_mass")(s).score
    assert roc_auc_score(bad, score) > 0.99
    centred = log_mass.copy()
    for k in range(3):
        centred[predicted == k] -= np.median(log_mass[predicted == k])
    expected = sign * centred / np.median(np.abs(centred))
    assert_allclose(score, expected, rtol=1e-5, atol=1e-6)


def test_attribution_clusters_are_those_of_a_mixture_of_two_gaussians():
    s = signals(200)
    bad = np.random.default_rng(1).random(200) < 0.3
    vectors = s.attributions.astype(float) + 2.0 * bad[:, None]
    probs = np.full((200, 4), 1.0)
    probs[np.arange(200), s.labels] = np.where(bad, 0.1, 50.0)
    planted_signals = signals(200, attributions=vectors, logits=np.log(probs))
    score = detectors.get("attribution_clusters")(planted_signals).score
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    mixture = GaussianMixture(2, random_state=0).fit(standard)
    share = mixture.predict_proba(standard)
    assert_allclose(score, share[:, mixture.means_.sum(axis=1).argmax()], atol=1e-4)
    assert ((score > 0.5) == bad).mean() > 0.99


def test_layers_that_memorised_the_labels_do_not_suggest_labels():
    n, c = 600, 3
    rng = np.random.default_rng(0)
    truth = rng.integers(0, c, n)
    wrong = rng.random(n) < 0.2
    labels = np.where(wrong, (truth + 1) % c, truth)
    noise = 0.1 * rng.standard_normal((n, c))
    s = signals(
        n,
        c,
        labels=labels,
        features={"early": np.eye(c)[truth] + noise, "late": np.eye(c)[labels] + noise},
        augmented_probs=0.8 * np.eye(c)[truth] + 0.2 / c,
    )
    for name in ("knn_disagreement", "lda_margin"):
        made = detect(s, (name,))
        assert (made.class_probs.argmax(axis=1) == truth).mean() > 0.95
        assert roc_auc_score(wrong, made.values[name]) > 0.95


def test_views_of_a_network_that_memorised_are_no_class_probabilities():
    views = signals().augmented_probs
    agreeing = np.eye(4)[signals().labels] * 9.0
    assert (views.argmax(axis=1) == signals().labels).mean() < 0.8
    assert augmented_margin(signals(logits=agreeing)).class_probs == ()
    assert len(augmented_margin(signals(logits=np.log(views))).class_probs) == 1


def test_chunks_and_their_size_do_not_change_the_score():
    s = signals()
    made = knn_disagreement(s)
    for chunk in (1, 7, 80):
        assert_allclose(knn_disagreement(s, chunk_size=chunk).score, made.score, rtol=1e-6)


def planted_sources(n=3000, c=4, seed=0):
    """Labels, and three sources: informative but overconfident, weak, and silent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    good = 1.5 * np.eye(c)[labels] + rng.standard_normal((n, c))
    weak = 0.3 * np.eye(c)[labels] + rng.standard_normal((n, c))
    return labels, [softmax(4 * good, axis=1), softmax(weak, axis=1), np.full((n, c), 1 / c)]


def likelihood(probs, labels):
    return np.log(probs[np.arange(len(labels)), labels]).mean()


def test_a_pool_of_one_source_has_the_temperature_of_a_slow_search():
    labels, (good, *_) = planted_sources()
    made = opinion_pool([good], labels)
    slow = max(
        (softmax(beta * np.log(good), axis=1) for beta in np.linspace(0, 2, 401)),
        key=lambda probs: likelihood(probs, labels),
    )
    assert_allclose(made, slow, atol=5e-3)


def test_a_pool_is_likelier_than_its_sources_and_ignores_the_silent_one():
    labels, sources = planted_sources()
    made = opinion_pool(sources, labels)
    assert_allclose(made.sum(axis=1), 1)
    assert likelihood(made, labels) > max(
        likelihood(opinion_pool([q], labels), labels) for q in sources
    )
    assert_allclose(made, opinion_pool(sources[:2], labels), atol=1e-3)


def test_a_pool_is_calibrated_for_the_labels_given():
    labels, sources = planted_sources(20_000)
    made = opinion_pool(sources, labels)
    sure = made.max(axis=1)
    right = made.argmax(axis=1) == labels
    for low in (0.4, 0.6, 0.8):
        inside = (sure >= low) & (sure < low + 0.2)
        assert right[inside].mean() == pytest.approx(sure[inside].mean(), abs=0.05)


def test_a_label_margin_compares_with_the_best_other():
    values = np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 2.0]])
    assert label_margin(values, np.array([1, 0])).tolist() == [-2.0, 0.0]
    assert values[0, 1] == 5.0


# ------------------------------------------------------------------------------- detect


def test_detect_names_scores_and_kinds_and_takes_options():
    s = signals()
    made = detect(s, ("loss", "knn_disagreement"), {"knn_disagreement": {"k": 3}})
    assert list(made.values) == ["loss", "knn_disagreement"]
    assert made.kinds == {"loss": "label", "knn_disagreement": "label"}
    alone = knn_disagreement(s, k=3)
    assert (made.values["knn_disagreement"] == alone.score).all()
    informative = informative_sources(alone.class_probs, s)
    assert_allclose(made.class_probs, opinion_pool(informative, s.labels), rtol=1e-5)
    assert (made.ids == s.ids).all()


def test_without_a_class_distribution_the_softmax_is_taken():
    s = signals()
    assert_allclose(detect(s, ("loss",)).class_probs, softmax(s.logits, axis=1), rtol=1e-5)


def test_detect_says_how_often_model_and_views_agree_with_the_labels():
    s = signals(views=4)
    made = detect(s, ("loss",))
    assert made.agreement["plain"] == (s.logits.argmax(axis=1) == s.labels).mean()
    assert made.agreement["augmented"] == (s.augmented_probs.argmax(axis=1) == s.labels).mean()
    assert "augmented" not in detect(signals(), ("loss",)).agreement


@pytest.mark.parametrize(
    ("name", "missing", "change"),
    [
        ("augmented_margin", "views", {"augmented_probs": None}),
        ("attribution_clusters", "attributions", {"attributions": None}),
        ("self_influence", "head_input_norm", {"per_sample": {}}),
    ],
)
def test_signals_without_what_a_detector_needs_are_refused(name, missing, change):
    with pytest.raises(DataError, match=f"detector '{name}' needs {missing}"):
        detect(signals(**change), (name,))


def test_wrong_names_and_options_are_refused():
    s = signals()
    with pytest.raises(ConfigError, match=r"no detector is named\n.*choose from"):
        detect(s, ())
    with pytest.raises(ConfigError, match=r"no detector is called 'los'\n.*did you mean 'loss'"):
        detect(s, ("los",))
    with pytest.raises(ConfigError, match="'knn_disagreement' has no option 'kk'"):
        detect(s, ("knn_disagreement",), {"knn_disagreement": {"kk": 3}})


def test_needs_are_those_of_all_named_detectors():
    assert needs_of(("loss",)) == frozenset()
    assert needs_of(("self_influence", "augmented_loss", "loss")) == {"head_input_norm", "views"}
    with pytest.raises(ConfigError, match="no detector is called"):
        needs_of(("nothing_like_it",))


def test_a_detector_without_a_kind_speaks_of_labels(monkeypatch):
    monkeypatch.setattr(detectors, "_items", {**detectors._items})
    monkeypatch.setattr(detectors, "_metadata", {**detectors._metadata})
    detectors.register("theirs")(lambda s: Detection(np.zeros(len(s.ids))))
    assert detectors.metadata("theirs").kind == "label"
    assert needs_of(("theirs",)) == frozenset()
    assert not detect(signals(), ("theirs",)).values["theirs"].any()


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
