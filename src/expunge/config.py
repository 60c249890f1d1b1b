"""Settings for every stage of a repair, and how they are read from TOML or the command line.

Every setting is a frozen dataclass with defaults. `build` turns a dictionary into one and reports
all problems at once. The dictionaries with the names ``…Keywords`` are the same settings as typed
keyword arguments, for the functions in `expunge.stages` and `expunge.pipeline`.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import (
    Any,
    Literal,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from expunge._core.progress import Progress, silent
from expunge.errors import ConfigError, check_range, did_you_mean, raise_all

T = TypeVar("T")
Precision = Literal["auto", "float32", "bfloat16"]
TargetKind = Literal["filter", "reweight", "relabel", "complement", "all", "semi", "bootstrap"]
PruneScope = Literal["layer", "global"]
PruneMode = Literal["remove", "mask"]

# No setting needs a larger integer.
MAX_INTEGER = 2**63
# If a smaller fraction of the samples is flagged, a repair does more harm than good.
MIN_FLAGGED_FRACTION = 0.02
# The fraction of units that is pruned where the repair decides. It cost no accuracy in models that
# had memorised wrong labels, and 0.3 points in others (development seeds).
DEFAULT_PRUNE_FRACTION = 0.2
# Epochs of further rounds that a recipe leaves open, by optimiser.
OPEN_ROUNDS = {"sgd": (3, 30), "adamw": (3, 8)}
# What a repair is compared with by default, from the same partition.
DEFAULT_BASELINES = ("finetune-only", "random-units", "magnitude", "retrain-filtered")


@dataclass(frozen=True)
class ScoreConfig:
    """How samples are scored.

    Parameters
    ----------
    detectors
        Names of detectors, see ``expunge list detectors``.
    options
        Options of single detectors, ``{"knn_disagreement": {"k": 25}}``.
    attribution_layer
        The layer at which attributions are taken. Left out: the input of the head.
    feature_layers
        The layers whose features are compared. Left out: the outputs of blocks.
    views
        Number of random views, 0 or more. Each costs one pass. Images and sound without a view of
        their own have one here, see `expunge.data.views.scoring_view`.
    batch_size
        Samples in a batch, 1 or more. It does not change the scores beyond rounding.
    precision
        ``"auto"`` uses bfloat16 where the hardware multiplies it natively.
    """

    detectors: tuple[str, ...] = (
        "pooled_margin",
        "augmented_margin",
        "lda_margin",
        "local_uncertainty",
        "feature_clusters",
    )
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    attribution_layer: str = ""
    feature_layers: tuple[str, ...] = ()
    views: int = 6
    batch_size: int = 256
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        limits = {
            "score.views": (self.views, "[0, inf)"),
            "score.batch_size": (self.batch_size, "[1, inf)"),
        }
        check_range(ConfigError, limits)


@dataclass(frozen=True)
class PartitionConfig:
    """How scores become probabilities and flags.

    Parameters
    ----------
    method
        A partitioner, see ``expunge list partitions``.
    threshold
        Samples with a larger ``p_noisy`` are flagged. In [0, 1].
    fdr
        Sets the threshold instead: the expected fraction of clean samples among the flagged ones
        is at most this. In (0, 1). See `expunge.detection.partitioners.fdr_threshold`.
    noise_rate
        The share of wrong labels among samples that are not trusted, if it is known, as from an
        audit of samples drawn at random; else it is estimated. In (0, 1). Only for the methods
        ``auto`` and ``evidence-pool``.
    options
        Options of the partitioner.
    """

    method: str = "auto"
    threshold: float = 0.5
    fdr: float | None = None
    noise_rate: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "partition.threshold": (self.threshold, "[0, 1]"),
            "partition.fdr": (self.fdr, "(0, 1)"),
            "partition.noise_rate": (self.noise_rate, "(0, 1)"),
        }
        check_range(ConfigError, limits)

    @property
    def method_options(self) -> dict[str, Any]:
        """The options that the partitioner is called with, beside seed and threshold."""
        known = {} if self.noise_rate is None else {"noise_rate": self.noise_rate}
        return {**self.options, **known}


@dataclass(frozen=True)
class RankConfig:
    """Which units are ranked, and how.

    Parameters
    ----------
    method
        A ranker, see ``expunge list rankers``.
    layers
        The layers whose units, and the attentions whose heads, are ranked. Left out: all prunable
        ones whose units no other layer shares. A unit that residual additions share costs every
        layer that shares it.
    last_n_layers
        Ranks the last prunable layers instead. 1 or more.
    max_samples
        At most this many samples are used, drawn by the seed. More do not change the ranking.
    options
        Options of the ranker.
    """

    method: str = "attribution-ridge"
    layers: tuple[str, ...] = ()
    last_n_layers: int | None = None
    max_samples: int = 4_000
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "rank.last_n_layers": (self.last_n_layers, "[1, inf)"),
            "rank.max_samples": (self.max_samples, "[1, inf)"),
        }
        check_range(ConfigError, limits)


@dataclass(frozen=True)
class PruneConfig:
    """How many units are pruned, and how.

    With neither ``fraction`` nor ``count`` a repair decides: it prunes a fifth of a model that has
    memorised wrong labels, or whose samples are to be forgotten, and nothing of other models.

    Parameters
    ----------
    method
        A pruner, see ``expunge list pruners``.
    fraction
        Fraction of the units, in [0, 1]; 0 prunes nothing. Excludes ``count``.
    count
        Number of units, 0 or more.
    scope
        ``"layer"``: fraction or count hold for every layer. ``"global"``: over all layers together.
    max_layer_fraction
        At most this fraction of any layer is pruned. In [0, 1).
    mode
        ``"remove"`` makes the network smaller, ``"mask"`` silences the units reversibly.
    options
        Options of the pruner.
    """

    method: str = "top-effect"
    fraction: float | None = None
    count: int | None = None
    scope: PruneScope = "layer"
    max_layer_fraction: float = 0.9
    mode: PruneMode = "remove"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "prune.fraction": (self.fraction, "[0, 1]"),
            "prune.count": (self.count, "[0, inf)"),
            "prune.max_layer_fraction": (self.max_layer_fraction, "[0, 1)"),
        }
        check_range(ConfigError, limits)
        if self.fraction is not None and self.count is not None:
            raise ConfigError("prune.fraction and prune.count exclude each other")

    @property
    def is_enabled(self) -> bool:
        """Whether a fraction or a count above 0 is given."""
        return bool(self.fraction or self.count)

    @property
    def is_auto(self) -> bool:
        """Whether the repair decides."""
        return self.fraction is None and self.count is None


@dataclass(frozen=True)
class EditConfig:
    """How a network is changed in closed form, before it is tuned.

    Parameters
    ----------
    method
        An editor, see ``expunge list editors``. Empty: nothing is edited.
    options
        Options of the editor.
    precision
        Of its forward passes, see `ScoreConfig`.
    """

    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "auto"


@dataclass(frozen=True)
class SemiConfig:
    """How a network learns from samples without their labels, with ``targets = "semi"``.

    Parameters
    ----------
    weight
        Weight of the samples without labels in the loss, 0 or more.
    ratio
        How many of them a batch holds for each labelled one, above 0.
    min_confidence
        Predictions below this confidence are not learned from, in [0, 1].
    """

    weight: float = 1.0
    ratio: float = 1.0
    min_confidence: float = 0.7

    def __post_init__(self) -> None:
        limits = {
            "tune.semi.weight": (self.weight, "[0, inf)"),
            "tune.semi.ratio": (self.ratio, "(0, inf)"),
            "tune.semi.min_confidence": (self.min_confidence, "[0, 1]"),
        }
        check_range(ConfigError, limits)


@dataclass(frozen=True)
class RoundsConfig:
    """Further rounds of a repair: the repaired model scores the data again and is tuned on that.

    Parameters
    ----------
    epochs
        Epochs of the tuning in each further round, 1 or more each. Empty: no further round. None: 3
        and 30, with AdamW 3 and 8.
    views
        Number of random views when the repaired model scores, 0 or more.
    targets
        What it is tuned on, see `expunge.TuneConfig`.
    min_flag_change
        If a smaller fraction of the flags changes, in [0, 1], this is the last round; the epochs of
        the skipped rounds are added to it.
    """

    epochs: tuple[int, ...] | None = ()
    views: int = 0
    targets: TargetKind = "filter"
    min_flag_change: float = 0.01

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float | None, str]] = {
            "rounds.views": (self.views, "[0, inf)"),
            "rounds.min_flag_change": (self.min_flag_change, "[0, 1]"),
        }
        for i, epochs in enumerate(self.n_epochs):
            limits[f"rounds.epochs[{i}]"] = (epochs, "[1, inf)")
        check_range(ConfigError, limits)

    @property
    def n_epochs(self) -> tuple[int, ...]:
        """The epochs of each further round; 3 and 30 where they were left open."""
        return OPEN_ROUNDS["sgd"] if self.epochs is None else self.epochs


@dataclass(frozen=True)
class RepairOptions:
    """All settings of a repair, beside model and data.

    Parameters
    ----------
    recipe
        What to do, see ``expunge list recipes``.
    overrides
        Single settings of the recipe by stage: ``{"tune": {"epochs": 3}}``.
    baselines
        Recipes to compare with, from the same partition. None runs without validation data.
    seed
        Seed of everything random.
    out
        The run folder. An interrupted repair resumes from it. None keeps nothing.
    overwrite
        Discard what an earlier run left in the folder.
    train_seconds
        Seconds that the training of the model took, for the report.
    minutes
        Time budget of the repair, above 0: scores, partition and all tuning. Each baseline has as
        much. What is left after scoring is divided among the rounds.
    time_share
        Time budget as a fraction of ``train_seconds``, above 0.
    trackers
        Experiment trackers of Accelerate that log the result: ``("tensorboard", "mlflow")``.
    notes
        What was done before the repair: sentences for the report.
    progress
        Called as ``progress(what, done, total)``.
    """

    recipe: str = "default"
    overrides: Mapping[str, Any] | None = None
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    seed: int = 0
    out: str | Path | None = None
    overwrite: bool = False
    train_seconds: float | None = None
    minutes: float | None = None
    time_share: float | None = None
    trackers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    progress: Progress = silent

    def __post_init__(self) -> None:
        limits = {
            "minutes": (self.minutes, "(0, inf)"),
            "time_share": (self.time_share, "(0, inf)"),
        }
        check_range(ConfigError, limits)
        if self.time_share is not None and self.train_seconds is None:
            raise ConfigError(
                "a share of the training's time is given, and that time is not known",
                fix="give train_seconds, or minutes instead of time_share",
            )
        problems: list[str] = []
        if not isinstance(self.seed, SupportsIndex):
            problems.append(f"seed must be an integer, not {self.seed!r}")
        if not isinstance(self.recipe, str):
            problems.append(f"recipe must be a name, not {self.recipe!r}")
        if not isinstance(self.overrides, Mapping | None):
            problems.append(f"overrides must be settings by stage, not {self.overrides!r}")
        if not isinstance(self.out, str | Path | None):
            problems.append(f"out must be a path, not {self.out!r}")
        if not callable(self.progress):
            problems.append("progress must be a function of what, done and total")
        raise_all(ConfigError, problems, where="options of a repair")
        object.__setattr__(self, "seed", operator.index(self.seed))
        for name in ("baselines", "trackers", "notes"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))

    @property
    def budget_minutes(self) -> float | None:
        """The time budget; None without one."""
        limits = [] if self.minutes is None else [self.minutes]
        if self.time_share is not None and self.train_seconds is not None:
            limits.append(self.time_share * self.train_seconds / 60)
        return min(limits) if limits else None

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> RepairOptions:
        """Make options from keyword arguments; an unknown one is an error with the closest name."""
        known = [f.name for f in fields(cls)]
        problems = [
            f"unknown option '{k}': {did_you_mean(k, [*known, 'validation', 'held_out'])}"
            for k in keywords
            if k not in known
        ]
        raise_all(ConfigError, problems, where="options of a repair")
        return cls(**keywords)


class ScoreKeywords(TypedDict, total=False):
    """The settings of `ScoreConfig` as keyword arguments."""

    detectors: tuple[str, ...]
    options: dict[str, dict[str, Any]]
    attribution_layer: str
    feature_layers: tuple[str, ...]
    views: int
    batch_size: int
    precision: Precision


class PartitionKeywords(TypedDict, total=False):
    """The settings of `PartitionConfig` as keyword arguments."""

    method: str
    threshold: float
    fdr: float | None
    noise_rate: float | None
    options: dict[str, Any]


class RankKeywords(TypedDict, total=False):
    """The settings of `RankConfig` as keyword arguments."""

    method: str
    layers: tuple[str, ...]
    last_n_layers: int | None
    max_samples: int
    options: dict[str, Any]


class PruneKeywords(TypedDict, total=False):
    """The settings of `PruneConfig` as keyword arguments."""

    method: str
    fraction: float | None
    count: int | None
    scope: PruneScope
    max_layer_fraction: float
    mode: PruneMode
    options: dict[str, Any]


class EditKeywords(TypedDict, total=False):
    """The settings of `EditConfig` as keyword arguments."""

    method: str
    options: dict[str, Any]
    precision: Precision


class TuneKeywords(TypedDict, total=False):
    """The settings of `expunge.TuneConfig` as keyword arguments."""

    scope: Literal["all", "head"]
    targets: TargetKind
    min_relabel_confidence: float
    epochs: int | None
    batch_size: int | None
    optimizer: Literal["auto", "sgd", "adamw"]
    lr: float | None
    max_gradient_norm: float | None
    momentum: float
    weight_decay: float
    schedule: Literal["onecycle", "cosine", "constant"]
    warmup: float
    augment: bool
    precision: Precision
    compile: bool
    cuda_graphs: bool
    semi: SemiConfig
    max_minutes: float | None


class RepairKeywords(TypedDict, total=False):
    """The fields of `RepairOptions` as keyword arguments."""

    recipe: str
    overrides: Mapping[str, Any] | None
    baselines: tuple[str, ...]
    seed: int
    out: str | Path | None
    overwrite: bool
    train_seconds: float | None
    minutes: float | None
    time_share: float | None
    trackers: tuple[str, ...]
    notes: tuple[str, ...]
    progress: Progress


def merge(kind: type[T], config: T | None, keywords: Mapping[str, Any]) -> T:
    """Return a config with some of its settings replaced by keywords.

    Raises
    ------
    ConfigError
        For an unknown keyword, a value of a wrong type or outside its range; all problems at once.

    Examples
    --------
    >>> merge(PartitionConfig, PartitionConfig(threshold=0.7), {"method": "mixture"}).threshold
    0.7
    """
    if config is not None and not isinstance(config, kind):
        raise ConfigError(
            f"expected a {kind.__name__}, got {type(config).__name__}",
            fix="give settings as keywords, or one config",
        )
    given = {} if config is None else {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
    return build(kind, {**given, **keywords}, where=kind.__name__)


def build(kind: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make a dataclass from a dictionary; unknown keys and wrong types are errors, all at once.

    Messages call a field by the ``path`` in its metadata where it has one, else by its name.
    """
    problems: list[str] = []
    result: T = _dataclass(kind, values, "", problems)
    raise_all(ConfigError, problems, where=where)
    return result


