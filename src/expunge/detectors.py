"""From signals to one number a sample: higher = more likely bad. Pure functions, plug-ins.

Register with ``@detector(name, kind, needs)``; keyword-only arguments are the detector's options.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from expunge.errors import ConfigError, DataError
from expunge.registry import Registry
from expunge.tables import Scores, Signals


@dataclass(frozen=True)
class Detection:
    """What a detector says.

    score: ``float64[n]``. class_probs: what each of its sources says about the label, each
    ``float[n, c]``; none if it has nothing to say about that.
    """

    score: np.ndarray
    class_probs: tuple[np.ndarray, ...] = ()


# A layer that agrees with the given labels so much more often than views do has memorised them.
MEMORISED = 0.1
# The opinion pool is fitted on about so many samples; its ridge keeps certain sources finite.
_POOL_ROWS = 20_000
_POOL_RIDGE = 1e-3

detectors: Registry[Callable[..., Detection]] = Registry("detector")
_KINDS: dict[str, str] = {}
_NEEDS: dict[str, frozenset[str]] = {}


def detector(
    name: str, kind: Literal["label", "input"], *needs: str
) -> Callable[[Callable[..., Detection]], Callable[..., Detection]]:
    """Register a detector, the fault it speaks of, and what it needs from the pass."""
    _KINDS[name], _NEEDS[name] = kind, frozenset(needs)
    return detectors.register(name)


def kind_of(name: str) -> str:
    """The fault that a detector speaks of: ``"label"`` or ``"input"``."""
    detectors.get(name)
    return _KINDS.get(name, "label")


def needs_of(names: tuple[str, ...]) -> frozenset[str]:
    """What the pass over the data has to collect for these detectors."""
    for name in names:
        detectors.get(name)
    return frozenset().union(*(_NEEDS.get(name, frozenset()) for name in names))


def detect(
    signals: Signals, names: tuple[str, ...], options: Mapping[str, Mapping[str, Any]] | None = None
) -> Scores:
    """Run the named detectors on the signals.

    The class distribution of the result pools what the detectors say about labels, see
    `opinion_pool`; where none says anything, it is the model's softmax.
    """
    if not names:
        raise ConfigError("no detector is named", fix=f"choose from: {detectors.names()}")
    found = {}
    for name in names:
        chosen = dict((options or {}).get(name, {}))
        detectors.check_options(name, chosen)
        _require(signals, name)
        found[name] = detectors.get(name)(signals, **chosen)
    sources = _not_memorised([q for d in found.values() for q in d.class_probs], signals)
    class_probs = softmax(signals.logits, axis=1)
    if sources:
        class_probs = opinion_pool(sources, signals.labels)
    agreement = {"model": _agreement(signals.logits, signals)}
    if signals.view_probs is not None:
        agreement["views"] = _agreement(signals.view_probs, signals)
    return Scores(
        ids=signals.ids,
        labels=signals.labels,
        values={name: d.score for name, d in found.items()},
        kinds={name: kind_of(name) for name in names},
        class_probs=class_probs,
        agreement=agreement,
    )


def _require(signals: Signals, name: str) -> None:
    """Refuse signals that were collected without what the detector needs."""
    has = {
        "attribution": "attribution" in signals.columns,
        "mass": "attribution_mass" in signals.columns,
        "head": "head_input_norm" in signals.columns,
        "vectors": signals.attributions is not None,
        "views": signals.view_probs is not None and signals.view_loss is not None,
        "features": True,  # a network may have no hidden layer
    }
    missing = sorted(need for need in needs_of((name,)) if not has[need])
    if missing:
        raise DataError(
            f"detector '{name}' needs {', '.join(missing)}, which the signals do not hold",
            fix="collect them with needs = needs_of(detectors)",
        )


@detector("loss", "label")
def loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label: ``−log p_y``."""
    return Detection(-_given(log_softmax(signals.logits.astype(np.float64), axis=1), signals))


@detector("margin", "label")
def margin(signals: Signals) -> Detection:
    """Best other logit minus the given label's: ``max_{c≠y} z_c − z_y``."""
    return Detection(label_margin(signals.logits.astype(np.float64), signals.labels))


