"""Linear statistics of features: class posteriors, regression, distances to the mean. Pure."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np

from expunge._core.arrays import AnyFloats, Floats, Ints
from expunge.detection.class_rows import ClassRows, by_chunks, keep_top, row_chunks
from expunge.records import Signals
from expunge.records.top_classes import MAX_DENSE_CLASSES

# Shrinkage of the discriminant's covariance, in mean variances of its columns.
SHRINKAGE = 0.1
# The ridge of a regression, in mean variances of its columns.
RIDGE = 0.03
# Posteriors are never lower.
MIN_POSTERIOR = 1e-4

_posteriors_of: WeakKeyDictionary[Signals, tuple[ClassRows, ...]] = WeakKeyDictionary()


def layer_posteriors(signals: Signals) -> tuple[ClassRows, ...]:
    """Return `loo_lda_posteriors` of each layer's features, ``[n, c]`` each.

    Several detectors use them; they are computed once for each `Signals` object.
    """
    if signals not in _posteriors_of:
        _posteriors_of[signals] = tuple(
            loo_lda_posteriors(features, signals.labels, signals.logits.shape[1])
            for features in signals.features.values()
        )
    return _posteriors_of[signals]


def loo_lda_posteriors(features: AnyFloats, labels: Ints, classes: int) -> ClassRows:
    """Return leave-one-out class posteriors of linear discriminant analysis.

    ``p_c ∝ exp(−½ (f − μ_c)ᵀ Σ⁻¹ (f − μ_c))`` on standardised columns, with equal priors and
    ``Σ = (1/n) Σ_i r_i r_iᵀ + 0.1 · mean variance · I``, ``r = f − μ_y``.

    Parameters
    ----------
    features
        ``float[n, d]``. Columns may be constant.
    labels
        ``int[n]``, the given labels, 0 … ``classes`` − 1. A class may have no sample.
    classes
        The number of classes c.

    Returns
    -------
    NDArray[float64] or TopClasses
        ``[n, c]``, at least 10⁻⁴ each. Computed in float32 where classes are many.

    Notes
    -----
    In closed form: without sample i of class y the mean of y moves by ``−r / (n_y − 1)``, and the
    scatter loses ``a r rᵀ``, ``a = n_y / (n_y − 1)``, which the Sherman–Morrison formula removes
    from its inverse. Cost: n d² + d³.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.arange(40) % 2
    >>> features = labels[:, None] + 0.1 * np.random.default_rng(0).standard_normal((40, 2))
    >>> bool((loo_lda_posteriors(features, labels, 2).argmax(axis=1) == labels).all())
    True
    """
    n, (standard, width) = len(labels), _standardised_rows(features)
    counts = np.bincount(labels, minlength=classes)
    means, basis = _class_means_and_whitening(
        standard, labels, classes, width=width, columns=features.shape[1]
    )
    centres, basis = means @ basis, basis.astype(features.dtype)
    if classes > MAX_DENSE_CLASSES:
        centres = centres.astype(np.float32)

    def block(rows: slice) -> ClassRows:
        z, y = standard(rows) @ basis, labels[rows]
        r = z - centres[y]
        a = counts[y] / np.maximum(counts[y] - 1, 1)
        squared_r = (r**2).sum(axis=1)
        gain = (a / np.maximum(1 - a * squared_r / n, 1e-3) / n).astype(centres.dtype)
        squared = 2 * z @ centres.T
        np.subtract((z**2).sum(axis=1)[:, None], squared, out=squared)
        squared += (centres**2).sum(axis=1)
        along = r @ centres.T
        np.subtract((z * r).sum(axis=1)[:, None], along, out=along)
        along *= along
        along *= gain[:, None]
        squared += along
        squared[np.arange(len(y)), y] = a**2 * (squared_r + gain * squared_r**2)
        squared[:, counts == 0] = np.inf
        return keep_top(_normalised(squared), y)

    return by_chunks(block, n)


def _normalised(squared: AnyFloats) -> AnyFloats:
    """Return posteriors from squared distances, which are overwritten."""
    from scipy.special import log_softmax

    squared *= -0.5
    if squared.shape[1] <= MAX_DENSE_CLASSES:
        posteriors: Floats = np.exp(np.maximum(log_softmax(squared, axis=1), np.log(MIN_POSTERIOR)))
        return posteriors
    squared -= squared.max(axis=1, keepdims=True)
    np.exp(squared, out=squared)
    squared /= squared.sum(axis=1, keepdims=True)
    return np.maximum(squared, squared.dtype.type(MIN_POSTERIOR), out=squared)


def _class_means_and_whitening(
    standard: Callable[[slice], AnyFloats], labels: Ints, classes: int, *, width: int, columns: int
) -> tuple[Floats, Floats]:
    """Return means ``[c, width]`` of standardised rows, and W with ``W Wᵀ = Σ⁻¹``."""
    n, counts = len(labels), np.bincount(labels, minlength=classes)
    chunks, means = row_chunks(n), np.zeros((classes, width))
    for rows in chunks:
        means += class_sums(standard(rows), labels[rows], classes)
    means /= np.maximum(counts, 1)[:, None]
    scatter = np.zeros((width, width))
    for rows in chunks:
        z = standard(rows)
        residual = z - means[labels[rows]].astype(z.dtype)
        scatter += residual.T @ residual / n
    return means, _whitening(scatter, SHRINKAGE, columns)


def class_sums(values: AnyFloats, labels: Ints, classes: int) -> Floats:
    """Return the sum of the rows of each class, ``float64[c, d]``.

    Examples
    --------
    >>> class_sums(np.array([[1.0], [2.0], [4.0]]), np.array([0, 2, 2]), 3).ravel()
    array([1., 0., 6.])
    """
    from scipy.sparse import csr_matrix

    n = len(labels)
    one_hot = csr_matrix((np.ones(n), labels, np.arange(n + 1)), shape=(n, classes))
    sums: Floats = one_hot.T @ values.astype(np.float64)
    return sums


def _whitening(covariance: Floats, shrinkage: float, columns: int) -> Floats:
    """Return W with ``W Wᵀ = (Σ + shrinkage · mean variance of the columns · I)⁻¹``."""
    ridge = shrinkage * max(float(np.trace(covariance)) / columns, 1e-12)
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    whitening: Floats = vectors / np.sqrt(values)
    return whitening


def squared_mahalanobis(features: AnyFloats) -> Floats:
    """Return each row's squared Mahalanobis distance to the mean, ``float64[n]``.

    ``(f − μ)ᵀ Σ⁻¹ (f − μ)`` with ``Σ = FᵀF / n + 10⁻³ · mean variance · I`` of centred features, so
    that constant columns do no harm. Cost: n d² + d³, and n² d + n³ for fewer samples than columns.
    """
    centre, d = features.mean(axis=0, dtype=np.float64), features.shape[1]
    centred, width = _in_smaller_space(lambda rows: features[rows] - centre, *features.shape)
    covariance = np.zeros((width, width))
    for rows in row_chunks(len(features)):
        z = centred(rows)
        covariance += z.T @ z / len(features)
    basis = _whitening(covariance, 1e-3, d)
    return np.concatenate(
        [((centred(rows) @ basis) ** 2).sum(axis=1) for rows in row_chunks(len(features))]
    )


def loo_ridge_predictions(features: AnyFloats, target: Floats) -> Floats:
    """Return leave-one-out predictions of a target by ridge regression on the features.

    ``ŷ = z · (ZᵀZ / n + λI)⁻¹ Zᵀy / n`` on standardised columns and the centred target,
    ``λ = 0.03 · mean variance``; left out by ``(ŷ − h y) / (1 − h)`` with the leverage ``h``.

    Parameters
    ----------
    features
        ``float[n, d]``.
    target
        ``float64[n]``.

    Returns
    -------
    NDArray[float64]
        ``[n]``, as deviations from the target's mean.

    Notes
    -----
    Cost: n d² + d³, and n² d + n³ for fewer samples than columns.
    """
    n, d = features.shape
    (standard, width), centred = _standardised_rows(features), target - target.mean()
    moments, product, chunks = np.zeros((width, width)), np.zeros(width), row_chunks(n)
    for rows in chunks:
        z = standard(rows)
        moments += z.T @ z / n
        product += z.T @ centred[rows] / n
    values, vectors = np.linalg.eigh(moments)
    values += RIDGE * max(float(np.trace(moments)) / d, 1e-12)
    coefficients = vectors.T @ product / values
    predictions = np.empty(n)
    for rows in chunks:
        z = standard(rows) @ vectors.astype(features.dtype)
        leverage = np.minimum((z**2 / values).sum(axis=1) / n, 0.99)
        predictions[rows] = (z @ coefficients - leverage * centred[rows]) / (1 - leverage)
    return predictions


def ashman_d(
    mean: Floats | float, std: Floats | float, mean0: Floats | float, std0: Floats | float
) -> Floats:
    """Return Ashman's D of two normal distributions: ``√2 |μ − μ₀| / √(σ² + σ₀²)``.

    The distance in pooled standard deviations (doi 10.1086/117248); two groups are separable from
    about 2 on.

    Examples
    --------
    >>> float(ashman_d(3.0, 1.0, 0.0, 1.0))
    3.0
    """
    spread = np.sqrt(np.square(std) + np.square(std0))
    distance: Floats = np.sqrt(2) * np.abs(np.asarray(mean) - mean0) / np.maximum(spread, 1e-12)
    return distance


def _standardised_rows(features: AnyFloats) -> tuple[Callable[[slice], AnyFloats], int]:
    """Return a function that gives rows with columns of mean 0 and deviation 1, and their width.

    Constant columns are all zeros. As precise as the features: products of float32 take half the
    time, and their rounding is far below the ridges here.
    """
    location = _column_means(features)
    squares = sum(
        ((features[rows] - location) ** 2).sum(axis=0) for rows in row_chunks(len(features))
    )
    scale = safe_scale(np.sqrt(squares / len(features)), location)

    def standard(rows: slice) -> AnyFloats:
        z: AnyFloats = ((features[rows] - location) / scale).astype(features.dtype)
        return z

    return _in_smaller_space(standard, *features.shape)


def _column_means(features: AnyFloats) -> Floats:
    """Return the mean of every column, of rows that are added in their order."""
    total = np.zeros(features.shape[1])
    for rows in row_chunks(len(features)):
        total = np.concatenate([total[None], features[rows]], dtype=np.float64).sum(axis=0)
    return total / len(features)


def _in_smaller_space(
    rows_of: Callable[[slice], AnyFloats], n: int, d: int
) -> tuple[Callable[[slice], AnyFloats], int]:
    """Return rows as coordinates in the space that they span, if they are fewer than their columns.

    Distances and products of rows stay as they are, so that statistics of ``d`` columns cost
    ``n² d + n³`` instead of ``n d² + d³``. Otherwise the rows are returned unchanged.
    """
    if n >= d:
        return rows_of, d
    z = rows_of(slice(None)).astype(np.float64)
    values, vectors = np.linalg.eigh(z @ z.T)
    kept = values > 1e-12 * max(float(values[-1]), 1e-12)
    kept[-1] = True
    coordinates: AnyFloats = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))

    def smaller(rows: slice) -> AnyFloats:
        found: AnyFloats = coordinates[rows]
        return found

    return smaller, coordinates.shape[1]


def safe_scale(spread: AnyFloats, location: AnyFloats) -> AnyFloats:
    """Return the spread of columns to divide by: infinite where it is only rounding."""
    return np.where(spread > 1e-6 * np.maximum(1e-6, np.abs(location)), spread, np.inf)
