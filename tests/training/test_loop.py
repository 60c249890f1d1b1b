from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from expunge._core.rng import generator, temp_seed
from expunge.data import Samples, from_arrays
from expunge.errors import ConfigError, DataError, ModelError, PartitionError
from expunge.records import Partition
from expunge.storage.run_folder import open_run
from expunge.training.loop import TuneConfig, complementary_cross_entropy, tune
from expunge.training.targets import Targets, build_targets
from oracles_results import make_partition

PLAIN = TuneConfig(
    epochs=2, batch_size=16, lr=0.1, schedule="constant", augment=False, precision="float32"
)


def blobs(n: int = 60, d: int = 6, c: int = 3, seed: int = 0, **settings: Any) -> Samples:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    x = rng.normal(size=(n, d)) + 2 * rng.normal(size=(c, d))[y]
    return from_arrays(x.astype(np.float32), y, **settings)


def images(n: int = 40, **settings: Any) -> Samples:
    x = np.random.default_rng(0).normal(size=(n, 1, 4, 4)).astype(np.float32)
    return from_arrays(x, np.arange(n) % 2, **settings)


def net(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    with temp_seed(0, "net"):
        return nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        )


def everything(samples: Samples) -> Targets:
    return build_targets(samples, None, TuneConfig(targets="all"))


def weighted(samples: Samples) -> Targets:
    weights = np.random.default_rng(1).uniform(0.1, 1, len(samples))
    return Targets(np.arange(len(samples)), samples.labels, weights)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def differs(a: nn.Module, b: nn.Module) -> set[str]:
    """Names of the tensors that are not equal."""
    other = b.state_dict()
    return {name for name, x in a.state_dict().items() if not torch.equal(x, other[name])}


# ------------------------------------------------------------------------------ the loop


