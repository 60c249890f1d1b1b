"""The records that the stages hand on: frozen, checked when made, keyed by sample id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from torch import nn

from expunge.config import MIN_FLAGGED_FRACTION
from expunge.errors import DataError, ExpungeError, PruneError, check_range, format_ids

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Which fault a detector's score speaks of.
KINDS = ("label", "input")


def frozen_array(values: ArrayLike, dtype: Any = None) -> np.ndarray:
    """Return a read-only copy, or the array itself if it is read-only already."""
    if isinstance(values, np.ndarray) and dtype in (None, values.dtype) and _constant(values):
        return values
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _constant(array: np.ndarray) -> bool:
    """Whether nobody can write to the array, nor to one that it is a view of."""
    return array.flags.owndata and not array.flags.writeable


def _freeze(record: object, **arrays: tuple[ArrayLike, Any]) -> None:
    for name, (values, dtype) in arrays.items():
        object.__setattr__(record, name, frozen_array(values, dtype))


def _freeze_mapping(record: object, name: str, dtype: Any = None) -> None:
    arrays = {k: frozen_array(v, dtype) for k, v in getattr(record, name).items()}
    object.__setattr__(record, name, arrays)


def _require_finite(array: np.ndarray, ids: np.ndarray, what: str) -> None:
    finite = np.isfinite(array.reshape(len(ids), -1)).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{what} is NaN or infinite for ids {format_ids(ids[~finite])}",
            fix="check the model's weights and these inputs",
        )


def _require_rows(record: object, n: int, *names: str) -> None:
    for name in names:
        got = len(getattr(record, name))
        if got != n:
            raise DataError(f"{type(record).__name__}.{name} has {got} rows, expected {n}")


def align(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of ``ids`` in the order of ``wanted``: ``ids[align(ids, wanted)] == wanted``."""
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids, wanted, sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    missing = ids[at] != wanted
    if missing.any():
        raise DataError(
            f"there are no rows for ids {format_ids(wanted[missing])}",
            fix="use the records with the data that they were made from",
        )
    return at


@dataclass(frozen=True, eq=False)  # compared by identity: what detectors share is cached for it
class Signals:
    """What one pass over the data collects for the detectors.

    Parts that no detector needs are empty or None. Compared by identity.

    Parameters
    ----------
    ids, labels
        The samples, unique, and their given labels: ``[n]``, ``int64[n]``.
    logits
        ``float32[n, c]``, of the plain inputs.
    per_sample
        Numbers that are summed inside the pass, ``float64[n]`` by name: ``attribution``,
        ``attribution_mass``, ``head_input_norm``, ``attribution.<layer>``.
    features
        Pooled activations by layer, ``float32[n, d]``, averaged over random views.
    augmented_probs, augmented_loss
        Class probabilities, ``float32[n, c]``, and cross-entropy of the given label,
        ``float32[n]``, averaged over random views.
    attributions
        ``float32[n, u]``, 0 or more: the label-free attribution of every unit.
    external_probs
        Class probabilities that came with the samples, ``float32[n, c]`` by name; see `Samples`.
    trusted
        ``bool[n]``, samples whose label is right; see `Samples`.
    views
        The number of random views; 0 if the plain inputs were used instead.
    attribution_features
        Pooled gradient × activation of the plain inputs by layer, ``float32[n, d]``.
    inputs
        The plain inputs as a table, ``float32[n, d]``.

    Raises
    ------
    DataError
        If arrays differ in length, ids repeat, or a value is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> Signals(np.arange(2), np.array([0, 1]), np.array([[2.0, 0], [0, 2]])).logits.dtype
    dtype('float32')
    """

    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    augmented_probs: np.ndarray | None = None
    augmented_loss: np.ndarray | None = None
    attributions: np.ndarray | None = None
    external_probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    views: int = 0
    attribution_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        _freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
            logits=(self.logits, np.float32),
        )
        _freeze_mapping(self, "per_sample")
        _freeze_mapping(self, "features")
        _freeze_mapping(self, "attribution_features")
        _freeze_mapping(self, "external_probs")
        optional = ("augmented_probs", "augmented_loss", "attributions", "trusted", "inputs")
        parts = [p for p in optional if getattr(self, p) is not None]
        _freeze(self, **{p: (getattr(self, p), None) for p in parts})
        _require_rows(self, n, "labels", "logits", *parts)
        if len(np.unique(self.ids)) != n:
            raise DataError("Signals.ids are not unique")
        _require_finite(self.logits, self.ids, "the model's output")
        for part in parts:
            _require_finite(getattr(self, part), self.ids, f"'{part}'")
        tables = (self.per_sample, self.features, self.attribution_features)
        for name, column in [item for table in tables for item in table.items()]:
            if len(column) != n:
                raise DataError(f"Signals: '{name}' has {len(column)} rows, expected {n}")
            _require_finite(column, self.ids, f"'{name}'")


