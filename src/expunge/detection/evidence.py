"""One class distribution a sample from cross-fitted probes on the input and early layers. Pure.

A deep layer or the model itself may have memorised the labels; the input has not. Probes on it are
always used, those on the first layer unless the input or held-out labels show that it has memorised
too. Every other source joins the less, the further its agreement with the given labels exceeds the
expected one; sources that agree with few labels count little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple, TypeVar

import numpy as np

from expunge._core.arrays import AnyFloats, Array, Bools, Floats, Ints
from expunge._core.rng import subsample
from expunge.detection.calibration import (
    Ramp,
    fit_calibration,
    log_likelihood_gain,
    ramp,
    tempered,
)
from expunge.detection.class_arithmetic import add_scaled, softmax
from expunge.detection.class_rows import (
    ClassRows,
    LazyRows,
    RowSource,
    TakenRows,
    apply,
    as_float64,
    by_chunks,
    compact,
    occurring_classes,
    predicted,
    row_chunks,
    spread_classes,
    take_classes,
    zero_rows,
)
from expunge.detection.lda import layer_posteriors, loo_lda_posteriors
from expunge.detection.memorisation import (
    expected_agreement,
    label_agreement,
    memorised_fraction,
)
from expunge.detection.noise_rate import evident_rate
from expunge.detection.principal_space import Space
from expunge.detection.probes import (
    MAX_TREE_CLASSES,
    kernel_probe,
    neighbour_probe,
    tree_probe,
)
from expunge.detection.weighted_pool import (
    TRAINED_POWER,
    WeightedPool,
    floored_logs,
    gain_above_chance,
)
from expunge.records import PooledEvidence, Signals, TopClasses

T = TypeVar("T", bound="Array | TopClasses")

# Layers beside the input that have memorised least.
N_EARLY_LAYERS = 1
# The first layer weighs (1 − m)^2, where m is the model's memorised fraction; from this m on it
# weighs as if it agreed with no more labels than the input (two classes, 40 % wrong: half of what a
# first layer of 64 units agreed with above chance was memorised).
_EARLY_POWER, _CAPPED_FROM = 2.0, 0.5
# Probes decide the rate alone if the pool agrees with hardly more labels, and not at all if the
# probes' agreement above chance is lower by this part.
_PROBES_WEAKER: Ramp = (0.1, 0.2)
# A source shows noise if its agreement above chance is in this range or higher, and if the evident
# noise is such a part of its disagreement.
_STRONG: Ramp = (0.2, 0.4)
_EVIDENT_PART: Ramp = (0.5, 0.8)
# Before the names of layers in those of sources.
_LAYER = "linear:"
# External probabilities by this name are those of the model's own checkpoints.
_TRAJECTORY = "trajectory"
_NOVELTY_NEIGHBOURS = 5
# Distances show nothing unusual if more rows than this share are copies of their neighbours.
_MAX_COPIES = 0.25
# Equal rows are copies if fewer pairs are equal by chance (log10). Equal values of a column are
# counted in at most this number of rows, and a column without equal values has this share of them.
_MAX_CHANCE_PAIRS, _MAX_CHANCE_ROWS, _MIN_EQUAL = -4.0, 20_000, 1e-12
# From median absolute to standard deviations of a normal distribution.
MAD_SCALE = 1.4826


def pool_evidence(
    signals: Signals, *, held_out_agreement: float | None = None
) -> PooledEvidence | None:
    """Pool probes that were not fitted on a sample's own label; None without inputs.

    ``log p ∝ Σ_s w_s log q_s / Σ_s w_s`` over neighbours, extremely randomised trees, a kernel
    ridge regression and a linear discriminant, on the plain input and on the first layer, each
    without the sample's own label (left out, or out of bag), over discriminants of deeper layers,
    the model, its mean over views and external probabilities; then calibrated for the given labels.

    With the agreement ``a_s`` of a source with the given labels, the agreement e of
    `expected_agreement`, the number of classes c and the memorised fraction ``m_s = (a_s − e) /
    (1 − e)`` of `memorised_fraction`, the weights are

    - of probes on the input: ``g_s⁴``, where ``g_s = (a_s − 1/c) / (1 − 1/c)``;
    - of probes on the first layer: ``g_s⁴ (1 − m)² k^min(1, 2m) (1 − m_1)¹²``, where m is that of
      the model, m_1 that of all probes together, and k ≤ 1 is the largest weight of a probe on the
      input divided by that of one on the layer;
    - of deeper layers, the model and its checkpoints (``trajectory``): ``min(g_s, g_e)⁴
      (1 − m_s)¹²``, where ``g_e`` is that of e;
    - of the mean over views: ``g_e⁴ (1 − m)¹²``;
    - of external probabilities: ``g_s⁴``, and 0 if they agree with more than 95 % of the labels and
      with most of those that the other sources find improbable: then they were fitted on these.

    A source that has memorised a little favours the given labels. That hardly changes the order
    but lowers the noise rate. Where the probes alone are nearly as good, they decide the rate:
    ``probe_probs`` and ``probe_weight``. Otherwise the rate is at least that which is evident to
    the discriminant of the layer that is believed most: ``layer_rate``, by ``layer_weight``, which
    contains ``min(1, 2m)``, as layers hide wrong labels only if the model has memorised.

    Parameters
    ----------
    signals
        With ``inputs`` and, possibly, features, views and external probabilities.
    held_out_agreement
        The share of held-out labels that the model predicts, in [0, 1].

    Returns
    -------
    PooledEvidence or None
        None if the signals hold no inputs, or fewer than two samples a class.

    Notes
    -----
    Samples are taken in the order of their ids, so that their order changes nothing. Classes
    without samples have probability 0, if at most 100 have some. Memory: one distribution a sample,
    whatever the number of sources; of more than 100 classes the best 32.
    Cost: ``n · 20,000 · 60`` for the neighbours, ``n · (300² + Σ d² + 300 c)`` for the other
    sources.
    """
    labels, n_classes = signals.labels, signals.logits.shape[1]
    if signals.inputs is None or len(labels) < 2 * len(np.unique(labels)):
        return None
    classes = occurring_classes(labels, n_classes)
    if len(classes) == n_classes:
        return _pool_evidence(compact(signals), signals.inputs, held_out_agreement)
    found = _pool_evidence(_of_classes(signals, classes), signals.inputs, held_out_agreement)
    return found.with_rows(lambda rows: spread_classes(rows, classes, labels, n_classes))


def _of_classes(signals: Signals, classes: Ints) -> Signals:
    """Return signals of the classes that have samples alone; their labels are positions."""

    def taken(probs: ClassRows) -> AnyFloats:
        p: AnyFloats = take_classes(probs, classes) + np.float32(1e-12)
        p /= p.sum(axis=1, keepdims=True)
        return p

    views = signals.augmented_probs
    return replace(
        signals,
        labels=np.searchsorted(classes, signals.labels),
        logits=take_classes(signals.logits, classes),
        augmented_probs=None if views is None else taken(views),
        external_probs={name: taken(p) for name, p in signals.external_probs.items()},
    )


def _pool_evidence(
    signals: Signals, inputs: AnyFloats, held_out_agreement: float | None
) -> PooledEvidence:
    """Pool the evidence of classes that have samples, or of very many classes."""
    order, c = np.argsort(signals.ids, kind="stable"), signals.logits.shape[1]
    labels = signals.labels[order]
    probed = _probe_early(signals, inputs, order)
    reference = expected_agreement(
        signals, *probed.agreements, probed.evident_rate, held_out_agreement
    )
    agreement = label_agreement(signals.logits, signals.labels) if signals.has_model else 0.0
    memorised = memorised_fraction(agreement, reference)
    pool = _joined(probed, memorised, reference)
    probes = pool.calibrated()
    probe_gain = gain_above_chance(label_agreement(probes, labels), c)
    probe_probs = _as_float32(probes)
    layers = _add_trained(pool, signals, order, memorised=memorised, reference=reference)
    pooled = pool.calibrated()
    gain = gain_above_chance(label_agreement(pooled, labels), c)
    probe_weight = 1 - ramp(1 - probe_gain / gain, _PROBES_WEAKER)
    evident = [_evident_rate(layer, labels) for layer in layers if probe_weight < 1]
    layer_rate, layer_weight = max(evident, key=itemgetter(1), default=(0.0, 0.0))
    best = predicted(pooled)
    novelty: Floats = np.min([robust_deviation(v, best) for v in probed.novelties], axis=0)
    back = np.argsort(order, kind="stable")
    return PooledEvidence(
        probs=in_order(_as_float32(pooled), back),
        novelty=novelty[back],
        sources=pool.relative_reports(),
        memorised_fraction=memorised,
        expected_agreement=reference,
        contradicting_fraction=contradicting_fraction(inputs, signals.labels),
        log_likelihood_gain=log_likelihood_gain(pooled, labels),
        probe_probs=in_order(probe_probs, back) if probe_weight > 0 else None,
        probe_weight=probe_weight,
        held_out_agreement=held_out_agreement,
        layer_rate=layer_rate,
        layer_weight=layer_weight * min(1.0, memorised / _CAPPED_FROM),
    )


class _Probed(NamedTuple):
    """Probes on the input and on early layers.

    ``pools`` and ``novelties`` are those of the input and of each layer, ``agreements`` the shares
    of the labels that the probes on the input predict and that all of them do.
    """

    pools: list[WeightedPool]
    novelties: list[Floats]
    agreements: tuple[float, float]
    evident_rate: float


def _probe_early(signals: Signals, inputs: AnyFloats, order: Ints) -> _Probed:
    """Fit probes on the input and on early layers."""
    labels, c = signals.labels[order], signals.logits.shape[1]
    unweighted, pools, novelties = zero_rows(labels, c), [], []
    agreements, evident_rates = [], []
    for name, features in [("input", inputs), *list(signals.features.items())[:N_EARLY_LAYERS]]:
        pool = WeightedPool(labels, c)
        logs, distances = _probe(pool, name, in_order(features, order))
        unweighted = add_scaled(unweighted, logs, labels, 1.0)
        rate, weight = _evident_rate(LazyRows(unweighted, _as_probs), labels)
        agreements.append(label_agreement(unweighted, labels))
        evident_rates.append(rate * weight)
        pools.append(pool)
        novelties.append(log_mean_distance(distances))
    return _Probed(pools, novelties, (agreements[0], agreements[-1]), max(evident_rates))


def _joined(probed: _Probed, memorised: float, reference: float) -> WeightedPool:
    """Join the probes; those on layers count the less, the more the model has memorised."""
    pool, *others = probed.pools
    of_probes = memorised_fraction(probed.agreements[1], reference)
    for other in others:
        cap = min(1.0, pool.largest_weight() / other.largest_weight())
        credibility = (1 - memorised) ** _EARLY_POWER * cap ** min(1.0, memorised / _CAPPED_FROM)
        pool.join(other, credibility * (1 - of_probes) ** TRAINED_POWER)
    return pool


def _add_trained(
    pool: WeightedPool, signals: Signals, order: Ints, *, memorised: float, reference: float
) -> list[RowSource]:
    """Add what the training can have shaped, and external probabilities; return the layers."""
    layers: list[RowSource] = []
    for name, probs in _trained_sources(signals):
        source = TakenRows(probs, order)
        pool.add_trained(name, source, reference)
        if name.startswith(_LAYER):
            layers.append(source)
    if signals.augmented_probs is not None and signals.views:
        views = TakenRows(signals.augmented_probs, order)
        pool.add("views", views, (1 - memorised) ** TRAINED_POWER)
    for name, external in signals.external_probs.items():
        if name != _TRAJECTORY:
            pool.add_external(f"external:{name}", TakenRows(external, order))
    return layers


def in_order(rows: T, order: Ints) -> T:
    """Return rows in this order; those that are already in it or in a file are not copied."""
    is_same = bool((order[1:] > order[:-1]).all())
    if isinstance(rows, np.memmap) and not is_same:
        return TakenRows(rows, order)  # type: ignore[return-value]
    return rows if is_same else rows[order]  # type: ignore[return-value]


def _evident_rate(probs: RowSource, labels: Ints) -> tuple[float, float]:
    """Return the noise rate that is evident to a source, and how far it is believed.

    It is not believed if the source's disagreement may be weakness.
    """
    exponent = fit_calibration(probs, labels)
    calibrated = LazyRows(probs, lambda p: tempered(p, exponent))
    agreement, evident = label_agreement(calibrated, labels), evident_rate(calibrated, labels)
    part = evident / max(1 - agreement, 1e-9)
    strength = ramp(gain_above_chance(agreement, probs.shape[1]), _STRONG)
    return evident, ramp(part, _EVIDENT_PART) * strength


def _probe(pool: WeightedPool, name: str, features: AnyFloats) -> tuple[ClassRows, Floats]:
    """Add the probes on features to a pool.

    Returns the sum of their log probabilities, and each sample's mean distance to the nearest.
    """
    space, labels, c = Space(features), pool.labels, pool.n_classes
    total = zero_rows(labels, c)

    def add(kind: str, probs: ClassRows) -> None:
        nonlocal total
        pool.add(f"{kind}:{name}", probs)
        total = add_scaled(total, floored_logs(probs), labels, 1.0)

    shares, distance = neighbour_probe(space, labels, c, n_nearest=_NOVELTY_NEIGHBOURS)
    add("neighbours", shares)
    del shares
    if c <= MAX_TREE_CLASSES:  # the leaves of more would hold every class
        add("trees", tree_probe(space, labels, c))
    add("kernel", kernel_probe(space, labels, c))
    add("linear", loo_lda_posteriors(features, labels, c))
    return total, distance


def _trained_sources(signals: Signals) -> Iterator[tuple[str, RowSource]]:
    """Yield the sources that the training can have shaped, in the order of the samples."""
    names = list(signals.features)[N_EARLY_LAYERS:]
    for name, probs in zip(names, layer_posteriors(signals)[N_EARLY_LAYERS:], strict=True):
        yield f"{_LAYER}{name}", probs
    if signals.has_model:
        yield "model", LazyRows(signals.logits, _as_probs)
    if _TRAJECTORY in signals.external_probs:
        yield f"external:{_TRAJECTORY}", signals.external_probs[_TRAJECTORY]


def _as_probs(logs: ClassRows) -> ClassRows:
    return softmax(apply(as_float64, logs))


def _as_float32(rows: RowSource) -> ClassRows:
    return by_chunks(lambda chunk: apply(_to_float32, rows[chunk]), len(rows))


def _to_float32(values: AnyFloats) -> AnyFloats:
    return values.astype(np.float32)


def log_mean_distance(mean: Floats) -> Floats:
    """Return the logarithm of each sample's mean distance to the nearest others, ``float64[n]``.

    Distances far below the median, those of copies, count as a thousandth of it. In a table whose
    rows repeat, a row without a copy is not unusual: all distances are equal there.
    """
    floor = 1e-3 * max(float(np.median(mean[mean > 0])) if mean.any() else 0.0, 1e-12)
    if np.mean(mean <= floor) > _MAX_COPIES:
        return np.zeros(len(mean))
    logs: Floats = np.log(np.maximum(mean, floor))
    return logs


def robust_deviation(values: Floats, groups: Ints, usual: Bools | None = None) -> Floats:
    """Return values minus their group's median, in robust standard deviations.

    Parameters
    ----------
    values, groups
        ``float64[n]`` and ``int[n]``.
    usual
        ``bool[n]``: the samples from which medians and the deviation are taken; all by default.

    Returns
    -------
    NDArray[float64]
        ``[n]``; zero where most values equal their group's median.

    Examples
    --------
    >>> robust_deviation(np.array([1.0, 2.0, 3.0, 7.0, 9.0]), np.array([0, 0, 0, 1, 1])).round(2)
    array([-0.67,  0.  ,  0.67, -0.67,  0.67])
    """
    usual = np.ones(len(values), dtype=bool) if usual is None else usual
    centred = values - np.median(values[usual])
    for group in np.unique(groups[usual]):
        own = groups == group
        centred[own] = values[own] - np.median(values[own & usual])
    spread = MAD_SCALE * float(np.median(np.abs(centred[usual])))
    return centred / spread if spread > 1e-9 else np.zeros(len(values))


def contradicting_fraction(inputs: AnyFloats, labels: Ints) -> float:
    """Return the share of labels that must be wrong because identical inputs have other labels.

    A lower bound of the noise rate: in each group of identical inputs all labels but the most
    frequent one are wrong. The answer is 0 for inputs that may be equal by chance, as the rows of a
    table with few columns of few values: with independent columns, more than 10⁻⁴ pairs of rows
    would be equal.

    Parameters
    ----------
    inputs
        ``float[n, d]``.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    >>> inputs = np.array([[0.1, 0.7], [0.1, 0.7], [0.1, 0.7], [0.2, 0.3]])
    >>> contradicting_fraction(inputs, np.array([0, 0, 1, 1]))
    0.25
    """
    _, first, group = np.unique(_row_hashes(inputs), return_index=True, return_inverse=True)
    if (
        len(first) == len(inputs)
        or _log10_chance_pairs(inputs[first], len(inputs)) > _MAX_CHANCE_PAIRS
    ):
        return 0.0
    pairs, counts = np.unique(group * (int(labels.max()) + 1) + labels, return_counts=True)
    most_frequent = np.zeros(int(group.max()) + 1)
    np.maximum.at(most_frequent, pairs // (int(labels.max()) + 1), counts)
    return float(1 - most_frequent.sum() / len(labels))


def _log10_chance_pairs(distinct: AnyFloats, n: int) -> float:
    """Return how many of n rows are equal in pairs by chance if columns are independent, as log10.

    A single column has no rows that differ elsewhere: all its pairs may be equal by chance.
    """
    total = float(np.log10(n * (n - 1) / 2))
    if distinct.shape[1] == 1:
        return total
    rows = distinct[subsample(len(distinct), _MAX_CHANCE_ROWS, 0, "equal rows")]
    for column in rows.T:
        _, counts = np.unique(column, return_counts=True)
        equal = float((counts * (counts - 1)).sum()) / max(len(rows) * (len(rows) - 1), 1)
        total += float(np.log10(max(equal, _MIN_EQUAL)))
    return total


def _row_hashes(rows: AnyFloats) -> Array:
    """Return a hash of 64 bits for each row, ``uint64[n]``: equal for equal rows.

    A sum of products of mixed bits with random numbers. Two of a million rows collide by chance
    with a probability of 10⁻⁷.
    """
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64)
    factors = factors * np.uint64(2) + np.uint64(1)
    found = []
    for chunk in row_chunks(len(rows)):
        bits = (rows[chunk] + 0.0).astype(np.float64).view(np.uint64)  # −0 becomes 0
        bits ^= bits >> np.uint64(32)
        bits *= np.uint64(0xD6E8FEB86659FD93)
        bits ^= bits >> np.uint64(32)
        found.append((bits * factors).sum(axis=1))
    return np.concatenate(found)
