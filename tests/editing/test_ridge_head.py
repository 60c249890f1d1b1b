"""The closed-form head: solutions, depth, resume, export."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import expunge
from expunge import stages
from expunge.editing.readout import build_classifier, rebuild
from expunge.editing.statistics import RegressionStatistics, ridge_fits
from expunge.models.zoo import resnet
from expunge.records import HeadPlan
from expunge.storage.weights import state_of
from oracles_digits import clean, memorised, noisy

pytestmark = pytest.mark.usefixtures("few_trees")


def moments_of(x, y, w, *, classes=3, parts=1, shift=None):
    moments = RegressionStatistics(x[:1].mean(0) if shift is None else shift, classes)
    for rows in torch.arange(len(x)).chunk(parts):
        moments.add(x[rows], y[rows], w[rows])
    return moments


@pytest.mark.parametrize("ridge", [0.001, 0.1, 2.0])
def test_the_head_is_a_weighted_ridge_regression_on_standardised_columns(ridge):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=draw) * torch.tensor([1, 10, 0.1, 3, 1.0]) + 7
    y, w = torch.randint(0, 3, (80,), generator=draw), torch.rand(80, generator=draw) + 0.1
    fit = ridge_fits(moments_of(x, y, w, parts=7), torch.arange(4), (ridge,))[0]
    p = (w / w.sum()).numpy()
    mean = p @ x[:, :4].numpy()
    z = (x[:, :4].numpy() - mean) / np.sqrt(p @ (x[:, :4].numpy() - mean) ** 2)
    expected = Ridge(alpha=ridge * float(w.sum())).fit(z, np.eye(3)[y], sample_weight=w.numpy())
    np.testing.assert_allclose(fit.predict(x), expected.predict(z), atol=1e-4)


def test_constant_columns_change_nothing():
    x, y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    wide = torch.cat([x, torch.full((30, 1), 5.0)], dim=1)
    plain, other = (
        ridge_fits(moments_of(v, y, torch.ones(30)), torch.arange(v.shape[1]), (0.1,))[0]
        for v in (x, wide)
    )
    np.testing.assert_allclose(other.predict(wide), plain.predict(x), atol=1e-6)


def test_layers_behind_the_last_one_that_is_read_are_gone():
    model = resnet(classes=3, widths=(4, 8), blocks=(1, 1))
    x = torch.randn(2, 3, 16, 16)
    plan = HeadPlan(("stages.0.0",), 0, 8, 3)
    cut = build_classifier(model, plan, x)
    names = [name for name, _ in cut.named_parameters()]
    assert not [name for name in names if "stages.1" in name or "body.head" in name]
    with torch.no_grad():
        expected = model.eval().stages[0](model.stem(x)).mean(dim=(2, 3))
        torch.testing.assert_close(cut.eval().readout(x)[:, :4], expected)


def test_a_head_on_a_memorised_network_beats_it_without_a_gradient_step():
    train, test = noisy(), clean()
    split = stages.partition(stages.score(memorised(), train), threshold=0.5)
    edited = stages.edit(memorised(), train, split, method="ridge-head")
    compared = stages.compare(memorised(), edited.model, test)
    assert compared.gain.low > 0
    assert edited.head is not None
    assert {c.layer for c in edited.head.candidates} >= set(edited.head.layers)


def test_half_depth_has_at_most_half_of_the_multiply_adds():
    train = noisy()
    split = stages.partition(stages.score(memorised(), train))
    edited = stages.edit(memorised(), train, split, method="ridge-head", options={"depth": "full"})
    assert edited.head is not None
    assert len(edited.head.candidates) == 1
    with pytest.raises(expunge.ConfigError, match="has no option 'deep'"):
        stages.edit(memorised(), train, split, method="ridge-head", options={"deep": "full"})
    with pytest.raises(expunge.ConfigError, match="no editor is named"):
        stages.edit(memorised(), train, split)


def test_an_instant_repair_resumes_exports_and_loads(tmp_path):
    train, test = noisy(), clean()
    settings = {
        "recipe": "instant",
        "baselines": ("sap", "ssd", "retrain-filtered"),
        "out": tmp_path / "run",
    }
    first = expunge.repair(memorised(), train, test, **settings)
    again = expunge.repair(memorised(), train, test, **settings)
    assert first.decision.action == "keep"
    assert "The recipe prunes no units." in expunge.report(first)
    assert first.head == again.head
    assert list(first.baselines) == ["sap", "ssd"]  # a network retrained for no epoch says nothing
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    x = torch.as_tensor(test.batch(np.arange(5)))
    loaded = expunge.load_run(tmp_path / "run", memorised(), train)
    torch.testing.assert_close(loaded.model(x), first.model(x))
    assert loaded.head == first.head
    exported = expunge.export_model(
        first.model,
        test,
        tmp_path / "out",
        constructor="expunge.models:mlp",
        arguments={"inputs": 64, "classes": 10, "hidden": 48},
        head=first.head,
    )
    torch.testing.assert_close(exported(x), first.model(x))
    assert isinstance(exported.model.head, nn.Linear)


def test_experts_that_the_example_does_not_need_are_kept():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            z = torch.zeros_like(x)
            for k, expert in enumerate(self.experts):
                rows = (x[:, 0] > 0) == bool(k)
                if rows.any():
                    z[rows] = expert(x[rows])
            return self.head(self.last(torch.relu(z)))

    model, x = Mixture().eval(), torch.tensor([[1.0, 2, 3, 4], [-1.0, 2, 3, 4]])
    plan = HeadPlan(("last",), 512, 4, 3)
    made = build_classifier(model, plan, x[:1])
    assert isinstance(made.readout.body.head, nn.Identity)
    assert isinstance(made.readout.body.experts[0], nn.Linear)
    again = build_classifier(model, plan, x[1:], names=made.state_dict().keys())
    assert again.state_dict().keys() == made.state_dict().keys()


def test_layers_whose_hooks_rename_their_tensors_are_rebuilt():
    def rename(module, state, prefix, _):
        for name in [name for name in state if name.startswith(prefix)]:
            state[f"{prefix}old_{name.removeprefix(prefix)}"] = state.pop(name)

    def rename_back(module, state, prefix, *_):
        for name in [name for name in state if name.startswith(prefix)]:
            state[prefix + name.removeprefix(f"{prefix}old_")] = state.pop(name)

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model.register_state_dict_post_hook(rename)
    model.register_load_state_dict_pre_hook(rename_back)
    x, plan = torch.randn(2, 4), HeadPlan(("0",), 512, 8, 3)
    made = build_classifier(model.eval(), plan, x)
    again = rebuild(model, None, plan, state_of(made), example=x, mode="remove")
    torch.testing.assert_close(again(x), made(x))
