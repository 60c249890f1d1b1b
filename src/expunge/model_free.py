"""Noise detection without a model: features and labels, and perhaps probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from expunge import stages
from expunge._core.arrays import Array, Floats32, Ints
from expunge._core.isolation import isolated
from expunge.config import PartitionConfig
from expunge.data.checks import id_problems, probability_problems, trusted_problems
from expunge.data.classes import (
    as_class_names,
    encode_labels,
    marks_unlabelled,
    suspicious_classes,
)
from expunge.data.conversion import arrays_of, fix_array, named_rows, one_each, to_column, to_numpy
from expunge.data.feature_table import DataFrame, FeatureTable, Table, as_feature_table
from expunge.data.label_columns import columns_of_classes
from expunge.data.labels import clean_names
from expunge.detection.calibration import safe_log
from expunge.detection.class_rows import by_chunks, compact, constant_rows
from expunge.detection.detectors import detect as run_detectors
from expunge.detection.memorisation import MEMORISATION_GAP, label_agreement
from expunge.errors import ConfigError, DataError, did_you_mean, format_ids, raise_all
from expunge.evaluation import diagnostics
from expunge.records import DetectionResult, Flag, Partition, ProbsKind, Scores, Signals

ProbsSource = Literal["auto", "out-of-sample", "in-sample"]
# Probabilities that predict more than this share of the labels that are surely wrong have seen
# them, and those that predict at most this share have not.
_MIN_REPRODUCED = 0.5
_SURELY_WRONG = 0.9
# Fewer surely wrong labels do not tell.
_MIN_SURELY_WRONG = 5
# More classes than half of the samples are numbers to predict, ids or texts, unless they are few.
_MAX_CLASSES_OF_FEW = 20
_WHERE = "detect"


@isolated
def detect(
    features: Table,
    labels: np.ndarray | Tensor | Sequence[object],
    probs: np.ndarray | Tensor | DataFrame | None = None,
    *,
    ids: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    trusted: np.ndarray | None = None,
    probs_source: ProbsSource = "auto",
    threshold: float = 0.5,
    fdr: float | None = None,
    noise_rate: float | None = None,
    seed: int = 0,
) -> DetectionResult:
    """Find wrong labels and unusual inputs from features and labels, without a model.

    Probes are fitted on the features, none of them on the label of the sample that it judges:
    nearest neighbours, extremely randomised trees, a kernel ridge regression, a linear
    discriminant. Their pool, and ``probs`` where given, are the evidence; the decision is that of a
    repair (see `expunge.detection.pooled_partitioner`).

    Parameters
    ----------
    features
        ``[n, d]``: embeddings or the columns of a table; missing values, categories and columns of
        vectors are fine. See `expunge.data.feature_table.as_feature_table`.
    labels
        ``[n]``: the given class of each sample, integers or texts.
    probs
        ``[n, c]``: class probabilities of any model, in the sorted order of the classes, or a
        DataFrame with the classes as its columns; ``[n]`` for the second of two classes.
    ids
        ``[n]`` unique names of the samples. Without them the index of the features if it has one,
        else positions.
    classes
        The class names in the order of ``probs``; integer labels are then indices, or names if the
        names are other numbers.
    trusted
        ``bool[n]``: samples whose label is known to be right.
    probs_source
        ``"out-of-sample"`` if the model of ``probs`` was not trained on the sample that it predicts
        (cross-validation), ``"in-sample"`` if it was. ``"auto"`` finds out: whoever predicts labels
        that are surely wrong has seen them.
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].
    fdr
        Sets the threshold instead, see `PartitionConfig`.
    noise_rate
        The share of wrong labels, if it is known, in (0, 1); else it is estimated.
    seed
        Seed of the fits.

    Returns
    -------
    DetectionResult
        A `Partition` with class names; ``print(result)`` gives a summary.

    Raises
    ------
    DataError
        If features, labels or probabilities cannot be used.
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Cost: ``n · 20,000 · 60`` for the neighbours and ``n · (300² + d² + 300 c)`` for the other
    probes: some minutes on one core for 100,000 samples of 128 features. Memory beside the features
    grows with the samples, not with samples times classes (docs/scale.md). Fails if the features do
    not separate the classes; a red flag says so.

    References
    ----------
    Confident learning: arXiv 1911.00068.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> right = np.arange(300) % 3
    >>> x = np.eye(3)[right] + 0.1 * rng.standard_normal((300, 3))
    >>> given = np.where(np.arange(300) < 30, (right + 1) % 3, right)
    >>> result = detect(x, given)
    >>> int(result.flagged[:30].sum()), int(result.suggested[0])
    (30, 0)
    """
    config = PartitionConfig("evidence-pool", threshold, fdr, noise_rate)
    if probs_source not in get_args(ProbsSource):
        raise ConfigError(
            f"probs_source must be one of {', '.join(get_args(ProbsSource))}, not '{probs_source}'",
            where=_WHERE,
        )
    table = as_feature_table(features)
    _check_index(features, labels)
    given = _LabelledRows.of(table, labels, probs, ids=ids, classes=classes)
    leaks = _leak_notes(features, table, given)
    raise_all(DataError, given.problems(trusted), where=_WHERE)
    signals = Signals(
        ids=given.ids,
        labels=given.labels,
        logits=constant_rows(0.0, given.labels, len(given.classes)),
        inputs=_read_only_view(table.values),
        trusted=None if trusted is None else np.asarray(trusted),
        has_model=False,
    )
    scores, split, source = _decide(signals, given.probs, probs_source, config, seed)
    notes = (*table.notes, *leaks, *suspicious_classes(given.classes))
    return _result(given, scores, split, source, notes)


def _read_only_view(values: Floats32) -> Floats32:
    """Return the same numbers, of which `Signals` makes no copy."""
    view = values.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True)
class _LabelledRows:
    """Ids, labels as indices, the classes, and probabilities if any, all checked for length."""

    ids: Array
    labels: Ints
    classes: tuple[str, ...]
    class_values: Array
    probs: Floats32 | None

    @classmethod
    def of(
        cls,
        table: FeatureTable,
        labels: Any,
        probs: Any,
        *,
        ids: Any,
        classes: Sequence[str] | None,
    ) -> _LabelledRows:
        """Read labels and probabilities in any form."""
        names = table.index if ids is None else np.asarray(ids)
        names = np.arange(len(table)) if names is None else one_each(names, "ids", _WHERE)
        names = names.astype(str) if names.dtype.kind in "OU" else names
        values = _label_values(labels, names)
        if not len(table) == len(values) == len(names):
            raise DataError(
                f"{len(table)} rows of features, {len(values)} labels and {len(names)} ids do not "
                "match",
                where=_WHERE,
            )
        columns, matrix = _probability_columns(probs, len(table))
        n_columns = None if matrix is None else matrix.shape[1]
        codes, found = _encode(values, names, classes, n_columns)
        known = tuple(map(str, found.tolist()))
        if matrix is not None and _are_named(columns, known):
            matrix = matrix[:, [columns.index(name) for name in known]]
        return cls(names, codes, known, found, matrix)

    def problems(self, trusted: object) -> list[str]:
        """What is wrong with the values, in words."""
        n = len(self.ids)
        problems = trusted_problems(None if trusted is None else np.asarray(trusted), n)
        problems += id_problems(self.ids)
        n_found = len(np.unique(self.labels))
        if n_found < 2:
            problems.append("all samples have the same label: two classes or more are needed")
        if n_found > max(_MAX_CLASSES_OF_FEW, n / 2):
            problems.append(
                f"{n:,} labels have {n_found:,} values, so most stand once: name a column of "
                "classes, and divide numbers into classes"
            )
        if self.probs is not None:
            shape = (n, len(self.classes))
            problems += probability_problems(self.probs, "probs", self.ids, shape)
        return problems


def _are_named(columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether the columns of the probabilities are named by the classes; else their order counts.

    DataError if some are and others are not.
    """
    missing = [name for name in classes if name not in columns]
    is_numbered = [*columns] == [str(k) for k in range(len(columns))]
    if missing and len(missing) < len(classes) and not is_numbered:
        raise DataError(
            f"probs have no column for the classes {format_ids(missing)}, only "
            f"{format_ids(columns)}",
            where=_WHERE,
            fix="name the columns by the classes, or give an array in their sorted order",
        )
    return not missing


