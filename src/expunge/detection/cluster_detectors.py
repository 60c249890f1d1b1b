"""Input detectors that look for two clusters of samples."""

from __future__ import annotations

import warnings

import numpy as np

from expunge._core.arrays import AnyFloats, Floats
from expunge._core.rng import subsample
from expunge.detection.class_rows import row_chunks
from expunge.detection.detectors import Detection, detectors
from expunge.detection.label_detectors import loss
from expunge.detection.lda import ashman_d, layer_posteriors
from expunge.detection.neighbours import PROJECTION_CHUNK, principal_projection
from expunge.detection.uncertainty import early_layers, uncertainty_above_lower_quartile
from expunge.records import Signals

# A cluster has at least this many samples, or there are none.
_MIN_CLUSTER = 20
# A cluster of inputs is less certain than the other one if it is in this many of all pairs.
_MIN_GROUP_AUROC = 0.55


@detectors.register("attribution_clusters", kind="input", needs=("attributions",))
def attribution_clusters(signals: Signals, *, components: int = 16) -> Detection:
    """The published partition: two Gaussian clusters of the label-free attribution vectors.

    ``A_j = |h_j max_c ∂z_c/∂h_j|``, standardised, reduced to principal components, a mixture of two
    Gaussians; the score is the posterior of the cluster with the higher mean loss.

    Parameters
    ----------
    signals
        ``attributions``, ``float[n, u]``, 0 or more; logits and labels.
    components
        The number of principal components; at most n and u are used.

    Returns
    -------
    Detection
        A probability in [0, 1]; no class probabilities. All 0 below four samples, or if no unit
        varies.

    Notes
    -----
    Deviations from the paper: principal components, as a dead unit makes the full covariance
    singular, and the higher mean loss, where the paper orients the clusters by the truth. Cannot
    see wrong labels. Cost: O(n u · min(n, u)) and O(n · components²) for each EM step.

    References
    ----------
    arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> bad = np.arange(40) < 10
    >>> vectors = rng.random((40, 3)) + 5 * bad[:, None]
    >>> z = np.where(bad, 0.0, 4.0)[:, None] * np.array([[1.0, 0.0]])
    >>> signals = Signals(np.arange(40), np.zeros(40), z, attributions=vectors)
    >>> bool(((attribution_clusters(signals).score > 0.5) == bad).all())
    True
    """
    assert signals.attributions is not None
    vectors = signals.attributions.astype(np.float64)
    spread = vectors.std(axis=0)
    alive = vectors[:, spread > 1e-12 * (1 + np.abs(vectors).mean(axis=0))]
    if len(alive) < 4 or not alive.shape[1]:
        return Detection(np.zeros(len(vectors)))
    posterior = _two_cluster_posterior((alive - alive.mean(axis=0)) / alive.std(axis=0), components)
    losses = posterior.T @ loss(signals).score / np.maximum(posterior.sum(axis=0), 1e-12)
    return Detection(posterior[:, int(losses.argmax())])