@detector("el2n", "label")
def el2n(signals: Signals) -> Detection:
    """Norm of the error: ``‖p − e_y‖₂`` (arXiv 2107.07075)."""
    return Detection(np.linalg.norm(_error(signals), axis=1))


@detector("self_influence", "label", "head")
def self_influence(signals: Signals) -> Detection:
    """Gradient norm of the loss in the last layer: ``‖p − e_y‖ · √(‖h‖² + 1)``, in closed form.

    The square is the sample's TracIn self-influence at the last layer (arXiv 2002.08484).
    """
    h = signals.columns["head_input_norm"]
    return Detection(np.linalg.norm(_error(signals), axis=1) * np.sqrt(h**2 + 1))


@detector("attribution", "label", "attribution")
def attribution(signals: Signals) -> Detection:
    """Label-conditional gradient × activation, summed: ``−Σ_j h_j ∂(z_y − z_rival)/∂h_j``.

    The published attribution takes the maximum over classes and so cannot see a wrong label
    (arXiv 2506.11615); this one asks what the layer says for the given label against the best
    other.
    """
    return Detection(-signals.columns["attribution"])


@detector("attribution_mass", "input", "mass")
def attribution_mass(signals: Signals) -> Detection:
    """Size of the label-free attribution, ``Σ_j |h_j max_c ∂z_c/∂h_j|``, compared within class.

    Its logarithm, centred on the predicted class (median) and scaled by the median absolute
    deviation. Corrupted inputs can excite a network too little or too much: the sign is set so that
    larger goes with larger loss over the samples (rank correlation), which needs no truth.
    """
    mass = np.log(np.maximum(signals.columns["attribution_mass"], 1e-12))
    centred = centred_by_class(mass, signals.logits.argmax(axis=1), signals.logits.shape[1])
    # Not the loss of the given label: wrong labels must not decide which inputs look bad.
    doubt = -log_softmax(signals.logits.astype(np.float64), axis=1).max(axis=1)
    sign = spearmanr(centred, doubt).statistic if np.ptp(centred) and np.ptp(doubt) else 0.0
    return Detection(-centred if sign < 0 else centred)


