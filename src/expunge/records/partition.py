"""Which samples are noisy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa

from expunge.config import MIN_FLAGGED_FRACTION
from expunge.errors import DataError
from expunge.records.arrays import (
    freeze,
    freeze_mapping,
    require_rows,
)


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
    reviewed
        ``bool[n]``: samples that a person judged. Their probabilities are 0 or 1, and the suggested
        label is the one that the person gave. None: none.

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
    reviewed: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        f8 = np.float64
        if self.reviewed is not None:
            freeze(self, reviewed=(self.reviewed, np.bool_))
            require_rows(self, n, "reviewed")
        freeze(
            self,
            ids=(self.ids, None),
            labels=(self.labels, np.int64),
            p_noisy=(self.p_noisy, f8),
            p_label_fault=(self.p_label_fault, f8),
            p_input_fault=(self.p_input_fault, f8),
            suggested_label=(self.suggested_label, np.int64),
            suggested_probability=(self.suggested_probability, f8),
        )
        freeze_mapping(self, "evidence")
        probabilities = ("p_noisy", "p_label_fault", "p_input_fault", "suggested_probability")
        require_rows(self, n, "labels", "suggested_label", *probabilities)
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

    def take(self, rows: np.ndarray) -> Partition:
        """Return the partition of some samples, in this order; rates and fits are those of all."""
        columns = [f.name for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)]
        return replace(
            self,
            evidence={name: values[rows] for name, values in self.evidence.items()},
            **{name: getattr(self, name)[rows] for name in columns},
        )

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
            **({} if self.reviewed is None else {"reviewed": self.reviewed}),
            **self.evidence,
        }
        return pa.table({k: pa.array(v) for k, v in columns.items()})


def with_class_names(table: pa.Table, classes: Sequence[str]) -> pa.Table:
    """A partition's table with ``label_name`` and ``suggested_name`` beside the indices."""
    names = np.array(classes, dtype=str)
    for column, name in (("label", "label_name"), ("suggested_label", "suggested_name")):
        values = names[table[column].to_numpy()]
        table = table.add_column(table.column_names.index(column) + 1, name, pa.array(values))
    return table