def _two_cluster_posterior(standardised: Floats, components: int) -> Floats:
    """Return the posterior of each of two Gaussian clusters of principal components, ``[n, 2]``."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n_components = min(components, *standardised.shape)
    reduced = PCA(n_components, svd_solver="full").fit_transform(standardised)
    mixture = GaussianMixture(2, reg_covar=1e-6 * max(1.0, float(reduced.var())), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior: Floats = mixture.fit(reduced).predict_proba(reduced)
    return posterior


@detectors.register("feature_clusters", kind="input", needs=("features",))
def feature_clusters(
    signals: Signals,
    *,
    components: int = 32,
    max_reference_samples: int = 4_000,
    separation: float = 8.0,
) -> Detection:
    """Two well-separated clusters of inputs in an early layer, of which the less certain is bad.

    Two means of the first principal components of a layer's standardised features, then Fisher's
    discriminant of the two clusters. Their distance along it is Ashman's D. Of the earlier half of
    the layers, that with the largest D counts. From ``separation`` on, the cluster with more class
    uncertainty is bad, if it has more in 55 % of all pairs.

    Parameters
    ----------
    signals
        ``features``: ``float[n, d]`` by layer, logits and labels.
    components
        The number of principal components.
    max_reference_samples
        The clusters are fitted on at most this many samples.
    separation
        The least Ashman's D, in pooled standard deviations. Clean data sets reach 5 by their
        classes; gross noise has 29 and more.

    Returns
    -------
    Detection
        The signed distance to the border between the clusters, in standard deviations of the
        discriminant; above 0 = bad. All 0 if no clusters are found, or below 40 samples.

    Notes
    -----
    The uncertainty is that of `local_uncertainty`, above the lower quartile of the predicted class.
    Finds faults that are common, alike and gross, also if the network is uncertain of everything.
    Fails if two clean sources of data are as different and one is harder: that looks the same.
    Cost: ``max_reference_samples · components²`` a layer.

    References
    ----------
    Ashman's D: doi 10.1086/117248.

    Examples
    --------
    >>> import numpy as np
    >>> rng, bad = np.random.default_rng(0), np.arange(120) % 3 == 0
    >>> labels = rng.integers(0, 2, 120)
    >>> x = rng.standard_normal((120, 4)) + 3 * np.eye(2, 4)[labels] * ~bad[:, None]
    >>> x[bad, 3] += 90
    >>> signals = Signals(np.arange(120), labels, x[:, :2], features={"layer": x})
    >>> bool(((feature_clusters(signals).score > 0) == bad).all())
    True
    """
    n = len(signals.ids)
    if not layer_posteriors(signals) or n < 2 * _MIN_CLUSTER:
        return Detection(np.zeros(n))
    rows = subsample(n, max_reference_samples, 0, "neighbours")
    along, largest = np.zeros(n), separation
    for features in early_layers(signals):
        project = principal_projection(features, rows, components)
        axis, border, distance = _two_cluster_discriminant(project(rows))
        if distance > largest:
            largest = distance
            chunks = [project(chunk) @ axis for chunk in row_chunks(n, PROJECTION_CHUNK)]
            along = np.concatenate(chunks) - border
    return Detection(_towards_uncertainty(along, signals))


def _towards_uncertainty(along: Floats, signals: Signals) -> Floats:
    """Orient an axis so that the less certain side is positive; all 0 if neither side is."""
    from sklearn.metrics import roc_auc_score

    upper = along > 0
    if upper.all() or not upper.any():
        return np.zeros(len(along))
    uncertainty = uncertainty_above_lower_quartile(signals)
    auroc = float(roc_auc_score(upper, uncertainty))
    if max(auroc, 1 - auroc) < _MIN_GROUP_AUROC:
        return np.zeros(len(along))
    return along if auroc > 0.5 else -along


def _two_cluster_discriminant(x: AnyFloats) -> tuple[Floats, float, float]:
    """Return Fisher's discriminant of two clusters, their border along it, and Ashman's D."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        upper = KMeans(2, n_init=4, random_state=0).fit_predict(x).astype(bool)
    if min(upper.sum(), (~upper).sum()) < _MIN_CLUSTER:
        return np.zeros(x.shape[1]), 0.0, 0.0
    within = sum(np.atleast_2d(np.cov(x[g].T, bias=True)) * g.mean() for g in (upper, ~upper))
    within += max(1e-3 * np.trace(within) / len(within), 1e-12) * np.eye(len(within))
    axis = np.linalg.solve(within, x[upper].mean(axis=0) - x[~upper].mean(axis=0))
    axis /= (x @ axis).std()
    mixture = GaussianMixture(2, random_state=0).fit((x @ axis)[:, None])
    means, stds = mixture.means_[:, 0], np.sqrt(mixture.covariances_[:, 0, 0])
    border = float(means @ stds[::-1] / stds.sum())
    return axis, border, float(ashman_d(means[0], stds[0], means[1], stds[1]))