def _label_values(labels: Any, ids: Array) -> Array:
    """Return labels as ``int64[n]``, ``bool[n]`` or ``str[n]``."""
    if isinstance(labels, str):
        raise DataError(
            f"labels are the text {labels!r}, expected one a sample",
            where=_WHERE,
            fix=f"detect(features.drop(columns={labels!r}), features[{labels!r}])",
        )
    values = one_each(to_column(labels, "labels", _WHERE, ids=ids), "labels", _WHERE)
    if values.dtype.kind == "f":
        missing = ~np.isfinite(values)
        if missing.any():
            raise DataError(
                f"labels are missing: ids {format_ids(named_rows(ids, len(values))[missing])}",
                where=_WHERE,
                fix="leave these rows out",
            )
        if (values != np.round(values)).any() or np.abs(values).max(initial=0) >= 2**63:
            raise DataError(
                "labels are fractions or numbers of more than 64 bits, expected classes",
                where=_WHERE,
                fix="name the column of the classes, or divide the numbers into classes",
            )
        values = values.astype(np.int64)
    if values.dtype.kind not in "biuU":
        raise DataError(
            f"labels have dtype {values.dtype}, expected integers or texts",
            where=_WHERE,
            fix="give texts: labels.astype(str)",
        )
    return _stripped(values, ids) if values.dtype.kind == "U" else values


