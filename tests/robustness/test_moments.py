"""Mean and variance of every layer under Gaussian noise, against sampling."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from expunge._core.rng import temp_seed
from expunge.data import from_arrays
from expunge.errors import ConfigError, ModelError
from expunge.models.zoo import convnet, mlp, resnet
from expunge.robustness import moments as rules
from expunge.robustness.moments import Moments
from expunge.robustness.noise_layers import (
    FUNCTIONS,
    LOSSES,
    METHODS,
    MODULES,
    NoisyNetwork,
    bound,
    closed_form,
    first_order_adversarial,
    linearised,
    pre_activations,
    sampled,
    second_order,
    squared_error,
)
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import build_targets
from oracles_models import ConcatNet, ConvGru, DepthwiseNet, ResidualNet, build, inputs

DRAWS = 20_000
# Of sampling, for values and spreads of about 1.
ERROR = {"atol": 0.04, "rtol": 0.04}


def drawn(shape: tuple[int, ...], seed: int = 0) -> Moments:
    """Moments of one sample, means around 0, spreads from 0.1 to 1."""
    with temp_seed(seed, "moments"):
        return Moments(torch.randn(1, *shape), torch.empty(1, *shape).uniform_(0.01, 1.0))


def monte_carlo(f, x: Moments, draws: int = DRAWS) -> Moments:
    """Mean and variance of f under independent Gaussian input, by sampling."""
    with temp_seed(0, "draws"), torch.no_grad():
        noise = torch.randn(draws, *x.mean.shape[1:])
        y = f(x.mean + x.variance.sqrt() * noise)
        return Moments(y.mean(0, keepdim=True), y.var(0, keepdim=True))


def trained_norm(kind: type[nn.Module], channels: int) -> nn.Module:
    layer = kind(channels)
    with temp_seed(0, "norm"):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return layer.eval()


def layer_of(make) -> nn.Module:
    with temp_seed(0, "layer"):
        return make()


EXACT = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "convolution 1d": (lambda: nn.Conv1d(3, 4, 3, dilation=2, padding=1), (3, 9)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "convolution 3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
    "batch norm 1d": (lambda: trained_norm(nn.BatchNorm1d, 4), (4,)),
    "batch norm": (lambda: trained_norm(nn.BatchNorm2d, 3), (3, 2, 2)),
    "relu": (nn.ReLU, (30,)),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), (30,)),
    "dropout": (lambda: nn.Dropout(0.3), (20,)),
    "average": (lambda: nn.AvgPool2d(2), (2, 4, 6)),
    "padded average": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 5, 5)),
    "average 1d": (lambda: nn.AvgPool1d(2), (2, 6)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d((2, 1)), (2, 4, 3)),
    "flatten": (nn.Flatten, (2, 3)),
    "identity": (nn.Identity, (5,)),
}
SMOOTH = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
}


@pytest.mark.parametrize("name", [*EXACT, *SMOOTH])
def test_a_rule_agrees_with_sampling(name):
    make, shape = EXACT[name] if name in EXACT else (SMOOTH[name], (30,))
    layer = layer_of(make)
    layer.train(name == "dropout")
    x = drawn(shape)
    found, expected = MODULES[type(layer)](layer, x), monte_carlo(layer, x)
    assert_close(found.mean, expected.mean, **ERROR)
    assert_close(found.variance, expected.variance, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "softplus", "tanh", "sigmoid"])
def test_quadrature_agrees_with_an_integral(name):
    """Against a sum over a fine grid, in float64."""
    f = SMOOTH[name]()
    m, v = torch.tensor([-2.0, 0.3, 1.5]).double(), torch.tensor([0.2, 1.0, 0.5]).double()
    t = torch.linspace(-9, 9, 20_001).double()
    w = torch.exp(-0.5 * t * t)
    y = f(m[:, None] + v.sqrt()[:, None] * t)
    mean = (w * y).sum(1) / w.sum()
    variance = (w * (y - mean[:, None]) ** 2).sum(1) / w.sum()
    found = rules.smooth(Moments(m, v), f)
    assert_close(found.mean, mean, atol=2e-3, rtol=1e-3)
    assert_close(found.variance, variance, atol=5e-3, rtol=1e-2)


def test_relu_without_variance_is_relu():
    m = torch.linspace(-3, 3, 13)
    found = rules.relu(Moments(m, torch.zeros(13)))
    assert_close(found.mean, m.relu(), atol=1e-5, rtol=0)
    assert_close(found.variance, torch.zeros(13), atol=1e-10, rtol=0)


def test_derivatives_of_relu_are_those_of_its_formula():
    """The written-out ones against automatic ones of the formula, in float64."""
    m = torch.linspace(-2.5, 2.5, 11).double().requires_grad_()
    v = torch.linspace(0.05, 2.0, 11).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: tuple(rules.relu(Moments(m, v))), (m, v))
    s = v.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    above, density = normal.cdf(m / s), normal.log_prob(m / s).exp()
    mean = m * above + s * density
    variance = (m * m + v) * above + m * s * density - mean * mean
    weights = torch.arange(11).double()
    expected = torch.autograd.grad((weights * (mean + 3 * variance)).sum(), (m, v))
    y = rules.relu(Moments(m, v))
    found = torch.autograd.grad((weights * (y.mean + 3 * y.variance)).sum(), (m, v))
    assert_close(found, expected)


def test_batch_norm_in_training_uses_the_statistics_that_sampling_shows():
    layer = trained_norm(nn.BatchNorm2d, 3).train()
    twin = copy.deepcopy(layer)
    with temp_seed(0, "batch"):
        m, v = torch.randn(8, 3, 4, 4), torch.rand(8, 3, 4, 4)
        many = torch.cat([m + v.sqrt() * torch.randn_like(m) for _ in range(500)])
    found = rules.batch_norm(layer, Moments(m, v))
    twin(many)
    assert_close(layer.running_mean, twin.running_mean, **ERROR)
    assert_close(layer.running_var, twin.running_var, **ERROR)
    assert layer.num_batches_tracked == 1
    total = many.var((0, 2, 3), correction=0)
    scale = (layer.weight / (total + layer.eps).sqrt()).view(1, 3, 1, 1)
    assert_close(found.variance, v * scale**2, **ERROR)
    expected = (m - m.mean((0, 2, 3), keepdim=True)) * scale + layer.bias.view(1, 3, 1, 1)
    assert_close(found.mean, expected, **ERROR)


def test_batch_norm_without_noise_is_batch_norm():
    layer, x = trained_norm(nn.BatchNorm2d, 3).train(), torch.randn(4, 3, 5, 5)
    twin = copy.deepcopy(layer)
    found = rules.batch_norm(layer, Moments(x, torch.zeros_like(x)))
    assert_close(found.mean, twin(x))
    assert_close(layer.state_dict(), twin.state_dict())


def test_max_pooling_follows_the_element_that_stands_out():
    mean = torch.tensor([[[[0.0, 9.0], [1.0, 2.0]]]])
    variance = torch.tensor([[[[1.0, 0.3], [2.0, 3.0]]]])
    layer = nn.MaxPool2d(2)
    found = rules.max_pool(layer, Moments(mean, variance))
    assert found == (torch.tensor([[[[9.0]]]]), torch.tensor([[[[0.3]]]]))
    assert_close(monte_carlo(layer, Moments(mean, variance)).variance, found.variance, **ERROR)
    assert not layer.return_indices


def test_arithmetic_agrees_with_sampling():
    a, b = drawn((20,), 1), drawn((20,), 2)
    both = Moments(torch.cat(a_b := [a.mean, b.mean], 1), torch.cat([a.variance, b.variance], 1))
    c = torch.linspace(-2, 2, 20)
    for rule, f in {
        rules.add: torch.add,
        rules.subtract: torch.sub,
        rules.multiply: torch.mul,
    }.items():
        sampled = monte_carlo(lambda x, f=f: f(x[:, :20], x[:, 20:]), both)
        assert_close(rule(a, b), sampled, **ERROR)
        assert_close(rule(a, c), monte_carlo(lambda x, f=f: f(x, c), a), **ERROR)
        assert_close(rule(c, a), monte_carlo(lambda x, f=f: f(c, x), a), **ERROR)
    assert_close(rules.divide(a, 2.0), rules.multiply(a, 0.5))
    assert len(a_b) == 2
    with pytest.raises(ModelError, match="division by a noisy value"):
        rules.divide(2.0, a)


def test_averages_of_uneven_windows_are_refused():
    x = drawn((1, 5, 5))
    for layer in (nn.AvgPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(2)):
        with pytest.raises(ModelError, match="no rule"):
            MODULES[type(layer)](layer, x)


# ------------------------------------------------------------------------------- losses


def logits(spread: float = 1.0) -> tuple[Moments, Tensor]:
    z = drawn((5,))
    many = Moments(z.mean.repeat(5, 1), spread * z.variance.repeat(5, 1))
    return many, torch.arange(5)


def expected_loss(f, z: Moments, y: Tensor) -> Tensor:
    with temp_seed(0, "losses"):
        noise = torch.randn(DRAWS, *z.mean.shape)
    return torch.stack([f(z.mean + z.variance.sqrt() * part, y) for part in noise]).mean(0)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def test_squared_error_is_exact():
    z, y = logits()
    expected = expected_loss(lambda s, y: ((F.one_hot(y, 5) - s) ** 2).sum(1), z, y)
    assert_close(squared_error(z, y), expected, **ERROR)


def test_the_bound_is_above_the_expected_cross_entropy_and_the_second_order_near_it():
    z, y = logits()
    expected = expected_loss(cross_entropy, z, y)
    assert (bound(z, y) >= expected - 0.01).all()
    assert_close(second_order(z, y), expected, atol=0.02, rtol=0.02)
    strong, y = logits(9.0)
    assert (bound(strong, y) > expected_loss(cross_entropy, strong, y) + 0.1).all()


@pytest.mark.parametrize("name", ["bound", "second-order"])
def test_without_variance_a_loss_is_cross_entropy(name):
    z, y = logits(0.0)
    assert_close(LOSSES[name](z, y), cross_entropy(z.mean, y))


def test_the_gradient_goes_through_both_moments():
    """Of one linear layer on noisy inputs: d/dW of the variance's part is 2 W v."""
    with temp_seed(0, "linear"):
        net = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
        x, y = torch.randn(6, 4), torch.arange(6) % 3
    whole = NoisyNetwork(net, {"0": 0.5})
    w = net[1].weight
    (found,) = torch.autograd.grad(closed_form("squared-error")(whole, x, y).sum(), w)
    plain = ((F.one_hot(y, 3) - net(x)) ** 2).sum()
    (mean_part,) = torch.autograd.grad(plain, w)
    assert_close(found, mean_part + 6 * 2 * w * 0.25)


