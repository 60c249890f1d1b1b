"""Label detectors on the model's outputs and gradients: logits, views, external probabilities."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import Floats
from expunge.detection.class_arithmetic import (
    at_label,
    label_margins,
    log_at_label,
    replace_label,
    row_sum,
    softmax,
)
from expunge.detection.class_rows import LazyRows, by_chunks, doubles_of, logs_of
from expunge.detection.detectors import Detection, detectors
from expunge.detection.memorisation import augmented_probs_if_informative
from expunge.detection.opinion_pool import smooth
from expunge.errors import DataError
from expunge.records import Signals, TopClasses


def _softmax_error_norm(signals: Signals) -> Floats:
    """Return ``‖p − e_y‖₂``: of the gradient of the cross-entropy in the logits."""

    def norm(rows: slice) -> Floats:
        labels = signals.labels[rows]
        probs = softmax(doubles_of(signals.logits)[rows])
        error = replace_label(probs, labels, at_label(probs, labels) - 1.0)
        if isinstance(error, TopClasses):
            return np.sqrt(row_sum(error.map(np.square)))
        norms: Floats = np.linalg.norm(error, axis=1)
        return norms

    return by_chunks(norm, len(signals.labels))


@detectors.register("loss", kind="label")
def loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label.

    ``−log p_y`` with ``p = softmax(z)``.

    Parameters
    ----------
    signals
        Logits ``float32[n, c]`` and labels.

    Returns
    -------
    Detection
        The loss in nats, 0 or more; no class probabilities.

    Notes
    -----
    Cost: O(n c). Fails for a network that has memorised its labels: all losses are near 0.

    References
    ----------
    Small losses belong to right labels early in training: arXiv 1706.05394.

    Examples
    --------
    >>> import numpy as np
    >>> signals = Signals(np.arange(2), np.array([0, 0]), np.array([[2.0, 0], [0, 2]]))
    >>> loss(signals).score.round(3)
    array([0.127, 2.127])
    """
    logits, labels = doubles_of(signals.logits), signals.labels
    return Detection(-by_chunks(lambda rows: log_at_label(logits[rows], labels[rows]), len(labels)))


@detectors.register("margin", kind="label")
def margin(signals: Signals) -> Detection:
    """Best other logit minus the given label's.

    ``max_{c≠y} z_c − z_y``.

    Parameters
    ----------
    signals
        Logits ``float32[n, c]``, c ≥ 2, and labels.

    Returns
    -------
    Detection
        The negative margin in logits; above 0 if another class is predicted.

    Notes
    -----
    Cost: O(n c). Fails for a network that has memorised its labels. Not bounded as `loss` is near
    0, so it still ranks samples of which the network is certain.

    References
    ----------
    Area under the margin (there averaged over training): arXiv 2001.10528.

    Examples
    --------
    >>> import numpy as np
    >>> signals = Signals(np.arange(2), np.array([0, 0]), np.array([[2.0, 0], [0, 2]]))
    >>> margin(signals).score
    array([-2.,  2.])
    """
    return Detection(label_margins(doubles_of(signals.logits), signals.labels))


@detectors.register("el2n", kind="label")
def el2n(signals: Signals) -> Detection:
    """Norm of the softmax's error.

    ``‖p − e_y‖₂`` with ``p = softmax(z)``.

    Parameters
    ----------
    signals
        Logits ``float32[n, c]`` and labels.

    Returns
    -------
    Detection
        The norm, in [0, √2].

    Notes
    -----
    Cost: O(n c). Fails for a network that has memorised its labels. Hard samples score high too.

    References
    ----------
    arXiv 2107.07075 (there averaged over networks early in training).

    Examples
    --------
    >>> import numpy as np
    >>> signals = Signals(np.arange(2), np.array([0, 1]), np.array([[9.0, 0], [9, 0]]))
    >>> el2n(signals).score.round(2)
    array([0.  , 1.41])
    """
    return Detection(_softmax_error_norm(signals))


