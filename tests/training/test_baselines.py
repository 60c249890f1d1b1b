"""Trainings from scratch for wrong labels: what they are without their part, and that it helps."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import softmax
from torch import nn

from expunge._core.progress import silent
from expunge._core.rng import derive, generator, temp_seed
from expunge.data import LazyInputs, from_arrays
from expunge.detection.signals import collect
from expunge.errors import DataError
from expunge.models.initialisation import reinitialise
from expunge.recipes import recipes, resolve
from expunge.stages import evaluate
from expunge.training import baselines
from expunge.training.baselines import (
    elr_loss,
    exchange_small_losses,
    trainers,
    update_elr_targets,
)
from expunge.training.loop import Step, TuneConfig, fit, tune
from expunge.training.mixmatch import SampleBatches, divide_losses, mixmatch_loss
from expunge.training.targets import build_targets
from oracles_digits import CLASSES, digits, network, noisy
from oracles_training import assert_resumes

# Refinement starts from weights; its tests are its own.
FROM_SCRATCH = ("elr", "co-teaching", "divide-mix")
CONFIG = TuneConfig(
    targets="all", epochs=3, lr=0.05, batch_size=32, augment=False, precision="float32"
)


def train(name, config=CONFIG, *, rate=0.3, seed=0, data=None):
    how = {"seed": seed, "rate": rate, "progress": silent, "what": "train"}
    return trainers.get(name)(network(), data or noisy(), config, **how)


@cache
def plain(config=CONFIG, n=400):
    data = noisy(n)
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
    monkeypatch.setattr(baselines, "ELR_WEIGHT", 0.0)
    assert_same(train("elr"), plain())


def test_divide_mix_that_never_divides_is_plain_training(monkeypatch):
    monkeypatch.setattr(baselines, "DIVIDE_MIX_WARM_UP", 1.0)
    assert_same(train("divide-mix"), plain())


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_less_is_learned_of_wrong_labels_than_by_plain_training(name):
    config = replace(CONFIG, epochs=60)
    data, truth = noisy(800), digits()[1][:800]
    usual, robust_one = plain(config, 800), train(name, config, rate=0.3, data=data)
    wrong, unseen = data.labels != truth, digits_behind(800)
    kept = [
        (collect(m, data).logits.argmax(axis=1) == data.labels)[wrong].mean()
        for m in (usual, robust_one)
    ]
    accuracies = [evaluate(m, unseen).accuracy.value for m in (usual, robust_one)]
    assert kept[1] < 0.7 * kept[0]
    assert accuracies[1] > accuracies[0]


def first_step(models, data, config=CONFIG) -> Step:
    """The first step of a training that learns nothing."""
    steps: list[Step] = []
    fit(models, len(data), steps.append, replace(config, epochs=1), seed=0, what="train")
    return steps[0]


def test_mixmatch_of_certain_labels_and_no_mixing_is_cross_entropy_and_the_prior():
    """With w = 1 the refined labels are the given ones; a share of 1 mixes nothing."""
    data, models = noisy(), [network(), network(1)]
    step, batches = first_step(models, data), SampleBatches.of(data, CONFIG, "train")
    x = batches.inputs(step)
    loss = mixmatch_loss(
        step,
        0,
        [x, x],
        labels=data.labels,
        clean=torch.ones(len(data)),
        unlabelled_weight=25.0,
        random=_Unmixed(),
    ).item()
    logits = step.logits(0, x).detach().numpy().astype(float)
    p = softmax(logits, axis=1)
    cross = -np.log(p[np.arange(len(p)), data.labels[step.batch]]).mean()
    mean = p.mean(axis=0)
    assert_allclose(loss, cross + (0.1 * np.log(0.1 / mean)).sum(), rtol=1e-4)


def test_mixmatch_is_the_slow_loop():
    """Refined and guessed labels, sharpened, mixed, and three terms, sample by sample."""
    data, models, weight = noisy(), [network(), network(1)], 7.0
    step, batches = first_step(models, data), SampleBatches.of(data, CONFIG, "train")
    x = batches.inputs(step)
    views = [x, x.flip(3)]
    clean = torch.from_numpy(np.random.default_rng(3).random(len(data)).astype(np.float32))
    found = mixmatch_loss(
        step,
        1,
        views,
        labels=data.labels,
        clean=clean,
        unlabelled_weight=weight,
        random=np.random.default_rng(5),
    ).item()
    n, rows = len(x), step.batch
    p = [
        [softmax(step.logits(k, v).detach().numpy().astype(float), axis=1) for v in views]
        for k in range(2)
    ]
    targets = []
    for i, row in enumerate(rows):
        w, own = float(clean[row]), (p[1][0][i] + p[1][1][i]) / 2
        other = (p[0][0][i] + p[0][1][i]) / 2
        target = (own + other) / 2
        if w > 0.5:
            target = (1 - w) * own
            target[data.labels[row]] += w
        targets.append(target**2 / (target**2).sum())
    random = np.random.default_rng(5)
    share = random.beta(4, 4)
    share, partner = max(share, 1 - share), random.permutation(2 * n)
    both, t = torch.cat(views), np.array(targets * 2)
    logits = step.logits(1, share * both + (1 - share) * both[partner]).detach().numpy()
    q, mixed = softmax(logits.astype(float), axis=1), share * t + (1 - share) * t[partner]
    labelled = np.tile(clean.numpy()[rows] > 0.5, 2)
    cross = -(mixed * np.log(q)).sum(1)[labelled].mean()
    squared = ((q - mixed) ** 2).mean(1)[~labelled].mean()
    prior = (0.1 * np.log(0.1 / q.mean(0))).sum()
    assert 0 < labelled.sum() < 2 * n
    assert_allclose(found, cross + weight * squared + prior, rtol=1e-4)


def test_smaller_losses_are_more_probably_clean():
    rng = np.random.default_rng(0)
    loss = np.concatenate([rng.normal(0.3, 0.1, 150), rng.normal(2.0, 0.3, 50)])
    clean = divide_losses(loss)
    assert (clean[:150] > 0.5).mean() > 0.95
    assert (clean[150:] < 0.5).mean() > 0.95


def test_each_network_is_divided_by_the_losses_of_the_other(monkeypatch):
    """Co-division: a network that divides for itself confirms its own errors."""
    divided, learned = [], []
    real = mixmatch_loss

    def clean_probability(model, batches, config):
        divided.append(model)
        return torch.full((len(batches.samples),), 0.6 + 0.001 * len(divided))

    def loss(step, k, views, *, clean, **how):
        learned.append((k, divided[round((float(clean[0]) - 0.6) / 0.001) - 1]))
        return real(step, k, views, clean=clean, **how)

    monkeypatch.setattr(baselines, "clean_probability", clean_probability)
    monkeypatch.setattr(baselines, "mixmatch_loss", loss)
    first = train("divide-mix")
    assert {k for k, _ in learned} == {0, 1}
    for k, divider in learned:
        assert (divider is first) == (k == 1)
    assert len({id(model) for model in divided}) == 2


def test_division_waits_for_the_warm_up_and_follows_every_epoch(monkeypatch):
    epochs = []
    real = baselines.clean_probability
    monkeypatch.setattr(
        baselines, "clean_probability", lambda *given: epochs.append(1) or real(*given)
    )
    train("divide-mix", replace(CONFIG, epochs=5))
    assert len(epochs) == 2 * 4  # of two networks, in all epochs but the first


# ------------------------------------------------------------------ co-teaching, step by step


def test_each_network_gets_the_samples_with_the_smallest_losses_of_the_other():
    first, second = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([5.0, 1.0, 0.0, 7.0])
    for_first, for_second = exchange_small_losses(first, second, keep=0.5)
    assert sorted(for_first.tolist()) == [1, 2]
    assert sorted(for_second.tolist()) == [0, 1]
    assert [len(c) for c in exchange_small_losses(first, second, keep=0.0)] == [1, 1]
    assert [len(c) for c in exchange_small_losses(first, second, keep=1.0)] == [4, 4]


def slow_steps(data, config):
    """Rows, fraction done and learning rate of every step of a onecycle schedule."""
    n, size = len(data), config.batch_size
    batches = -(-n // size) - (1 if n % size == 1 else 0)
    total = batches * config.epochs
    for epoch in range(config.epochs):
        order = generator(0, "order", epoch).permutation(n)
        for k in range(batches):
            number = epoch * batches + k
            rows = order[k * size :] if k == batches - 1 else order[k * size : (k + 1) * size]
            middle = (number + 0.5) / total
            factor = min(middle / config.warmup, (1 - middle) / (1 - config.warmup))
            yield rows, number / total, config.lr * factor


def sgd(model, config):
    how = {"momentum": 0.9, "weight_decay": config.weight_decay, "nesterov": True}
    return torch.optim.SGD(model.parameters(), lr=config.lr, **how)


def descend(optimizer, loss, lr):
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_co_teaching_is_the_slow_loop():
    data, rate, config = noisy(160), 0.4, replace(CONFIG, epochs=2)
    models = [network(), reinitialise(network(), derive(0, "learner", 1))]
    optimizers = [sgd(model, config) for model in models]
    dropped = 0
    for rows, done, lr in slow_steps(data, config):
        x, y = data.batch(rows), torch.from_numpy(data.labels[rows].copy())
        losses = [-model(x).log_softmax(1)[torch.arange(len(y)), y] for model in models]
        ramp = min(1.0, max(0.0, (done - config.warmup) / (10 / 200)))
        count = round((1 - rate * ramp) * len(y))
        dropped += len(y) - count
        chosen = [sorted(range(len(y)), key=lambda i, k=k: losses[k][i].item()) for k in range(2)]
        descend(optimizers[0], losses[0][chosen[1][:count]].mean(), lr)
        descend(optimizers[1], losses[1][chosen[0][:count]].mean(), lr)
    assert dropped
    assert_same(train("co-teaching", config, rate=rate, data=data), models[0])


# ---------------------------------------------------------------------------- ELR, step by step


def test_the_targets_of_elr_are_a_running_mean_of_predictions():
    logits = [torch.randn(3, 4, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    first = update_elr_targets(torch.zeros(3, 4), logits[0])
    assert_allclose(first, 0.3 * logits[0].softmax(1), rtol=1e-5)
    second = update_elr_targets(first, logits[1])
    assert_allclose(second, 0.7 * first + 0.3 * logits[1].softmax(1), rtol=1e-5)
    sharp = update_elr_targets(torch.zeros(1, 2), torch.tensor([[50.0, 0.0]]))
    assert_allclose(sharp.sum(), 0.3, rtol=1e-6)  # clipped predictions are normalised
    assert sharp[0, 1] > 1e-5


def test_the_penalty_of_elr_falls_as_predictions_agree_with_their_targets():
    logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    p = logits.softmax(1)
    targets = torch.tensor([[0.6, 0.1]])
    expected = -p[0, 1].log() + 3 * (1 - 0.6 * p[0, 0] - 0.1 * p[0, 1]).log()
    assert_allclose(elr_loss(logits, labels, targets), expected, rtol=1e-5)
    assert elr_loss(logits, labels, targets) < elr_loss(logits, labels, targets.flip(1))


def test_elr_is_the_slow_loop():
    """Targets are updated by the prediction of the step, before the loss, without a gradient."""
    data, config = noisy(160), replace(CONFIG, epochs=2)
    model = network()
    optimizer, targets = sgd(model, config), torch.zeros(160, 10)
    for rows, _, lr in slow_steps(data, config):
        y = torch.from_numpy(data.labels[rows].copy())
        logits = model(data.batch(rows))
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        loss = torch.zeros(())
        for i, row in enumerate(rows):
            q = p[i].detach() / p[i].detach().sum()
            targets[row] = 0.7 * targets[row] + 0.3 * q
            loss = loss - logits[i].log_softmax(0)[y[i]]
            loss = loss + 3 * (1 - (p[i] * targets[row].clone()).sum()).log()
        descend(optimizer, loss / len(rows), lr)
    assert_same(train("elr", config, data=data), model)


# ------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("name", FROM_SCRATCH)
@pytest.mark.parametrize("steps", [7, 12, 20])
def test_an_interrupted_training_resumes_bit_for_bit(name, steps):
    """Order, views, dropout, both networks, both optimisers, and what the method keeps."""
    data, config = noisy(160, view="crop"), replace(CONFIG, epochs=4, augment=True)
    with temp_seed(0, "cnn"):
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10)),
        )

    def trained(**how):
        return trainers.get(name)(model, data, config, seed=0, rate=0.3, what="train", **how)

    assert_resumes(trained, steps=steps, first=(steps - 1) // 5 * 5 + 1)


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