def _dataclass(kind: type, values: Any, path: str, problems: list[str]) -> Any:
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        problems.append(f"'{path.rstrip('.')}' must be a table, not {_shown(values)}")
        return None
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.init}
    shown = {name: f.metadata.get("path", name) for name, f in known.items()}
    found = len(problems)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            problems.append(f"unknown key '{path}{key}': {did_you_mean(key, shown.values())}")
        else:
            made[key] = _value(hints[key], value, f"{path}{shown[key]}", problems)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"'{path}{shown[name]}' is missing")
    if len(problems) > found:
        return None
    try:
        return kind(**made)
    except ConfigError as error:
        problems.append(f"{path.rstrip('.')}: {error.what}" if path else error.what)
        return None


def _value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _dataclass(hint, value, f"{path}.", problems)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _union(args, value, path, problems)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        problems.append(f"'{path}' is {_shown(value)}: {did_you_mean(str(value), map(str, args))}")
        return None
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_value(args[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value))
        problems.append(f"'{path}' must be a list, not {_shown(value)}")
        return None
    if origin is dict:
        if isinstance(value, dict):
            return {k: _value(args[1], v, f"{path}.{k}", problems) for k, v in value.items()}
        problems.append(f"'{path}' must be a table, not {_shown(value)}")
        return None
    if isinstance(value, int) and not -MAX_INTEGER <= value < MAX_INTEGER:
        problems.append(f"'{path}' must fit into 64 bits")
        return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"'{path}' must be {hint.__name__}, not {_shown(value)}")
    return None


def _union(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    tries: list[list[str]] = []
    for arg in args:
        if arg is type(None):
            continue
        found: list[str] = []
        made = _value(arg, value, path, found)
        if not found:
            return made
        tries.append(found)
    # The alternative that a table was written for says most about what is wrong in it.
    says_most = sorted(tries, key=lambda t: ("unknown key" in t[0], len(t)))[-1]
    problems.extend(says_most)
    return None


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