@detectors.register("self_influence", kind="label", needs=("head_input_norm",))
def self_influence(signals: Signals) -> Detection:
    """Gradient norm of the loss in the last layer's parameters, in closed form.

    ``‖p − e_y‖₂ · √(‖h‖² + 1)``, with h the input of the last layer. Its square is the sample's
    TracIn self-influence at the last layer.

    Parameters
    ----------
    signals
        Logits ``float32[n, c]``, labels, and ``per_sample["head_input_norm"]``, ``‖h‖``.

    Returns
    -------
    Detection
        The norm, 0 or more.

    Notes
    -----
    Cost: O(n c). Needs a linear last layer. Fails for a network that has memorised its labels; a
    large ‖h‖ can hide a small error.

    References
    ----------
    TracIn: arXiv 2002.08484.

    Examples
    --------
    >>> import numpy as np
    >>> norm = {"head_input_norm": np.array([0.0, 1.0])}
    >>> signals = Signals(np.arange(2), np.array([1, 1]), np.array([[9.0, 0]] * 2), norm)
    >>> self_influence(signals).score.round(2)
    array([1.41, 2.  ])
    """
    h = signals.per_sample["head_input_norm"]
    return Detection(_softmax_error_norm(signals) * np.sqrt(h**2 + 1))


@detectors.register("attribution", kind="label", needs=("attribution",))
def attribution(signals: Signals) -> Detection:
    """Label-conditional gradient × activation at one layer, summed and negated.

    ``−Σ_j h_j ∂(z_y − z_rival)/∂h_j``, with the rival the best other class. The published
    attribution takes the maximum over classes and so cannot see a wrong label; this one compares
    the layer's evidence for the given label with that for the best other class.

    Parameters
    ----------
    signals
        ``per_sample["attribution"]``, ``float64[n]``, in logits.

    Returns
    -------
    Detection
        The negated attribution.

    Notes
    -----
    At the head it is `margin` without the bias and costs nothing; at a layer without a closed form
    it costs a forward and a backward pass. Fails for a network that has memorised its labels.

    References
    ----------
    arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> found = {"attribution": np.array([3.0, -1.0])}
    >>> attribution(Signals(np.arange(2), np.zeros(2), np.zeros((2, 2)), found)).score
    array([-3.,  1.])
    """
    return Detection(-signals.per_sample["attribution"])


@detectors.register("layerwise_attribution", kind="label", needs=("layerwise_attribution",))
def layerwise_attribution(signals: Signals) -> Detection:
    """Label-conditional gradient × activation at every feature layer, summed and negated.

    The mean over layers of `attribution`, each over its standard deviation.

    Parameters
    ----------
    signals
        ``per_sample["attribution.<layer>"]``, ``float64[n]`` each.

    Returns
    -------
    Detection
        The negated mean, in standard deviations.

    Notes
    -----
    Not a default: early layers carry little of it (docs/detection.md). Costs a forward and a
    backward pass.

    References
    ----------
    arXiv 2506.11615.

    Examples
    --------
    >>> import numpy as np
    >>> found = {"attribution.a": np.array([3.0, -1.0]), "attribution.b": np.array([1.0, 0.0])}
    >>> layerwise_attribution(Signals(np.arange(2), np.zeros(2), np.zeros((2, 2)), found)).score
    array([-1.75,  0.25])
    """
    columns = [v for k, v in signals.per_sample.items() if k.startswith("attribution.")]
    return Detection(-np.mean([v / max(float(v.std()), 1e-12) for v in columns], axis=0))