def _stripped(values: Array, ids: Array) -> Array:
    """Names of classes without the space around them."""
    stripped = clean_names(values)
    if (stripped == "").any():
        raise DataError(
            f"labels are missing: ids {format_ids(named_rows(ids, len(values))[stripped == ''])}",
            where=_WHERE,
            fix="leave these rows out",
        )
    return stripped


def _probability_columns(probs: Any, n: int) -> tuple[list[str], Floats32 | None]:
    """Return the names of the columns, if any, and the probabilities as ``float32[n, c]``."""
    if probs is None:
        return [], None
    columns = [str(name) for name in probs.columns] if hasattr(probs, "columns") else []
    if isinstance(probs, Tensor):
        probs = to_numpy(probs)
    try:
        matrix = np.asarray(probs, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"probs are no numbers ({error})",
            where=_WHERE,
            fix=fix_array(probs, "probs") if arrays_of(probs) else "",
        ) from error
    if matrix.ndim == 1:
        matrix = np.stack([1 - matrix, matrix], axis=1)
    if matrix.ndim != 2 or len(matrix) != n:
        raise DataError(f"probs have shape {matrix.shape}, expected ({n}, classes)", where=_WHERE)
    return columns, matrix


def _encode(
    values: Array, ids: Array, classes: Sequence[str] | None, n_columns: int | None
) -> tuple[Ints, Array]:
    """Return labels as indices, and the values of the classes in the order of the indices."""
    found, codes = np.unique(values, return_inverse=True)
    if classes is not None:
        named = np.array(as_class_names(classes, _WHERE))
        indices, _ = encode_labels(values, ids, classes=named.tolist(), where=_WHERE)
        is_known = (indices >= 0) & (indices < len(named))
        if not is_known.all():
            unknown = np.unique(values[~is_known])
            raise DataError(
                f"labels that are no class: {format_ids(unknown)} "
                f"(ids {format_ids(ids[~is_known])})",
                where=_WHERE,
                fix=did_you_mean(str(unknown[0]), named.tolist()),
            )
        return indices.astype(np.int64), named
    if marks_unlabelled([*map(str, found.tolist())]):
        raise DataError(
            f"labels are missing (-1): ids {format_ids(ids[values.astype(str) == '-1'])}",
            where=_WHERE,
            fix="leave these rows out; if -1 is a class, write its name, or set "
            f"classes={[*map(str, found.tolist())]}",
        )
    if n_columns is not None and n_columns != len(found):
        # A class that nobody has: integers can still be indices of the columns.
        if values.dtype.kind in "iu" and found[0] >= 0 and found[-1] < n_columns:
            return values.astype(np.int64), np.arange(n_columns)
        raise DataError(
            f"probs have {n_columns} columns, and the labels {len(found)} classes: "
            f"{format_ids(found)}",
            where=_WHERE,
            fix="name the class of each column: classes=[…]",
        )
    return codes.astype(np.int64).ravel(), found


