"""Labels refined in rounds: the update of labels, the rounds, and that they help."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from expunge import pipeline
from expunge.errors import ConfigError, DataError, RunError
from expunge.recipes import resolve
from expunge.selfsupervised import refinement
from expunge.selfsupervised.augmentation import SimCLRAugmentation
from expunge.selfsupervised.labels import update_labels
from expunge.selfsupervised.refinement import (
    RefineConfig,
    refine,
    train_final,
    with_augmentation,
)
from expunge.selfsupervised.simclr import SimclrConfig
from expunge.training.baselines import trainers
from expunge.training.loop import TuneConfig
from oracles_digits import CLASSES, clean, digits, memorised, network, noisy

pytestmark = pytest.mark.usefixtures("few_trees")

TUNE = TuneConfig(targets="all", lr=0.05, batch_size=32, precision="float32")
QUICK = RefineConfig(
    simclr=SimclrConfig(epochs=2, batch_size=64, hidden=32, projection=16, precision="float32"),
    n_rounds=2,
    trainings_per_round=2,
    epochs=1,
    first_round_epochs=2,
    final_epochs=2,
    augmentation_strengths=(0.0, 0.2),
    tune=TUNE,
)


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ---------------------------------------------------------------------------- update of labels


def slow_update(
    probs, labels, clean_quantile, relabel_fraction, min_relabel_confidence, uncertain_weight
):
    n = len(labels)
    new, weights = list(labels), [uncertain_weight] * n
    mean = probs.mean(axis=0)
    votes = [{int(p[i].argmax()) for p in probs} for i in range(n)]
    agreed = [i for i in range(n) if votes[i] == {labels[i]}]
    limit = (
        np.quantile([-np.log(mean[i, labels[i]]) for i in agreed], clean_quantile) if agreed else 0
    )
    for i in agreed:
        if -np.log(mean[i, labels[i]]) <= limit:
            weights[i] = 1.0
    others = [i for i in range(n) if len(votes[i]) == 1 and i not in agreed]
    others.sort(key=lambda i: (-mean[i].max(), i))
    for i in others[: round(relabel_fraction * len(others))]:
        if mean[i].max() >= min_relabel_confidence:
            new[i], weights[i] = votes[i].pop(), 1.0
    return np.array(new), np.array(weights)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("confidence", [0.0, 0.6])
def test_updated_labels_are_those_of_the_slow_loop(share, confidence):
    rng = np.random.default_rng(0)
    base = rng.dirichlet(0.4 * np.ones(4), 200)
    probs = np.stack([0.8 * base + 0.2 * rng.dirichlet(np.ones(4), 200) for _ in range(3)])
    labels = np.where(rng.random(200) < 0.5, base.argmax(axis=1), rng.integers(0, 4, 200))
    settings = {
        "clean_quantile": 0.7,
        "relabel_fraction": share,
        "min_relabel_confidence": confidence,
        "uncertain_weight": 0.25,
    }
    found = update_labels(probs, labels, **settings)
    new, weights = slow_update(probs, labels, **settings)
    assert_array_equal(found.labels, new)
    assert_allclose(found.weights, weights)
    assert_array_equal(found.labels != labels, found.relabelled)
    assert not (found.clean & found.relabelled).any()
    order = rng.permutation(200)
    moved = update_labels(probs[:, order], labels[order], **settings)
    assert_array_equal(moved.labels, found.labels[order])


def test_without_consensus_nothing_is_decided():
    probs = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.1, 0.9], [0.8, 0.2]]])
    found = update_labels(probs, np.array([0, 1]), relabel_fraction=1.0, uncertain_weight=0.5)
    assert_array_equal(found.labels, [0, 1])
    assert_array_equal(found.weights, [0.5, 0.5])


def test_a_class_that_would_have_nothing_left_keeps_its_labels():
    probs = np.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]])
    labels = np.array([0, 1, 1])
    found = update_labels(probs, labels, relabel_fraction=1.0, uncertain_weight=0.0)
    assert_array_equal(found.labels, labels)
    assert_array_equal(found.weights, [1, 1, 1])
    assert not found.relabelled.any()


def test_an_update_refuses_probabilities_that_do_not_match():
    with pytest.raises(DataError, match="3 labels"):
        update_labels(np.ones((2, 4, 2)) / 2, np.array([0, 1, 1]))
    with pytest.raises(DataError, match="shape"):
        update_labels(np.ones((4, 2)) / 2, np.array([0, 1, 1, 0]))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"n_rounds": 0}, "n_rounds"),
        ({"relabel_fraction": 1.5}, "relabel_fraction"),
        ({"augmentation_strengths": ()}, "augmentation_strengths"),
        (
            {"loss": "softmax_weighted"},
            "loss is 'softmax_weighted'\n  fix: did you mean 'softmax-weighted'",
        ),
        ({"final_method": "mixmatch"}, "final_method is 'mixmatch'\n  fix: choose one of"),
    ],
)
def test_settings_are_checked(wrong, name):
    with pytest.raises(ConfigError, match=rf"refine\.{name}"):
        RefineConfig(**wrong)


# --------------------------------------------------------------------------------- rounds


def test_a_refinement_is_the_same_every_time_and_leaves_its_model_alone():
    model, data = network(), noisy(200)
    before = copy.deepcopy(model)
    first, again = (refine(model, data, QUICK, seed=1) for _ in range(2))
    assert same(model, before)
    assert same(first.model, again.model)
    assert_array_equal(first.labels, again.labels)
    assert set(first.seconds) == {"simclr", "rounds/1", "rounds/2", "5-tune"}
    assert not same(first.model, refine(model, data, QUICK, seed=2).model)
    other = refine(model, data, QUICK, seed=1, encoder=first.encoder)
    assert same(first.model, other.model)
    assert "simclr" not in other.seconds


@pytest.mark.parametrize("stage", ["simclr", "rounds/1", "rounds/2", "last"])
def test_an_interrupted_refinement_resumes_to_the_same_result(tmp_path, stage):
    model, data = network(), noisy(200)
    whole = refine(model, data, QUICK, seed=1)

    class StopError(Exception):
        pass

    def stop(what, done, total):
        if what == stage and done > 2:
            raise StopError

    with pytest.raises(StopError):
        refine(model, data, QUICK, seed=1, out=tmp_path / "run", progress=stop)
    resumed = refine(model, data, QUICK, seed=1, out=tmp_path / "run")
    assert same(whole.model, resumed.model)
    for a, b in zip(whole.rounds, resumed.rounds, strict=True):
        assert same(a.model, b.model)
        assert_array_equal(a.update.labels, b.update.labels)
        assert_array_equal(a.update.weights, b.update.weights)
    with pytest.raises(RunError, match="relabel_fraction: was 0"):
        refine(model, data, replace(QUICK, relabel_fraction=0.1), seed=1, out=tmp_path / "run")


def test_the_weighted_loss_counts_by_the_probability_of_the_label(monkeypatch):
    weights, predicted = [], []
    real_tune, real_predict = refinement.tune, refinement._predict_probs

    def tune(model, samples, targets, config, **how):
        weights.append(targets.weights)
        return real_tune(model, samples, targets, config, **how)

    def predict(model, samples):
        predicted.append(real_predict(model, samples))
        return predicted[-1]

    monkeypatch.setattr(refinement, "tune", tune)
    monkeypatch.setattr(refinement, "_predict_probs", predict)
    data = noisy(120)
    config = replace(QUICK, loss="softmax-weighted", n_rounds=1)
    refine(network(), data, config, seed=0, encoder=network())
    rows = np.arange(120)
    assert_array_equal(weights[0], np.ones(120))
    assert_allclose(weights[1], predicted[0][rows, data.labels])


def test_rounds_without_restart_start_from_the_previous_network(monkeypatch):
    starts, ends = [], []
    real = refinement.tune

    def tune(model, *given, **how):
        starts.append(model)
        ends.append(real(model, *given, **how))
        return ends[-1]

    monkeypatch.setattr(refinement, "tune", tune)
    for restart in (True, False):
        starts.clear(), ends.clear()
        config = replace(QUICK, restart=restart)
        refine(network(), noisy(120), config, seed=0, encoder=network())
        assert starts[1] is ends[0]
        assert same(starts[2], ends[1]) != restart


def test_augmentation_has_the_strength_of_its_round():
    data = replace(noisy(50), view=None)
    assert with_augmentation(data, 0.0) is data
    views = [with_augmentation(data, s).view for s in (0.2, 0.6)]
    assert all(isinstance(v, SimCLRAugmentation) for v in views)
    assert [v.strength for v in views] == [0.2, 0.6]
    assert views[0].area[0] > views[1].area[0]


def test_a_stronger_view_is_one_of_the_samples_own():
    data = replace(noisy(50), view=lambda x, generator: x.flip(3))
    x, draws = data.batch(np.arange(50)), [torch.Generator().manual_seed(3) for _ in range(2)]
    alone = with_augmentation(replace(data, view=None), 0.5).view
    assert torch.equal(with_augmentation(data, 0.5).view(x, draws[0]), alone(x.flip(3), draws[1]))


def test_divide_mix_takes_the_refined_labels(monkeypatch):
    data, seen = noisy(120), []
    refined = refine(network(), data, QUICK, seed=0, encoder=network())
    real = trainers.get("divide-mix")

    def divide_mix(model, samples, config, **how):
        seen.append((samples.labels, config.epochs))
        return real(model, samples, config, **how)

    monkeypatch.setitem(trainers._items, "divide-mix", divide_mix)
    config = replace(QUICK, final_method="divide-mix", final_epochs=3)
    train_final(data, refined.rounds[-1], refined.encoder, config, seed=0)
    assert_array_equal(seen[0][0], refined.labels)
    assert seen[0][1] == 3


def test_refinement_corrects_labels_and_beats_training_on_them():
    """Digits of which 40 % are wrong: each round leaves more labels right than the one before."""
    (x, truth), data, tune = digits(), noisy(700, rate=0.4), replace(TUNE, lr=0.1)
    more = {
        "n_rounds": 3,
        "trainings_per_round": 3,
        "epochs": 3,
        "first_round_epochs": 5,
        "final_epochs": 10,
        "relabel_fraction": 0.5,
    }
    config = replace(QUICK, augmentation_strengths=(0.0,), tune=tune, **more)
    refined = refine(network(), data, config, seed=0)
    right = [(data.labels == truth[:700]).mean()]
    right += [(r.update.labels == truth[:700]).mean() for r in refined.rounds]
    assert all(a < b for a, b in pairwise(right)), right
    plain = pipeline.train(network(), data, replace(tune, epochs=60)).model
    unseen = torch.from_numpy(x[900:1300])
    found = [
        float((model(unseen).argmax(1).numpy() == truth[900:1300]).mean())
        for model in (plain, refined.model)
    ]
    assert found[1] > found[0] + 0.08, found
    wrong = data.labels != truth[:700]
    shown, given = torch.from_numpy(x[:700][wrong]), data.labels[wrong]
    kept = [float((m(shown).argmax(1).numpy() == given).mean()) for m in (plain, refined.model)]
    assert kept[1] < 0.7 * kept[0], kept


# --------------------------------------------------------------------------- in a repair


def test_the_recipe_starts_from_the_checkpoint_and_trains_by_refinement():
    recipe = resolve("ssl-refine")
    assert (recipe.start, recipe.trainer, recipe.tune.targets) == ("model", "ssl-refine", "all")
    assert not recipe.prune.is_enabled
    assert recipe.min_flagged_fraction == 0  # also where the partition finds nothing
    assert trainers.get("ssl-refine") is refinement.ssl_refine


def test_a_repair_by_refinement_is_one_of_the_recipes(monkeypatch):
    seen = []

    def quick(model, samples, config, **how):
        seen.append((model, config))
        return refine(model, samples, replace(QUICK, tune=config), seed=how["seed"]).model

    monkeypatch.setitem(trainers._items, "ssl-refine", quick)
    model = memorised()
    overrides = {"tune": {"epochs": 2, "batch_size": 32}, "score": {"detectors": ["margin"]}}
    result = pipeline.repair(
        model, noisy(), clean(), recipe="ssl-refine", overrides=overrides, baselines=()
    )
    assert same(seen[0][0], model)  # from the checkpoint, memorised or not
    assert seen[0][1].lr == 0.1
    assert result.decision.action == "keep"
    assert isinstance(result.model, nn.Module)
    assert result.after.accuracy.value > 0.2
    assert result.classes == CLASSES


def test_the_trainer_of_the_recipe_takes_its_settings(monkeypatch):
    seen = []

    def fake(model, samples, config, **how):
        seen.append(config)
        return refinement.Refined(model, model, (), {})

    monkeypatch.setattr(refinement, "refine", fake)
    how = {"seed": 0, "rate": 0.3, "progress": lambda *a: None, "what": "x"}
    for epochs in (63, 126, 1):
        refinement.ssl_refine(network(), noisy(60), replace(TUNE, epochs=epochs), **how)
    assert [c.total_epochs for c in seen] == [63, 126, 13]  # one each at least
    assert seen[0] == replace(RefineConfig(), simclr=seen[0].simclr, tune=seen[0].tune)
    assert (seen[0].tune.lr, seen[0].simclr.scale) == (0.05, 1.0)  # digits for an MLP
    assert resolve("ssl-refine").tune.epochs == RefineConfig().total_epochs
