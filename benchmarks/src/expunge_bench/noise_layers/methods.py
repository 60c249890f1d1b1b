"""How networks are trained in the benchmark, and the data sets with their small networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from expunge.errors import ConfigError, did_you_mean
from expunge.models.zoo import convnet
from expunge.robustness.attacks import adversarial
from expunge.robustness.noise_layers import (
    INPUT,
    Expectation,
    NoisyNetwork,
    closed_form,
    first_order_adversarial,
    linearised,
    pre_activations,
    sampled,
)
from expunge.training.loop import Objective, TuneConfig, cross_entropy
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import BenchmarkDataset
from expunge_bench.digits import Digits

# Steps of PGD in adversarial training.
TRAINING_STEPS = 5


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Parameters
    ----------
    objective
        The objective, by the largest budget of the attacks.
    has_noise
        Whether the network has noise in its layers, of a standard deviation sigma.
    has_input_noise
        Whether that noise is also on the pixels.
    expectations
        The expectation models of the noise that are attacked.
    """

    objective: Callable[[float], Objective]
    has_noise: bool = True
    has_input_noise: bool = True
    expectations: tuple[Expectation, ...] = ("plain",)


_BOTH_EXPECTATIONS: tuple[Expectation, ...] = ("plain", "propagated")
METHODS: Mapping[str, Method] = {
    "plain": Method(lambda eps: cross_entropy, has_noise=False),
    "sampled": Method(lambda eps: sampled(), expectations=_BOTH_EXPECTATIONS),
    "diagonal": Method(lambda eps: closed_form("bound"), expectations=_BOTH_EXPECTATIONS),
    "linearised": Method(lambda eps: linearised()),
    "shifted": Method(lambda eps: first_order_adversarial()),
    "shifted-inside": Method(lambda eps: first_order_adversarial(), has_input_noise=False),
    "adversarial": Method(lambda eps: adversarial(eps=eps, steps=TRAINING_STEPS), has_noise=False),
}


@dataclass(frozen=True)
class Task:
    """A data set, small enough for two cores, and how networks are trained on it.

    Parameters
    ----------
    dataset, n
        The data set and the number of training samples.
    network
        Makes an untrained network.
    training
        The training of every method.
    epsilons
        Budgets of the attacks as fractions of the range of pixels, the largest last.
    sigma
        Standard deviation of the noise by method: in the range of pixels on the input, in the
        units of the pre-activations inside. Chosen on development seeds.
    """

    dataset: BenchmarkDataset
    n: int
    network: Callable[[], nn.Module]
    training: TuneConfig
    epsilons: tuple[float, ...]
    sigma: Mapping[str, float]


def small_convnet() -> nn.Module:
    """Four 3×3 convolutions with batch norm for 32×32 images: 70,000 weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * channels, 10))


def digits_convnet() -> nn.Module:
    """The demo's network for digits, half as wide."""
    return convnet(classes=10, channels=1, widths=(16, 32), hidden=64)


# Chosen on a development seed of CIFAR-10 and separate samples: of a few powers of two, the one
# with the highest accuracy under PGD, if its clean accuracy is at most 5 points below that of
# adversarial training.
SIGMA = {
    "sampled": 0.25,
    "diagonal": 1.0,
    "linearised": 2.0,
    "shifted": 2.0,
    "shifted-inside": 4.0,
}
_TRAINING = TuneConfig(targets="all", epochs=6, lr=0.1, precision="float32")
_TASKS = ("cifar10", "digits")


def task_for(dataset: str, folder: Path) -> Task:
    """The task for ``cifar10`` (which lies in the folder) or ``digits``.

    Raises
    ------
    ConfigError
        If the data set is unknown.
    """
    if dataset == "cifar10":
        return Task(Cifar(folder), 5_000, small_convnet, _TRAINING, (2 / 255, 8 / 255), SIGMA)
    if dataset == "digits":
        training = replace(_TRAINING, epochs=30, batch_size=64)
        return Task(Digits(), 1_000, digits_convnet, training, (0.1, 0.2), SIGMA)
    raise ConfigError(f"unknown data set '{dataset}'", fix=did_you_mean(dataset, _TASKS))


def with_noise(network: nn.Module, sigma: float, *, on_input: bool = True) -> NoisyNetwork:
    """Add noise of one sigma to every pre-activation, and to the input."""
    sites = (INPUT,) if on_input else ()
    return NoisyNetwork(network, sigma, sites=(*sites, *pre_activations(network)))