# ------------------------------------------------------------------------------- networks


def monte_carlo_network(whole: NoisyNetwork, x: Tensor, draws: int = 4000) -> Moments:
    with temp_seed(0, "network draws"), torch.no_grad():
        y = torch.stack([whole.sample(x) for _ in range(draws)])
    return Moments(y.mean(0), y.var(0))


def test_moments_of_a_perceptron_are_near_those_of_sampling():
    with temp_seed(0, "mlp"):
        net = mlp(inputs=8, classes=4, hidden=64).eval()
        x = torch.randn(5, 8)
    whole = NoisyNetwork(net, 0.5)
    assert whole.sigma == {"1": 0.5, "3": 0.5}
    with torch.no_grad():
        found, sample = whole.moments(x), monte_carlo_network(whole, x)
    assert_close(found.mean, sample.mean, atol=0.02, rtol=0.05)
    assert_close(found.variance.sqrt(), sample.variance.sqrt(), atol=0.01, rtol=0.1)


@pytest.mark.parametrize("kind", ["convnet", "resnet"])
def test_moments_of_convolutions_have_the_size_of_those_of_sampling(kind):
    """Neighbouring positions share noise, which the diagonal leaves out: the size, not more."""
    with temp_seed(0, "net"):
        net = {
            "convnet": lambda: convnet(classes=4, widths=(8, 16), hidden=16),
            "resnet": lambda: resnet(classes=4, widths=(8, 16), blocks=(1, 1)),
        }[kind]()
        x = torch.randn(6, 3, 8, 8)
        net(x)
    whole = NoisyNetwork(net.eval(), 0.3)
    with torch.no_grad():
        found, sample = whole.moments(x), monte_carlo_network(whole, x, 500)
    ratio = found.variance.sqrt().mean() / sample.variance.sqrt().mean()
    assert 0.4 < ratio < 1.5
    assert (found.mean - sample.mean).abs().max() < 3 * sample.variance.sqrt().mean()


