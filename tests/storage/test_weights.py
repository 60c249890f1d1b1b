"""Weights of checkpoints as people have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.errors import ModelError
from expunge.storage.weights import fit_weights, load_weights, save_weights, state_of


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_weights_that_a_wrapper_saved_are_loaded(wrap):
    given, into = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    part = nn.Sequential(given[0], wrap(given[1]))
    for saved in (wrap(given), part, wrap(part)):
        fit_weights(into, saved.state_dict())
        torch.testing.assert_close(into.state_dict(), given.state_dict())


def test_lazy_layers_get_the_shapes_of_their_weights():
    given = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2)).eval()
    fit_weights(lazy, given.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(lazy(x), given(x))


def test_a_model_of_that_name_keeps_it():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    given, into = Holds(), Holds()
    fit_weights(into, given.state_dict())
    torch.testing.assert_close(into.state_dict(), given.state_dict())


def test_layers_that_ask_for_the_version_of_their_format_get_it():
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            if metadata.get("version") != 2:
                raise ValueError("version should be set to 2")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    given, into = Versioned(2, 2), Versioned(2, 2)
    fit_weights(into, dict(given.state_dict()))
    torch.testing.assert_close(into.state_dict(), given.state_dict())


def test_checkpoints_of_old_batch_norm_have_no_counts():
    given, into = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    given(torch.randn(4, 3))
    state = given.state_dict()
    del state["num_batches_tracked"]
    fit_weights(into, state)
    assert torch.equal(into.running_mean, given.running_mean)
    with pytest.raises(ModelError, match="missing: running_var"):
        fit_weights(into, {k: v for k, v in state.items() if k != "running_var"})


class Filling(nn.Linear):
    """It keeps the mean of its first batch, and a setting in its state dict."""

    def __init__(self, *size):
        super().__init__(*size)
        self.register_buffer("mean", None)
        self.setting = {"power": 2}

    def forward(self, x):
        self.mean = x.mean(0) if self.mean is None else self.mean
        return super().forward(x - self.mean)

    def get_extra_state(self):
        return self.setting

    def set_extra_state(self, state):
        self.setting = state


def test_buffers_that_the_training_filled_are_loaded_and_settings_stay(tmp_path):
    given, into, empty = (nn.Sequential(Filling(2, 3), nn.Linear(3, 2)) for _ in range(3))
    save_weights(given, tmp_path / "empty.safetensors")
    x = torch.randn(4, 2)
    given(x)
    save_weights(given, tmp_path / "w.safetensors")
    into[0].setting = {"power": 3}
    load_weights(into, tmp_path / "w.safetensors")
    torch.testing.assert_close(into(x + 1), given(x + 1))
    assert into[0].setting == {"power": 3}
    load_weights(empty, tmp_path / "empty.safetensors")
    assert empty[0].mean is None
    with pytest.raises(ModelError, match=r"unexpected: 0\.other"):
        fit_weights(empty, {**state_of(given), "0.other": torch.zeros(1)})
    assert empty[0].mean is None


def test_what_layers_made_of_former_weights_in_evaluation_mode_is_dropped():
    class Caching(nn.Linear):
        made = None

        def train(self, mode=True):
            self.made = None if mode else self.made
            return super().train(mode)

        def forward(self, x):
            self.made = self.weight.exp() if self.made is None else self.made
            return x @ self.made.T

    x, parts = torch.ones(1, 2), [nn.Sequential(Caching(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    for model in parts:
        model.eval()(x)
    into = parts[1].train(False)
    fit_weights(into, parts[0].state_dict())
    torch.testing.assert_close(into(x), parts[0](x))
    fit_weights(into.train(), parts[0].state_dict())
    into[1].eval()
    fit_weights(into, parts[0].state_dict())
    assert (into.training, into[0].training, into[1].training) == (True, True, False)
