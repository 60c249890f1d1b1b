"""Attacks on pixels, and the checks of what they find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from expunge._core.rng import temp_seed, torch_generator
from expunge.data import Samples, from_arrays
from expunge.errors import ConfigError, DataError
from expunge.models.calls import eval_mode
from expunge.models.zoo import convnet
from expunge.robustness import attacks
from expunge.robustness.attacks import (
    FromPixels,
    adversarial,
    checks,
    fgsm,
    pgd,
    robustness,
    square,
)
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets


def bright(n: int = 40, *, seed: int = 0, classes: int = 2, **settings: object) -> Samples:
    """Images ``[n, 1, 6, 6]`` that are darker or brighter than 0.5 by 0.1 on average."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = 0.5 + 0.2 * (y[:, None, None, None] - 0.5) + rng.normal(0, 0.02, (n, 1, 6, 6))
    return from_arrays(x.clip(0, 1).astype(np.float32), y, **settings)


class Brightness(nn.Module):
    """The classifier of these that cannot be beaten: by the mean of all pixels."""

    def __init__(self, sharpness: float = 50.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: Tensor) -> Tensor:
        z = self.sharpness * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-z, z], 1)


class Stairs(nn.Module):
    """The same behind rounding: its gradient is zero almost everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 16).round().detach() / 16 + 0.0 * x)


def pixels(samples: Samples) -> tuple[Tensor, Tensor]:
    x = samples.batch(np.arange(len(samples)))
    assert isinstance(x, Tensor)
    return x, torch.tensor(samples.labels)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with eval_mode(model), torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def small(seed: int = 0) -> nn.Module:
    with temp_seed(seed, "network"):
        return convnet(classes=2, channels=1, widths=(8,), hidden=8).eval()


def test_fgsm_is_one_step_along_the_sign_of_the_gradient():
    model, (x, y) = small(), pixels(bright())
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    expected = (x.detach() + 0.03 * gradient.sign()).clamp(0, 1)
    assert_close(fgsm(model, x.detach(), y, eps=0.03), expected)


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_pgd_finds_what_can_be_found_and_no_more(loss):
    """The brightness classifier falls exactly where eps passes the distance of the mean from ½."""
    model, (x, y) = Brightness(), pixels(bright())
    distance = (x.mean((1, 2, 3)) - 0.5).abs()
    for eps in (0.05, 0.097, 0.1, 0.103, 0.2):
        found = pgd(model, x, y, eps=eps, loss=loss, generator=torch_generator(0, "pgd"))
        assert accuracy(model, found, y) == pytest.approx(float((distance > eps).float().mean()))


@pytest.mark.parametrize("attack", [fgsm, pgd, square])
def test_an_attack_stays_in_its_box_and_changes_nothing(attack):
    model, (x, y) = small().train(), pixels(bright())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before, torch_state = x.clone(), torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    more = {"generator": torch_generator(0, "g")} if attack is pgd else {}
    found = attack(model, x, y, eps=0.1, **more)
    assert found.shape == x.shape
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(x, before)
    assert not found.requires_grad
    assert model.training
    assert_close(model.state_dict(), state)
    assert all(p.grad is None for p in model.parameters())
    assert_close(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_restarts_only_add_successes():
    model, (x, y) = small(), pixels(bright(200))

    def left(restarts: int) -> float:
        draw = torch_generator(0, "a")
        found = pgd(model, x, y, eps=0.05, steps=2, restarts=restarts, generator=draw)
        return accuracy(model, found, y)

    assert left(5) <= left(1) <= accuracy(model, x, y)


def test_the_square_attack_needs_no_gradient():
    model, (x, y) = Stairs(Brightness()), pixels(bright())
    assert accuracy(model, pgd(model, x, y, eps=0.03), y) == 1.0
    assert accuracy(model, square(model, x, y, eps=0.2, queries=60), y) < 0.5
    first = square(model, x, y, eps=0.1, queries=5, seed=1)
    assert torch.equal(first, square(model, x, y, eps=0.1, queries=5, seed=1))
    assert not torch.equal(first, square(model, x, y, eps=0.1, queries=5, seed=2))


def test_without_the_package_the_black_box_attack_says_what_to_install(monkeypatch):
    monkeypatch.setattr(attacks, "find_spec", lambda name: None)
    x, y = pixels(bright(4))
    with pytest.raises(ConfigError, match=r"pip install adversarial-robustness-toolbox"):
        square(small(), x, y, eps=0.1)


def test_a_sound_model_passes_all_checks():
    found = robustness(
        Brightness(), bright(), epsilons=(0.05, 0.2), queries=20, surrogate=small(), seed=0
    )
    assert found.n == 40
    assert found.clean == 1.0
    assert set(found.accuracy) == {"fgsm", "pgd", "margin", "square", "transfer"}
    assert found.accuracy["pgd"] == {0.05: 1.0, 0.2: 0.0}
    assert found.masked == ()
    assert len(found.checks) == 6
    text = found.markdown()
    assert "| none | 100.0 | 100.0 |" in text
    assert "✓ no-budget-is-survived" in text


def test_masked_gradients_are_seen():
    found = robustness(Stairs(Brightness()), bright(), epsilons=(0.05, 0.2), queries=60)
    assert "no-budget-is-survived" in found.masked
    assert "square-not-stronger" in found.masked
    assert "⚑ square-not-stronger" in found.markdown()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"pgd": {0.1: 0.4, 0.2: 0.45}}, "larger-budgets-hurt-more"),
        ({"fgsm": {0.1: 0.3, 0.2: 0.2}}, "fgsm-not-stronger"),
        ({"margin": {0.1: 0.3, 0.2: 0.2}}, "margin-not-stronger"),
        ({"square": {0.1: 0.5, 0.2: 0.1}}, "square-not-stronger"),
        ({"transfer": {0.1: 0.5, 0.2: 0.1}}, "transfer-not-stronger"),
    ],
)
def test_each_check_can_fail_alone(changed, name):
    table = {"pgd": {0.1: 0.4, 0.2: 0.2}} | changed
    losses = {0.0: 0.5, 0.1: 1.0, 0.2: 2.0}
    failed = [c.name for c in checks(table, 0.8, losses, 0.0) if not c.holds]
    assert failed == [name]
    assert all(c.holds for c in checks({"pgd": {0.1: 0.4}}, 0.8, {0.0: 0.5, 0.1: 1.0}, 0.0))
    falling = checks({"pgd": {0.1: 0.4}}, 0.8, {0.0: 1.5, 0.1: 1.0}, 0.3)
    assert [c.holds for c in falling] == [False, False]


def test_standardised_data_are_attacked_as_pixels():
    """The same network, standardised by the data or within itself, is attacked alike."""
    net = small()
    outside = bright(mean=(0.5,), std=(0.2,))
    one = robustness(net, outside, epsilons=(0.03,), queries=0)
    other = robustness(FromPixels(net, (0.5,), (0.2,)), bright(), epsilons=(0.03,), queries=0)
    assert one.accuracy == other.accuracy
    assert one.clean == other.clean


def test_results_do_not_depend_on_how_often_they_are_asked():
    first, second = (
        robustness(small(), bright(), epsilons=(0.02,), steps=3, queries=5, seed=1)
        for _ in range(2)
    )
    assert first == second


def test_inputs_that_are_no_pixels_are_refused():
    x = np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype(np.float32)
    samples = from_arrays(x, np.arange(8) % 2)
    with pytest.raises(DataError, match=r"inputs in \[0, 1\], these reach from -"):
        robustness(small(), samples)
    with pytest.raises(DataError, match="FromPixels"):
        adversarial()(small(), torch.from_numpy(x), torch.arange(8) % 2)
    with pytest.raises(ConfigError, match="budgets must lie in"):
        robustness(small(), bright(), epsilons=(8.0,))
    with pytest.raises(ConfigError, match="0 or more"):
        fgsm(small(), *pixels(bright(4)), eps=-1.0)
    with pytest.raises(ConfigError, match="steps must be 1 or more"):
        adversarial(steps=0)
    with pytest.raises(ConfigError, match="restarts must be 1 or more"):
        pgd(small(), *pixels(bright(4)), eps=0.1, restarts=0)
    for mean, std in (((0.5, 0.5), (0.2,)), ((0.5,), (0.0,))):
        with pytest.raises(ConfigError, match="a number a channel, std above 0"):
            FromPixels(small(), mean, std)
    with pytest.raises(DataError, match="labels reach 2, the model has 2 outputs"):
        robustness(small(), bright(classes=3))
    linear, flat = nn.Linear(36, 2), (np.zeros((4, 36), dtype=np.float32), np.arange(4) % 2)
    with pytest.raises(ConfigError, match="queries=0 leaves it out"):
        robustness(linear, flat)
    assert robustness(linear, flat, steps=1, queries=0).n == 4


def test_adversarial_training_withstands_what_plain_training_does_not():
    """One pixel tells the class exactly but little, the others by more, not as surely."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    sign = 2.0 * y - 1
    x = 0.5 + 0.12 * sign[:, None, None, None] * (rng.random((400, 1, 4, 4)) < 0.8)
    x[:, 0, 0, 0] = 0.5 + 0.03 * sign
    samples = from_arrays(x.astype(np.float32), y)
    config = TuneConfig(
        targets="all", epochs=20, batch_size=50, lr=1.0, augment=False, precision="float32"
    )
    with temp_seed(0, "linear"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    targets = build_targets(samples, None, config)
    plain = tune(net, samples, targets, config, seed=0)
    hard = tune(net, samples, targets, config, seed=0, objective=adversarial(eps=0.05, steps=3))

    def of_first_pixel(model: nn.Module) -> float:
        weight = (model[1].weight[1] - model[1].weight[0]).detach()
        return float(weight[0].abs() / weight.abs().sum())

    assert of_first_pixel(hard) < of_first_pixel(plain)
    found, lost = (
        robustness(m, samples, epsilons=(0.05,), queries=0).accuracy["pgd"][0.05]
        for m in (hard, plain)
    )
    assert found >= lost
