"""Label detectors on features: neighbours' labels, distances to class means, pooled probes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge._core.arrays import AnyFloats
from expunge.detection.calibration import safe_log
from expunge.detection.class_arithmetic import label_margins
from expunge.detection.class_rows import LazyRows, logs_of
from expunge.detection.detectors import Detection, detectors
from expunge.detection.evidence import pool_evidence
from expunge.detection.lda import layer_posteriors
from expunge.detection.neighbours import NeighbourSearch, neighbour_votes
from expunge.records import Signals


@detectors.register("knn_disagreement", kind="label", needs=("features",))
def knn_disagreement(
    signals: Signals,
    *,
    k: int | None = None,
    neighbour_search: NeighbourSearch = "exact",
    chunk_size: int = 1024,
) -> Detection:
    """How much the labels of the nearest neighbours contradict the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log v_c − log v_y``, with v the smoothed label shares of the
    k nearest other samples by cosine of centred, pooled features; see `neighbour_votes`.

    Parameters
    ----------
    signals
        ``features``: ``float[n, d]`` by layer. Features of another encoder that came with the
        samples count as one more layer.
    k
        The number of neighbours; by default ``√n / 3``, limited to 5 … 50.
    neighbour_search
        ``"exact"`` or ``"approximate"`` (the extra ``expunge[faiss]``), which is faster beyond
        some 100,000 samples.
    chunk_size
        The number of rows that are searched at once; it does not change the score.

    Returns
    -------
    Detection
        Mean log-odds, and each layer's votes as class probabilities. All 0 without a layer.

    Raises
    ------
    ConfigError
        If ``neighbour_search`` is unknown, or faiss is not installed.

    Notes
    -----
    A layer that has memorised the labels agrees with all of them, so it adds the same to every
    sample; mixing the layers' features before the search would not have this property. Fails for
    wrong labels that are alike, and share their neighbours. Cost: n² · Σ d multiply-adds in chunks
    of ``chunk_size × n``; memory n · Σ d floats.

    References
    ----------
    Deep k-nearest neighbours for label noise: arXiv 2004.12289.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0] * 8 + [1] * 8)
    >>> x = np.eye(2)[labels] + 0.1 * np.random.default_rng(0).standard_normal((16, 2))
    >>> labels[0] = 1
    >>> signals = Signals(np.arange(16), labels, np.zeros((16, 2)), features={"layer": x})
    >>> int(knn_disagreement(signals, k=5).score.argmax())
    0
    """
    return _disagreement(signals, signals.features, k, neighbour_search, chunk_size)


@detectors.register("attribution_knn", kind="label", needs=("attribution_features",))
def attribution_knn(
    signals: Signals,
    *,
    k: int | None = None,
    neighbour_search: NeighbourSearch = "exact",
    chunk_size: int = 1024,
) -> Detection:
    """`knn_disagreement` on gradient × activation of the predicted class.

    The features of a layer are ``h ⊙ ∂(z_k − mean_c z_c)/∂h``, k the predicted class, pooled.

    Parameters
    ----------
    signals
        ``attribution_features``: ``float[n, d]`` by layer.
    k, neighbour_search, chunk_size
        See `knn_disagreement`.

    Returns
    -------
    Detection
        Mean log-odds, and each layer's votes as class probabilities. All 0 without a layer.

    Raises
    ------
    ConfigError
        If ``neighbour_search`` is unknown, or faiss is not installed.

    Notes
    -----
    Not a default: better than `knn_disagreement` in early layers of a network that has not
    memorised its labels, worse in late ones, and worse in all of one that has (docs/detection.md).
    Costs a forward and a backward pass more.

    References
    ----------
    arXiv 2506.11615 and arXiv 2004.12289.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0] * 8 + [1] * 8)
    >>> x = np.eye(2)[labels] + 0.1 * np.random.default_rng(0).standard_normal((16, 2))
    >>> labels[0] = 1
    >>> signals = Signals(np.arange(16), labels, np.zeros((16, 2)), attribution_features={"l": x})
    >>> int(attribution_knn(signals, k=5).score.argmax())
    0
    """
    return _disagreement(signals, signals.attribution_features, k, neighbour_search, chunk_size)


def _disagreement(
    signals: Signals,
    features: Mapping[str, AnyFloats],
    k: int | None,
    neighbour_search: NeighbourSearch,
    chunk_size: int,
) -> Detection:
    n, c = signals.logits.shape
    votes = [
        neighbour_votes(
            f, signals.labels, c, k=k, neighbour_search=neighbour_search, chunk_size=chunk_size
        )
        for f in features.values()
    ]
    if not votes:
        return Detection(np.zeros(n))
    score = np.mean([label_margins(logs_of(v), signals.labels) for v in votes], axis=0)
    return Detection(score, tuple(votes))


@detectors.register("lda_margin", kind="label", needs=("features",))
def lda_margin(signals: Signals) -> Detection:
    """How much nearer the features are to another class than to the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log p_c − log p_y``, with p the leave-one-out posterior of
    linear discriminant analysis on pooled features (see `loo_lda_posteriors`):
    ``log p_c = −½ (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)`` + const.

    Parameters
    ----------
    signals
        ``features``: ``float[n, d]`` by layer, and labels.

    Returns
    -------
    Detection
        Mean log-odds within ± log 10⁴; each layer's posteriors as class probabilities, made without
        the sample's own label. All 0 without a layer.

    Notes
    -----
    The class means come from the given labels; wrong ones pull them together but leave their
    directions. Fails for a majority of wrong labels in a class. Cost: n · Σ d² + Σ d³.

    References
    ----------
    Class-conditional Gaussians of features: arXiv 1807.03888.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0] * 8 + [1] * 8)
    >>> x = np.eye(2)[labels] + 0.1 * np.random.default_rng(0).standard_normal((16, 2))
    >>> labels[0] = 1
    >>> signals = Signals(np.arange(16), labels, np.zeros((16, 2)), features={"layer": x})
    >>> int(lda_margin(signals).score.argmax())
    0
    """
    posteriors = layer_posteriors(signals)
    if not posteriors:
        return Detection(np.zeros(len(signals.ids)))
    margins = [label_margins(logs_of(p), signals.labels) for p in posteriors]
    return Detection(np.mean(margins, axis=0), posteriors, is_leave_one_out=True)


@detectors.register("pooled_margin", kind="label", needs=("features",))
def pooled_margin(signals: Signals, *, held_out_agreement: float | None = None) -> Detection:
    """Log-odds of the best other label against the given one in a pool of cross-fitted probes.

    ``max_{c≠y} log p_c − log p_y``, with p of `expunge.detection.evidence.pool_evidence`: probes on
    the plain input and the first layer and, as far as they have not memorised the labels, deeper
    layers and the model.

    Parameters
    ----------
    signals
        ``inputs``, ``float[n, d]``, features, logits and labels; views and external probabilities
        are used if there are any.
    held_out_agreement
        The share of held-out labels that the model predicts, in [0, 1]. It measures how far the
        model has memorised its training labels.

    Returns
    -------
    Detection
        Log-odds, and the pooled evidence. All 0 without inputs or with hardly any samples.

    Notes
    -----
    No class probabilities join the other detectors' pool. Fails if neither the plain input nor the
    first layer separates the classes and the model has memorised its labels. Cost: see
    `pool_evidence`; no further pass over the data.

    References
    ----------
    Confident learning on out-of-sample probabilities: arXiv 1911.00068. Extremely randomised trees:
    doi 10.1007/s10994-006-6226-1.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0] * 8 + [1] * 8)
    >>> x = np.eye(2)[labels] + 0.1 * np.random.default_rng(0).standard_normal((16, 2))
    >>> labels[0] = 1
    >>> signals = Signals(np.arange(16), labels, np.zeros((16, 2)), inputs=x)
    >>> int(pooled_margin(signals).score.argmax())
    0
    """
    pooled = pool_evidence(signals, held_out_agreement=held_out_agreement)
    if pooled is None:
        return Detection(np.zeros(len(signals.ids)))
    return Detection(label_margins(LazyRows(pooled.probs, safe_log), signals.labels), pooled=pooled)
