"""Input detectors: corrupted inputs, whatever their label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge._core.arrays import Floats
from expunge._core.rng import subsample
from expunge.detection.class_arithmetic import log_at_label
from expunge.detection.class_rows import by_chunks, doubles_of, predicted
from expunge.detection.detectors import Detection, detectors
from expunge.detection.lda import layer_posteriors, loo_ridge_predictions, squared_mahalanobis
from expunge.detection.neighbours import neighbour_mean
from expunge.detection.uncertainty import (
    centre_by_group,
    class_uncertainty,
    early_layers,
    uncertainty_above_lower_quartile,
    uncertainty_above_quantile,
)
from expunge.records import Signals

# feature_distance changes its sign if the nearest samples are the less certain ones in this many of
# all pairs, and compares at least this many of the nearest with as many of the farthest.
_FLIP_AUROC, _TAIL_SIZE = 0.9, 20


@detectors.register("attribution_mass", kind="input", needs=("attribution_mass",))
def attribution_mass(signals: Signals) -> Detection:
    """Size of the label-free attribution, compared within the predicted class.

    ``log Σ_j |h_j max_c ∂z_c/∂h_j|``, minus its median over the predicted class, over the median
    absolute deviation of all samples; times −1 if its rank correlation with the uncertainty
    ``−log max_c p_c`` is negative.

    Parameters
    ----------
    signals
        ``per_sample["attribution_mass"]``, ``float64[n]``, 0 or more, and logits.

    Returns
    -------
    Detection
        The centred logarithm in robust deviations; no class probabilities.

    Notes
    -----
    Corrupted inputs can excite a network too little or too much: the sign follows the uncertainty,
    so that no truth is needed. The uncertainty ignores the given label: wrong labels must not
    decide which inputs look bad. Fails if the network is certain of the corrupted inputs. Cost:
    O(n log n), and at a layer without a closed form c backward passes.

    References
    ----------
    arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> mass, z = np.array([1.0, 1.1, 0.9, 5.0]), np.array([[4.0, 0]] * 3 + [[1, 0]])
    >>> signals = Signals(np.arange(4), np.zeros(4), z, {"attribution_mass": mass})
    >>> int(attribution_mass(signals).score.argmax())
    3
    """
    from scipy.stats import spearmanr

    logits = doubles_of(signals.logits)
    best = predicted(logits)
    mass = np.log(np.maximum(signals.per_sample["attribution_mass"], 1e-12))
    centred = centre_by_group(mass, best)
    uncertainty = -by_chunks(lambda rows: log_at_label(logits[rows], best[rows]), len(best))
    varies = np.ptp(centred) and np.ptp(uncertainty)
    correlation = spearmanr(centred, uncertainty).statistic if varies else 0.0
    return Detection(-centred if correlation < 0 else centred)


@detectors.register("feature_distance", kind="input", needs=("features",))
def feature_distance(signals: Signals) -> Detection:
    """How unusual a sample's features are, whatever its label.

    The mean over layers of ``log (f − μ)ᵀ Σ⁻¹ (f − μ)``, the squared Mahalanobis distance of pooled
    features to the mean of all samples; times −1 if the nearest samples are the uncertain ones.

    Parameters
    ----------
    signals
        ``features``: ``float[n, d]`` by layer, and labels.

    Returns
    -------
    Detection
        The mean logarithm; no class probabilities. All 0 without a layer.

    Notes
    -----
    Without classes, unlike the paper: a wrong label must not look like a bad input. Bad inputs that
    are all alike, plain noise for example, can be common, and nearer to the mean than good ones:
    the sign changes if the nearest hundredth (at least 20) is less certain of its class than the
    farthest one in nine pairs of ten. The uncertainty is ``−log max_c p_c`` with p as in
    `lda_margin`, the mean over layers: a network that has memorised is certain of noise too. Fails
    for bad inputs at the usual distance. Cost: n · Σ d² + Σ d³.

    References
    ----------
    arXiv 1807.03888.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((60, 2))
    >>> x[7] = 9.0
    >>> signals = Signals(np.arange(60), np.arange(60) % 2, np.zeros((60, 2)), features={"l": x})
    >>> int(feature_distance(signals).score.argmax())
    7
    """
    squared = [squared_mahalanobis(features) for features in signals.features.values()]
    if not squared:
        return Detection(np.zeros(len(signals.ids)))
    distance = np.mean([np.log(np.maximum(d, 1e-12)) for d in squared], axis=0)
    uncertainty = class_uncertainty(signals)
    order, n = np.argsort(distance, kind="stable"), len(distance)
    tail = min(max(-(-n // 100), _TAIL_SIZE), -(-n // 2))
    pairs = uncertainty[order[:tail], None] > uncertainty[order[-tail:]]
    return Detection(-distance if pairs.mean() >= _FLIP_AUROC else distance)


@detectors.register("local_uncertainty", kind="input", needs=("features",))
def local_uncertainty(
    signals: Signals, *, k: int = 50, components: int = 32, max_reference_samples: int = 4_000
) -> Detection:
    """Class uncertainty that a sample shares with samples of similar features.

    The uncertainty is ``−log max_c p_c``, the mean over layers, with p as in `lda_margin`. Two
    numbers are made of it:

    - leave-one-out ridge regression of it on the features (`loo_ridge_predictions`, the mean over
      layers) estimates how many samples are bad: clean inputs leave no gap in its values;
    - its mean over the k nearest neighbours (`neighbour_mean`, the mean over the earlier half of
      the layers) ranks samples better if faults are of several kinds.

    The score has the *values* of the first and the *order* of the second.

    Parameters
    ----------
    signals
        ``features``: ``float[n, d]`` by layer, logits and labels.
    k
        The number of neighbours.
    components
        The number of principal components in which they are searched.
    max_reference_samples
        Neighbours are searched among at most this many samples.

    Returns
    -------
    Detection
        The prediction in standard deviations; no class probabilities. All 0 without a layer.

    Notes
    -----
    Uncertainties are compared within the predicted class, as some classes are harder: with the
    median for the regression, and with the lower quartile for the neighbours, as half of a class
    may be bad. Finds faults that are common and alike, also in a network that has memorised them.
    Fails for faults that leave the class as certain as before. Cost:
    ``n · Σ d² + n · max_reference_samples · components``.

    References
    ----------
    Ridge leave-one-out: doi 10.1080/00401706.1974.10489157.

    Examples
    --------
    >>> import numpy as np
    >>> rng, bad = np.random.default_rng(0), np.arange(120) % 4 == 0
    >>> labels = rng.integers(0, 2, 120)
    >>> x = rng.standard_normal((120, 4)) + 6 * np.eye(2, 4)[labels] * ~bad[:, None]
    >>> x[bad, 3] += 6
    >>> signals = Signals(np.arange(120), labels, x[:, :2], features={"layer": x})
    >>> score = local_uncertainty(signals, k=10).score
    >>> bool(score[bad].min() > score[~bad].mean())
    True
    """
    n = len(signals.ids)
    if not layer_posteriors(signals):
        return Detection(np.zeros(n))
    above_median = uncertainty_above_quantile(signals, 0.5)
    above_quartile = uncertainty_above_lower_quartile(signals)
    rows = subsample(n, max_reference_samples, 0, "neighbours")
    ranks = _mean_of_scaled(
        [
            neighbour_mean(f, above_quartile, rows, k=k, components=components)
            for f in early_layers(signals)
        ]
    )
    predicted = _mean_of_scaled(
        [loo_ridge_predictions(f, above_median) for f in signals.features.values()]
    )
    score = np.empty(n)
    score[np.argsort(ranks, kind="stable")] = np.sort(predicted)
    return Detection(score)


def _mean_of_scaled(columns: Sequence[Floats]) -> Floats:
    """Return the mean of columns, each over its standard deviation."""
    mean: Floats = np.mean([c / max(float(c.std()), 1e-12) for c in columns], axis=0)
    return mean