@detectors.register("augmented_loss", kind="label", needs=("views",))
def augmented_loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label, averaged over random views of the input.

    ``−(1/V) Σ_v log p_y(view_v)``. Views that the training did not use reveal what memorisation
    hides.

    Parameters
    ----------
    signals
        ``augmented_loss``, ``float[n]``, ``augmented_probs``, ``float[n, c]``, logits and labels.

    Returns
    -------
    Detection
        The loss in nats; the augmented predictions as class probabilities, unless the network has
        memorised its labels (see `augmented_probs_if_informative`).

    Notes
    -----
    Costs a forward pass a view. Fails if the network was trained on the same views until it
    memorised the labels, and adds nothing to `loss` for inputs without views.

    References
    ----------
    Augmentation in loss models of noisy labels: arXiv 2103.02130.

    Examples
    --------
    >>> import numpy as np
    >>> signals = Signals(
    ...     np.arange(2), np.zeros(2), np.zeros((2, 2)),
    ...     augmented_probs=np.array([[0.9, 0.1], [0.4, 0.6]]), augmented_loss=np.array([0.1, 1.0]),
    ... )
    >>> augmented_loss(signals).score
    array([0.1, 1. ])
    """
    assert signals.augmented_loss is not None
    score = signals.augmented_loss.astype(np.float64)
    return Detection(score, augmented_probs_if_informative(signals))


@detectors.register("augmented_margin", kind="label", needs=("views",))
def augmented_margin(signals: Signals) -> Detection:
    """Log-odds of the best other label against the given one, under the mean over random views.

    ``max_{c≠y} log p_c − log p_y``, with the probabilities smoothed by one vote in twenty,
    ``p = (20 p̄ + 1/c) / 21``, so that an overconfident network cannot outvote all other evidence.

    Parameters
    ----------
    signals
        ``augmented_probs``, ``float[n, c]``, c ≥ 2, logits and labels.

    Returns
    -------
    Detection
        Log-odds within ± log(20 c + 1); the augmented predictions as class probabilities, unless
        the network has memorised its labels (see `augmented_probs_if_informative`).

    Notes
    -----
    Costs a forward pass a view. Fails if the network was trained on the same views until it
    memorised the labels.

    References
    ----------
    Augmentation in loss models of noisy labels: arXiv 2103.02130.

    Examples
    --------
    >>> import numpy as np
    >>> p = np.array([[0.9, 0.1], [0.4, 0.6]])
    >>> signals = Signals(
    ...     np.arange(2), np.zeros(2), np.log(p), augmented_probs=p, augmented_loss=np.ones(2)
    ... )
    >>> augmented_margin(signals).score.round(2)
    array([-2.  ,  0.39])
    """
    assert signals.augmented_probs is not None
    probs = LazyRows(signals.augmented_probs, smooth)
    margins = label_margins(logs_of(probs), signals.labels)
    return Detection(margins, augmented_probs_if_informative(signals))


@detectors.register("external_margin", kind="label")
def external_margin(signals: Signals) -> Detection:
    """Log-odds of the best other label against the given one in external probabilities.

    ``max_{c≠y} log p_c − log p_y``, smoothed as in `augmented_margin`; the mean over sources.

    Parameters
    ----------
    signals
        ``external_probs``: one or more ``float[n, c]`` by name, out-of-sample probabilities or
        means over a training's checkpoints; see `Samples`.

    Returns
    -------
    Detection
        Log-odds, and the smoothed sources as class probabilities.

    Raises
    ------
    DataError
        If there are no external probabilities.

    Notes
    -----
    Cost: O(n c) a source. As good as its sources: in-sample probabilities of a network that has
    memorised the labels carry no evidence.

    References
    ----------
    Confident learning: arXiv 1911.00068.

    Examples
    --------
    >>> import numpy as np
    >>> folds = {"folds": np.array([[0.9, 0.1], [0.4, 0.6]])}
    >>> signals = Signals(np.arange(2), np.zeros(2), np.zeros((2, 2)), external_probs=folds)
    >>> external_margin(signals).score.round(2)
    array([-2.  ,  0.39])
    """
    if not signals.external_probs:
        raise DataError(
            "detector 'external_margin' needs external probabilities, the samples have none",
            fix="give them some: dataclasses.replace(samples, external_probs={'folds': p})",
        )
    sources = [smooth(p) for p in signals.external_probs.values()]
    margins = [label_margins(logs_of(p), signals.labels) for p in sources]
    return Detection(np.mean(margins, axis=0), tuple(sources))
