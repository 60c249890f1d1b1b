"""What the recipes change."""

from __future__ import annotations

import pytest

from expunge.recipes import Recipe, recipes, resolve
from expunge.training.optimisation import TuneConfig


@pytest.mark.parametrize("epochs", [1, 6, 7])
def test_the_long_retraining_has_three_times_the_epochs_of_the_repair(epochs):
    recipe = Recipe(tune=TuneConfig(epochs=epochs))
    long, short = (recipes.get(n)(recipe) for n in ("retrain-filtered-3x", "retrain-filtered"))
    assert (short.tune.epochs, long.tune.epochs) == (epochs, 3 * epochs)
    assert (short.start, long.start) == ("scratch", "scratch")
    assert long.tune.targets == "filter"


@pytest.mark.parametrize("baseline", ["retrain-filtered", "finetune-all-labels"])
@pytest.mark.parametrize(
    ("name", "epochs"), [("default", None), ("iterative", 2 + 3 + 13), ("semi", 2 + 3 + 30)]
)
def test_a_baseline_in_one_round_has_the_epochs_of_all_rounds(name, epochs, baseline):
    recipe = recipes.get(baseline)(resolve(name))
    assert (recipe.tune.epochs, recipe.rounds.epochs) == (epochs, ())


def test_rlap_has_the_published_numbers():
    """arXiv 2506.11615: 15.6 % of the last hidden layer, Adam with 0.001, no augmentation."""
    recipe = resolve("rlap")
    assert recipe.prune.fraction == 0.156
    assert recipe.rank.last_n_layers == 1
    assert (recipe.tune.optimizer, recipe.tune.lr) == ("adamw", 1e-3)
    assert recipe.tune.weight_decay == 0
    assert not recipe.tune.augment
    assert recipe.score.detectors == ("attribution_clusters",)


def test_peers_from_scratch_take_as_long_as_the_long_retraining():
    """Epochs times the cost of an epoch, in plain ones, rounded up."""
    recipe = Recipe(tune=TuneConfig(epochs=8))
    costs = {"elr": 1, "co-teaching": 2, "divide-mix": 8}
    for name, cost in costs.items():
        assert recipes.get(name)(recipe).tune.epochs * cost == 24
        assert recipes.get(name)(recipe).tune.targets == "all"