@dataclass(frozen=True)
class SourceReport:
    """One source of pooled evidence.

    Parameters
    ----------
    name
        What it is made of: ``"trees:input"``, ``"linear:<layer>"``, ``"model"``, ``"views"``.
    weight
        Its weight in the pool, in [0, 1]: how far it is believed.
    agreement
        The share of the given labels that it predicts.
    noise_rate
        The noise rate that it would give alone, by the confident joint.
    """

    name: str
    weight: float
    agreement: float
    noise_rate: float = 0.0


@dataclass(frozen=True)
class PooledEvidence:
    """What cross-fitted probes say about the labels; see `expunge.detection.evidence`.

    Parameters
    ----------
    probs
        ``float32[n, c]``, class probabilities made without the sample's own label, calibrated for
        the given labels.
    novelty
        ``float64[n]``, how unusual the input is for its predicted class, in robust deviations.
    sources
        The sources of the pool.
    memorised_fraction
        How far the model fits its labels better than expected, in [0, 1].
    expected_agreement
        The agreement with the given labels to expect of the model without memorisation.
    contradicting_fraction
        The share of labels that must be wrong because identical inputs have other labels.
    log_likelihood_gain
        Of the given labels above that of their frequencies, in nats a sample.
    held_out_probs, held_out_labels
        ``float32[m, c]`` and ``int64[m]``: the model's predictions of samples that it was not
        trained on, and their given labels.
    """

    probs: np.ndarray
    novelty: np.ndarray
    sources: tuple[SourceReport, ...] = ()
    memorised_fraction: float = 0.0
    expected_agreement: float = 1.0
    contradicting_fraction: float = 0.0
    log_likelihood_gain: float = 0.0
    held_out_probs: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        _freeze(self, probs=(self.probs, np.float32), novelty=(self.novelty, np.float64))
        if self.held_out_probs is not None and self.held_out_labels is not None:
            _freeze(self, held_out_probs=(self.held_out_probs, np.float32))
            _freeze(self, held_out_labels=(self.held_out_labels, np.int64))


