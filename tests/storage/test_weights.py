"""Weights of checkpoints as people have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.errors import ModelError
from expunge.storage.weights import fit_weights


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
