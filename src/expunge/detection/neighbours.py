"""Nearest neighbours in a layer's features: votes of their labels, means of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge.detection.class_rows import ClassRows, by_chunks, keep_top, row_chunks
from expunge.detection.lda import safe_scale
from expunge.errors import ConfigError, extra_required

NeighbourSearch = Literal["exact", "approximate"]
# Rows are projected on principal components in chunks of this many.
PROJECTION_CHUNK = 4096
# Find the k nearest other rows of the rows start … start + count − 1: int64[count, k].
Find = Callable[[int, int, int], torch.Tensor]


def neighbour_votes(
    features: AnyFloats,
    labels: Ints,
    classes: int,
    *,
    k: int | None = None,
    neighbour_search: NeighbourSearch = "exact",
    chunk_size: int = 1024,
) -> ClassRows:
    """Return the label shares among the k nearest other samples, smoothed by one vote.

    ``v_c = (#{j ∈ kNN(i): y_j = c} + 1/c) / (k + 1)``, nearest by the cosine of centred features.

    Parameters
    ----------
    features
        ``float[n, d]``, a row a sample.
    labels
        ``int[n]``, the given labels, 0 … ``classes`` − 1.
    classes
        The number of classes c.
    k
        The number of neighbours; by default ``√n / 3``, limited to 5 … 50. At most ``n − 1``.
    neighbour_search
        ``"exact"``, or ``"approximate"``: an inverted file, needs the extra ``expunge[faiss]``.
    chunk_size
        The number of rows whose neighbours are searched at once; it does not change the result.

    Returns
    -------
    NDArray[float64] or TopClasses
        ``[n, c]``; rows sum to one.

    Raises
    ------
    ConfigError
        If ``neighbour_search`` is unknown, or faiss is not installed.

    Notes
    -----
    Cost: n² · d multiply-adds for the exact search, memory ``chunk_size × n`` floats.

    Examples
    --------
    >>> import numpy as np
    >>> features = np.array([[0.0, 1], [0, 1.1], [1, 0], [1.1, 0]], dtype=np.float32)
    >>> neighbour_votes(features, np.array([0, 0, 1, 0]), 2, k=1)
    array([[0.75, 0.25],
           [0.75, 0.25],
           [0.75, 0.25],
           [0.25, 0.75]])
    """
    if neighbour_search not in get_args(NeighbourSearch):
        raise ConfigError(
            f"neighbour_search must be one of {', '.join(get_args(NeighbourSearch))}, "
            f"not '{neighbour_search}'"
        )
    n = len(labels)
    k = k if k is not None else int(np.clip(round(np.sqrt(n) / 3), 5, 50))
    k = min(k, n - 1)
    rows = _unit_rows(features)
    find = _exact_search(rows) if neighbour_search == "exact" else _approximate_search(rows)

    def shares(chunk: slice) -> ClassRows:
        near = labels[find(chunk.start, chunk_size, k).numpy()]
        return keep_top(vote_shares(near, classes), labels[chunk])

    return by_chunks(shares, n, chunk_size)


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


def _exact_search(rows: torch.Tensor) -> Find:
    def find(start: int, count: int, k: int) -> torch.Tensor:
        similarity = rows[start : start + count] @ rows.T
        at = torch.arange(len(similarity))
        similarity[at, at + start] = -torch.inf
        return similarity.topk(k, dim=1, sorted=False).indices

    return find


def _approximate_search(rows: torch.Tensor) -> Find:
    """Search an inverted file (faiss): √n / 2 cells, of which the 16 nearest are searched."""
    try:
        import faiss
    except ImportError as error:
        raise extra_required("faiss", "faiss") from error
    n, d = rows.shape
    cells = max(1, round(np.sqrt(n) / 2))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.nprobe = min(16, cells)
    table = rows.numpy()
    index.train(table)
    index.add(table)

    def find(start: int, count: int, k: int) -> torch.Tensor:
        # One more, for the row itself. If the cells held too few, the nearest counts again.
        _, near = index.search(table[start : start + count], k + 1)
        own = near == np.arange(start, start + len(near))[:, None]
        own[~own.any(axis=1), -1] = True
        others = near[~own].reshape(len(near), k)
        return torch.from_numpy(np.where(others < 0, others[:, :1], others))

    return find


def _unit_rows(features: AnyFloats) -> torch.Tensor:
    """Centre the columns and scale the rows to length one; constant columns vanish."""
    x = torch.from_numpy(features - features.mean(axis=0, keepdims=True))
    return torch.nn.functional.normalize(x, dim=1)


def principal_projection(
    features: AnyFloats, reference_rows: Ints, components: int
) -> Callable[[Ints | slice], AnyFloats]:
    """Return a function that projects rows on the first principal components of the features.

    Parameters
    ----------
    features
        ``float[n, d]``.
    reference_rows
        ``int[m]``: the rows that give the mean, the scale of the columns and the components.
    components
        How many components, at most d and m are used.

    Notes
    -----
    Cost: ``m d² + d³``, and ``m² d + m³`` for fewer rows than columns.
    """
    location = features[reference_rows].mean(axis=0)
    scale = safe_scale(features[reference_rows].std(axis=0), location)
    z = (features[reference_rows] - location) / scale
    if len(z) < z.shape[1]:
        values, vectors = np.linalg.eigh((z @ z.T).astype(np.float64))
        kept = values[-components:] > 1e-9 * max(float(values[-1]), 1e-12)
        kept[-1] = True
        scores = vectors[:, -components:][:, kept]
        basis = z.T @ scores / np.sqrt(np.maximum(values[-components:][kept], 1e-12))
    else:
        basis = np.linalg.eigh(z.T @ z)[1][:, -components:]
    return lambda rows: (features[rows] - location) / scale @ basis


def neighbour_mean(
    features: AnyFloats, values: Floats, reference_rows: Ints, *, k: int, components: int
) -> Floats:
    """Return the mean value of each sample's k nearest others among the reference rows.

    Nearest by the first principal components of the features, standardised as the reference rows.

    Parameters
    ----------
    features
        ``float[n, d]``.
    values
        ``float64[n]``, what is averaged.
    reference_rows
        ``int[m]``: the neighbours are searched among these.
    k
        The number of neighbours; at most ``m / 2``.
    components
        The number of principal components.

    Returns
    -------
    NDArray[float64]
        ``[n]``.
    """
    from sklearn.neighbors import NearestNeighbors

    project = principal_projection(features, reference_rows, components)
    k = max(1, min(k, len(reference_rows) // 2))
    search = NearestNeighbors(n_neighbors=min(k + 1, len(reference_rows)), algorithm="brute")
    search.fit(project(reference_rows))
    means, all_rows = np.empty(len(features)), np.arange(len(features))
    for chunk in row_chunks(len(features), PROJECTION_CHUNK):
        rows = all_rows[chunk]
        near = reference_rows[search.kneighbors(project(rows), return_distance=False)]
        others = near != rows[:, None]
        others &= np.cumsum(others, axis=1) <= k
        means[rows] = (values[near] * others).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    return means
