"""What a suite runs on: data with faults put in, and the networks that are trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import nn

from expunge import pipeline
from expunge._core.progress import Progress, silent
from expunge.demo.noise import NoisyDataset
from expunge.errors import ConfigError
from expunge.training.loop import TuneConfig

# Fresh: stopped early and augmented, as one who knows of noise would. Memorised: trained until the
# labels are fitted, as one would a clean set.
State = Literal["fresh", "memorised"]
STATES: tuple[State, ...] = ("fresh", "memorised")


@dataclass(frozen=True)
class Setting:
    """One training set and one network: n samples, a kind of noise at a rate, a state, a seed."""

    noise: str
    rate: float = 0.0
    state: State = "fresh"
    seed: int = 0
    n: int = 25_000

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ConfigError(f"state '{self.state}' is none of: {', '.join(STATES)}")

    @property
    def name(self) -> str:
        """A folder name."""
        rate = f"-{self.rate:g}" if self.rate else ""
        return f"{self.noise}{rate}-{self.state}-{self.n}-{self.seed}"


class BenchmarkDataset(Protocol):
    """Data of one sort.

    name: what rows call it. most: samples to train on where none are asked for. noises: kinds of
    noise, and for each the rates that a suite takes where none is asked for; () for noise that has
    a rate of its own. training: how networks are trained, by state.
    """

    @property
    def name(self) -> str: ...

    @property
    def most(self) -> int: ...

    @property
    def noises(self) -> Mapping[str, tuple[float, ...]]: ...

    @property
    def training(self) -> Mapping[str, TuneConfig]: ...

    def scene(self, setting: Setting) -> NoisyDataset:
        """Training samples with the setting's faults, and what they are tested on."""
        ...

    def network(self, seed: int) -> nn.Module:
        """An untrained network."""
        ...


def grid(
    field: BenchmarkDataset,
    *,
    noises: Sequence[str] = (),
    rates: Sequence[float] = (),
    states: Sequence[State] = STATES,
    seeds: Sequence[int] = (0,),
    n: int | None = None,
) -> list[Setting]:
    """All settings asked for; rates count for the kinds of noise that have one."""
    for noise in noises:
        if noise not in field.noises:
            known = ", ".join(field.noises)
            raise ConfigError(f"noise '{noise}' is none of: {known}", where=field.name)
    return [
        Setting(noise, rate, state, seed, n or field.most)
        for noise in noises or field.noises
        for rate in ((rates or field.noises[noise]) if field.noises[noise] else (0.0,))
        for state in states
        for seed in seeds
    ]


def cached_model(
    field: BenchmarkDataset,
    scene: NoisyDataset,
    setting: Setting,
    out: Path,
    *,
    progress: Progress = silent,
) -> pipeline.Trained:
    """The setting's network, trained on its samples; kept under ``out`` and used again."""
    return pipeline.train(
        field.network(setting.seed),
        scene.train,
        field.training[setting.state],
        seed=setting.seed,
        out=out / "models" / setting.name,
        progress=progress,
    )
