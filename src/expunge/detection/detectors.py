"""Detectors: from signals to one number a sample, higher = more likely bad. Pure functions.

A detector is one function ``(signals, **options) -> Detection``, registered with
``@detectors.register(name, kind=…, needs=(…,))``; its keyword-only arguments are its options. The
built-in ones are in `label_detectors`, `feature_detectors`, `input_detectors` and
`cluster_detectors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expunge._core.arrays import Floats
from expunge._core.registry import Registry
from expunge.detection.class_arithmetic import softmax
from expunge.detection.class_rows import ClassRows, by_chunks, compact, stack
from expunge.detection.memorisation import informative_sources, label_agreement
from expunge.detection.needs import Need, missing_needs
from expunge.errors import ConfigError, DataError
from expunge.records import PooledEvidence, Scores, Signals


@dataclass(frozen=True)
class Detection:
    """What a detector returns.

    Parameters
    ----------
    score
        ``float64[n]``, finite; higher = more likely bad. Any unit.
    class_probs
        Class probabilities of each of its sources, each ``[n, c]``, `TopClasses` where classes are
        many; empty if it has none.
    is_leave_one_out
        Whether each sample's class probabilities were made without its own label.
    pooled
        The pooled evidence of which the score is the margin.
    """

    score: Floats
    class_probs: tuple[ClassRows, ...] = ()
    is_leave_one_out: bool = False
    pooled: PooledEvidence | None = None


@dataclass(frozen=True)
class DetectorInfo:
    """The metadata of a detector.

    Parameters
    ----------
    kind
        The fault that it detects: a wrong ``"label"`` or a corrupted ``"input"``.
    needs
        What the pass over the data must collect for it, beside logits.
    """

    kind: Literal["label", "input"] = "label"
    needs: tuple[Need, ...] = ()


detectors: Registry[Callable[..., Detection], DetectorInfo] = Registry(
    "detector",
    DetectorInfo,
    modules=(
        "expunge.detection.label_detectors",
        "expunge.detection.feature_detectors",
        "expunge.detection.input_detectors",
        "expunge.detection.cluster_detectors",
    ),
)


def needs_of(names: Iterable[str]) -> frozenset[Need]:
    """Return what the pass over the data must collect for the named detectors.

    Examples
    --------
    >>> sorted(needs_of(("loss", "augmented_margin", "lda_margin")))
    ['features', 'views']
    """
    return frozenset(need for name in names for need in detectors.metadata(name).needs)


def detect(
    signals: Signals, names: Iterable[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> Scores:
    """Score every sample with the named detectors.

    The class distribution of the result is the `opinion_pool` of the detectors' sources that have
    not memorised the labels; if no detector has a source, it is the model's softmax.

    Parameters
    ----------
    signals
        What `collect` returned with ``needs = needs_of(names)``.
    names
        One or more registered detectors.
    options
        Keyword arguments by detector.

    Returns
    -------
    Scores
        One column a detector, the pooled class distribution, and the sources it was made of.

    Raises
    ------
    ConfigError
        If no detector is named, or a name or an option is unknown.
    DataError
        If the signals lack what a detector needs.

    Examples
    --------
    >>> import numpy as np
    >>> signals = Signals(np.arange(2), np.array([0, 0]), np.array([[3.0, 0], [0, 3]]))
    >>> detect(signals, ("margin",)).values["margin"]
    array([-3.,  3.])
    """
    chosen = tuple(names)
    check_detectors(chosen, options or {})
    signals = compact(signals)
    found = {name: _run(signals, name, (options or {}).get(name, {})) for name in chosen}
    loo_probs = [q for d in found.values() if d.is_leave_one_out for q in d.class_probs]
    external = tuple(signals.external_probs.values())
    agreement, model_probs = _model_evidence(signals)
    return Scores(
        ids=signals.ids,
        labels=signals.labels,
        values={name: d.score for name, d in found.items()},
        kinds={name: detectors.metadata(name).kind for name in chosen},
        class_probs=_pooled_class_probs(
            signals, [q for d in found.values() for q in d.class_probs]
        ),
        agreement=agreement,
        trusted=signals.trusted,
        loo_probs=stack(loo_probs) if loo_probs else None,
        model_probs=stack(model_probs) if model_probs else None,
        external_probs=stack(external) if external else None,
        pooled=next((d.pooled for d in found.values() if d.pooled is not None), None),
    )


def check_detectors(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for no detector, an unknown one, and an unknown option of one."""
    if not names:
        raise ConfigError("no detector is named", fix=f"choose from: {detectors.names()}")
    for name in (*names, *options):
        detectors.check_options(name, options.get(name, {}))


def _run(signals: Signals, name: str, options: Mapping[str, Any]) -> Detection:
    """Check the signals, then run one detector."""
    missing = missing_needs(signals, needs_of((name,)))
    if missing:
        raise DataError(
            f"detector '{name}' needs {', '.join(missing)}, which the signals do not hold",
            fix="collect them with needs = needs_of(detectors)",
        )
    return detectors.get(name)(signals, **options)


def _pooled_class_probs(signals: Signals, sources: list[ClassRows]) -> ClassRows:
    from expunge.detection.opinion_pool import opinion_pool

    informative = informative_sources(sources, signals)
    if informative:
        return opinion_pool(informative, signals.labels, signals.trusted)
    return _model_probs(signals)


def _model_probs(signals: Signals) -> ClassRows:
    return by_chunks(lambda rows: softmax(signals.logits[rows]), len(signals.labels))


def _model_evidence(signals: Signals) -> tuple[dict[str, float], list[ClassRows]]:
    """Return the model's agreement with the labels and its probabilities: plain and augmented."""
    if not signals.has_model:
        return {}, []
    agreement = {"plain": label_agreement(signals.logits, signals.labels)}
    model_probs = [_model_probs(signals)]
    if signals.augmented_probs is not None and signals.views:
        agreement["augmented"] = label_agreement(signals.augmented_probs, signals.labels)
        model_probs.append(signals.augmented_probs)
    return agreement, model_probs