def test_noise_goes_behind_hidden_layers_and_their_norms():
    net = build(ResidualNet)
    assert pre_activations(net) == tuple(f"norms.{i}" for i in range(5))
    assert pre_activations(mlp(inputs=4, classes=3)) == ("1", "3")


@pytest.mark.parametrize("kind", [ResidualNet, ConcatNet, DepthwiseNet])
def test_the_expectation_model_is_the_model_or_the_mean(kind):
    net, x = build(kind), inputs(kind)
    whole = NoisyNetwork(net, 0.4)
    assert_close(whole(x), net(x))
    smooth = NoisyNetwork(net, 0.4, expectation="propagated")
    assert_close(smooth(x), whole.moments(x).mean)
    assert not torch.equal(smooth(x), net(x))
    assert torch.equal(smooth(x), smooth(x))


def test_without_noise_everything_is_the_plain_model():
    net, x = build(ResidualNet), inputs(ResidualNet)
    whole = NoisyNetwork(net, 0.0)
    z = whole.moments(x)
    assert_close(z.mean, net(x))
    assert_close(z.variance, torch.zeros_like(z.variance))
    assert_close(whole.sample(x), net(x))


def test_noise_on_the_input_is_a_site():
    net, x = nn.Sequential(nn.Linear(4, 2)), torch.zeros(3, 4)
    z = NoisyNetwork(net, {"input": 2.0}).moments(x)
    assert_close(z.variance, 4 * (net[0].weight ** 2).sum(1).expand(3, 2))


