"""Training with Gaussian noise inside the layers, in closed form (arXiv 2312.08877).

Only the paper's abstract was at hand: noise within the layers at training time, its propagation in
closed form, a loss with a variance in it, gradients that account for the noise, and the
deterministic expectation model afterwards are the paper's; every formula is ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import ConfigError, ModelError, did_you_mean, format_ids, raise_all
from expunge.models.copying import copy_model
from expunge.robustness import moments as rules
from expunge.robustness.moments import Moments
from expunge.training.loop import Objective

# The site of noise on the model's input, beside the names of layers.
INPUT = "input"
Expectation = Literal["plain", "propagated"]
Pass = Literal["expectation", "moments", "sample", "shifts", "moved"]
LossName = Literal["bound", "second-order", "squared-error"]
_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def squared_error(z: Moments, y: Tensor) -> Tensor:
    """``E ‖y − z‖² = ‖y − m‖² + Σ v`` for one-hot y; exact for any z with these moments.

    z: logits ``[b, c]``. y: ``int64[b]``. Returns a loss a sample, ``[b]``.
    """
    target = F.one_hot(y, z.mean.shape[1]).to(z.mean.dtype)
    return ((target - z.mean) ** 2 + z.variance).sum(1)


def bound(z: Moments, y: Tensor) -> Tensor:
    """``log Σ_c exp(m_c + v_c / 2) − m_y``: never below the expected cross-entropy (Jensen).

    For independent Gaussian logits; loose where their spread is large. Shapes as above.
    """
    return torch.logsumexp(z.mean + 0.5 * z.variance, 1) - z.mean.gather(1, y[:, None])[:, 0]


def second_order(z: Moments, y: Tensor) -> Tensor:
    """``CE(m, y) + ½ Σ_c p_c (1 − p_c) v_c``, the expected cross-entropy to second order.

    Close to it where the logits' spread is about 1 or less. Shapes as above.
    """
    p = z.mean.softmax(1)
    return F.cross_entropy(z.mean, y, reduction="none") + 0.5 * (p * (1 - p) * z.variance).sum(1)


LOSSES: Mapping[LossName, Callable[[Moments, Tensor], Tensor]] = {
    "bound": bound,
    "second-order": second_order,
    "squared-error": squared_error,
}


class NoisyNetwork(nn.Module):
    """A network with independent Gaussian noise at some of its layers.

    model: feed-forward or residual, traceable by torch.fx; its layers are used, not copied: what
    is trained is the model itself. sigma: standard deviation of the noise in units of the value it
    is added to; one for all sites, or one for each. sites: names of layers whose output gets noise,
    or ``"input"``; by default `pre_activations`. expectation: what a plain call returns, see
    `forward`.

    Raises ModelError for a model that cannot be traced, and naming every layer behind the noise
    that has no rule (see `rules`); ConfigError for unknown sites and negative sigma.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> z = NoisyNetwork(net, 0.5).moments(torch.zeros(4, 2))
    >>> z.variance.shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        sigma: float | Mapping[str, float],
        *,
        sites: Sequence[str] = (),
        expectation: Expectation = "plain",
    ) -> None:
        super().__init__()
        if expectation not in ("plain", "propagated"):
            raise ConfigError(
                f"there is no expectation '{expectation}'", fix="plain, or propagated"
            )
        self.model, self.expectation = model, expectation
        self._graph = traced(model)
        if isinstance(sigma, Mapping):
            self.sigma = dict(sigma)
        else:
            self.sigma = dict.fromkeys(sites or pre_activations(model, self._graph), sigma)
        _check_sites(self._graph, self.sigma)
        _check_rules(model, self._graph, self.sigma)

    def forward(
        self, x: Tensor, how: Pass = "expectation", moves: Mapping[str, Tensor] | None = None
    ) -> Any:
        """Logits ``[b, c]`` of the deterministic expectation model; or what ``how`` asks for.

        expectation ``"plain"``: the model without noise (v = 0 everywhere). ``"propagated"``: the
        mean of the logits under noise, as `moments` has it.
        """
        if how == "moments":
            return self.moments(x)
        if how == "sample":
            return self.sample(x)
        if how == "shifts":
            return self.shifts(x)
        if how == "moved":
            return self.moved(x, moves or {})
        return self.model(x) if self.expectation == "plain" else self.moments(x).mean

    def moments(self, x: Tensor) -> Moments:
        """Mean and variance of the logits, ``[b, c]`` each, in float32 whatever the autocast.

        Cost: two passes' multiplications behind the first site, and a few more operations a value.
        """
        with torch.autocast(x.device.type, enabled=False):
            z = _Propagation(self.model, self._graph, self._add).run(x.float())
        return z if isinstance(z, Moments) else rules.noisy(z, 0.0)

    def sample(self, x: Tensor) -> Tensor:
        """Logits under one draw of the noise, from torch's global generator."""
        z: Tensor = _Propagation(self.model, self._graph, self._draw).run(x)
        return z

    def shifts(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits without noise, and what is added at each site on the way: zeros that carry a
        gradient.

        The gradient of a value with respect to these is its sensitivity to noise there.
        """
        found: dict[str, Tensor] = {}

        def shift(site: str, value: Tensor) -> Tensor:
            if not self.sigma.get(site):
                return value
            found[site] = torch.zeros_like(value, requires_grad=True)
            return value + found[site]

        return _Propagation(self.model, self._graph, shift).run(x), found

    def moved(self, x: Tensor, moves: Mapping[str, Tensor]) -> Tensor:
        """Logits without noise, the values at these sites moved by so much on the way."""

        def move(site: str, value: Tensor) -> Tensor:
            return value + moves[site] if site in moves else value

        z: Tensor = _Propagation(self.model, self._graph, move).run(x)
        return z

    def _add(self, site: str, value: Any) -> Any:
        return rules.noisy(value, self.sigma[site] ** 2) if self.sigma.get(site) else value

    def _draw(self, site: str, value: Any) -> Any:
        sigma = self.sigma.get(site)
        # Not randn_like: it is many times slower where channels lie last in memory.
        return value + sigma * torch.randn(value.shape, device=value.device) if sigma else value


def closed_form(loss: LossName = "bound") -> Objective:
    """Return an objective of `tune` for a `NoisyNetwork`: a loss of the propagated moments.

    Autograd through both moments gives ``∂L/∂m · ∂m/∂θ + ∂L/∂v · ∂v/∂θ``.

    Parameters
    ----------
    loss
        ``"bound"``, ``"second-order"`` or ``"squared-error"``; see `LOSSES`.

    Returns
    -------
    Objective
        A loss for each sample.

    Raises
    ------
    ConfigError
        For an unknown loss.

    Notes
    -----
    Cost: about two forward and backward passes of plain training.

    References
    ----------
    arXiv:2312.08877.
    """
    if loss not in LOSSES:
        raise ConfigError(f"there is no loss '{loss}'", fix=did_you_mean(loss, LOSSES))

    def objective(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
        return LOSSES[loss](_noisy_pass(model, x, "moments"), y)

    return objective


def linearised() -> Objective:
    """Return an objective of `tune` with all covariances of the noise, to first order.

    To first order in the noise the logits are ``N(z, S)`` with ``S = Σ_l σ_l² J_l J_lᵀ``, ``J_l``
    their Jacobian at site l, and the cross-entropy L has the variance ``gᵀ S g = Σ_l σ_l²
    ‖∂L/∂h_l‖²``, ``g = p − e_y``. The loss is ``L + ½ Σ_l σ_l² ‖∂L/∂h_l‖²``: ``log E exp(L)`` to
    second order, and the expected cross-entropy with ``g gᵀ`` for its Hessian (the empirical
    Fisher matrix). Nothing is drawn, no S is formed. Cost: one more backward pass, and the backward
    pass through that: three to five times that of plain training on a CPU, where the second
    derivative of batch norm is slow; `first_order_adversarial` avoids it. No `torch.compile`.
    """

    def objective(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
        losses, gradients = _gradients_at_sites(model, x, y, twice=True)
        for site, gradient in gradients.items():
            norm = gradient.square().sum(tuple(range(1, gradient.dim())))
            losses = losses + 0.5 * _sigma(model)[site] ** 2 * norm
        return losses

    return objective


def first_order_adversarial() -> Objective:
    """Return the objective ``L(h + σ² ∂L/∂h)``: `linearised` without a second derivative.

    Every site is moved by its variance times the gradient there, all at once. The moves are
    constants of the backward pass, so that the gradient to the weights is ``∂/∂θ (L + ½ Σ_l σ_l²
    ‖∂L/∂h_l‖²) + O(σ⁴)``: the finite difference of arXiv 1905.11468, at every layer, with the one
    step at which the loss without noise cancels. Where σ is large it is not what `linearised`
    minimises, but related: training after one adversarial gradient step at every layer. Cost: a
    forward pass and a backward pass to the activations more than plain training, less than twice.
    """

    def objective(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
        losses, gradients = _gradients_at_sites(model, x, y, twice=False)
        if not gradients:
            return losses
        moves = {site: _sigma(model)[site] ** 2 * g for site, g in gradients.items()}
        logits = _noisy_pass(model, x, "moved", moves)
        return F.cross_entropy(logits.float(), y, reduction="none")

    return objective


def _gradients_at_sites(
    model: nn.Module, x: Batch, y: Tensor, *, twice: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy a sample, ``[b]``, and its gradient at every site with noise.

    twice: whether the gradients can be differentiated again.
    """
    logits, shifts = _noisy_pass(model, x, "shifts")
    losses = F.cross_entropy(logits.float(), y, reduction="none")
    if not shifts:
        return losses, {}
    gradients = torch.autograd.grad(losses.sum(), list(shifts.values()), create_graph=twice)
    return losses, dict(zip(shifts, gradients, strict=True))


def _noisy_pass(
    model: nn.Module, x: Batch, how: Pass, moves: Mapping[str, Tensor] | None = None
) -> Any:
    """What a `NoisyNetwork` returns; ModelError for another model."""
    _sigma(model)
    return model(x, how, moves)


def _sigma(model: nn.Module) -> Mapping[str, float]:
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not hasattr(bare, "sigma"):
        raise ModelError(
            f"{type(bare).__name__} has no noise",
            where="noise",
            fix="train NoisyNetwork(model, sigma)",
        )
    sigma: Mapping[str, float] = bare.sigma  # type: ignore[assignment]
    return sigma


def sampled(draws: int = 1) -> Objective:
    """Return the baseline objective: cross-entropy averaged over draws of the noise.

    Parameters
    ----------
    draws
        Number of draws, 1 or more. Each is one forward and backward pass.

    Returns
    -------
    Objective
        A loss for each sample.

    Raises
    ------
    ConfigError
        If ``draws`` is less than 1.
    """
    if draws < 1:
        raise ConfigError(f"draws must be 1 or more, not {draws}")

    def objective(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
        losses = [
            F.cross_entropy(_noisy_pass(model, x, "sample").float(), y, reduction="none")
            for _ in range(draws)
        ]
        return torch.stack(losses).mean(0)

    return objective


class _Tracer(fx.Tracer):
    """Layers with a rule are leaves also where a user has derived them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.Graph:
    """The model's graph; the model is left as it was.

    Raises ModelError where Python decides by values, or tensors are neither parameters nor buffers.
    """
    twin = copy_model(model)
    try:
        graph = _Tracer().trace(twin)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"cannot be traced by torch.fx: {error}",
            where=type(model).__name__,
            fix="no decisions by values in `forward`, one tensor in and one out",
        ) from error
    own = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    constants = [str(n.target) for n in graph.nodes if n.op == "get_attr" and n.target not in own]
    if constants:
        raise ModelError(
            f"tensors are neither parameters nor buffers: {format_ids(constants)}",
            where=type(model).__name__,
            fix="register them with `register_buffer`",
        )
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        raise ModelError("takes more than one input", where=type(model).__name__)
    return graph


def pre_activations(model: nn.Module, graph: fx.Graph | None = None) -> tuple[str, ...]:
    """Where noise goes by default: behind every weight layer and its batch norm, but the last.

    Noise on the logits themselves has no weights behind it that could learn from it.
    """
    layers, found = dict(model.named_modules()), []
    graph = graph or traced(model)
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(layers[node.target], _WEIGHTS):
            while len(node.users) == 1 and _is(next(iter(node.users)), layers, _NORMS):
                node = next(iter(node.users))
            if not any(user.op == "output" for user in node.users):
                found.append(str(node.target))
    return tuple(dict.fromkeys(found))


def _is(node: fx.Node, layers: Mapping[str, nn.Module], kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(layers[str(node.target)], kinds)


def _check_sites(graph: fx.Graph, sigma: Mapping[str, float]) -> None:
    known = [INPUT, *(str(node.target) for node in graph.nodes if node.op == "call_module")]
    problems = [
        f"there is no site '{s}'; {did_you_mean(s, known)}" for s in sigma if s not in known
    ]
    problems += [
        f"sigma of '{site}' is {value}: not 0 or more"
        for site, value in sigma.items()
        if not 0 <= value < float("inf")
    ]
    if not sigma:
        problems.append("there is no hidden layer to put noise at; name sites")
    raise_all(ConfigError, problems, where="noise")


def _check_rules(model: nn.Module, graph: fx.Graph, sigma: Mapping[str, float]) -> None:
    """Every operation behind the noise must have a rule, and those before must not be functions
    that know whether they train: the trace has it fixed.
    """
    layers, behind, problems = dict(model.named_modules()), set(), []
    for node in graph.nodes:
        reached = any(n in behind for n in node.all_input_nodes)
        site = INPUT if node.op == "placeholder" else str(node.target)
        at_site = node.op in ("placeholder", "call_module") and bool(sigma.get(site))
        if reached or at_site:
            behind.add(node)
        if node.op == "call_module" and reached and type(layers[site]) not in MODULES:
            problems.append(f"layer '{site}' ({type(layers[site]).__name__}) has no rule")
        elif node.op == "call_function" and node.target in _FIXED:
            problems.append(f"'{node.target.__name__}' is called as a function; use its module")
        elif node.op == "call_function" and reached and node.target not in FUNCTIONS:
            problems.append(f"the function '{_name(node.target)}' has no rule")
        elif node.op == "call_method" and reached and node.target not in METHODS:
            problems.append(f"the method '{node.target}' has no rule")
    raise_all(ModelError, list(dict.fromkeys(problems)), where=type(model).__name__)


def _name(function: Any) -> str:
    return getattr(function, "__name__", str(function))


class _Propagation(fx.Interpreter):
    """The graph's operations one by one; those that a `Moments` reaches by their rules."""

    def __init__(self, model: nn.Module, graph: fx.Graph, noise: Callable[[str, Any], Any]) -> None:
        super().__init__(model, graph=graph)
        self._noise = noise

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._noise(INPUT, super().placeholder(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        call = MODULES[type(layer)] if _has_moments(args) else type(layer).__call__
        return self._noise(target, call(layer, *args, **kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        call = FUNCTIONS[target] if _has_moments(args) else target
        return call(*args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        call = METHODS[target] if _has_moments(args) else getattr(args[0], target)
        return call(*args, **kwargs) if _has_moments(args) else call(*args[1:], **kwargs)


def _has_moments(args: Sequence[Any]) -> bool:
    return any(
        isinstance(a, Moments) or (isinstance(a, list | tuple) and _has_moments(a)) for a in args
    )


def _smooth(f: Callable[[Tensor], Tensor]) -> Callable[..., Moments]:
    return lambda x: rules.smooth(x, f)


def _layer(rule: Callable[..., Moments]) -> Callable[..., Moments]:
    """A rule that does not need the layer, as one of a layer."""
    return lambda layer, x: rule(x)


def _functional(kind: type[nn.Module], rule: Callable[..., Moments]) -> Callable[..., Moments]:
    """The rule of a layer for its function: the same arguments make the layer."""
    return lambda x, *args, **kwargs: rule(kind(*args, **kwargs), x)


def _reshaped(name: str) -> Callable[..., Moments]:
    """What only moves elements moves both moments."""

    def rule(x: Moments, *args: Any, **kwargs: Any) -> Moments:
        return Moments(*(getattr(part, name)(*args, **kwargs) for part in x))

    return rule


def _asked(name: str) -> Callable[..., Any]:
    """What is asked of a tensor's shape."""
    return lambda x, *args: getattr(x.mean, name)(*args)


def _concatenated(parts: Sequence[Moments | Tensor], dim: int = 0) -> Moments:
    both = [part if isinstance(part, Moments) else rules.noisy(part, 0.0) for part in parts]
    mean, variance = (torch.cat(side, dim) for side in zip(*both, strict=True))
    return Moments(mean, variance)


def _attribute(x: Moments, name: str) -> Any:
    return getattr(x.mean, name)


_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.ELU)
# How a layer takes moments: rule(layer, x).
MODULES: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: lambda layer, x: rules.linear(x, layer.weight, layer.bias),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), rules.convolution),
    **dict.fromkeys(_NORMS, rules.batch_norm),
    nn.ReLU: _layer(rules.relu),
    nn.LeakyReLU: lambda layer, x: rules.leaky_relu(x, layer.negative_slope),
    **dict.fromkeys(_SMOOTH, lambda layer, x: rules.smooth(x, layer)),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), rules.dropout),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), rules.average_pool),
    **dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        rules.adaptive_average_pool,
    ),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), rules.max_pool),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), rules.max_pool),
    nn.Identity: _layer(lambda x: x),
    nn.Flatten: lambda layer, x: Moments(layer(x.mean), layer(x.variance)),
}
FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.relu, torch.relu_), rules.relu),
    F.relu: lambda x, inplace=False: rules.relu(x),
    F.leaky_relu: lambda x, negative_slope=0.01, inplace=False: rules.leaky_relu(x, negative_slope),
    **{f: _smooth(f) for f in (torch.tanh, torch.sigmoid)},
    F.gelu: lambda x, **how: rules.smooth(x, nn.GELU(**how)),
    F.silu: lambda x, inplace=False: rules.smooth(x, F.silu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), rules.add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), rules.subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), rules.multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), rules.divide),
    operator.neg: lambda x: rules.multiply(x, -1.0),
    F.linear: rules.linear,
    F.avg_pool2d: _functional(nn.AvgPool2d, rules.average_pool),
    F.adaptive_avg_pool2d: _functional(nn.AdaptiveAvgPool2d, rules.adaptive_average_pool),
    F.max_pool2d: _functional(nn.MaxPool2d, rules.max_pool),
    torch.mean: rules.mean_over,
    torch.flatten: _reshaped("flatten"),
    **dict.fromkeys((torch.cat, torch.concat), _concatenated),
    getattr: _attribute,
    operator.getitem: lambda x, at: Moments(x.mean[at], x.variance[at]),
}
METHODS: Mapping[str, Callable[..., Any]] = {
    "relu": rules.relu,
    "tanh": _smooth(torch.tanh),
    "sigmoid": _smooth(torch.sigmoid),
    "mean": rules.mean_over,
    **{name: _asked(name) for name in ("size", "dim")},
    **{
        name: _reshaped(name)
        for name in (
            *("flatten", "view", "reshape", "permute", "transpose"),
            *("squeeze", "unsqueeze", "contiguous"),
        )
    },
}
# These read `training` when they are traced, and never again.
_FIXED = (F.dropout, F.dropout2d, F.batch_norm)
