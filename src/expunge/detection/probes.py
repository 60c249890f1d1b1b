"""Cross-fitted probes: class distributions from features, without the sample's own label. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge._core.rng import subsample
from expunge._core.threads import ordered_map
from expunge.detection.class_rows import (
    ClassRows,
    by_chunks,
    keep_top,
    row_chunks,
)
from expunge.detection.lda import class_sums
from expunge.detection.neighbours import vote_shares
from expunge.detection.principal_space import Space
from expunge.records.top_classes import MAX_DENSE_CLASSES

# Neighbours that vote, and the most samples among which they are searched.
N_NEIGHBOURS, MAX_REFERENCE_SAMPLES = 25, 20_000
N_TREES, MAX_TREE_SAMPLES, MAX_TREE_CLASSES = 150, 10_000, MAX_DENSE_CLASSES
N_LANDMARKS = 300
# Widths of the kernel, in median squared distances, and ridges. The best is chosen on at most so
# many samples, fewer if classes are many, and classes.
_MAX_SELECTION_SAMPLES, _MAX_SELECTION_CLASSES = (50_000, 10_000), 50
_KERNEL_WIDTHS, _RIDGES = (0.15, 0.5, 1.5), (0.1, 1.0, 10.0, 50.0)
_SEARCH_CHUNK, _TREE_CHUNK = 2048, 32_768


# What a probe reads rows from.
Table = AnyFloats | Space


def n_neighbours(n: int) -> int:
    """Return how many neighbours vote among n samples: 25, fewer in small sets."""
    return min(N_NEIGHBOURS, max(3, n // 8))


def nearest_others(space: Table, k: int) -> Callable[[slice], tuple[Ints, Floats]]:
    """Return a search for the k nearest other samples among at most 20,000.

    Parameters
    ----------
    space
        ``float[n, d]``, or a `Space`.
    k
        The number of neighbours, 1 or more; at most n − 1 are returned.

    Returns
    -------
    Callable
        From a slice of b samples to the rows of their neighbours, ``int64[b, k]``, nearest first,
        and their Euclidean distances, ``float64[b, k]``.

    Examples
    --------
    >>> rows, distances = nearest_others(np.array([[0.0], [1.0], [3.0]]), 1)(slice(0, 3))
    >>> rows.ravel().tolist(), distances.ravel().tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    from sklearn.neighbors import NearestNeighbors

    reference_rows = subsample(len(space), MAX_REFERENCE_SAMPLES, 0, "references")
    k = min(k, len(reference_rows) - 1)
    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(space[reference_rows])

    def find(rows: slice) -> tuple[Ints, Floats]:
        distance, near = search.kneighbors(space[rows])
        near = reference_rows[near]
        others = near != np.arange(rows.start, rows.stop)[:, None]
        others &= np.cumsum(others, axis=1) <= k
        others[others.sum(axis=1) < k, -1] = True  # ties of identical samples
        return near[others].reshape(-1, k), distance[others].reshape(-1, k)

    return find


def neighbour_probe(
    space: Table, labels: Ints, classes: int, *, n_nearest: int
) -> tuple[ClassRows, Floats]:
    """Return the label shares among the nearest others, and how far a few of them are.

    Parameters
    ----------
    space
        ``float[n, d]``, or a `Space`.
    labels
        ``int[n]``, the given labels.
    classes
        The number of classes c.
    n_nearest
        The number of nearest others of which the distance is the mean.

    Returns
    -------
    shares : NDArray[float64] or TopClasses
        ``[n, c]``, see `vote_shares`.
    distance : NDArray[float64]
        ``[n]``.
    """
    n = len(labels)
    find, mean_distance = nearest_others(space, n_neighbours(n)), np.empty(n)

    def shares(rows: slice) -> ClassRows:
        near, distance = find(rows)
        mean_distance[rows] = distance[:, :n_nearest].mean(axis=1)
        return keep_top(vote_shares(labels[near], classes), labels[rows])

    return by_chunks(shares, n, _SEARCH_CHUNK), mean_distance