def test_the_model_is_used_and_left_as_it_was():
    net = build(ResidualNet).train()
    state = copy.deepcopy(net.state_dict())
    whole = NoisyNetwork(net, 0.5)
    assert net.training
    assert_close(net.state_dict(), state)
    assert {id(p) for p in whole.parameters()} == {id(p) for p in net.parameters()}
    assert set(whole.state_dict()) == {f"model.{name}" for name in state}
    twin = copy.deepcopy(whole.eval())
    assert_close(twin.moments(inputs(ResidualNet)), whole.moments(inputs(ResidualNet)))
    assert twin.model is not whole.model


def test_samples_depend_on_the_seed_alone():
    whole, x = NoisyNetwork(build(ResidualNet), 0.5), inputs(ResidualNet)
    with temp_seed(1, "a"):
        first = whole.sample(x)
    with temp_seed(1, "a"):
        assert torch.equal(whole.sample(x), first)
    with temp_seed(2, "a"):
        assert not torch.equal(whole.sample(x), first)


def test_more_draws_cost_more_passes_and_spread_less():
    whole, x = NoisyNetwork(build(ResidualNet), 1.0), inputs(ResidualNet, 8)
    y = torch.arange(8) % 3
    with torch.no_grad(), temp_seed(0, "draws"):
        one = torch.stack([sampled()(whole, x, y) for _ in range(100)])
        many = torch.stack([sampled(8)(whole, x, y) for _ in range(100)])
    assert_close(one.mean(), many.mean(), atol=0.1, rtol=0.1)
    assert many.var(0).mean() < one.var(0).mean() / 4


