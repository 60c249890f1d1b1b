"""What a benchmark runs on: data with injected noise, and the networks trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from torch import nn

from expunge import pipeline
from expunge._core.progress import Progress, silent
from expunge.demo.noise import NoisyDataset
from expunge.errors import ConfigError, DataError, did_you_mean
from expunge.training.loop import TuneConfig

# regularised: augmented and stopped early, as one who knows of the noise would train.
# overfit: trained until the given labels are fitted, as one would train on a clean set.
State = Literal["regularised", "overfit"]
STATES: tuple[State, ...] = get_args(State)
_RENAMED_STATES = {"fresh": "regularised", "memorised": "overfit"}


@dataclass(frozen=True)
class Setting:
    """One noisy training set and one network trained on it.

    Parameters
    ----------
    noise
        The kind of noise, one of `BenchmarkDataset.noises`.
    rate
        The noise rate, in [0, 1). 0 for noise whose rate is fixed.
    state
        How the network is trained, see `State`.
    seed
        Seed of the data, the noise and the network.
    n
        The number of training samples.
    """

    noise: str
    rate: float = 0.0
    state: State = "regularised"
    seed: int = 0
    n: int = 25_000

    def __post_init__(self) -> None:
        if self.state not in STATES:
            new = _RENAMED_STATES.get(self.state)
            raise ConfigError(
                f"expected a state among {', '.join(STATES)}, got '{self.state}'",
                fix=f"write '{new}'" if new else did_you_mean(self.state, STATES),
            )

    @property
    def name(self) -> str:
        """A folder name."""
        rate = f"-{self.rate:g}" if self.rate else ""
        return f"{self.noise}{rate}-{self.state}-{self.n}-{self.seed}"

    def row_keys(self) -> dict[str, Any]:
        """The columns of a row that come from the setting."""
        return {
            "n": self.n,
            "noise": self.noise,
            "rate": self.rate,
            "state": self.state,
            "seed": self.seed,
        }


class BenchmarkDataset(Protocol):
    """Data into which a benchmark injects noise."""

    @property
    def name(self) -> str:
        """The value of the column ``data``."""
        ...

    @property
    def default_n(self) -> int:
        """The number of training samples where the user names none."""
        ...

    @property
    def noises(self) -> Mapping[str, tuple[float, ...]]:
        """Kinds of noise and their default rates; () for noise whose rate is fixed."""
        ...

    @property
    def training(self) -> Mapping[str, TuneConfig]:
        """How networks are trained, by state."""
        ...

    def noisy_dataset(self, setting: Setting) -> NoisyDataset:
        """Training samples with the setting's noise, and the test samples."""
        ...

    def network(self, seed: int) -> nn.Module:
        """An untrained network."""
        ...


def grid(
    dataset: BenchmarkDataset,
    *,
    noises: Sequence[str] = (),
    rates: Sequence[float] = (),
    states: Sequence[State] = STATES,
    seeds: Sequence[int] = (0,),
    n: int | None = None,
) -> list[Setting]:
    """All combinations of kinds of noise, rates, states and seeds.

    Parameters
    ----------
    dataset
        The data.
    noises
        Kinds of noise; all of the data set's, if empty.
    rates
        Noise rates, for the kinds that have a free rate; the data set's defaults, if empty.
    states, seeds
        See `Setting`.
    n
        The number of training samples; the data set's default, if None.

    Raises
    ------
    ConfigError
        If the data set has no such kind of noise.
    """
    for noise in noises:
        if noise not in dataset.noises:
            raise ConfigError(
                f"expected a noise among {', '.join(dataset.noises)}, got '{noise}'",
                where=dataset.name,
                fix=did_you_mean(noise, dataset.noises),
            )
    return [
        Setting(noise, rate, state, seed, n or dataset.default_n)
        for noise in noises or dataset.noises
        for rate in ((rates or dataset.noises[noise]) if dataset.noises[noise] else (0.0,))
        for state in states
        for seed in seeds
    ]


def cached_model(
    dataset: BenchmarkDataset,
    data: NoisyDataset,
    setting: Setting,
    *,
    out: Path,
    progress: Progress = silent,
) -> pipeline.Trained:
    """Train the setting's network on its noisy samples, or load it from ``out/models``."""
    return pipeline.train(
        dataset.network(setting.seed),
        data.train,
        dataset.training[setting.state],
        seed=setting.seed,
        out=out / "models" / setting.name,
        progress=progress,
    )


def check_sample_count(n: int, available: int, *, where: str = "") -> None:
    """Raise DataError if more samples are requested than there are."""
    if n > available:
        raise DataError(
            f"n = {n:,} samples requested, the data set has {available:,}",
            where=where,
            fix="lower n",
        )
