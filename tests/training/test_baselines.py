"""Trainings from scratch for wrong labels: what they are without their part, and that it helps."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import softmax

from expunge._core.progress import silent
from expunge.data import LazyInputs, from_arrays
from expunge.detection.signals import collect
from expunge.errors import DataError
from expunge.recipes import recipes, resolve
from expunge.stages import evaluate
from expunge.training import baselines
from expunge.training.baselines import _mixmatch, _Training, trainers
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets
from oracles_digits import CLASSES, digits, network, noisy

# Refinement starts from weights; its tests are its own.
FROM_SCRATCH = ("elr", "co-teaching", "divide-mix")
CONFIG = TuneConfig(
    targets="all", epochs=3, lr=0.05, batch_size=32, augment=False, precision="float32"
)


def train(name, config=CONFIG, *, rate=0.3, seed=0, data=None):
    how = {"seed": seed, "rate": rate, "progress": silent, "what": "train"}
    return trainers.get(name)(network(), data or noisy(), config, **how)


def plain(config=CONFIG):
    data = noisy()
    return tune(
        network(),
        data,
        build_targets(data, None, TuneConfig(targets="all")),
        config,
        seed=0,
        what="train",
    )


def assert_same(a, b):
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert_allclose(x.numpy(), y.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", trainers.names())
def test_a_training_is_the_same_every_time_and_leaves_its_model_alone(name):
    model = network()
    before = copy.deepcopy(model.state_dict())
    how = {"seed": 0, "rate": 0.3, "progress": silent, "what": "train"}
    first = trainers.get(name)(model, noisy(), CONFIG, **how)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not first.training
    assert_same(first, train(name))
    other = train(name, seed=1)
    assert any(
        not torch.equal(x, y) for x, y in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_co_teaching_that_drops_nothing_is_plain_training():
    assert_same(train("co-teaching", rate=0.0), plain())


def test_elr_without_its_penalty_is_plain_training(monkeypatch):
    monkeypatch.setattr(baselines, "LAMBDA", 0.0)
    assert_same(train("elr"), plain())


def test_divide_mix_that_never_divides_is_plain_training(monkeypatch):
    monkeypatch.setattr(baselines, "WARM_UP", 1.0)
    assert_same(train("divide-mix"), plain())


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_less_is_learned_of_wrong_labels_than_by_plain_training(name):
    config = replace(CONFIG, epochs=60)
    data, truth = noisy(800), digits()[1][:800]
    usual = tune(
        network(),
        data,
        build_targets(data, None, TuneConfig(targets="all")),
        config,
        seed=0,
        what="train",
    )
    robust_one = train(name, config, rate=0.3, data=data)
    wrong, unseen = data.labels != truth, digits_behind(800)
    kept = [
        (collect(m, data).logits.argmax(axis=1) == data.labels)[wrong].mean()
        for m in (usual, robust_one)
    ]
    accuracies = [evaluate(m, unseen).accuracy.value for m in (usual, robust_one)]
    assert kept[1] < 0.7 * kept[0]
    assert accuracies[1] > accuracies[0]


def test_mixmatch_of_certain_labels_and_no_mixing_is_cross_entropy_and_the_prior(monkeypatch):
    """With w = 1 the refined labels are the given ones; a share of 1 mixes nothing."""
    training = _Training(network(), noisy(), CONFIG, 0, silent, "train")
    net, other = training.learner(0), training.learner(1)
    step = next(training.batches(0))
    monkeypatch.setattr(step, "random", _Unmixed())
    w = torch.ones(len(step.y))
    loss = _mixmatch(net, other, step, w, ramp=25.0).item()
    logits = net.logits(step.view(0)).detach().numpy().astype(float)
    p = softmax(logits, axis=1)
    cross = -np.log(p[np.arange(len(p)), step.y.numpy()]).mean()
    mean = p.mean(axis=0)
    assert_allclose(loss, cross + (0.1 * np.log(0.1 / mean)).sum(), rtol=1e-4)


def digits_behind(first):
    """Right labels of digits that no training above has seen."""
    x, y = digits()
    return from_arrays(x[first:], y[first:], ids=np.arange(first, len(x)), classes=CLASSES)


class _Unmixed:
    def beta(self, a, b):
        return 1.0

    def permutation(self, n):
        return np.arange(n)[::-1].copy()


def test_inputs_that_are_no_tensors_are_refused():
    x = torch.from_numpy(digits()[0])
    data = replace(noisy(), inputs=LazyInputs(400, lambda i: {"x": x[i]}, "digits"))
    with pytest.raises(DataError, match="got a dictionary of tensors"):
        train("elr", data=data)


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_the_recipes_of_peers_train_from_scratch_on_everything(name):
    recipe = recipes.get(name)(resolve("default"))
    assert (recipe.start, recipe.trainer, recipe.tune.targets) == ("scratch", name, "all")
    assert not recipe.prune.is_enabled