class Gated(nn.Module):
    """Decides by values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.logsumexp(F.dropout(self.a(x)), 1, keepdim=True).expand(-1, 4))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 3), torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale)


def test_layers_without_a_rule_are_named_all_at_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU6(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"(?s)'1' \(LayerNorm\) has no rule.*'2' \(ReLU6\)"):
        NoisyNetwork(net, 0.1)
    NoisyNetwork(net, {"2": 0.1})  # no noise reaches them
    with pytest.raises(ModelError, match=r"(?s)dropout.*as a function.*logsumexp.*no rule.*expand"):
        NoisyNetwork(Functional(), 0.1)
    with pytest.raises(ModelError, match=r"'gru' \(GRU\) has no rule"):
        NoisyNetwork(build(ConvGru), {"conv": 0.1})


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(ModelError, match="cannot be traced"):
        NoisyNetwork(nn.Sequential(nn.Linear(2, 2), Gated()), 0.1)
    with pytest.raises(ModelError, match="neither parameters nor buffers"):
        NoisyNetwork(Constant(), 0.1)


def test_settings_that_cannot_be_are_refused():
    net = mlp(inputs=4, classes=3)
    with pytest.raises(ConfigError, match=r"no site 'one'"):
        NoisyNetwork(net, 0.1, sites=("one",))
    with pytest.raises(ConfigError, match="not 0 or more"):
        NoisyNetwork(net, -0.1)
    with pytest.raises(ConfigError, match="no hidden layer"):
        NoisyNetwork(nn.Linear(3, 2), 0.1)
    with pytest.raises(ConfigError, match="no expectation 'mean'"):
        NoisyNetwork(net, 0.1, expectation="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no loss 'second_order'"):
        closed_form("second_order")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 or more"):
        sampled(0)
    for objective in (closed_form(), linearised(), first_order_adversarial(), sampled(1)):
        with pytest.raises(ModelError, match="Sequential has no noise"):
            objective(net, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))


def test_every_rule_of_a_function_is_that_of_its_layer():
    x = drawn((2, 4, 4))
    pairs = {
        F.relu: nn.ReLU(),
        torch.relu: nn.ReLU(),
        F.leaky_relu: nn.LeakyReLU(),
        F.gelu: nn.GELU(),
        F.silu: nn.SiLU(),
        torch.tanh: nn.Tanh(),
        torch.sigmoid: nn.Sigmoid(),
    }
    for function, layer in pairs.items():
        assert_close(FUNCTIONS[function](x), MODULES[type(layer)](layer, x))
    assert_close(FUNCTIONS[F.avg_pool2d](x, 2), rules.average_pool(nn.AvgPool2d(2), x))
    assert_close(FUNCTIONS[F.max_pool2d](x, 2), rules.max_pool(nn.MaxPool2d(2), x))
    assert_close(METHODS["mean"](x, (2, 3)), monte_carlo(lambda y: y.mean((2, 3)), x), **ERROR)
    assert METHODS["size"](x, 1) == 2
    assert METHODS["view"](x, 1, -1).mean.shape == (1, 32)


# ------------------------------------------------------------------------------- to first order


def test_the_linearised_loss_of_a_linear_network_is_its_formula():
    with temp_seed(0, "linear"):
        net = nn.Linear(5, 4)
        x, y = torch.randn(6, 5), torch.arange(6) % 4
    z = net(x)
    g = z.softmax(1) - F.one_hot(y, 4)
    covariance = 0.3**2 * net.weight @ net.weight.T
    expected = cross_entropy(z, y) + 0.5 * torch.einsum("bi,ij,bj->b", g, covariance, g)
    assert_close(linearised()(NoisyNetwork(net, {"input": 0.3}), x, y), expected)


@pytest.mark.parametrize("kind", [ResidualNet, ConcatNet])
def test_the_linearised_part_is_half_the_variance_that_sampling_shows(kind):
    """With all covariances: also where noise meets itself behind a branch. Little noise."""
    net, x = build(kind), inputs(kind)
    whole, y = NoisyNetwork(net, 0.01), torch.arange(4) % 3
    # It grows with the square of sigma: so large that float32 does not lose it.
    added = (linearised()(NoisyNetwork(net, 10.0), x, y) - cross_entropy(net(x), y)) / 1000**2
    with torch.no_grad(), temp_seed(0, "variance"):
        losses = torch.stack([sampled()(whole, x, y).double() for _ in range(3000)])
    assert_close(added.double(), 0.5 * losses.var(0), atol=0, rtol=0.1)


@pytest.mark.parametrize("objective", [linearised(), first_order_adversarial()])
def test_without_noise_the_loss_of_first_order_is_cross_entropy(objective):
    net, x, y = build(ResidualNet), inputs(ResidualNet), torch.arange(4) % 3
    assert_close(objective(NoisyNetwork(net, 0.0), x, y), cross_entropy(net(x), y))
    assert_close(NoisyNetwork(net, 0.3).shifts(x)[0], net(x))


def test_the_shifted_gradient_is_the_linearised_one_but_for_the_fourth_power_of_sigma():
    with temp_seed(0, "smooth"):
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        x, y = torch.randn(6, 5), torch.arange(6) % 4

    def gradient(objective, sigma):
        losses = objective(NoisyNetwork(net, sigma, sites=("input", "0", "2")), x, y)
        found = torch.autograd.grad(losses.sum(), list(net.parameters()))
        return torch.cat([g.flatten() for g in found])

    def left_over(sigma):
        return float(
            (gradient(first_order_adversarial(), sigma) - gradient(linearised(), sigma)).norm()
        )

    noise = gradient(linearised(), 0.2) - gradient(linearised(), 0.0)
    assert left_over(0.2) < 0.1 * noise.norm()
    assert left_over(0.4) / left_over(0.2) == pytest.approx(16, rel=0.2)


@pytest.mark.parametrize(
    "objective", [closed_form(), linearised(), first_order_adversarial(), sampled()]
)
def test_every_objective_trains_the_model_through_the_training_loop(objective):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.normal(size=(120, 6)) + 2 * rng.normal(size=(3, 6))[y]
    samples = from_arrays(x.astype(np.float32), y)
    config = TuneConfig(epochs=12, batch_size=30, lr=0.2, augment=False, precision="float32")
    targets = build_targets(samples, None, config)
    with temp_seed(0, "net"):
        net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    whole = NoisyNetwork(net, 0.2)
    trained, again = (
        tune(whole, samples, targets, config, seed=0, objective=objective) for _ in range(2)
    )
    assert_close(trained.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert isinstance(trained, NoisyNetwork)
    said = trained.model(torch.from_numpy(x).float()).argmax(1)
    assert (said == torch.from_numpy(y)).float().mean() > 0.9
    assert not torch.equal(trained.model[0].weight, net[0].weight)
