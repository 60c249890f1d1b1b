"""Mean and variance of a network's values under Gaussian noise, layer by layer, in closed form.

A value is a tensor of independent Gaussians, known by its `Moments`. Every rule maps the moments of
a layer's input to those of its output; correlations between the elements of one tensor, and
between the two sides of an addition, are left out (the diagonal approximation). Where an input's
elements are independent, the rules of linear layers, convolutions, average pooling, sums, ReLU,
leaky ReLU and dropout are exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.errors import ModelError

# Points of the quadrature of smooth activations: exact for polynomials up to degree 2 · POINTS − 1.
POINTS = 8
# Below this, a variance is none: its root is not divided by.
LEAST = 1e-12


class Moments(NamedTuple):
    """Mean and variance of every element; tensors of one shape, the variance 0 or more."""

    mean: Tensor
    variance: Tensor


def noisy(x: Tensor | Moments, variance: Tensor | float) -> Moments:
    """``x + ε``, ``ε ~ N(0, variance)``: the mean stays, the variances add."""
    if isinstance(x, Moments):
        return Moments(x.mean, x.variance + variance)
    return Moments(x, torch.zeros_like(x) + variance)


class _Relu(torch.autograd.Function):
    """ReLU's moments with their own derivatives: cheaper, and stable where the variance is 0.

    Memory traffic is what they cost, so temporaries are used again.
    """

    @staticmethod
    def forward(ctx: Any, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        s = v.clamp_min(LEAST).sqrt_()
        a = m / s
        above = torch.erf(a * math.sqrt(0.5)).mul_(0.5).add_(0.5)
        density = a.square_().mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        mean = torch.addcmul(s * density, m, above)
        # (m² + v) Φ + m s φ − E² = v Φ + E (m − E)
        variance = torch.addcmul(v * above, mean, m - mean).clamp_min_(0)
        ctx.save_for_backward(above, density.div_(s), mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        above, slope, mean = ctx.saved_tensors
        by_mean, by_variance = grads
        # ∂E/∂m = Φ, ∂Var/∂m = 2 E (1 − Φ), ∂E/∂v = φ / 2s, ∂Var/∂v = Φ − E φ / s
        to_m = torch.mul(by_variance, mean).mul_(2).lerp_(by_mean, above)
        to_v = torch.addcmul(by_mean * 0.5, by_variance, mean, value=-1).mul_(slope)
        return to_m, to_v.addcmul_(by_variance, above)


def relu(x: Moments) -> Moments:
    """``E = m Φ(a) + s φ(a)``, ``Var = (m² + v) Φ(a) + m s φ(a) − E²``, ``a = m / s``. Exact."""
    return Moments(*_Relu.apply(x.mean, x.variance))  # type: ignore[no-untyped-call]


def leaky_relu(x: Moments, slope: float | Tensor = 0.01) -> Moments:
    """``α x + (1 − α) relu(x)``, with ``Cov(x, relu(x)) = v Φ(m / s)`` (Stein). Exact."""
    m, v = x
    upper = relu(x)
    above = torch.special.ndtr(m / v.clamp_min(LEAST).sqrt())
    mean = slope * m + (1 - slope) * upper.mean
    covariance = 2 * slope * (1 - slope) * v * above
    return Moments(mean, slope**2 * v + covariance + (1 - slope) ** 2 * upper.variance)


def smooth(x: Moments, f: Callable[[Tensor], Tensor]) -> Moments:
    """Any activation without a kink, by Gauss–Hermite quadrature: ``E f(x) ≈ Σ w_i f(m + s t_i)``.

    Eight points; the error is that of a polynomial of degree 15 within a few spreads of the mean.
    Cost: eight evaluations of f.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    s = x.variance.clamp_min(LEAST).sqrt()
    values = torch.stack([f(x.mean + s * float(t)) for t in nodes])
    w = torch.as_tensor(weights / weights.sum(), dtype=values.dtype, device=values.device)
    mean = torch.tensordot(w, values, 1)
    return Moments(mean, torch.tensordot(w, (values - mean) ** 2, 1))


def linear(x: Moments, weight: Tensor, bias: Tensor | None = None) -> Moments:
    """``m' = W m + b``, ``v' = (W ∘ W) v``."""
    return Moments(F.linear(x.mean, weight, bias), F.linear(x.variance, weight * weight))


def convolution(layer: nn.Module, x: Moments) -> Moments:
    """``m' = W ∗ m + b``, ``v' = (W ∘ W) ∗ v``, with the layer's stride, padding and groups."""
    mean = layer._conv_forward(x.mean, layer.weight, layer.bias)  # type: ignore[operator]
    squared = layer.weight * layer.weight  # type: ignore[operator]
    return Moments(mean, layer._conv_forward(x.variance, squared, None))  # type: ignore[operator]