@dataclass(frozen=True, repr=False)
class Scores:
    """Suspicion of every sample by every detector; higher = more likely bad.

    Parameters
    ----------
    ids, labels
        The samples and their given labels: ``[n]``, ``int64[n]``.
    values
        ``float64[n]`` by detector, one detector or more.
    kinds
        The fault that each detector detects, ``"label"`` or ``"input"``.
    class_probs
        ``float32[n, c]``, the label distribution that the evidence supports if the given label is
        left aside. The suggested labels are made of it.
    agreement
        The share of the given labels that the model predicts, ``"plain"``, and that it predicts
        under random views, ``"augmented"``; in [0, 1].
    trusted
        ``bool[n]``, samples whose label is right.
    loo_probs
        ``float32[s, n, c]``, label distributions made without the sample's own label, layer by
        layer.
    model_probs
        ``float32[t, n, c]``, those of the model, which was trained on that label: plain, and the
        mean over random views.
    external_probs
        ``float32[e, n, c]``, probabilities that came with the samples.
    pooled
        The pool of cross-fitted probes, if detector ``pooled_margin`` made one.

    Raises
    ------
    DataError
        If there is no detector, arrays differ in length, a kind is unknown, or a value is NaN or
        infinite.

    Examples
    --------
    >>> import numpy as np
    >>> scores = Scores(
    ...     ids=np.array([7, 9]),
    ...     labels=np.array([0, 1]),
    ...     values={"loss": np.array([0.1, 3.0])},
    ...     kinds={"loss": "label"},
    ...     class_probs=np.array([[0.9, 0.1], [0.8, 0.2]]),
    ... )
    >>> scores.to_table().column_names
    ['id', 'label', 'trusted', 'loss']
    """

    ids: np.ndarray
    labels: np.ndarray
    values: Mapping[str, np.ndarray]
    kinds: Mapping[str, str]
    class_probs: np.ndarray
    agreement: Mapping[str, float] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    loo_probs: np.ndarray | None = None
    model_probs: np.ndarray | None = None
    external_probs: np.ndarray | None = None
    pooled: PooledEvidence | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        none = np.empty((0, *np.shape(self.class_probs)))
        for name in ("loo_probs", "model_probs", "external_probs"):
            found = getattr(self, name)
            _freeze(self, **{name: (none if found is None else found, np.float32)})
        trusted = np.zeros(n, dtype=bool) if self.trusted is None else self.trusted
        _freeze(self, trusted=(trusted, np.bool_))
        _freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
            class_probs=(self.class_probs, np.float32),
        )
        _freeze_mapping(self, "values", np.float64)
        _require_rows(self, n, "labels", "class_probs", "trusted")
        _require_finite(self.class_probs, self.ids, "class_probs")
        if not self.values:
            raise DataError("Scores need one detector or more")
        for name, column in self.values.items():
            if column.shape != (n,):
                raise DataError(f"score '{name}' has shape {column.shape}, expected ({n},)")
            _require_finite(column, self.ids, f"score '{name}'")
            if self.kinds.get(name) not in KINDS:
                raise DataError(f"score '{name}' needs a kind: one of {KINDS}")

    def __repr__(self) -> str:
        return f"Scores({len(self.ids):,} samples, detectors {', '.join(self.values)})"

    def to_table(self) -> pa.Table:
        """``id, label, trusted`` and one column a detector."""
        columns = {"id": self.ids, "label": self.labels, "trusted": self.trusted, **self.values}
        return pa.table({k: pa.array(v) for k, v in columns.items()})


@dataclass(frozen=True)
class Component:
    """One Gaussian of a mixture of one line of evidence, in standardised units.

    Parameters
    ----------
    weight
        The share of the samples, in [0, 1].
    mean, std
        Of the evidence.
    noisy
        Whether its samples are bad.
    """

    weight: float
    mean: float
    std: float
    noisy: bool


@dataclass(frozen=True)
class Fit:
    """A fitted mixture of one kind of evidence, and the models that it was compared with.

    Parameters
    ----------
    kind
        The fault, ``"label"`` or ``"input"``.
    components
        Sorted by mean.
    bic
        Bayesian information criterion by number of components; lower is better.
    separation
        Ashman's D of the nearest noisy and clean component, in pooled standard deviations; 0 if
        one side is empty.
    """

    kind: str
    components: tuple[Component, ...]
    bic: Mapping[int, float]
    separation: float


