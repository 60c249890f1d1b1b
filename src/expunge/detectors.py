"""From signals to one number a sample: higher = more likely bad. Pure functions, plug-ins.

Register with ``@detector(name, kind, needs)``; keyword-only arguments are the detector's options.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from expunge.errors import ConfigError
from expunge.registry import Registry
from expunge.tables import Scores, Signals


@dataclass(frozen=True)
class Detection:
    """What a detector says.

    score: ``float64[n]``. class_probs: ``float[n, c]``, the label distribution that its evidence
    supports with the given label left aside, or None if it has nothing to say about that.
    """

    score: np.ndarray
    class_probs: np.ndarray | None = None


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

    The class distribution of the result is the normalised geometric mean of the detectors' own;
    where none has one, it is the model's softmax.
    """
    if not names:
        raise ConfigError("no detector is named", fix=f"choose from: {detectors.names()}")
    found = {}
    for name in names:
        chosen = dict((options or {}).get(name, {}))
        detectors.check_options(name, chosen)
        found[name] = detectors.get(name)(signals, **chosen)
    spoken = [d.class_probs for d in found.values() if d.class_probs is not None]
    if spoken:
        log_mean = sum(np.log(np.maximum(p, 1e-12)) for p in spoken) / len(spoken)
        class_probs = softmax(log_mean, axis=1)
    else:
        class_probs = softmax(signals.logits, axis=1)
    return Scores(
        ids=signals.ids,
        labels=signals.labels,
        values={name: d.score for name, d in found.items()},
        kinds={name: kind_of(name) for name in names},
        class_probs=class_probs,
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
    """How much the nearest neighbours' labels speak against the given one.

    ``max_{c≠y} log v_c − log v_y`` with v the smoothed label shares of the k nearest other samples
    by the mean cosine over layers of centred, pooled features. k defaults to ``√n / 3`` within
    5 … 50. Intermediate layers keep the evidence after the last have memorised the labels.

    Cost: n² · Σ d multiply-adds in chunks of ``chunk × n``; memory n · Σ d floats.
    """
    votes = neighbour_votes(signals.features, signals.labels, signals.logits.shape[1], k, chunk)
    return Detection(label_margin(np.log(votes), signals.labels), votes)


@detector("view_loss", "label", "views")
def view_loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label, averaged over random views of the input.

    Views that the training did not use bring back what memorisation hides.
    """
    assert signals.view_loss is not None
    return Detection(signals.view_loss.astype(np.float64), signals.view_probs)


def neighbour_votes(
    features: Mapping[str, np.ndarray], labels: np.ndarray, classes: int, k: int | None, chunk: int
) -> np.ndarray:
    """``float64[n, c]``: label shares among the k nearest other samples, smoothed by one vote."""
    n = len(labels)
    k = k if k is not None else int(np.clip(round(np.sqrt(n) / 3), 5, 50))
    k = min(k, n - 1)
    space = torch.cat([_unit_rows(f) for f in features.values()], dim=1) / len(features) ** 0.5
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels.copy()), classes).float()
    votes = torch.empty(n, classes)
    for start in range(0, n, chunk):
        similarity = space[start : start + chunk] @ space.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        nearest = similarity.topk(k, dim=1, sorted=False).indices
        votes[start : start + chunk] = one_hot[nearest].sum(dim=1)
    return ((votes + 1.0 / classes) / (k + 1.0)).double().numpy()


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
