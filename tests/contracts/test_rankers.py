"""The laws that every registered ranker keeps, and the regressions against textbooks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.linear_model import Ridge
from torch import nn

from expunge.data import from_arrays
from expunge.errors import ConfigError, DataError, ModelError
from expunge.models.zoo import convnet, mlp
from expunge.pruning.ranking import RegressionSums, collect_sums, rank_units, rankers
from expunge.records import Partition
from models.test_inspection import SharedRelu, hooks_of
from oracles_models import SignalNet, build

NAMES = rankers.names()
RIDGES = ("attribution-ridge", "activation-ridge")
PENALTIES = np.logspace(-4, 1, 21)
CLASSES = 3


def network(kind, seed=0):
    """A model, its layers of units, and inputs."""
    if kind == "mlp":
        model, shape, layers = mlp(inputs=6, classes=3, hidden=8), (6,), ("1", "3")
        model = build(lambda: model, seed)
    else:
        make = lambda: convnet(classes=3, channels=2, widths=(4, 6), hidden=7, convolutions=1)  # noqa: E731
        model, shape, layers = build(make, seed), (2, 8, 8), ("0", "4", "9")
    x = torch.randn(120, *shape, generator=torch.Generator().manual_seed(seed))
    return model, x, layers


def samples(x, seed=0):
    labels = np.random.default_rng(seed).integers(0, CLASSES, len(x))
    return from_arrays(x, labels, ids=np.arange(len(x)) * 2, classes=("a", "b", "c"))


def partition(data, p_noisy, suggested=None):
    n = len(data)
    return Partition(
        ids=data.ids,
        labels=data.labels,
        p_noisy=p_noisy,
        p_label_fault=p_noisy,
        p_input_fault=np.zeros(n),
        suggested_label=data.labels if suggested is None else suggested,
        suggested_probability=np.ones(n),
        threshold=0.5,
        noise_rate=(0.5, 0.4, 0.6),
    )


def planted(kind="mlp", seed=0):
    model, x, layers = network(kind, seed)
    data = samples(x, seed)
    rng = np.random.default_rng(seed + 1)
    # Bad where the first input is large, so that some units carry it.
    p = 1 / (1 + np.exp(rng.standard_normal(len(x)) - 3 * x.flatten(1)[:, :8].mean(dim=1).numpy()))
    suggested = np.where(rng.random(len(x)) < 0.5, data.labels, (data.labels + 1) % CLASSES)
    return model, data, partition(data, p, suggested), layers


def rank(model, data, split, layers, method="attribution-ridge", **settings):
    settings = {"groups": {}, **settings}
    return rank_units(model, data, split, method=method, layers=layers, **settings)


def by_unit(ranking):
    """{(layer, unit): (effect, stderr, q)}"""
    columns = zip(
        ranking.layer, ranking.unit, ranking.effect, ranking.stderr, ranking.q_value, strict=True
    )
    return {(str(layer), int(unit)): values for layer, unit, *values in columns}


def same(a, b, **tolerance):
    a, b = by_unit(a), by_unit(b)
    assert a.keys() == b.keys()
    keys = sorted(a)
    assert_allclose([a[k] for k in keys], [b[k] for k in keys], **tolerance)


def materialised(model, data, split, layer, regressors):
    """One row a sample, computed sample by sample: what the streaming sums stand for."""
    probe = {"0": "2", "4": "6", "9": "10"} if len(model) > 6 else {"1": "2", "3": "4"}
    rows = []
    for i in range(len(data)):
        x = data.batch(np.array([i]))
        h = model[: int(probe[layer]) + 1](x).detach().requires_grad_()
        z = model[int(probe[layer]) + 1 :](h)[0]
        y, s = int(data.labels[i]), int(split.suggested_label[i])
        if s == y:
            s = max((c for c in range(CLASSES) if c != y), key=lambda c: float(z[c].detach()))
        (g,) = torch.autograd.grad(z[y] - z[s], h)
        values = (
            (h * g if regressors == "attribution" else h)
            .detach()[0]
            .flatten(1 if h.dim() > 2 else 0)
        )
        if h.dim() > 2:
            values = values.sum(dim=1) if regressors == "attribution" else values.mean(dim=1)
        rows.append(values.double().numpy())
    return np.array(rows)


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_every_unit_is_ranked_once_and_most_suspicious_first(name, kind):
    model, data, split, layers = planted(kind)
    made = rank(model, data, split, layers, name, groups={layers[1]: layers[0]})
    widths = {"mlp": {"1": 8, "3": 8}, "convnet": {"0": 4, "4": 6, "9": 7}}[kind]
    assert made.units_by_layer() == widths
    assert len(by_unit(made)) == len(made.effect) == sum(widths.values())
    assert (np.diff(made.effect) <= 0).all()
    assert np.ptp(made.effect) > 0
    assert made.groups == {name: layers[0] if name == layers[1] else name for name in layers}
    known = ~np.isnan(made.q_value)
    assert known.all() == (name in RIDGES)
    assert known.any() == (name in RIDGES)
    assert (np.isnan(made.stderr) == np.isnan(made.q_value)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_rankings_are_the_same_every_time_and_do_not_depend_on_batch_size(name, kind):
    model, data, split, layers = planted(kind)
    made = rank(model, data, split, layers, name)
    same(rank(model, data, split, layers, name), made, rtol=0)
    for size in (1, 50, 1000):
        other = rank(model, data, split, layers, name, batch_size=size)
        same(other, made, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rankings_do_not_depend_on_the_order_of_the_samples(name):
    model, data, split, layers = planted("convnet")
    order = np.random.default_rng(0).permutation(len(data))
    made = rank(model, data, split, layers, name)
    # The samples in another order than the partition: rows belong together by id.
    same(rank(model, data.subset(order), split, layers, name), made, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_and_the_random_state_are_left_as_found(name):
    model, data, split, layers = planted("convnet")
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    rank(model, data, split, layers, name)
    assert modes == [m.training for m in model.modules()]
    assert not hooks_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].weight.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise_probability", [0.0, 0.1, 0.3, 1.0])
def test_a_noise_probability_that_does_not_vary_is_carried_by_no_unit(name, noise_probability):
    model, data, _, layers = planted()
    made = rank(model, data, partition(data, np.full(len(data), noise_probability)), layers, name)
    if name != "magnitude":
        assert not made.effect.any()
    if name in RIDGES:
        assert (made.q_value == 1).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [2, 3])
def test_few_samples_give_finite_effects(name, n):
    model, x, layers = network("mlp")
    data = from_arrays(x[:n], np.arange(n), classes=("a", "b", "c"))
    made = rank(model, data, partition(data, np.linspace(0, 1, n)), layers, name)
    assert np.isfinite(made.effect).all()


@pytest.mark.parametrize("name", NAMES)
def test_dead_units_and_copies_of_units_do_no_harm(name):
    model, data, split, layers = planted()
    with torch.no_grad():
        model[1].weight[:2], model[1].bias[:2] = 0, -1
        model[1].weight[3], model[1].bias[3] = model[1].weight[4], model[1].bias[4]
        # A unit that is constant, but not zero.
        model[1].weight[5], model[1].bias[5] = 0, 0.3
    made = by_unit(rank(model, data, split, layers, name))
    assert np.isfinite([v[0] for v in made.values()]).all()
    dead = [("1", 0), ("1", 1)] + ([("1", 5)] if name.startswith("activation") else [])
    if name != "magnitude":
        assert [made[k][0] for k in dead] == [0] * len(dead)
    if name in RIDGES:
        assert [made[k][2] for k in dead] == [1] * len(dead)
        assert all(made["1", k][1] > 0 for k in (3, 4))


def planted_carrier(seed=0):
    """One hidden unit is active for bad samples only; it contributes to their wrong label."""
    rng = np.random.default_rng(seed)
    n, unit = 400, 5
    bad = rng.random(n) < 0.3
    labels = np.where(bad, 0, rng.integers(1, 3, n))
    x = rng.standard_normal((n, 6)).astype(np.float32)
    x[:, 0] = 3.0 * bad + 0.1 * x[:, 0]
    model = build(lambda: mlp(inputs=6, classes=3, hidden=8, depth=1), seed)
    with torch.no_grad():
        model[1].weight[:, 0] = 0
        model[1].weight[unit], model[1].bias[unit] = torch.eye(6)[0], -1.0
        model[3].weight[0, unit] = 2.0
    data = from_arrays(x, labels, classes=("a", "b", "c"))
    suggested = np.where(bad, 1, labels)
    return model, data, partition(data, bad.astype(float), suggested), unit


@pytest.mark.parametrize("name", [n for n in NAMES if n != "magnitude"])
def test_a_planted_carrier_of_noise_is_found_first(name):
    model, data, split, unit = planted_carrier()
    made = rank(model, data, split, ("1",), name)
    assert made.unit[0] == unit
    if name in RIDGES:
        assert made.q_value[0] < 1e-6
        assert made.explained["1"] > 0.8


def test_units_with_the_smallest_weights_come_first():
    model, data, split, layers = planted("convnet")
    made = by_unit(rank(model, data, split, layers, "magnitude"))
    for (layer, unit), (effect, *_) in made.items():
        weight = model[int(layer)].weight[unit].detach().double()
        assert effect == pytest.approx(-float((weight**2).sum().sqrt()))


def test_units_without_noise_are_rarely_significant():
    hits = []
    for seed in range(10):
        model, x, layers = network("mlp", seed)
        data = samples(x, seed)
        p = np.random.default_rng(seed + 50).random(len(x))
        made = rank(model, data, partition(data, p), layers)
        hits.append((made.q_value < 0.05).any())
    assert np.mean(hits) <= 0.3


# ------------------------------------------------------------------------------- the regressions


def brute_force(x, y):
    """Ridge on standardised columns for every penalty; the best by generalised cross-validation."""
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = (y - y.mean()) / y.std()
    n, u = x.shape
    best = None
    for penalty in PENALTIES:
        inverse = np.linalg.inv(x.T @ x + n * penalty * np.eye(u))
        hat = x @ inverse @ x.T
        residual = y - hat @ y
        error = n * (residual**2).sum() / np.trace(np.eye(n) - hat) ** 2
        if best is None or error < best[0]:
            fitted = Ridge(alpha=n * penalty, fit_intercept=False).fit(x, y)
            variance = (residual**2).sum() / (n - 1 - np.trace(hat))
            stderr = np.sqrt(variance * np.diag(inverse @ x.T @ x @ inverse))
            best = (error, fitted.coef_, stderr, 1 - (residual**2).mean())
    return best[1:]


def slow_benjamini_hochberg(p):
    n, order = len(p), np.argsort(p)
    q, smallest = np.empty(n), 1.0
    for rank_, at in reversed(list(enumerate(order, 1))):
        smallest = min(smallest, p[at] * n / rank_)
        q[at] = smallest
    return q


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
@pytest.mark.parametrize("name", RIDGES)
def test_ridges_agree_with_scikit_learn_textbook_errors_and_slow_q_values(name, kind):
    model, data, split, layers = planted(kind)
    made = rank(model, data, split, layers, name)
    keys, effects, errors = [], [], []
    for layer in layers:
        x = materialised(model, data, split, layer, name.removesuffix("-ridge"))
        alive = x.std(axis=0) > 1e-9
        effect, stderr = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        effect[alive], stderr[alive], explained = brute_force(x[:, alive], split.p_noisy)
        keys += [(layer, unit) for unit in range(x.shape[1])]
        effects, errors = [*effects, *effect], [*errors, *stderr]
        assert made.explained[layer] == pytest.approx(explained, rel=1e-3, abs=1e-5)
    effects, errors = np.array(effects), np.array(errors)
    p = np.where(errors > 0, norm.sf(effects / np.where(errors > 0, errors, 1)), 1)
    q = slow_benjamini_hochberg(p)
    found = by_unit(made)
    got = np.array([found[k] for k in keys])
    assert_allclose(got[:, 0], effects, rtol=1e-3, atol=1e-5)
    assert_allclose(got[:, 1], errors, rtol=1e-3, atol=1e-5)
    assert_allclose(got[:, 2], q, rtol=1e-3, atol=1e-4)
    assert np.abs(effects).max() > 0.005


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_published_weights_agree_with_least_squares(kind):
    model, data, split, layers = planted(kind)
    made = by_unit(rank(model, data, split, layers, "activation-ols"))
    for layer in layers:
        x = materialised(model, data, split, layer, "activation")
        with_one = np.column_stack([x, np.ones(len(x))])
        expected = np.linalg.lstsq(with_one, split.p_noisy, rcond=None)[0][:-1]
        alive = x.std(axis=0) > 0
        got = np.array([made[layer, unit][0] for unit in range(x.shape[1])])
        assert_allclose(got[alive], np.abs(expected)[alive], rtol=1e-3)
        assert not got[~alive].any()


def sums_of(x, y, weight_norm=None):
    norms = np.ones(x.shape[1]) if weight_norm is None else weight_norm
    return RegressionSums(len(x), x.sum(0), y.sum(), y @ y, x.T @ y, x.T @ x, norms)


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e6])
@pytest.mark.parametrize("name", RIDGES)
def test_the_scale_of_units_and_of_the_noise_probability_does_not_matter(name, factor):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5)) + 2
    y = x @ [1.0, 0.5, 0, 0, 0] + rng.standard_normal(200)
    made = rankers.get(name)(sums_of(x, y))
    for scaled in (sums_of(x * factor, y), sums_of(x, y * factor)):
        other = rankers.get(name)(scaled)
        assert_allclose(other.effect, made.effect, rtol=1e-6)
        assert_allclose(other.p_value, made.p_value, rtol=1e-5)


def test_p_values_of_units_without_effect_are_uniform():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(60):
        x, y = rng.standard_normal((100, 5)), rng.standard_normal(100)
        p.extend(rankers.get("attribution-ridge")(sums_of(x, y)).p_value)
    assert_allclose(np.quantile(p, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.08)


@pytest.mark.parametrize("regressors", ["attribution", "activation"])
def test_streamed_sums_are_those_of_all_rows_at_once(regressors):
    model, data, split, layers = planted("convnet")
    sums = collect_sums(model, data, split, layers=layers, regressors=regressors, batch_size=7)
    y = split.p_noisy
    for layer in layers:
        x = materialised(model, data, split, layer, regressors)
        whole, got = sums_of(x, y), sums[layer]
        assert got.n == 120
        for name in ("x", "y", "yy", "xy", "xx"):
            expected = getattr(whole, name)
            assert_allclose(getattr(got, name), expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_memory_does_not_grow_with_the_number_of_samples():
    model, x, layers = network("mlp")
    held = []
    for n in (30, 120):
        data = samples(x[:n])
        split = partition(data, np.linspace(0, 1, n))
        sums = collect_sums(
            model, data, split, layers=layers, regressors="attribution", batch_size=16
        )
        held.append({k: {f: np.shape(v) for f, v in vars(m).items()} for k, m in sums.items()})
    assert held[0] == held[1]
    assert held[0]["1"] == {
        "n": (), "x": (8,), "y": (), "yy": (), "xy": (8,), "xx": (8, 8), "weight_norm": (8,)
    }  # fmt: skip


def test_one_dimensional_convolutions_have_their_channels_as_units():
    model = build(SignalNet)
    x = torch.randn(40, 2, 12, generator=torch.Generator().manual_seed(0))
    data = samples(x)
    y = np.random.default_rng(0).random(40)
    made = by_unit(rank(model, data, partition(data, y), ("conv1",), "activation-ols"))
    h = model.conv1(x).mean(dim=2).detach().double().numpy()
    expected = np.linalg.lstsq(np.column_stack([h, np.ones(40)]), y, rcond=None)[0][:-1]
    assert_allclose([made["conv1", k][0] for k in range(6)], np.abs(expected), rtol=1e-3)


def test_layers_that_share_one_relu_are_ranked_each_by_itself():
    model = build(SharedRelu)
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    data = samples(x)
    split = partition(data, np.random.default_rng(0).random(80))
    plain = nn.Sequential(model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.head)
    made = by_unit(rank(model, data, split, ("fc1", "fc2")))
    expected = by_unit(rank(plain, data, split, ("0", "2")))
    for ours, theirs in (("fc1", "0"), ("fc2", "2")):
        assert_allclose(
            [made[ours, k][0] for k in range(5)],
            [expected[theirs, k][0] for k in range(5)],
            rtol=1e-3,
            atol=1e-6,
        )


# ------------------------------------------------------------------------------- errors


def test_unknown_layers_methods_and_options_are_refused():
    model, data, split, layers = planted()
    with pytest.raises(ModelError, match="'5' is no hidden layer of units"):
        rank(model, data, split, ("5",))
    with pytest.raises(ConfigError, match=r"no ranker is called 'attribution-rigde'\n.*did you"):
        rank(model, data, split, layers, "attribution-rigde")
    with pytest.raises(ConfigError, match="'attribution-ridge' has no option 'penalty'"):
        rank(model, data, split, layers, penalty=1.0)


def test_a_partition_of_other_samples_is_refused():
    model, data, split, layers = planted()
    with pytest.raises(DataError, match="there are no rows for ids 100"):
        rank(model, data, partition(data.subset(np.arange(50)), split.p_noisy[:50]), layers)


def test_progress_ends_with_all_samples():
    model, data, split, layers = planted()
    seen = []
    rank(model, data, split, layers, batch_size=50, progress=lambda *a: seen.append(a))
    assert seen == [("rank", 50, 120), ("rank", 100, 120), ("rank", 120, 120)]