@dataclass(frozen=True, repr=False)
class Partition:
    """Estimate for every sample the probability that it is noisy.

    ``p_noisy = 1 − (1 − p_label_fault)(1 − p_input_fault)``

    Parameters
    ----------
    ids
        ``int64[n]`` or ``str[n]``, unique.
    labels
        The given labels, ``int64[n]``.
    p_noisy, p_label_fault, p_input_fault
        Probability that the sample, its label or its input is bad, ``float64[n]`` in [0, 1].
    suggested_label
        ``int64[n]``; the given label where no other is better supported.
    suggested_probability
        Probability of the suggested label, ``float64[n]`` in [0, 1].
    threshold
        Samples with a larger ``p_noisy`` are flagged. In [0, 1].
    noise_rate
        Estimated fraction of noisy samples: (value, low, high), each in [0, 1].
    fits
        The mixtures behind the probabilities, for the report.
    evidence
        Columns ``float64[n]`` by name: the evidence that the probabilities were made from.
    memorised
        Whether the model has memorised its labels: it reproduces far more of them on the plain
        inputs than under random views. Without views, than cross-fitted probes or held-out
        labels let expect, and most of the wrong ones.
    rate_estimates
        The noise rate by each estimator alone, by name, if there are several.

    Raises
    ------
    DataError
        If columns differ in length, or a probability lies outside [0, 1].
    """

    ids: np.ndarray
    labels: np.ndarray
    p_noisy: np.ndarray
    p_label_fault: np.ndarray
    p_input_fault: np.ndarray
    suggested_label: np.ndarray
    suggested_probability: np.ndarray
    threshold: float
    noise_rate: tuple[float, float, float]
    fits: tuple[Fit, ...] = ()
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict)
    memorised: bool = False
    rate_estimates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        f8 = np.float64
        _freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
            p_noisy=(self.p_noisy, f8),
            p_label_fault=(self.p_label_fault, f8),
            p_input_fault=(self.p_input_fault, f8),
            suggested_label=(self.suggested_label, np.int64),
            suggested_probability=(self.suggested_probability, f8),
        )
        _freeze_mapping(self, "evidence")
        probabilities = ("p_noisy", "p_label_fault", "p_input_fault", "suggested_probability")
        _require_rows(self, n, "labels", "suggested_label", *probabilities)
        for name in probabilities:
            p = getattr(self, name)
            if not ((p >= 0) & (p <= 1)).all():
                raise DataError(f"Partition.{name} must lie in [0, 1]")

    def __repr__(self) -> str:
        rate, low, high = self.noise_rate
        return (
            f"Partition({len(self.ids):,} samples, {int(self.flagged.sum()):,} flagged, "
            f"noise rate {rate:.3f} [{low:.3f}, {high:.3f}])"
        )

    @property
    def flagged(self) -> np.ndarray:
        """``bool[n]``: ``p_noisy > threshold``."""
        return self.p_noisy > self.threshold

    @property
    def kept(self) -> np.ndarray:
        """``bool[n]``: not flagged."""
        return ~self.flagged

    @property
    def memorised_wrong_labels(self) -> bool:
        """Whether the model has memorised its labels and enough of these are wrong."""
        wrong = float((self.p_label_fault > 0.5).mean())
        return self.memorised and wrong >= MIN_FLAGGED_FRACTION

    def to_table(self) -> pa.Table:
        """``id, label, p_noisy, …``: what the run folder's ``partition.parquet`` holds."""
        columns = {
            "id": self.ids,
            "label": self.labels,
            "p_noisy": self.p_noisy,
            "p_label_fault": self.p_label_fault,
            "p_input_fault": self.p_input_fault,
            "suggested_label": self.suggested_label,
            "suggested_probability": self.suggested_probability,
            "flagged": self.flagged,
            **self.evidence,
        }
        return pa.table({k: pa.array(v) for k, v in columns.items()})