def _check_index(features: Any, labels: Any) -> None:
    """Refuse a DataFrame and a Series whose rows are named differently."""
    if hasattr(features, "iloc") and hasattr(labels, "iloc") and len(features) == len(labels):
        if not features.index.equals(labels.index):
            raise DataError(
                "features and labels have different indexes, so their rows may not match",
                where=_WHERE,
                fix="features.loc[labels.index], or labels.to_numpy() if the order is the same",
            )
        name = getattr(labels, "name", None)
        if name is not None and name in getattr(features, "columns", ()):
            raise DataError(
                f"the features hold the label: column '{name}'",
                where=_WHERE,
                fix=f"features.drop(columns={name!r})",
            )


def _leak_notes(features: Any, table: FeatureTable, given: _LabelledRows) -> list[str]:
    """What to say of columns with one value in each class; DataError if one holds the labels.

    Labels that are also features would seem to be right.
    """
    found = columns_of_classes(table, given.labels)
    name = next((name for name, is_label in found.items() if is_label), None)
    if name is not None:
        raise DataError(
            f"the features hold the label: column '{name}' has another value for each class",
            where=_WHERE,
            fix=f"features.drop(columns={name!r})"
            if hasattr(features, "iloc")
            else "leave it out: name the columns of the features (on the command line, --features)",
        )
    if not found:
        return []
    return [
        f"columns with one value in each class: {format_ids(found)}; leave them out if they were "
        "made from the labels"
    ]


def _decide(
    signals: Signals,
    probs: Floats32 | None,
    source: ProbsSource,
    config: PartitionConfig,
    seed: int,
) -> tuple[Scores, Partition, ProbsKind]:
    """Score and partition; probabilities that have seen the labels are those of a model."""

    def decide(signals: Signals) -> tuple[Scores, Partition]:
        scores = run_detectors(signals, ("pooled_margin",))
        return scores, stages.partition(scores, config, seed=seed)

    if probs is None:
        return *decide(signals), "none"
    outside = compact(replace(signals, external_probs={"probs": probs}))
    top = outside.external_probs["probs"]
    if source == "out-of-sample":
        return *decide(outside), source
    logits = by_chunks(lambda rows: safe_log(top[rows]), len(probs))
    as_model = replace(signals, logits=logits, has_model=True)
    scores, split = decide(as_model)
    if source == "in-sample" or _has_seen_labels(scores, split, probs):
        return scores, split, "in-sample"
    return *decide(outside), "out-of-sample"


def _has_seen_labels(scores: Scores, split: Partition, probs: Floats32) -> bool:
    """Whether probabilities predict labels that the probes are sure are wrong.

    Where few labels are surely wrong, probabilities that agree with far more of the labels than the
    probes do count as those of a model that has seen them.
    """
    agreement = label_agreement(probs, split.labels)
    wrong = split.p_label_fault > _SURELY_WRONG
    if wrong.sum() >= _MIN_SURELY_WRONG:
        return label_agreement(probs[wrong], split.labels[wrong]) > _MIN_REPRODUCED
    expected = 1.0 if scores.pooled is None else scores.pooled.expected_agreement
    return agreement - expected > MEMORISATION_GAP


def _result(
    given: _LabelledRows,
    scores: Scores,
    split: Partition,
    source: ProbsKind,
    notes: tuple[str, ...],
) -> DetectionResult:
    """Return the partition with names, flags and notes."""
    nothing: dict[str, Any] = dict.fromkeys(("plan", "before", "after"))
    extra = diagnostics.hopeless(scores, given.classes)
    if source == "in-sample":
        extra = (_in_sample_flag(scores, split), *extra)
    flags = diagnostics.find_flags(
        partition=split, baselines={}, classes=given.classes, extra=extra, **nothing
    )
    own = {f.name: getattr(split, f.name) for f in fields(Partition)}
    return DetectionResult(
        **own,
        classes=given.classes,
        class_values=given.class_values,
        scores=scores,
        probs=source,
        flags=flags,
        notes=notes,
    )


def _in_sample_flag(scores: Scores, split: Partition) -> Flag:
    assert scores.model_probs is not None
    agreement = label_agreement(scores.model_probs[0], split.labels)
    return Flag(
        "probs-in-sample",
        f"The given probabilities predict {agreement:.1%} of the given "
        "labels, wrong ones among them: their model was trained on these labels, and they count "
        "less. Probabilities of cross-validation would count fully.",
    )