def slow_training(model: nn.Module, samples: Samples, targets: Targets, config: TuneConfig) -> None:
    """The documented loss, sample by sample, with updates written out by hand."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    n = len(targets.positions)
    for epoch in range(config.epochs):
        order = generator(0, "order", epoch).permutation(n)
        for start in range(0, n, config.batch_size):
            rows = order[start : start + config.batch_size]
            loss, total = torch.zeros(()), 0.0
            for row in rows:
                x = samples.batch(targets.positions[[row]])
                log_p = model(x)[0].log_softmax(0)
                loss = loss - targets.weights[row] * log_p[targets.labels[row]]
                total += targets.weights[row]
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss / total, parameters)
            with torch.no_grad():
                for name, p, g in zip(names, parameters, gradients, strict=True):
                    g = g + config.weight_decay * p
                    velocity[name] = config.momentum * velocity[name] + g
                    p -= config.lr * (g + config.momentum * velocity[name])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_plain_sgd_on_the_weighted_loss(momentum):
    samples, config = blobs(), replace(PLAIN, momentum=momentum, weight_decay=0.01)
    expected = net()
    slow_training(expected, samples, weighted(samples), config)
    found = tune(net(), samples, weighted(samples), config, seed=0)
    for (name, x), (_, y) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert_close(x, y, msg=name, rtol=1e-4, atol=1e-5)
    assert differs(found, net())


def test_adamw_is_that_of_torch():
    samples = blobs()
    config = replace(PLAIN, optimizer="adamw", lr=0.01, epochs=1, batch_size=60)
    expected = net()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=config.weight_decay)
    loss = nn.functional.cross_entropy(
        expected(samples.batch(np.arange(60))), torch.from_numpy(samples.labels.copy())
    )
    loss.backward()
    optimizer.step()
    found = tune(net(), samples, everything(samples), config, seed=0)
    for x, y in zip(found.parameters(), expected.parameters(), strict=True):
        assert_close(x, y)


def test_a_scale_of_all_weights_changes_nothing():
    samples = blobs()
    once = weighted(samples)
    found = [
        tune(net(), samples, replace(once, weights=s * once.weights), PLAIN, seed=0)
        for s in (1.0, 8.0)
    ]
    for x, y in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert_close(x, y)


def test_training_learns():
    samples = blobs(120)
    found = tune(net(), samples, everything(samples), replace(PLAIN, epochs=20), seed=0)
    logits = found(samples.batch(np.arange(120)))
    assert (logits.argmax(1).numpy() == samples.labels).mean() > 0.95


def test_the_model_given_is_left_as_it_was():
    model = net(norm=True)
    model[0].requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    model.train()
    model[1].eval()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    samples = blobs()
    found = tune(model, samples, everything(samples), PLAIN, seed=0)
    assert_same_weights(model, before)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    assert wanted == [p.requires_grad for p in before.parameters()]
    assert wanted == [p.requires_grad for p in found.parameters()]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert model[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m.training for m in found.modules())
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in found.parameters()
    }


def test_the_global_random_state_changes_nothing():
    samples = blobs()
    found = []
    for state in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            found.append(tune(net(dropout=0.5), samples, everything(samples), PLAIN, seed=0))
    assert_same_weights(*found)


def test_the_seed_decides_order_dropout_and_views():
    samples = blobs()
    for model in (net(), net(dropout=0.5)):
        found = [tune(model, samples, everything(samples), PLAIN, seed=s) for s in (0, 0, 1)]
        assert_same_weights(found[0], found[1])
        assert differs(found[0], found[2])


def small_cnn(*, norm: bool = True) -> nn.Module:
    with temp_seed(0, "cnn"):
        norms = nn.BatchNorm2d(4) if norm else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), norms, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        )


def test_views_are_drawn_only_where_augmentation_is_on():
    plain, viewed = images(), images(view="crop")
    config = replace(PLAIN, epochs=1)
    found = [
        tune(small_cnn(), samples, everything(samples), replace(config, augment=augment), seed=0)
        for samples, augment in ((plain, True), (viewed, False), (viewed, True), (viewed, True))
    ]
    assert_same_weights(found[0], found[1])
    assert_same_weights(found[2], found[3])
    assert differs(found[0], found[2])


@pytest.mark.parametrize("n", [1, 17, 33])
def test_a_last_batch_of_one_joins_the_batch_before(n):
    """Batch norm cannot train on one sample."""
    samples = blobs(n + 32)
    assert (n + 32) % 16 == 1
    found = tune(net(norm=True), samples, everything(samples), PLAIN, seed=0)
    assert int(found[1].num_batches_tracked) == PLAIN.epochs * ((n + 32) // 16)


@pytest.mark.parametrize("n", [16, 18, 31, 32, 50])
def test_every_sample_is_seen_once_an_epoch(n):
    samples = blobs(n)
    seen: list[np.ndarray] = []
    inner = samples.inputs

    class Watched:
        def __len__(self) -> int:
            return len(inner)

        def batch(self, positions: np.ndarray) -> Any:
            seen.append(positions)
            return inner.batch(positions)

        def fingerprint(self) -> str:
            return inner.fingerprint()

    tune(net(), replace(samples, inputs=Watched()), everything(samples), PLAIN, seed=0)
    rows = np.concatenate(seen)
    assert np.array_equal(np.sort(rows), np.sort(np.tile(np.arange(n), PLAIN.epochs)))
    assert max(len(s) for s in seen) <= 17
    assert not np.array_equal(rows[:n], rows[n:])


def test_dropout_and_norms_are_in_training_mode_while_tuning():
    samples, modes = blobs(), []
    model = net(dropout=0.5, norm=True)
    model.eval()
    model.register_forward_hook(lambda m, a, o: modes.append([x.training for x in m.modules()]))
    tune(model, samples, everything(samples), PLAIN, seed=0)
    assert modes
    assert all(all(found) for found in modes)


def test_a_loss_that_is_not_finite_is_an_error():
    samples = blobs()
    with pytest.raises(
        ModelError, match=r"tune: the loss became nan in epoch \d+\n  fix: lower the learning"
    ):
        tune(net(), samples, everything(samples), replace(PLAIN, lr=1e30), seed=0)


def test_bfloat16_trains_nearly_as_float32():
    samples = blobs(120)
    found = {
        precision: tune(
            net(), samples, everything(samples), replace(PLAIN, precision=precision), seed=0
        )
        for precision in ("float32", "bfloat16")
    }
    assert differs(*found.values())
    for x, y in zip(*(m.parameters() for m in found.values()), strict=True):
        assert x.dtype == y.dtype == torch.float32
        assert_close(x, y, rtol=0.1, atol=0.05)


# ------------------------------------------------------------------------------ what learns


def test_scope_head_leaves_the_averages_of_other_batch_norms():
    samples, model = blobs(), net(norm=True)
    config = replace(PLAIN, scope="head")
    head = tune(model, samples, everything(samples), config, seed=0, layers=("6",))
    whole = tune(model, samples, everything(samples), PLAIN, seed=0)
    assert_close(head[1].running_mean, model[1].running_mean, rtol=0, atol=0)
    assert not torch.equal(whole[1].running_mean, model[1].running_mean)


def test_batch_norm_needs_two_samples_a_batch():
    samples, single = blobs(), replace(PLAIN, batch_size=1, epochs=1)
    with pytest.raises(ConfigError, match=r"tune.batch_size is 1, and batch norm needs 2"):
        tune(net(norm=True), samples, everything(samples), single, seed=0)
    tune(net(), samples, everything(samples), single, seed=0)
    head = replace(single, scope="head")
    tune(net(norm=True), samples, everything(samples), head, seed=0, layers=("6",))


def test_scope_head_moves_only_the_named_layers():
    samples = blobs()
    config = replace(PLAIN, scope="head")
    for layers, moved in (
        (("6",), {"6.weight", "6.bias"}),
        (("4", "6"), {"4.weight", "4.bias", "6.weight", "6.bias"}),
    ):
        found = tune(net(), samples, everything(samples), config, seed=0, layers=layers)
        assert differs(found, net()) == moved


def test_layers_are_matched_by_whole_names():
    model = nn.Sequential()
    for name, width in (("fc1", 6), ("fc10", 6)):
        model.add_module(name, nn.Linear(width, 6))
    samples = blobs(c=6)
    config = replace(PLAIN, scope="head")
    found = tune(model, samples, everything(samples), config, seed=0, layers=("fc1",))
    assert differs(found, model) == {"fc1.weight", "fc1.bias"}


def test_scope_all_moves_everything():
    samples = blobs()
    found = tune(net(), samples, everything(samples), PLAIN, seed=0, layers=("6",))
    assert differs(found, net()) == set(net().state_dict())


def test_layers_without_weights_are_an_error():
    samples = blobs()
    with pytest.raises(ModelError, match="no trainable parameter belongs to the layers 2"):
        tune(
            net(), samples, everything(samples), replace(PLAIN, scope="head"), seed=0, layers=("2",)
        )


def rates(**settings: Any) -> list[float]:
    """The learning rate of every step, seen as the change of a bias whose gradient is 1."""

    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            # The gradient of −log p of class 0 in (t, 0) is −1/2 at 0, and −1/2 stays nearly so.
            return torch.stack([self.free * 1e-3, 0 * self.free], 1).expand(len(x), 2)

    steps: list[float] = []
    model, n = Ramp(), 20
    samples = from_arrays(np.ones((n, 1), np.float32), np.arange(n) % 2)
    targets = Targets(np.arange(n), np.zeros(n, np.int64), np.ones(n))
    kept: list[nn.Module] = []
    model.register_forward_hook(lambda m, a, o: kept.append(m))

    def watch(what: str, done: int, total: int) -> None:
        steps.append(kept[-1].free.item())

    config = TuneConfig(
        epochs=2, batch_size=2, lr=0.2, momentum=0.0, weight_decay=0.0, augment=False, **settings
    )
    tune(model, samples, targets, config, seed=0, progress=watch)
    return (np.diff([0.0, *steps]) / 0.5e-3).tolist()


def test_a_constant_schedule_stays():
    assert_close(rates(schedule="constant"), [0.2] * 20, rtol=1e-3, atol=1e-6)


def test_a_cosine_schedule_falls_from_the_rate_to_zero():
    expected = [0.1 * (1 + np.cos(np.pi * (k + 0.5) / 20)) for k in range(20)]
    assert_close(rates(schedule="cosine"), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5])
def test_onecycle_rises_over_the_warmup_and_falls_to_zero(warmup):
    at = (np.arange(20) + 0.5) / 20
    rising = at / warmup if warmup else np.ones(20)
    expected = 0.2 * np.minimum(rising, (1 - at) / (1 - warmup))
    found = rates(schedule="onecycle", warmup=warmup)
    assert_close(found, expected.tolist(), rtol=1e-3, atol=1e-6)
    assert np.argmax(found) in (int(20 * warmup) - 1, int(20 * warmup))


# ------------------------------------------------------------------------------ resuming


class Stop(Exception):
    """The user pulled the plug."""


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", ["norm and dropout", "convolution"])
def test_resumed_after_any_epoch_equals_uninterrupted(tmp_path, optimizer, model):
    samples = blobs() if model != "convolution" else images(60, view="crop")
    start = net(norm=True, dropout=0.3) if model != "convolution" else small_cnn()
    config = TuneConfig(epochs=4, batch_size=16, optimizer=optimizer, lr=0.02)

    def tuned(run: Any, progress: Any = lambda *a: None) -> nn.Module:
        return tune(
            start,
            samples,
            weighted(samples),
            config,
            seed=0,
            checkpoint=run.checkpoint("5-tune", {"n": 1}) if run else None,
            progress=progress,
        )

    whole = tuned(None)
    steps = 4  # batches an epoch
    for step in (1, steps, steps + 1, 2 * steps + 3, 4 * steps):
        folder = tmp_path / str(step)
        with open_run(folder, {}) as run, pytest.raises(Stop):
            tuned(run, stop_at(step))
        again: list[int] = []
        with open_run(folder, {}) as run:
            found = tuned(run, lambda what, done, total, seen=again: seen.append(done))
        assert again[0] == (step - 1) // steps * steps + 1  # goes on where the last epoch ended
        assert_same_weights(found, whole)


def test_resumed_twice_equals_uninterrupted(tmp_path):
    samples, config = blobs(), replace(PLAIN, epochs=4)
    whole = tune(net(dropout=0.3), samples, everything(samples), config, seed=0)
    for stop in (5, 9, 14, 0):
        with open_run(tmp_path, {}) as run:
            arguments = {"seed": 0, "checkpoint": run.checkpoint("5-tune", {})}
            try:
                found = tune(
                    net(dropout=0.3),
                    samples,
                    everything(samples),
                    config,
                    progress=stop_at(stop),
                    **arguments,
                )
            except Stop:
                continue
    assert_same_weights(found, whole)


def test_stopped_after_the_last_epoch_nothing_is_trained_again(tmp_path):
    samples, steps = blobs(), []
    with open_run(tmp_path, {}) as run:
        found = [
            tune(
                net(),
                samples,
                everything(samples),
                PLAIN,
                seed=0,
                checkpoint=run.checkpoint("5-tune", {}),
                progress=lambda what, done, total: steps.append(done),
            )
            for _ in range(2)
        ]
    assert_same_weights(*found)
    assert steps == list(range(1, 9))


# ------------------------------------------------------------------------------ targets


def split_of(samples: Samples, *, p_label: list[float], p_input: list[float]) -> Partition:
    n = len(samples)
    label, inputs = np.zeros(n), np.zeros(n)
    label[: len(p_label)], inputs[: len(p_input)] = p_label, p_input
    return make_partition(
        n,
        ids=samples.ids,
        labels=samples.labels,
        p_noisy=1 - (1 - label) * (1 - inputs),
        p_label_fault=label,
        p_input_fault=inputs,
        suggested_label=(samples.labels + (np.arange(n) < len(p_label))) % 3,
        suggested_probability=np.full(n, 0.75),
        evidence={},
    )


def case() -> tuple[Samples, Partition]:
    """Sample 0 surely has a wrong label, 1 perhaps, 2 a bad input, 3 and the others are fine."""
    samples = blobs(12, ids=np.arange(12) * 10)
    return samples, split_of(samples, p_label=[1.0, 0.25, 0.0], p_input=[0.0, 0.0, 0.9])


def test_kept_leaves_the_flagged_out_and_the_labels_as_given():
    samples, split = case()
    found = build_targets(samples, split, TuneConfig(targets="filter"))
    assert found.positions.tolist() == [1, *range(3, 12)]
    assert found.labels.tolist() == samples.labels[found.positions].tolist()
    assert found.weights.tolist() == [1.0] * 10


def test_soft_weighs_all_by_their_probability_of_being_good():
    samples, split = case()
    found = build_targets(samples, split, TuneConfig(targets="reweight"))
    assert found.positions.tolist() == list(range(1, 12))
    assert_close(found.weights, np.array([0.75, 1 - 0.9, *[1.0] * 9]))
    assert found.labels.tolist() == samples.labels[1:].tolist()


def test_relabel_mends_wrong_labels_and_drops_bad_inputs():
    samples, split = case()
    found = build_targets(
        samples, split, TuneConfig(targets="relabel", min_relabel_confidence=0.75)
    )
    assert found.positions.tolist() == [0, 1, *range(3, 12)]
    assert found.labels.tolist() == [1, 1, *(samples.labels[3:]).tolist()]
    assert found.weights.tolist() == [0.75, *[1.0] * 10]


def test_a_suggestion_that_is_not_sure_enough_is_not_learned():
    samples, split = case()
    found = build_targets(samples, split, TuneConfig(targets="relabel", min_relabel_confidence=0.8))
    assert found.positions.tolist() == [1, *range(3, 12)]


def test_complement_says_of_flagged_label_faults_what_they_are_not():
    samples, split = case()
    found = build_targets(samples, split, TuneConfig(targets="complement"))
    assert found.positions.tolist() == [0, 1, *range(3, 12)]
    assert found.labels.tolist() == [-1 - samples.labels[0], *samples.labels[[1, *range(3, 12)]]]
    assert found.weights.tolist() == [1.0] * 11
    # A person gave the first one another label: that is what it is.
    reviewed = replace(split, reviewed=np.arange(12) == 0)
    found = build_targets(samples, reviewed, TuneConfig(targets="complement"))
    assert (found.labels[0], found.weights[0]) == (split.suggested_label[0], 1.0)


def test_the_complementary_loss_is_that_of_all_other_classes_together():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 3, -1, -4, 2, -3])
    found = complementary_cross_entropy(nn.Identity(), x, y)
    probs = x.softmax(dim=1)
    slow = [-(probs[i, k] if k >= 0 else 1 - probs[i, -1 - k]).log() for i, k in enumerate(y)]
    assert_close(found, torch.stack(slow))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(gradient).all()
    certain = complementary_cross_entropy(nn.Identity(), torch.tensor([[90.0, 0.0]]), y[2:3])
    assert_close(certain, torch.tensor([90.0]))


@pytest.mark.parametrize(("split", "data"), [(True, "all"), (False, "filter")])
def test_everything_and_no_partition_keep_all_as_given(split, data):
    samples, made = case()
    found = build_targets(samples, made if split else None, TuneConfig(targets=data))
    assert found.positions.tolist() == list(range(12))
    assert found.labels.tolist() == samples.labels.tolist()
    assert found.weights.tolist() == [1.0] * 12


@pytest.mark.parametrize("data", ["filter", "reweight", "relabel", "complement"])
def test_targets_follow_ids_and_not_positions(data):
    samples, split = case()
    order = np.random.default_rng(0).permutation(12)
    names = ("ids", "labels", "p_noisy", "p_label_fault", "p_input_fault")
    names += ("suggested_label", "suggested_probability")
    shuffled = replace(split, **{name: getattr(split, name)[order] for name in names})
    found, expected = (
        build_targets(samples, p, TuneConfig(targets=data)) for p in (shuffled, split)
    )
    assert found.positions.tolist() == expected.positions.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.weights.tolist() == expected.weights.tolist()


def test_a_partition_of_other_samples_is_an_error():
    samples, split = case()
    with pytest.raises(DataError, match="there are no rows for ids 1, 2, 3"):
        build_targets(blobs(12), split, TuneConfig(targets="filter"))
    assert build_targets(samples, split, TuneConfig(targets="filter")).positions.size


@pytest.mark.parametrize("data", ["filter", "reweight"])
def test_a_partition_that_keeps_nothing_is_an_error(data):
    samples = blobs(12)
    split = split_of(samples, p_label=[1.0] * 12, p_input=[])
    with pytest.raises(PartitionError, match=r"tune: every sample was flagged\n  fix: raise"):
        build_targets(samples, split, TuneConfig(targets=data))


def test_a_class_of_which_nothing_is_kept_is_named():
    samples = blobs(12, classes=["cat", "dog", "emu"])
    p = (samples.labels == 1).astype(float).tolist()
    split = split_of(samples, p_label=p, p_input=[])
    with pytest.raises(PartitionError, match="every sample of class dog was flagged\n"):
        build_targets(samples, split, TuneConfig(targets="filter"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "tune.epochs must be 0 or more, not -1"),
        ({"batch_size": 0}, "tune.batch_size must be 1 or more, not 0"),
        ({"lr": 0.0}, r"tune.lr must lie in \(0, 1e30\], not 0.0"),
        ({"lr": float("nan")}, r"tune.lr must lie in \(0, 1e30\], not nan"),
        ({"warmup": 1.0}, r"tune.warmup must lie in \[0, 1\), not 1.0"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**settings)
