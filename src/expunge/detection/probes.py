"""Cross-fitted probes: class distributions from features, without the sample's own label. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge._core.rng import subsample
from expunge.detection.lda import loo_lda_posteriors, row_chunks, safe_scale
from expunge.detection.neighbours import principal_projection

# Neighbours that vote, and the most samples among which they are searched.
N_NEIGHBOURS, MAX_REFERENCE_SAMPLES = 25, 20_000
# Features become at most this many principal components.
MAX_COMPONENTS = 60
N_TREES, MAX_TREE_SAMPLES, MAX_TREE_CLASSES = 150, 10_000, 100
N_LANDMARKS = 300
# Widths of the kernel, in median squared distances, and ridges, of which the best is chosen.
_MAX_SELECTION_CLASSES = 50
_KERNEL_WIDTHS, _RIDGES = (0.15, 0.5, 1.5), (0.1, 1.0, 10.0, 50.0)
_SEARCH_CHUNK = 2048

# From features or principal components, labels and the number of classes to ``float[n, c]``.
Probe = Callable[[AnyFloats, Ints, int], Floats]


def probes_for(classes: int) -> Mapping[str, Probe]:
    """Return the probes beside the neighbours, by name.

    Trees are left out for many classes: their leaves hold every class.
    """
    trees: dict[str, Probe] = {"trees": tree_probe} if classes <= MAX_TREE_CLASSES else {}
    return {**trees, "kernel": kernel_probe, "linear": loo_lda_posteriors}


def principal_space(features: AnyFloats) -> AnyFloats:
    """Return standardised columns, or their first 60 principal components: ``float32[n, d]``."""
    if features.shape[1] > MAX_COMPONENTS:
        project = principal_projection(features, np.arange(len(features)), MAX_COMPONENTS)
        return project(slice(None)).astype(np.float32)
    location = features.mean(axis=0, dtype=np.float64)
    scale = safe_scale(features.std(axis=0, dtype=np.float64), location)
    standardised: AnyFloats = ((features - location) / scale).astype(np.float32)
    return standardised


def n_neighbours(n: int) -> int:
    """Return how many neighbours vote among n samples: 25, fewer in small sets."""
    return min(N_NEIGHBOURS, max(3, n // 8))


def vote_shares(labels: Ints, classes: int) -> Floats:
    """Return the shares of labels in each row, smoothed by one vote.

    Parameters
    ----------
    labels
        ``int64[n, k]``, labels of each sample's neighbours.
    classes
        The number of classes c.

    Returns
    -------
    NDArray[float64]
        ``[n, c]``, ``(count + 1/c) / (k + 1)``.

    Examples
    --------
    >>> vote_shares(np.array([[0, 0, 1]]), 2)
    array([[0.625, 0.375]])
    """
    n, k = labels.shape
    votes = np.zeros((n, classes))
    for column in labels.T:
        votes[np.arange(n), column] += 1
    shares: Floats = (votes + 1 / classes) / (k + 1)
    return shares


def nearest_others(space: AnyFloats, k: int) -> tuple[Ints, Floats]:
    """Return rows and distances of the k nearest other samples among at most 20,000.

    Parameters
    ----------
    space
        ``float[n, d]``, see `principal_space`.
    k
        The number of neighbours, 1 or more; at most n − 1 are returned.

    Returns
    -------
    rows : NDArray[int64]
        ``[n, k]``, nearest first.
    distances : NDArray[float64]
        ``[n, k]``, Euclidean.

    Examples
    --------
    >>> rows, distances = nearest_others(np.array([[0.0], [1.0], [3.0]]), 1)
    >>> rows.ravel().tolist(), distances.ravel().tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    from sklearn.neighbors import NearestNeighbors

    reference_rows = subsample(len(space), MAX_REFERENCE_SAMPLES, 0, "references")
    k = min(k, len(reference_rows) - 1)
    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(space[reference_rows])
    rows, distances, all_rows = [], [], np.arange(len(space))
    for chunk in row_chunks(len(space), _SEARCH_CHUNK):
        distance, near = search.kneighbors(space[chunk])
        near = reference_rows[near]
        others = near != all_rows[chunk, None]
        others &= np.cumsum(others, axis=1) <= k
        others[others.sum(axis=1) < k, -1] = True  # ties of identical samples
        rows.append(near[others].reshape(-1, k))
        distances.append(distance[others].reshape(-1, k))
    return np.concatenate(rows), np.concatenate(distances)


