"""Sums, softmax and margins of rows of numbers for each class, of all classes or the best. Pure."""

from __future__ import annotations

from typing import overload

import numpy as np
from scipy.special import softmax as _softmax

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge.detection.class_rows import ClassRows, RowSource, by_chunks, row_chunks
from expunge.records.top_classes import TopClasses


def at_label(rows: ClassRows, labels: Ints) -> AnyFloats:
    """Return each row's number of the given label, ``float[n]``."""
    if isinstance(rows, TopClasses):
        return rows.at(labels)
    found: AnyFloats = rows[np.arange(len(labels)), labels]
    return found


def at_labels(rows: RowSource, labels: Ints) -> AnyFloats:
    """Return `at_label` of all rows, in chunks."""
    return by_chunks(lambda chunk: at_label(rows[chunk], labels[chunk]), len(labels))


def softmax(rows: ClassRows) -> ClassRows:
    """Return ``exp(z_c) / Σ_k exp(z_k)``."""
    if not isinstance(rows, TopClasses):
        probs: Floats = _softmax(rows, axis=1)
        return probs
    return log_softmax(rows).map(np.exp)


@overload
def log_softmax(rows: TopClasses) -> TopClasses: ...
@overload
def log_softmax(rows: Floats) -> Floats: ...
def log_softmax(rows: ClassRows) -> ClassRows:
    """Return ``z_c − log Σ_k exp(z_k)``."""
    total = log_sum(rows)
    if isinstance(rows, TopClasses):
        values = rows.values - total[:, None]
        return TopClasses(values, rows.classes, rows.rest - total, rows.n_classes)
    logs: Floats = rows - total[:, None]
    return logs


def log_sum(rows: ClassRows) -> Floats:
    """Return ``log Σ_c exp(z_c)``, ``float64[n]``."""
    if not isinstance(rows, TopClasses):
        # SciPy's logsumexp takes six times as long for a few hundred rows of ten classes.
        highest = rows.max(axis=1)
        sums: Floats = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
        return sums
    largest = np.maximum(rows.max(axis=1), rows.rest)
    values = np.exp(rows.values - largest[:, None]).sum(axis=1)
    total: Floats = largest + np.log(values + rows.n_rest * np.exp(rows.rest - largest))
    return total


def log_at_label(rows: ClassRows, labels: Ints) -> Floats:
    """Return ``z_y − log Σ_c exp(z_c)`` of the given labels, ``float64[n]``."""
    logs: Floats = at_label(rows, labels) - log_sum(rows)
    return logs


def label_margin(rows: ClassRows, labels: Ints) -> Floats:
    """Return the best other class's number minus the given one's: ``max_{c≠y} v_c − v_y``.

    Parameters
    ----------
    rows
        ``float64[n, c]``, with two classes or more.
    labels
        ``int[n]``, the given labels.

    Examples
    --------
    >>> label_margin(np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 2.0]]), np.array([1, 0]))
    array([-2.,  0.])
    """
    if isinstance(rows, TopClasses):
        others = np.where(rows.classes == labels[:, None], -np.inf, rows.values)
        best = np.maximum(others.max(axis=1, initial=-np.inf), rows.rest)
        found: Floats = best - rows.at(labels)
        return found
    others = rows.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    margin: Floats = others.max(axis=1) - at_label(rows, labels)
    return margin


def label_margins(rows: RowSource, labels: Ints) -> Floats:
    """Return `label_margin` of all rows, in chunks."""
    return by_chunks(lambda chunk: label_margin(rows[chunk], labels[chunk]), len(labels))


def joint_with(rows: ClassRows, labels: Ints, transition: Floats) -> ClassRows:
    """Return ``π(c) T_cy`` of each class c, for the given labels y.

    Of `TopClasses` the rest is the mean over the other classes.

    Parameters
    ----------
    rows
        ``float64[n, c]``, the distribution π of the right label.
    labels
        ``int[n]``, the given labels y.
    transition
        ``float64[c, c]``, T.
    """
    if not isinstance(rows, TopClasses):
        joint: Floats = rows * transition[:, labels].T
        return joint
    given = transition[rows.classes, labels[:, None]]
    others = (transition.sum(axis=0)[labels] - given.sum(axis=1)) / max(rows.n_rest, 1)
    rest = rows.rest * np.maximum(others, 0.0)
    return TopClasses(rows.values * given, rows.classes, rest, rows.n_classes)


def replace_label(rows: ClassRows, labels: Ints, values: AnyFloats | float) -> ClassRows:
    """Return rows with other numbers for the given labels."""
    if isinstance(rows, TopClasses):
        new = np.broadcast_to(np.asarray(values, dtype=np.float64), labels.shape)
        changed = np.where(rows.classes == labels[:, None], new[:, None], rows.values)
        return TopClasses(changed, rows.classes, rows.rest, rows.n_classes)
    table = rows.copy()
    table[np.arange(len(labels)), labels] = values
    return table


def row_sum(rows: ClassRows) -> Floats:
    """Return each row's sum, ``float64[n]``."""
    if isinstance(rows, TopClasses):
        total: Floats = rows.values.sum(axis=1) + rows.n_rest * rows.rest
        return total
    sums: Floats = rows.sum(axis=1)
    return sums


def add_scaled(total: ClassRows, rows: RowSource, labels: Ints, weight: float) -> ClassRows:
    """Return ``total + weight · rows`` in float32; an array is changed in place.

    Of `TopClasses` the given class and the best others of both are kept. A class that only one of
    them holds has the other's rest there.
    """
    if isinstance(total, TopClasses):
        return by_chunks(
            lambda chunk: merge_top(total[chunk], rows[chunk], labels[chunk], weight), len(labels)
        )
    for chunk in row_chunks(len(labels)):
        total[chunk] += (weight * rows[chunk]).astype(np.float32)
    return total


def merge_top(total: TopClasses, rows: TopClasses, labels: Ints, weight: float) -> TopClasses:
    """Return `add_scaled` of a block of the best classes."""
    scaled = rows.map(lambda v: (weight * v).astype(np.float32))
    # Numbers above the rest add up; each class is there once or twice.
    above = np.concatenate([t.values - t.rest[:, None] for t in (total, scaled)], axis=1)
    classes = np.concatenate([total.classes, scaled.classes], axis=1)
    order = np.argsort(classes, axis=1, kind="stable")
    classes = np.take_along_axis(classes, order, axis=1)
    above = np.take_along_axis(above, order, axis=1)
    is_second = np.zeros(classes.shape, dtype=bool)
    is_second[:, 1:] = classes[:, 1:] == classes[:, :-1]
    above[:, :-1] += np.where(is_second[:, 1:], above[:, 1:], 0.0)
    preference = np.where(is_second, -np.inf, above)
    preference[(classes == labels[:, None]) & ~is_second] = np.inf
    k = max(total.values.shape[1], scaled.values.shape[1])
    best = np.argpartition(preference, -k, axis=1)[:, -k:]
    rest = total.rest + scaled.rest
    values = np.take_along_axis(above, best, axis=1) + rest[:, None]
    return TopClasses(values, np.take_along_axis(classes, best, axis=1), rest, total.n_classes)