def tree_probe(space: Table, labels: Ints, classes: int) -> Floats:
    """Return the out-of-bag class shares of 150 extremely randomised trees.

    Parameters
    ----------
    space
        ``float[n, d]``, or a `Space`.
    labels
        ``int[n]``, the given labels.
    classes
        The number of classes c.

    Notes
    -----
    Each tree is fitted on 10,000 draws with replacement. The result is that of scikit-learn's
    ``ExtraTreesClassifier`` with out-of-bag scores, without a copy of all rows for each tree.

    References
    ----------
    Extremely randomised trees: doi 10.1007/s10994-006-6226-1.
    """
    trees = list(ordered_map(lambda seed: _fit_tree(space, labels, seed), _tree_seeds()))

    def counted(chunk: slice) -> Floats:
        x, sums = _as_checked(space[chunk]), np.zeros((chunk.stop - chunk.start, classes))
        n_out_of_bag = np.zeros(len(sums))
        for tree, bag in trees:
            out = np.ones(len(sums), dtype=bool)
            out[bag[slice(*np.searchsorted(bag, (chunk.start, chunk.stop)))] - chunk.start] = False
            if out.any():
                sums[np.ix_(out, tree.classes_)] += tree.predict_proba(x[out], check_input=False)
                n_out_of_bag += out
        sums /= np.maximum(n_out_of_bag, 1)[:, None]
        sums *= N_TREES
        smoothed: Floats = (sums + 1) / (sums.sum(axis=1, keepdims=True) + classes)
        return smoothed

    return by_chunks(counted, len(labels), _TREE_CHUNK)


def _tree_seeds() -> list[int]:
    """Return the seeds that a forest of random state 0 gives its trees."""
    draw = np.random.RandomState(0)
    return [draw.randint(np.iinfo(np.int32).max) for _ in range(N_TREES)]


def _fit_tree(space: Table, labels: Ints, seed: int) -> tuple[Any, Ints]:
    """Return a tree and the rows of its bag, sorted."""
    from sklearn.tree import ExtraTreeClassifier

    n = len(labels)
    drawn = np.random.RandomState(seed).randint(0, n, min(n, MAX_TREE_SAMPLES), dtype=np.int32)
    bag, weights = np.unique(drawn.astype(np.int64), return_counts=True)
    tree = ExtraTreeClassifier(min_samples_leaf=3, max_features="sqrt", random_state=seed)
    weight = weights.astype(np.float64)
    x = _as_checked(space[bag])
    return tree.fit(x, labels[bag], sample_weight=weight, check_input=False), bag


def _as_checked(x: AnyFloats) -> AnyFloats:
    """Return rows as a tree converts them; its own checks take a third of the time of a fit."""
    found: AnyFloats = np.ascontiguousarray(x, dtype=np.float32)
    return found