def tree_probe(space: AnyFloats, labels: Ints, classes: int) -> Floats:
    """Return the out-of-bag class shares of 150 extremely randomised trees.

    Parameters
    ----------
    space
        ``float[n, d]``, see `principal_space`.
    labels
        ``int[n]``, the given labels.
    classes
        The number of classes c.

    References
    ----------
    Extremely randomised trees: doi 10.1007/s10994-006-6226-1.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sample that is in every bag
        forest = ExtraTreesClassifier(
            N_TREES,
            min_samples_leaf=3,
            bootstrap=True,
            oob_score=True,
            max_samples=min(len(labels), MAX_TREE_SAMPLES),
            random_state=0,
        ).fit(space, labels)
    found = np.zeros((len(labels), classes))
    shares = forest.oob_decision_function_
    found[:, forest.classes_] = np.where(np.isfinite(shares), shares, 1 / shares.shape[1])
    counts = found * N_TREES
    smoothed: Floats = (counts + 1) / (counts.sum(axis=1, keepdims=True) + classes)
    return smoothed


def kernel_probe(space: AnyFloats, labels: Ints, classes: int) -> Floats:
    """Return leave-one-out predictions of a kernel ridge regression on one-hot labels.

    A Gaussian kernel with Nyström features of 300 landmarks. Left out in closed form,
    ``(ŷ − h y) / (1 − h)`` with the leverage h. Width and ridge have the lowest left-out error over
    the 50 most frequent classes.

    Parameters
    ----------
    space
        ``float[n, d]``, see `principal_space`.
    labels
        ``int[n]``, the given labels.
    classes
        The number of classes c.

    Notes
    -----
    Cost: four times ``n · (300 d + 300²)``, and ``300 n c``.
    """
    n = len(labels)
    landmarks = space[subsample(n, N_LANDMARKS, 0, "landmarks")].astype(np.float64)
    inner = _squared_distances(landmarks, landmarks)
    median = max(float(np.median(inner[inner > 0])) if (inner > 0).any() else 1.0, 1e-12)

    def mapped(width: float) -> Floats:
        values, vectors = np.linalg.eigh(np.exp(-inner / (width * median)))
        basis = vectors / np.sqrt(np.maximum(values, 1e-8))
        parts = [
            np.exp(-_squared_distances(space[rows], landmarks) / (width * median)) @ basis
            for rows in row_chunks(n)
        ]
        return np.hstack([np.concatenate(parts), np.ones((n, 1))])

    frequent = np.argsort(-np.bincount(labels, minlength=classes), kind="stable")
    target = (labels[:, None] == np.sort(frequent[:_MAX_SELECTION_CLASSES])).astype(np.float64)
    _, width, ridge = min(
        (
            float(((_loo_ridge(regression, target, ridge) - target) ** 2).sum(axis=1).mean()),
            w,
            ridge,
        )
        for w in _KERNEL_WIDTHS
        for regression in [_Rotated.of(mapped(w))]
        for ridge in _RIDGES
    )
    predicted = _loo_ridge(_Rotated.of(mapped(width)), np.eye(classes)[labels], ridge)
    clipped = np.clip(predicted, 0.01, 1.0)
    probs: Floats = clipped / clipped.sum(axis=1, keepdims=True)
    return probs


class _Rotated(NamedTuple):
    """Features in the eigenvectors of their scatter, and its eigenvalues."""

    features: Floats
    values: Floats

    @classmethod
    def of(cls, features: Floats) -> _Rotated:
        values, vectors = np.linalg.eigh(features.T @ features)
        return cls(features @ vectors, np.maximum(values, 0.0))


def _loo_ridge(regression: _Rotated, target: Floats, ridge: float) -> Floats:
    """Return leave-one-out predictions of a ridge regression, ``float64[n, k]``."""
    rotated, shrunk = regression.features, 1 / (regression.values + ridge)
    leverage = np.minimum((rotated**2) @ shrunk, 0.999)[:, None]
    predicted = rotated @ (shrunk[:, None] * (rotated.T @ target)) - leverage * target
    left_out: Floats = predicted / (1 - leverage)
    return left_out


def _squared_distances(a: AnyFloats, b: AnyFloats) -> Floats:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    clipped: Floats = np.maximum(squared, 0.0)
    return clipped
