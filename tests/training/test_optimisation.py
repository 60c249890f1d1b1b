"""Optimiser and learning rate fit the model, and leftovers of other trainings change nothing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import expunge
from expunge import stages
from expunge._core.rng import temp_seed
from expunge.models.architecture import is_transformer
from expunge.models.initialisation import frozen_modules, reinitialise
from expunge.models.zoo import convnet, kws, mlp, resnet
from expunge.training.optimisation import (
    MEMORISED_LR,
    TuneConfig,
    adamw_learning_rate,
    with_learning_rate,
)


class Encoder(nn.Module):
    """A small encoder of rows of eight numbers; input ``[n, 8, 8]``."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(self.embed(x)).mean(1))


class ConvNext(nn.Sequential):
    """Layer norm behind a convolution, and no batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(8, 8, 3), nn.LayerNorm(6), nn.Flatten(), nn.Linear(48, 3))


NETWORKS = {
    "convnet": (lambda: convnet(classes=3, channels=1), "sgd"),
    "resnet": (lambda: resnet(classes=3, widths=(4, 8), blocks=(1, 1)), "sgd"),
    "kws": (lambda: kws(classes=3), "sgd"),
    "mlp": (lambda: mlp(inputs=4, classes=3), "sgd"),
    "encoder": (Encoder, "adamw"),
    "convnext": (ConvNext, "adamw"),
    "batch norm beside one layer norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 3)),
        "sgd",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_optimiser_fits_the_kind_of_network(name):
    make, optimizer = NETWORKS[name]
    model = make()
    assert is_transformer(model) == (optimizer == "adamw")
    config = with_learning_rate(TuneConfig(batch_size=32), model, 100)
    assert config.optimizer == optimizer
    assert config.max_gradient_norm == (1.0 if optimizer == "adamw" else 3.0)
    if optimizer == "sgd":
        assert config.lr == 0.1 * math.sqrt(32 / 128)
    else:
        assert config.lr == adamw_learning_rate(model)
        to_forget = with_learning_rate(TuneConfig(batch_size=32), model, 100, MEMORISED_LR)
        assert_close(to_forget.lr, 3 * config.lr)


def test_what_is_given_is_not_changed():
    config = TuneConfig(optimizer="sgd", lr=0.01, batch_size=32)
    assert with_learning_rate(config, Encoder(), 100) == config


def test_the_rate_of_adamw_falls_with_the_width():
    """For weights of a fixed relative scale, as initialisations draw them, as 1 / width."""
    rates = []
    for width in (64, 256, 1024):
        layers = [nn.Linear(width, width) for _ in range(3)]
        for layer in layers:
            nn.init.constant_(layer.weight, 1 / math.sqrt(width))
        rates.append(adamw_learning_rate(nn.Sequential(*layers)))
    assert_close(rates, [0.03 / 64, 0.03 / 256, 0.03 / 1024])


def test_weights_that_start_smaller_than_they_become_do_not_lower_the_rate():
    layer = nn.Linear(400, 400)
    rates = []
    for size in (1e-3, 0.02, 0.05, 0.1):  # 0.05 is 1 / √400
        nn.init.constant_(layer.weight, size)
        rates.append(adamw_learning_rate(layer))
    assert_close(rates, [0.03 / 400, 0.03 / 400, 0.03 / 400, 0.06 / 400])


def test_few_trainable_weights_take_ten_times_the_rate():
    body, head = nn.Linear(400, 400).requires_grad_(False), nn.Linear(400, 4)
    nn.init.constant_(head.weight, 0.08)
    expected = 0.03 * 0.08 / math.sqrt(400)
    assert_close(adamw_learning_rate(nn.Sequential(body, head)), 10 * expected)
    assert_close(adamw_learning_rate(nn.Sequential(body, head), 3.0), 10 * expected)
    assert_close(adamw_learning_rate(head), expected)


def digits_like(n: int = 120):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.standard_normal((n, 8, 8)).astype(np.float32) + y[:, None, None]
    return x, y


def test_a_transformer_is_tuned_by_default_as_well_as_by_adamw_at_a_good_rate():
    x, y = digits_like()
    with temp_seed(0, "network"):
        model = Encoder()
    settings = {"targets": "all", "epochs": 4, "precision": "float32"}
    default = stages.tune(model, (x, y), **settings)
    best = stages.tune(model, (x, y), optimizer="adamw", lr=1e-3, **settings)
    right = [(stages.predict(m, (x, y)) == y).mean() for m in (model, default, best)]
    assert right[1] > right[0] + 0.2
    assert right[1] >= right[2] - 0.1


# ------------------------------------------------------------------------------- frozen


def body_and_head() -> nn.Sequential:
    with temp_seed(0, "network"):
        return nn.Sequential(
            nn.Conv1d(8, 6, 3),
            nn.BatchNorm1d(6),
            nn.BatchNorm1d(6, affine=False),
            nn.Flatten(),
            nn.Linear(36, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        net = body_and_head()
        self.body, self.head = net[:4], net[4:]
        self.body.requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    other = after.state_dict()
    return {
        name.split(".")[0] for name, v in before.state_dict().items() if not v.equal(other[name])
    }


@pytest.mark.parametrize("verb", ["tune", "repair", "scratch"])
def test_frozen_layers_and_their_averages_stay(verb):
    x, y = digits_like()
    model = Nested()
    overrides = {
        "score": {"detectors": ("augmented_margin", "lda_margin")},
        "tune": {"epochs": 1},
        "prune": {"fraction": 0.2},
        "min_flagged_fraction": 0.0,
    }
    if verb == "tune":
        found = expunge.tune(model, (x, y), targets="all", epochs=1)
    elif verb == "repair":
        result = expunge.repair(model, (x, y), baselines=(), overrides=overrides)
        assert set(result.plan.units) == {"head.4"}
        found = result.model
    else:
        found = expunge.tune(reinitialise(model, 0), (x, y), targets="all", epochs=1)
    assert_close(found.body.state_dict(), model.body.state_dict(), rtol=0, atol=0)
    assert not found.head[2].bias.equal(model.head[2].bias)
    wanted = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in found.parameters()] == wanted
    assert frozen_modules(model) == {*model.body.modules()}


def test_the_whole_model_is_initialised_again_if_all_of_it_is_frozen():
    model = body_and_head().requires_grad_(False)
    assert changed(model, reinitialise(model, 0)) >= {"0", "4", "6"}


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    x, y = digits_like()
    model = body_and_head().requires_grad_(False)
    with pytest.raises(
        expunge.ModelError, match=r"every parameter is frozen.*\n.*requires_grad_\(True\)"
    ):
        expunge.repair(model, (x, y))


def test_an_adapter_is_trained_and_nothing_else():
    peft = pytest.importorskip("peft")
    x, y = digits_like()
    with temp_seed(0, "network"):
        config = peft.LoraConfig(r=2, target_modules=["embed"], modules_to_save=["head"])
        model = peft.get_peft_model(Encoder(), config)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    found = expunge.tune(model, (x, y), targets="all", epochs=1, lr=0.01)
    now = dict(found.named_parameters())
    moved = {n for n, p in model.named_parameters() if not p.equal(now[n])}
    assert moved
    assert not moved & frozen
    assert all("lora" in n or "modules_to_save" in n for n in moved)


# ------------------------------------------------------------------------------- leftovers


def test_the_state_of_the_callers_own_accelerate_loop_changes_nothing(monkeypatch):
    from accelerate import Accelerator
    from accelerate.state import GradientState

    x, y = digits_like()
    model = body_and_head()
    expected = expunge.tune(copy.deepcopy(model), (x, y), targets="all", epochs=1)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    state = GradientState()
    before = dict(state.__dict__)
    try:
        mine = Accelerator(gradient_accumulation_steps=4)
        mine.gradient_state._set_sync_gradients(False)
        found = expunge.tune(model, (x, y), targets="all", epochs=1)
    finally:
        state.__dict__.update(before)
        state._set_sync_gradients(True)
        state.plugin_kwargs = {}
    assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert torch.equal(found[6].weight, expected[6].weight)


def test_a_frozen_body_is_not_ranked_for_want_of_other_layers():
    x, y = digits_like()
    model = body_and_head()
    model[:5].requires_grad_(False)
    model = nn.Sequential(*model[:4], nn.Linear(36, 3))
    split = stages.partition(stages.score(model, (x, y), detectors=("loss",)))
    with pytest.raises(expunge.ModelError, match=r"no hidden layer .* not frozen"):
        stages.rank(model, (x, y), split)