def kernel_probe(space: Table, labels: Ints, classes: int) -> ClassRows:
    """Return leave-one-out predictions of a kernel ridge regression on one-hot labels.

    A Gaussian kernel with Nyström features of 300 landmarks. Left out in closed form,
    ``(ŷ − h y) / (1 − h)`` with the leverage h. Width and ridge have the lowest left-out error over
    the 50 most frequent classes and at most 50,000 samples.

    Parameters
    ----------
    space
        ``float[n, d]``, or a `Space`.
    labels
        ``int[n]``, the given labels.
    classes
        The number of classes c.

    Notes
    -----
    Two passes over the rows: one for the sums of products, one for the predictions. Cost: five
    times ``n · (300 d + 300²)``, and ``300 n c``.
    """
    n = len(labels)
    landmarks = space[subsample(n, N_LANDMARKS, 0, "landmarks")].astype(np.float64)
    inner = _squared_distances(landmarks, landmarks)
    median = max(float(np.median(inner[inner > 0])) if (inner > 0).any() else 1.0, 1e-12)

    @cache
    def mapping(width: float) -> Callable[[Ints | slice], Floats]:
        values, vectors = np.linalg.eigh(np.exp(-inner / (width * median)))
        basis = vectors / np.sqrt(np.maximum(values, 1e-8))

        def mapped(rows: Ints | slice) -> Floats:
            similar = _squared_distances(space[rows], landmarks)
            similar /= -width * median
            np.exp(similar, out=similar)
            return np.hstack([similar @ basis, np.ones((len(similar), 1))])

        return mapped

    most = _MAX_SELECTION_SAMPLES[classes > MAX_DENSE_CLASSES]
    selection = subsample(n, most, 0, "kernel")
    frequent = np.argsort(-np.bincount(labels, minlength=classes), kind="stable")
    chosen = np.sort(frequent[:_MAX_SELECTION_CLASSES])
    target = (labels[selection, None] == chosen).astype(np.float64)
    selected = [selection[rows] for rows in row_chunks(len(selection))]
    _, width, ridge = min(
        (regression.loo_error(target, ridge), w, ridge)
        for w in _KERNEL_WIDTHS
        for mapped in [mapping(w)]
        for regression in [_Rotated.of(np.concatenate(list(ordered_map(mapped, selected))))]
        for ridge in _RIDGES
    )
    return _loo_kernel_ridge(mapping(width), labels, classes, ridge)


def _loo_kernel_ridge(
    mapped: Callable[[slice], Floats], labels: Ints, classes: int, ridge: float
) -> ClassRows:
    """Return leave-one-out predictions of one-hot labels as probabilities."""
    n, width = len(labels), mapped(slice(0, 1)).shape[1]
    moments, sums = np.zeros((width, width)), np.zeros((classes, width))
    chunks = row_chunks(n)
    for rows, features in zip(chunks, ordered_map(mapped, chunks), strict=True):
        moments += features.T @ features
        sums += class_sums(features, labels[rows], classes)
    values, vectors = np.linalg.eigh(moments)
    shrunk = 1 / (np.maximum(values, 0.0) + ridge)
    coefficients = shrunk[:, None] * (vectors.T @ sums.T)

    def predicted(rows: slice) -> ClassRows:
        rotated, at = mapped(rows) @ vectors, np.arange(rows.stop - rows.start)
        leverage = np.minimum((rotated**2) @ shrunk, 0.999)
        if classes > MAX_DENSE_CLASSES:
            probs = rotated.astype(np.float32) @ coefficients.astype(np.float32)
        else:
            probs = rotated @ coefficients
        probs[at, labels[rows]] -= leverage
        probs /= (1 - leverage)[:, None].astype(probs.dtype)
        np.clip(probs, 0.01, 1.0, out=probs)
        probs /= probs.sum(axis=1, keepdims=True)
        return keep_top(probs, labels[rows])

    return by_chunks(predicted, n)


class _Rotated(NamedTuple):
    """Features in the eigenvectors of their scatter, and its eigenvalues."""

    features: Floats
    values: Floats

    @classmethod
    def of(cls, features: Floats) -> _Rotated:
        values, vectors = np.linalg.eigh(features.T @ features)
        return cls(features @ vectors, np.maximum(values, 0.0))

    def loo_error(self, target: Floats, ridge: float) -> float:
        """Return the mean squared error of leave-one-out predictions of a ridge regression."""
        shrunk = 1 / (self.values + ridge)
        leverage = np.minimum((self.features**2) @ shrunk, 0.999)[:, None]
        product = shrunk[:, None] * (self.features.T @ target)
        predicted = (self.features @ product - leverage * target) / (1 - leverage)
        return float(((predicted - target) ** 2).sum(axis=1).mean())


def _squared_distances(a: AnyFloats, b: AnyFloats) -> Floats:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    clipped: Floats = np.maximum(squared, 0.0)
    return clipped
