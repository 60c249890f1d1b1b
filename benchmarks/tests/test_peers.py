"""Published detectors: every score points in the right direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from expunge import stages
from expunge._core.progress import silent
from expunge._core.rng import temp_seed
from expunge.detection.detectors import detectors
from expunge.detection.signals import collect
from expunge.models.zoo import convnet
from expunge_bench import detect
from expunge_bench.datasets import Setting, cached_model
from expunge_bench.digits import Digits
from expunge_bench.peers import BenchmarkCase, noisy_cluster, peers

pytestmark = pytest.mark.usefixtures("few_trees")

# Chance is 0.5. A score with its sign reversed has one minus its AUROC. The published partition has
# hard decisions only.
MIN_AUROC = 0.7
MIN_AUROC_OF_DECISIONS = 0.6


def narrow_network(seed):
    """A last hidden layer narrow enough for a full covariance, without dead units."""
    with temp_seed(seed, "network"):
        return convnet(classes=10, channels=1, widths=(16, 32), hidden=8)


def make_case(noise, rate, out, model=None):
    dataset, setting = Digits(), Setting(noise, rate, n=300)
    data = dataset.noisy_dataset(setting)
    if model is None:
        model = cached_model(dataset, data, setting, out=out).model
    return BenchmarkCase(dataset, model, data, setting, out, silent)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Wrong labels, and a network that has not memorised them; corrupted inputs, and a random one.

    What two clusters of 300 samples find in a trained network depends on the machine's rounding.
    """
    with pytest.MonkeyPatch.context() as patch:
        short = replace(Digits.training["regularised"], epochs=12)
        patch.setattr(Digits, "training", {"regularised": short})
        symmetric = make_case("symmetric", 0.2, tmp_path_factory.mktemp("symmetric"))
        folder = tmp_path_factory.mktemp("gaussian")
        gaussian = make_case("gaussian", 0.3, folder, narrow_network(0))
        yield {"symmetric": symmetric, "gaussian": gaussian}


@pytest.mark.parametrize("name", peers.names())
def test_every_peer_scores_noisy_samples_higher(cases, name):
    case = cases["gaussian" if name == "rlap-published" else "symmetric"]
    output = peers.get(name)(case)
    assert output.score.shape == output.flagged.shape == (300,)
    assert np.isfinite(output.score).all()
    assert output.flagged.dtype == bool
    noisy = case.data.truth.noisy
    is_decision = set(np.unique(output.score)) == {0, 1}
    limit = MIN_AUROC_OF_DECISIONS if is_decision else MIN_AUROC
    assert roc_auc_score(noisy, output.score) > limit
    assert noisy[output.flagged].mean() > 2 * noisy.mean()
    assert output.noise_rate == pytest.approx(output.flagged.mean(), abs=0.15)


@pytest.mark.parametrize("name", ["cleanlab", "cleanlab-folds"])
def test_cleanlab_suggests_other_labels_for_flagged_samples_only(cases, name):
    case = cases["symmetric"]
    output = peers.get(name)(case)
    labels = case.data.train.labels
    assert_array_equal(output.suggested[~output.flagged], labels[~output.flagged])
    assert (output.suggested[output.flagged] != labels[output.flagged]).all()
    correct = output.suggested == case.data.truth.labels
    assert correct[output.flagged].mean() > 0.5


def test_cleanlab_folds_predicts_every_sample_out_of_sample(cases, monkeypatch):
    case, trained_on, predicted = cases["symmetric"], [], []
    real = detect.peers.get("cleanlab-folds").__globals__

    def train(model, samples, *_, **__):
        trained_on.append(set(samples.ids.tolist()))
        return type("Trained", (), {"model": model})()

    def probabilities(model, samples):
        predicted.append(set(samples.ids.tolist()))
        return np.full((len(samples), 10), 0.1)

    monkeypatch.setattr(real["pipeline"], "train", train)
    monkeypatch.setitem(real, "_probabilities", probabilities)
    peers.get("cleanlab-folds")(case)
    assert len(trained_on) == len(predicted) == 5
    assert all(fold.isdisjoint(rest) for fold, rest in zip(predicted, trained_on, strict=True))
    assert set.union(*predicted) == set(case.data.train.ids.tolist())
    assert sum(map(len, predicted)) == 300


def test_each_default_detection_differs_by_one_thing(cases, monkeypatch):
    case, given = cases["symmetric"], {}
    real = stages.score

    def score(model, data, **settings):
        given.update(settings, view=data.view)
        return real(model, data, **settings)

    monkeypatch.setattr(stages, "score", score)
    rates = {}
    for name in ("expunge", "expunge-held-out", "expunge-undeclared-view", "expunge-no-views"):
        rates[name] = detect.run_detector(name, case).noise_rate
        assert (given["held_out"] is not None) == (name == "expunge-held-out")
        assert (given["view"] is None) == (name == "expunge-undeclared-view")
        assert (given["views"] == 0) == (name == "expunge-no-views")
    known = detect.run_detector("expunge-known-rate", case)
    assert known.noise_rate == pytest.approx(case.data.truth.noisy.mean(), abs=1e-3)
    assert known.noise_rate != rates["expunge"]


@pytest.mark.parametrize("name", ["loss", "margin", "self_influence", "expunge", "expunge-fast"])
def test_every_detector_of_the_benchmark_scores_noisy_samples_higher(cases, name):
    case = cases["symmetric"]
    output = detect.run_detector(name, case)
    assert roc_auc_score(case.data.truth.noisy, output.score) > MIN_AUROC


def test_captum_agrees_with_the_closed_form_of_self_influence_except_for_the_bias(cases):
    case = cases["symmetric"]
    theirs = np.exp(peers.get("tracin")(case).score)
    signals = collect(
        case.model, case.data.train, needs=frozenset({"head_input_norm"}), precision="float32"
    )
    ours = detectors.get("self_influence")(signals).score ** 2
    h = signals.per_sample["head_input_norm"]
    assert_allclose(theirs, ours * h**2 / (h**2 + 1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("names", [(0, 1), (1, 0)])
def test_the_cluster_that_agrees_with_the_noise_is_taken(names):
    noisy = np.arange(10) < 4
    found = np.arange(10) < 5
    cluster = np.where(found, *names)
    assert_array_equal(noisy_cluster(cluster, noisy), found)
    assert_array_equal(noisy_cluster(cluster, ~noisy), ~found)


def test_a_small_pure_cluster_does_not_win_by_its_precision():
    noisy = np.arange(20) < 10
    small = np.arange(20) == 0
    # F1 of the rest: 2·9 / (19 + 10); of the pure one: 2·1 / (1 + 10).
    assert_array_equal(noisy_cluster(small.astype(int), noisy), ~small)


def test_one_cluster_flags_nothing():
    assert not noisy_cluster(np.zeros(6, dtype=int), np.arange(6) < 3).any()


def test_a_singular_covariance_flags_nothing(cases, monkeypatch):
    class Singular:
        def __init__(self, *_, **__):
            raise ValueError("singular")

    published = peers.get("rlap-published")
    monkeypatch.setitem(published.__globals__, "GaussianMixture", Singular)
    output = published(cases["gaussian"])
    assert not output.flagged.any()
    assert output.noise_rate == 0