@detector("attribution_clusters", "input", "vectors")
def attribution_clusters(signals: Signals, *, components: int = 16) -> Detection:
    """The published partition: two Gaussian clusters of the label-free attribution vectors.

    ``A_j = |h_j max_c ∂z_c/∂h_j|``, standardised, reduced to principal components (a dead unit
    makes the full covariance singular), a mixture of two; the score is the probability of the
    cluster with the higher mean loss (arXiv 2506.11615 orients by the truth). Cannot see labels.
    """
    assert signals.attributions is not None
    vectors = signals.attributions.astype(np.float64)
    spread = vectors.std(axis=0)
    alive = vectors[:, spread > 1e-12 * (1 + np.abs(vectors).mean(axis=0))]
    if len(alive) < 4 or not alive.shape[1]:
        return Detection(np.zeros(len(vectors)))
    standard = (alive - alive.mean(axis=0)) / alive.std(axis=0)
    few = min(components, *standard.shape)
    reduced = PCA(few, svd_solver="full").fit_transform(standard)
    mixture = GaussianMixture(2, reg_covar=1e-6 * max(1.0, float(reduced.var())), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        share = mixture.fit(reduced).predict_proba(reduced)
    weighted = share.T @ loss(signals).score / np.maximum(share.sum(axis=0), 1e-12)
    return Detection(share[:, int(weighted.argmax())])


@detector("neighbour_disagreement", "label", "features")
def neighbour_disagreement(
    signals: Signals, *, k: int | None = None, chunk: int = 1024
) -> Detection:
    """How much the nearest neighbours' labels speak against the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log v_c − log v_y``, with v the smoothed label shares of the
    k nearest other samples by cosine of centred, pooled features. k defaults to ``√n / 3`` within
    5 … 50. A layer that has memorised the labels agrees with all of them, so it adds the same to
    every sample and spoils nothing; mixing the layers' features before the search would.

    Cost: n² · Σ d multiply-adds in chunks of ``chunk × n``; memory n · Σ d floats.
    """
    n, c = signals.logits.shape
    votes = [neighbour_votes(f, signals.labels, c, k, chunk) for f in signals.features.values()]
    if not votes:
        return Detection(np.zeros(n))
    score = np.mean([label_margin(np.log(v), signals.labels) for v in votes], axis=0)
    return Detection(score, tuple(votes))


@detector("class_distance", "label", "features")
def class_distance(signals: Signals) -> Detection:
    """How much nearer another class is than the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log p_c − log p_y``, with p the linear discriminant's
    posterior on pooled features: ``log p_c = −½ (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)`` + const. The means come
    from the given labels; wrong ones pull them together but leave the directions. Cost: n · Σ d².
    """
    n, c = signals.logits.shape
    posteriors = [_discriminant(f, signals.labels, c) for f in signals.features.values()]
    if not posteriors:
        return Detection(np.zeros(n))
    margins = [label_margin(np.log(p), signals.labels) for p in posteriors]
    return Detection(np.mean(margins, axis=0), tuple(posteriors))


@detector("feature_distance", "input", "features")
def feature_distance(signals: Signals) -> Detection:
    """How unusual a sample's features are, whatever its label.

    The mean over layers of ``log (f − μ)ᵀ Σ⁻¹ (f − μ)``, the squared Mahalanobis distance of pooled
    features to their mean over all samples (arXiv 1807.03888, without classes: a wrong label must
    not look like a bad input). Cost: n · Σ d².
    """
    distances = []
    for features in signals.features.values():
        white = _whitened(features, features - features.mean(axis=0, dtype=np.float64))
        distances.append(np.log(np.maximum((white**2).sum(axis=1), 1e-12)))
    return Detection(np.mean(distances, axis=0) if distances else np.zeros(len(signals.ids)))


@detector("view_loss", "label", "views")
def view_loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label, averaged over random views of the input.

    Views that the training did not use bring back what memorisation hides.
    """
    assert signals.view_loss is not None
    assert signals.view_probs is not None
    return Detection(signals.view_loss.astype(np.float64), _views_if_trusted(signals))


@detector("view_margin", "label", "views")
def view_margin(signals: Signals) -> Detection:
    """Log-odds of the best other label against the given one under the mean over random views.

    ``max_{c≠y} log p_c − log p_y`` with the probabilities smoothed as one vote in twenty would, so
    that an overconfident network cannot outvote all other evidence.
    """
    assert signals.view_probs is not None
    c = signals.logits.shape[1]
    smooth = (20 * signals.view_probs.astype(np.float64) + 1 / c) / 21
    return Detection(label_margin(np.log(smooth), signals.labels), _views_if_trusted(signals))


def opinion_pool(sources: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """One class distribution out of many: ``p ∝ Π_s q_s^{β_s}``, ``float64[n, c]``.

    The weights β ≥ 0 maximise the likelihood of the given labels (a logarithmic opinion pool, doi
    10.1214/ss/1177013825; convex, few parameters). So a poor or overconfident source gets little
    weight, and the result is calibrated for labels as noisy as the given ones are; which class is
    the most likely is as it would be for the right ones, as long as wrong labels scatter.
    """
    logs = np.stack([np.log(np.maximum(q, 1e-12)) for q in sources])
    fitted = logs[:, :: max(1, len(labels) // _POOL_ROWS)]
    given = labels[:: max(1, len(labels) // _POOL_ROWS)]
    rows = np.arange(len(given))

    def loss_and_slope(beta: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.tensordot(beta, fitted, axes=1), axis=1)
        expected = (fitted * np.exp(log_p)).sum(axis=2).mean(axis=1)
        slope = expected - fitted[:, rows, given].mean(axis=1)
        unlikely = -log_p[rows, given].mean() + _POOL_RIDGE * beta @ beta
        return unlikely, slope + 2 * _POOL_RIDGE * beta

    start = np.full(len(sources), 1 / len(sources))
    bounds = [(0.0, None)] * len(sources)
    beta = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return softmax(np.tensordot(beta, logs, axes=1), axis=1)


def _not_memorised(sources: list[np.ndarray], signals: Signals) -> list[np.ndarray]:
    """The sources that do not agree with the given labels far more often than views do."""
    if signals.view_probs is None or not sources:
        return sources
    limit = _agreement(signals.view_probs, signals) + MEMORISED
    agreement = [_agreement(q, signals) for q in sources]
    trusted = [q for q, a in zip(sources, agreement, strict=True) if a <= limit]
    return trusted or [sources[int(np.argmin(agreement))]]


def _views_if_trusted(signals: Signals) -> tuple[np.ndarray, ...]:
    """Views of a network that fits the labels far better than its views has memorised: no say.

    They lean towards the wrong labels too, and the likelihood of these would favour them.
    """
    assert signals.view_probs is not None
    gap = _agreement(signals.logits, signals) - _agreement(signals.view_probs, signals)
    return () if gap > MEMORISED else (signals.view_probs,)


def _agreement(values: np.ndarray, signals: Signals) -> float:
    return float((values.argmax(axis=1) == signals.labels).mean())


def neighbour_votes(
    features: np.ndarray, labels: np.ndarray, classes: int, k: int | None, chunk: int
) -> np.ndarray:
    """``float64[n, c]``: label shares among the k nearest other samples, smoothed by one vote."""
    n = len(labels)
    k = k if k is not None else int(np.clip(round(np.sqrt(n) / 3), 5, 50))
    k = min(k, n - 1)
    space = _unit_rows(features)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels.copy()), classes).float()
    votes = torch.empty(n, classes)
    for start in range(0, n, chunk):
        similarity = space[start : start + chunk] @ space.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        nearest = similarity.topk(k, dim=1, sorted=False).indices
        votes[start : start + chunk] = one_hot[nearest].sum(dim=1)
    return ((votes + 1.0 / classes) / (k + 1.0)).double().numpy()


def _discriminant(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """``float64[n, c]``: posteriors of linear discriminant analysis, equal priors, floored."""
    present = np.unique(labels)
    means = np.stack([features[labels == k].mean(axis=0, dtype=np.float64) for k in present])
    row = np.searchsorted(present, labels)
    white = _whitened(features, features - means[row], means)
    points, centres = white[: len(features)], white[len(features) :]
    squared = (centres**2).sum(axis=1) - 2 * points @ centres.T
    log_p = np.full((len(features), classes), -np.inf)
    log_p[:, present] = log_softmax(-0.5 * squared, axis=1)
    return np.exp(np.maximum(log_p, np.log(1e-6)))


def _whitened(
    features: np.ndarray, residuals: np.ndarray, more: np.ndarray | None = None
) -> np.ndarray:
    """Features (and more rows) in the basis where the residuals are white; shrunken covariance.

    ``Σ = RᵀR / n + 10⁻³ · mean variance · I``, so that constant columns do no harm.
    """
    covariance = residuals.T @ residuals / len(residuals)
    ridge = 1e-3 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    rows = features if more is None else np.concatenate([features, more])
    return (rows - features.mean(axis=0, dtype=np.float64)) @ (vectors / np.sqrt(values))


def label_margin(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``max_{c≠y} v_c − v_y`` for each row of ``v``, ``float[n, c]``."""
    rows = np.arange(len(labels))
    others = values.copy()
    others[rows, labels] = -np.inf
    return others.max(axis=1) - values[rows, labels]


def centred_by_class(values: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """Values minus their group's median, over the median absolute deviation of all that is left."""
    centred = values.astype(np.float64).copy()
    for group in range(classes):
        inside = groups == group
        if inside.any():
            centred[inside] -= np.median(values[inside])
    spread = np.median(np.abs(centred))
    return centred / spread if spread > 0 else centred


def _unit_rows(features: np.ndarray) -> torch.Tensor:
    """Rows of length one after each column has been centred; constant columns vanish."""
    x = torch.from_numpy(features - features.mean(axis=0, keepdims=True))
    return torch.nn.functional.normalize(x, dim=1)


def _given(values: np.ndarray, signals: Signals) -> np.ndarray:
    return values[np.arange(len(signals.labels)), signals.labels]


def _error(signals: Signals) -> np.ndarray:
    error = softmax(signals.logits.astype(np.float64), axis=1)
    error[np.arange(len(signals.labels)), signals.labels] -= 1.0
    return error
