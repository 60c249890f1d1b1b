"""What the pass over the data collects, and what detectors make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from expunge.errors import DataError
from expunge.records.arrays import (
    freeze,
    freeze_mapping,
    read_only,
    require_finite,
    require_rows,
)
from expunge.records.top_classes import TopClasses

# Which fault a detector's score is about.
KINDS = ("label", "input")


@dataclass(frozen=True, eq=False)  # compared by identity: what detectors share is cached for it
class Signals:
    """What one pass over the data collects for the detectors.

    Parts that no detector needs are empty or None. Compared by identity. Features and inputs that
    are read-only, views and files among them, are kept as they are; of other arrays there are
    copies. Where classes are many, numbers for each class can be `TopClasses`.

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
    has_model
        Whether the logits are those of a model; without one they count for nothing.

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
    logits: np.ndarray | TopClasses
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    augmented_probs: np.ndarray | TopClasses | None = None
    augmented_loss: np.ndarray | None = None
    attributions: np.ndarray | None = None
    external_probs: Mapping[str, np.ndarray | TopClasses] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    views: int = 0
    attribution_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None
    has_model: bool = True

    def __post_init__(self) -> None:
        n = len(self.ids)
        freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
            logits=(self.logits, np.float32),
        )
        freeze_mapping(self, "per_sample")
        for kind in ("features", "attribution_features"):
            layers = {k: read_only(v) for k, v in getattr(self, kind).items()}
            object.__setattr__(self, kind, layers)
        freeze_mapping(self, "external_probs")
        optional = ("augmented_probs", "augmented_loss", "attributions", "trusted")
        parts = [p for p in optional if getattr(self, p) is not None]
        freeze(self, **{p: (getattr(self, p), None) for p in parts})
        if self.inputs is not None:
            object.__setattr__(self, "inputs", read_only(self.inputs))
            parts.append("inputs")
        require_rows(self, n, "labels", "logits", *parts)
        if len(np.unique(self.ids)) != n:
            raise DataError("Signals.ids are not unique")
        require_finite(self.logits, self.ids, "the model's output")
        for part in parts:
            require_finite(getattr(self, part), self.ids, f"'{part}'")
        tables = (self.per_sample, self.features, self.attribution_features)
        for name, column in [item for table in tables for item in table.items()]:
            if len(column) != n:
                raise DataError(f"Signals: '{name}' has {len(column)} rows, expected {n}")
            require_finite(column, self.ids, f"'{name}'")


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
        the given labels. Of more than 100 classes `TopClasses`: the given class and the 31 best
        others; ``numpy.asarray`` makes an array of it.
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
    probe_probs, probe_weight
        ``float32[n, c]``, the part of the pool that has memorised nothing: probes on the input and
        the first layer; and how far it decides the noise rate, in [0, 1]. None where it does not.
    held_out_agreement
        The share of held-out labels that the model predicts, in [0, 1]; None without any.
    layer_rate, layer_weight
        The noise rate that is evident to one of the model's layers, and how far it is believed;
        both in [0, 1].
    """

    probs: np.ndarray | TopClasses
    novelty: np.ndarray
    sources: tuple[SourceReport, ...] = ()
    memorised_fraction: float = 0.0
    expected_agreement: float = 1.0
    contradicting_fraction: float = 0.0
    log_likelihood_gain: float = 0.0
    probe_probs: np.ndarray | TopClasses | None = None
    probe_weight: float = 0.0
    held_out_agreement: float | None = None
    layer_rate: float = 0.0
    layer_weight: float = 0.0

    def __post_init__(self) -> None:
        freeze(self, probs=(self.probs, np.float32), novelty=(self.novelty, np.float64))
        if self.probe_probs is not None:
            freeze(self, probe_probs=(self.probe_probs, np.float32))

    def with_rows(
        self, change: Callable[[np.ndarray | TopClasses], np.ndarray | TopClasses]
    ) -> PooledEvidence:
        """Return the same evidence with its class distributions changed by a function."""
        probe_probs = None if self.probe_probs is None else change(self.probe_probs)
        return replace(self, probs=change(self.probs), probe_probs=probe_probs)


@dataclass(frozen=True, repr=False)
class Scores:
    """Suspicion of every sample by every detector; higher = more likely bad.

    Class distributions of more than 100 classes are `TopClasses`.

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
    class_probs: np.ndarray | TopClasses
    agreement: Mapping[str, float] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    loo_probs: np.ndarray | TopClasses | None = None
    model_probs: np.ndarray | TopClasses | None = None
    external_probs: np.ndarray | TopClasses | None = None
    pooled: PooledEvidence | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        freeze(self, class_probs=(self.class_probs, np.float32))
        none = np.empty((0, *self.class_probs.shape))
        for source in ("loo_probs", "model_probs", "external_probs"):
            found = getattr(self, source)
            freeze(self, **{source: (none if found is None else found, np.float32)})
        trusted = np.zeros(n, dtype=bool) if self.trusted is None else self.trusted
        freeze(self, trusted=(trusted, np.bool_))
        freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
        )
        freeze_mapping(self, "values", np.float64)
        require_rows(self, n, "labels", "class_probs", "trusted")
        require_finite(self.class_probs, self.ids, "class_probs")
        if not self.values:
            raise DataError("Scores need one detector or more")
        for name, column in self.values.items():
            if column.shape != (n,):
                raise DataError(f"score '{name}' has shape {column.shape}, expected ({n},)")
            require_finite(column, self.ids, f"score '{name}'")
            if self.kinds.get(name) not in KINDS:
                raise DataError(f"score '{name}' needs a kind: one of {KINDS}")

    def __repr__(self) -> str:
        return f"Scores({len(self.ids):,} samples, detectors {', '.join(self.values)})"

    @property
    def evidence_probs(self) -> np.ndarray | TopClasses:
        """``float32[n, c]``: the pooled distribution if there is one, else `class_probs`."""
        return self.class_probs if self.pooled is None else self.pooled.probs

    def to_table(self) -> pa.Table:
        """``id, label, trusted`` and one column a detector."""
        columns = {"id": self.ids, "label": self.labels, "trusted": self.trusted, **self.values}
        return pa.table({k: pa.array(v) for k, v in columns.items()})
