"""Tuning on given labels mixed with the network's own running predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge import stages
from expunge.training import bootstrap
from expunge.training.optimisation import TuneConfig
from oracles_digits import clean, memorised, network, noisy
from oracles_training import assert_resumes, split_of

CONFIG = TuneConfig(targets="bootstrap", epochs=3, batch_size=16, lr=0.05)


def equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_samples_with_wrong_labels_are_learned_from_by_predictions():
    samples = noisy(400, rate=0.0)
    doubt = (np.arange(400) >= 60).astype(float)
    config = replace(CONFIG, epochs=40)
    kept = stages.tune(
        network(), samples, split_of(samples, doubt), replace(config, targets="filter")
    )
    all_of_them = stages.tune(network(), samples, split_of(samples, doubt, sure=0.1), config)
    assert accuracy(all_of_them) > accuracy(kept) + 0.01


def accuracy(model):
    return stages.evaluate(model, clean()).accuracy.value


def test_it_runs_where_the_caller_infers():
    samples = noisy(40, rate=0.2)
    split, config = split_of(samples, np.linspace(0, 1, 40)), replace(CONFIG, epochs=1)
    with torch.inference_mode():
        inferring = stages.tune(network(), samples, split, config)
    assert equal(inferring, stages.tune(network(), samples, split, config))


def test_wrong_labels_are_forgotten_by_the_momentum_of_adamw(monkeypatch):
    samples, truth = noisy(), noisy(rate=0.0).labels
    wrong = samples.labels != truth
    split = split_of(samples, 0.9 * wrong, truth, sure=0.9)
    config = replace(CONFIG, optimizer="adamw", lr=0.0005, epochs=6)
    still_predicted = []
    for momentum in (bootstrap._MOMENTUM["sgd"], bootstrap._MOMENTUM["adamw"]):
        monkeypatch.setitem(bootstrap._MOMENTUM, "adamw", momentum)
        tuned = stages.tune(memorised(), samples, split, config)
        found = stages.evaluate(tuned, samples.subset(np.flatnonzero(wrong)))
        still_predicted.append(found.accuracy.value)
    assert still_predicted[1] < still_predicted[0]


@pytest.mark.parametrize("limit", [bootstrap._MAX_PREDICTIONS, 300, 0])
def test_labels_that_are_surely_wrong_are_not_read(limit, monkeypatch):
    monkeypatch.setattr(bootstrap, "_MAX_PREDICTIONS", limit)
    samples = noisy(200, rate=0.0)
    doubt = (np.arange(200) >= 64).astype(float)
    other = replace(samples, labels=np.where(doubt == 1, 9 - samples.labels, samples.labels))
    right = samples.labels
    a = stages.tune(memorised(), samples, split_of(samples, doubt, right), CONFIG)
    b = stages.tune(memorised(), other, split_of(other, doubt, right), CONFIG)
    assert equal(a, b)


def test_without_doubt_it_is_the_training_on_given_labels():
    samples = noisy(200, rate=0.0)
    split = split_of(samples, np.zeros(200))
    a = stages.tune(memorised(), samples, split, CONFIG)
    b = stages.tune(memorised(), samples, split, replace(CONFIG, targets="all"))
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_bad_are_left_out_and_reviewed_labels_are_believed():
    samples = noisy(120, rate=0.0)
    split = split_of(samples, np.full(120, 0.9), 9 - samples.labels)
    bad = np.arange(120) < 20
    split = replace(split, p_input_fault=bad.astype(float), reviewed=np.arange(120) >= 20)
    kept = samples.subset(np.flatnonzero(~bad))
    trusted = split_of(kept, np.zeros(100))
    a = stages.tune(memorised(), samples, split, CONFIG)
    b = stages.tune(memorised(), kept, trusted, CONFIG)
    assert equal(a, b)


def test_a_training_resumes_with_the_same_bits():
    samples = noisy(200, rate=0.2)
    split = split_of(samples, np.linspace(0, 1, 200))

    def train(**settings):
        return stages.tune(memorised(), samples, split, CONFIG, **settings)

    assert_resumes(train, steps=20, first=14)