@dataclass(frozen=True)
class NeuronRanking:
    """Rank units by how much of the noise they carry: sorted by ``(−effect, layer, unit)``.

    Parameters
    ----------
    layer
        Name of the layer of every unit, ``str[u]``.
    unit
        Index of the unit in its layer, ``int64[u]``.
    effect
        The regression coefficient, or the criterion of the ranker, ``float64[u]``.
    stderr
        Standard error of the effect, ``float64[u]``; NaN where the ranker has none.
    q_value
        Benjamini–Hochberg adjusted p-value of ``effect ≤ 0``, ``float64[u]`` in [0, 1]; NaN where
        the ranker has none.
    groups
        For every layer, the layer whose units it shares: residual additions couple layers.
    explained
        R² of ``p_noisy`` by layer.

    Raises
    ------
    PruneError
        If an effect is not finite.
    """

    layer: np.ndarray
    unit: np.ndarray
    effect: np.ndarray
    stderr: np.ndarray
    q_value: np.ndarray
    groups: Mapping[str, str]
    explained: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        effect = np.asarray(self.effect, dtype=np.float64)
        if not np.isfinite(effect).all():
            raise PruneError("a neuron's effect is NaN or infinite")
        _require_rows(self, len(effect), "layer", "unit", "stderr", "q_value")
        order = np.lexsort((self.unit, self.layer, -effect))
        for name, dtype in (
            ("layer", str),
            ("unit", np.int64),
            ("effect", np.float64),
            ("stderr", np.float64),
            ("q_value", np.float64),
        ):
            values = np.asarray(getattr(self, name))[order]
            object.__setattr__(self, name, frozen_array(values, dtype))

    def units_by_layer(self) -> dict[str, int]:
        """Number of units of every layer."""
        names, counts = np.unique(self.layer, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def to_table(self) -> pa.Table:
        """One row a unit."""
        names = ("layer", "unit", "effect", "stderr", "q_value")
        return pa.table({k: pa.array(getattr(self, k)) for k in names})


@dataclass(frozen=True)
class Budget:
    """How many units to prune: a fraction or a count.

    Parameters
    ----------
    fraction
        Fraction of the units, in [0, 1]. Excludes ``count``.
    count
        Number of units, 0 or more.
    scope
        ``"layer"``: fraction or count hold for every layer; ``"global"``: over all layers.
    max_layer_fraction
        The largest fraction of any layer that is pruned, in [0, 1).

    Raises
    ------
    PruneError
        If both or neither of fraction and count are given, or a value is out of range.
    """

    fraction: float | None = None
    count: int | None = None
    scope: str = "layer"
    max_layer_fraction: float = 0.9

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise PruneError("a budget is either a fraction or a count", fix="give exactly one")
        limits = {
            "fraction": (self.fraction, "[0, 1]"),
            "count": (self.count, "[0, inf)"),
            "max_layer_fraction": (self.max_layer_fraction, "[0, 1)"),
        }
        check_range(PruneError, limits)
        if self.scope not in ("layer", "global"):
            raise PruneError(f"scope must be 'layer' or 'global', not '{self.scope}'")


@dataclass(frozen=True)
class PrunePlan:
    """Which units are pruned.

    Parameters
    ----------
    units
        Sorted indices of units by layer.
    requested
        How many units were asked for.
    reasons
        Why fewer are granted.

    Raises
    ------
    PruneError
        If units were requested and none is granted.
    """

    units: Mapping[str, tuple[int, ...]]
    requested: int
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.requested > 0 and self.granted == 0:
            raise PruneError(
                f"{self.requested} units were to be cut and none can be: {'; '.join(self.reasons)}",
                fix="raise max_layer_fraction, name other layers, or ask for 0 units",
            )

    @property
    def granted(self) -> int:
        """Number of units that will be cut."""
        return sum(len(u) for u in self.units.values())


@dataclass(frozen=True)
class Metric:
    """A number with its interval.

    Parameters
    ----------
    value, low, high
        ``low ≤ value ≤ high``; 95 % unless said otherwise.
    n
        Number of samples behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ExpungeError(f"interval [{self.low}, {self.high}] misses value {self.value}")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """Measure a model on labelled samples.

    Parameters
    ----------
    ids
        Ids of the samples, ``[n]``.
    correct
        Whether each sample's label is predicted, ``bool[n]``, for paired comparisons.
    metrics
        Metrics by name; ``"accuracy"`` is among them.
    per_class
        Accuracy by class name, in [0, 1].
    """

    ids: np.ndarray
    correct: np.ndarray
    metrics: Mapping[str, Metric]
    per_class: Mapping[str, float]

    def __post_init__(self) -> None:
        _freeze(self, ids=(self.ids, None), correct=(self.correct, np.bool_))
        _require_rows(self, len(self.ids), "correct")

    @property
    def accuracy(self) -> Metric:
        return self.metrics["accuracy"]


@dataclass(frozen=True)
class Size:
    """The size of a model.

    Parameters
    ----------
    parameters
        Number of weights.
    macs
        Multiply-adds of one sample.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Flag:
    """A red flag: a reason to doubt the numbers.

    Parameters
    ----------
    code
        A fixed name.
    message
        The evidence.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Baseline:
    """What another recipe reaches from the same start.

    Parameters
    ----------
    evaluation
        Measured on the validation samples.
    seconds
        Of all stages behind it.
    size
        Of its model.
    gain
        Accuracy of the repair − accuracy of the baseline, paired.
    model
        The model; None in a run that was read from disk.
    """

    evaluation: Evaluation
    seconds: float
    size: Size
    gain: Metric  # repaired − control, paired
    model: nn.Module | None = None


@dataclass(frozen=True)
class UnlearningAudit:
    """What is left of the samples that were to be unlearned; pairs are (before, after).

    It measures. It does not prove that the model is as if it had never seen them.

    Parameters
    ----------
    samples
        Number of flagged samples that were measured.
    predicted
        Fraction of them whose given label is predicted.
    membership_auroc
        AUROC of the largest probability for telling them from unseen samples; 0.5 is no trace.
        None without unseen samples.
    churn
        Fraction of the kept samples whose prediction changed.
    """

    samples: int
    predicted: tuple[float, float]
    membership_auroc: tuple[float, float] | None
    churn: float


@dataclass(frozen=True)
class Decision:
    """Whether the repair is kept.

    Parameters
    ----------
    action
        ``"keep"``: the repaired model is better. ``"retrain"``: a network retrained from scratch is
        better. ``"skip"``: there is nothing to repair, and no repair was begun. ``"revert"``: the
        repair does harm, and the model is unchanged.
    reason
        Why, in a sentence.
    gain
        Gain in accuracy of the repair, estimated from held-out labels; None without these.
    """

    action: Literal["keep", "retrain", "skip", "revert"]
    reason: str
    gain: Metric | None = None

    @property
    def kept(self) -> bool:
        """Whether the repaired model is returned, and not the original."""
        return self.action in ("keep", "retrain") and (self.gain is None or self.gain.value > 0)


@dataclass(frozen=True, repr=False)
class RepairResult:
    """Everything that a repair did. On disk it is the run folder; see `expunge.load_run`.

    Parameters
    ----------
    model
        The repaired model, or a copy of the one given.
    recipe, seed, config
        What was done: name, seed, and settings of every stage.
    scores, partition, ranking, plan
        The records of the stages; ranking and plan are None where nothing was pruned.
    before, after, gain
        Evaluations on the validation samples and the paired gain; None without validation.
    baselines
        What other recipes reach, by name.
    size_before, size_after
        Sizes of the two models.
    seconds
        Seconds by stage.
    flags
        Red flags.
    run
        The run folder; empty if nothing was kept.
    classes
        Names of the classes.
    decision
        Whether the repair is kept.
    audit
        What is left of the flagged samples; None if none was flagged.
    skipped
        Samples that could not be used: ``{data set: {id: reason}}``.
    prune_skipped_reason
        Why nothing was pruned, where the repair decided that.
    """

    model: nn.Module
    recipe: str
    seed: int
    config: Mapping[str, Any]
    scores: Scores
    partition: Partition
    ranking: NeuronRanking | None
    plan: PrunePlan | None
    before: Evaluation | None
    after: Evaluation | None
    gain: Metric | None
    baselines: Mapping[str, Baseline]
    size_before: Size
    size_after: Size
    seconds: Mapping[str, float]
    flags: tuple[Flag, ...]
    run: str
    classes: tuple[str, ...]
    decision: Decision
    audit: UnlearningAudit | None = None
    skipped: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    prune_skipped_reason: str = ""

    def __repr__(self) -> str:
        flagged, n = int(self.partition.flagged.sum()), len(self.partition.ids)
        lines = [f"decision {self.decision.action}: {self.decision.reason}"]
        if self.before is not None and self.after is not None:
            lines.append(f"accuracy {self.before.accuracy} → {self.after.accuracy}")
        lines.append(f"flagged {flagged:,} of {n:,} training samples")
        lines.append(f"report {self.run}/report.html" if self.run else "no run folder was kept")
        return "\n  ".join([f"RepairResult (recipe {self.recipe}, seed {self.seed})", *lines])