def batch_norm(layer: nn.modules.batchnorm._BatchNorm, x: Moments) -> Moments:
    """``m' = γ (m − μ) / √(τ² + ε) + β``, ``v' = γ² v / (τ² + ε)``.

    μ, τ²: the running averages, or in training those of the batch, as sampling would show them:
    ``τ² = Var_batch(m) + mean(v)`` (the law of total variance); the averages then move towards
    these.
    """
    m, v = x
    shape = (1, -1) + (1,) * (m.dim() - 2)
    center, spread = layer.running_mean, layer.running_var
    if layer.training or center is None or spread is None:
        dims = [d for d in range(m.dim()) if d != 1]
        center = m.mean(dims)
        m = m - center.view(shape)
        spread = m.square().mean(dims) + v.mean(dims)
        _move_averages(layer, center, spread, m.numel() / m.shape[1])
    else:
        m = m - center.view(shape)
    scale = (spread + layer.eps).rsqrt()
    scale = (scale if layer.weight is None else scale * layer.weight).view(shape)
    shifted = m * scale if layer.bias is None else m * scale + layer.bias.view(shape)
    return Moments(shifted, v * scale.square())


def _move_averages(
    layer: nn.modules.batchnorm._BatchNorm, center: Tensor, spread: Tensor, count: float
) -> None:
    if not layer.training or layer.running_mean is None or layer.running_var is None:
        return
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        rate = layer.momentum
        share = 1 / float(layer.num_batches_tracked) if rate is None else rate  # type: ignore[arg-type]
        layer.running_mean.lerp_(center.to(layer.running_mean), share)
        unbiased = spread * (count / max(count - 1, 1))
        layer.running_var.lerp_(unbiased.to(layer.running_var), share)


def dropout(layer: Any, x: Moments) -> Moments:
    """``m' = m``, ``v' = (v + m²) / (1 − p) − m²`` in training; nothing in evaluation."""
    if not layer.training or not layer.p:
        return x
    square = x.mean * x.mean
    return Moments(x.mean, (x.variance + square) / (1 - layer.p) - square)


def average(x: Moments, pool: Callable[[Tensor], Tensor], k: float) -> Moments:
    """Means over k elements each: ``m' = Σ m / k``, ``v' = Σ v / k²``."""
    return Moments(pool(x.mean), pool(x.variance) / k)


def average_pool(layer: Any, x: Moments) -> Moments:
    """Average pooling with windows of one size: ``v' = Σ v / k²``."""
    spatial = x.mean.dim() - 2
    size = _tuple(layer.kernel_size, spatial)
    even = layer.count_include_pad or not any(_tuple(layer.padding, spatial))
    if layer.ceil_mode or not even or getattr(layer, "divisor_override", None):
        raise ModelError("averages over windows of different sizes have no rule")
    return average(x, layer, math.prod(size))


def adaptive_average_pool(layer: Any, x: Moments) -> Moments:
    """The same where the output's size divides the input's."""
    shape = x.mean.shape[2:]
    wanted = [w or n for w, n in zip(_tuple(layer.output_size, len(shape)), shape, strict=True)]
    if any(n % w for n, w in zip(shape, wanted, strict=True)):
        raise ModelError(f"averages from {tuple(shape)} to {tuple(wanted)} differ in size: no rule")
    return average(x, layer, math.prod(shape) / math.prod(wanted))


def mean_over(x: Moments, dim: Any = None, keepdim: bool = False) -> Moments:
    """``x.mean(dim)``."""
    dims = tuple(range(x.mean.dim())) if dim is None else dim
    k = math.prod(x.mean.shape[d] for d in ((dims,) if isinstance(dims, int) else dims))
    return average(x, lambda t: t.mean(dims, keepdim=keepdim), k)


def max_pool(layer: Any, x: Moments) -> Moments:
    """Mean and variance of the element with the largest mean: an approximation.

    It is right where one element stands out by several spreads; else it is below the mean of the
    largest.
    """
    pick = copy.copy(layer)
    pick.return_indices = True
    mean, at = pick(x.mean)
    flat = x.variance.flatten(2).gather(2, at.flatten(2))
    return Moments(mean, flat.view_as(mean))


def add(a: Any, b: Any) -> Moments:
    """``m₁ + m₂``, ``v₁ + v₂``: the covariance of the two sides is left out."""
    if isinstance(a, Moments) and isinstance(b, Moments):
        return Moments(a.mean + b.mean, a.variance + b.variance)
    if isinstance(a, Moments):
        return Moments(a.mean + b, a.variance)
    return add(b, a)


def subtract(a: Any, b: Any) -> Moments:
    """``a − b``."""
    return add(a, multiply(b, -1.0) if isinstance(b, Moments) else -b)


def multiply(a: Any, b: Any) -> Moments:
    """Of two: ``v = v₁ v₂ + m₁² v₂ + m₂² v₁`` (independent); with a constant c: ``v = c² v₁``."""
    if isinstance(a, Moments) and isinstance(b, Moments):
        v = a.variance * b.variance + a.mean**2 * b.variance + b.mean**2 * a.variance
        return Moments(a.mean * b.mean, v)
    if isinstance(a, Moments):
        return Moments(a.mean * b, a.variance * b * b)
    return multiply(b, a)


def divide(a: Any, b: Any) -> Moments:
    """By a constant."""
    if isinstance(b, Moments):
        raise ModelError("a division by a noisy value has no rule")
    return multiply(a, 1.0 / b)


def _tuple(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count
