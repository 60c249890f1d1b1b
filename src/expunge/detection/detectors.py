"""From signals to one number a sample: higher = more likely bad. Pure functions, plug-ins.

Register with ``@detectors.register(name, kind=…, needs=(…,))``; keyword-only arguments are the
detector's options.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from expunge._core.registry import Registry
from expunge._core.rng import subsample
from expunge.detection.lda import (
    ashman_d,
    loo_ridge_predictions,
    row_chunks,
    safe_scale,
    squared_distance,
)
from expunge.errors import ConfigError, DataError, extra_required
from expunge.records import Scores, Signals


@dataclass(frozen=True)
class Detection:
    """What a detector says.

    score: ``float64[n]``. class_probs: what each of its sources says about the label, each
    ``float[n, c]``; none if it has nothing to say about that. left_out: whether these were made
    without the sample's own label.
    """

    score: np.ndarray
    class_probs: tuple[np.ndarray, ...] = ()
    left_out: bool = False


Search = Literal["exact", "approximate"]
# A layer that agrees with the given labels so much more often than views do has memorised them.
MEMORISED = 0.1
# The opinion pool is fitted on about so many samples; its ridge keeps certain sources finite.
_POOL_ROWS = 20_000
_POOL_RIDGE = 1e-3
_POOL_TRUSTED = 100
# Far from the mean is bad, unless the near ones say less of their class in so many of all pairs.
_TURNED, _ENDS = 0.9, 20
# So many rows are put on principal components at a time.
_NEAR_ROWS = 4096
# A group of inputs has more doubt than another if it has in so many of all pairs.
_LESS_CLEAR = 0.55

# What a detector can ask the pass over the data to collect, beside logits.
Need = Literal[
    "head", "attribution", "deep", "mass", "vectors", "features", "attribution_features", "views"
]


@dataclass(frozen=True)
class DetectorInfo:
    """The metadata of a detector: the fault that it speaks of, and what it needs from the pass."""

    kind: Literal["label", "input"] = "label"
    needs: tuple[Need, ...] = ()


detectors: Registry[Callable[..., Detection], DetectorInfo] = Registry("detector", DetectorInfo)


def needs_of(names: Iterable[str]) -> frozenset[Need]:
    """What the pass over the data has to collect for these detectors."""
    return frozenset(need for name in names for need in detectors.metadata(name).needs)


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
    left_out = [q for d in found.values() if d.left_out for q in d.class_probs]
    class_probs = softmax(signals.logits, axis=1)
    model_probs, external = [class_probs], tuple(signals.external_probs.values())
    if sources:
        class_probs = opinion_pool(sources, signals.labels, signals.trusted)
    agreement = {"model": _agreement(signals.logits, signals)}
    if signals.augmented_probs is not None and signals.views:
        agreement["augmented"] = _agreement(signals.augmented_probs, signals)
        model_probs.append(signals.augmented_probs)
    return Scores(
        ids=signals.ids,
        labels=signals.labels,
        values={name: d.score for name, d in found.items()},
        kinds={name: detectors.metadata(name).kind for name in names},
        class_probs=class_probs,
        agreement=agreement,
        trusted=signals.trusted,
        loo_probs=np.stack(left_out) if left_out else None,
        model_probs=np.stack(model_probs),
        external_probs=np.stack(external) if external else None,
    )


def _require(signals: Signals, name: str) -> None:
    """Refuse signals that were collected without what the detector needs."""
    has = {
        "attribution": "attribution" in signals.per_sample,
        "mass": "attribution_mass" in signals.per_sample,
        "head": "head_input_norm" in signals.per_sample,
        "deep": any(name.startswith("attribution.") for name in signals.per_sample),
        "attribution_features": True,
        "vectors": signals.attributions is not None,
        "views": signals.augmented_probs is not None and signals.augmented_loss is not None,
        "features": True,  # a network may have no hidden layer
    }
    missing = sorted(need for need in needs_of((name,)) if not has[need])
    if missing:
        raise DataError(
            f"detector '{name}' needs {', '.join(missing)}, which the signals do not hold",
            fix="collect them with needs = needs_of(detectors)",
        )


@detectors.register("loss", kind="label")
def loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label: ``−log p_y``."""
    return Detection(-_given(log_softmax(signals.logits.astype(np.float64), axis=1), signals))


@detectors.register("margin", kind="label")
def margin(signals: Signals) -> Detection:
    """Best other logit minus the given label's: ``max_{c≠y} z_c − z_y``."""
    return Detection(label_margin(signals.logits.astype(np.float64), signals.labels))


@detectors.register("el2n", kind="label")
def el2n(signals: Signals) -> Detection:
    """Norm of the error: ``‖p − e_y‖₂`` (arXiv 2107.07075)."""
    return Detection(np.linalg.norm(_error(signals), axis=1))


@detectors.register("self_influence", kind="label", needs=("head",))
def self_influence(signals: Signals) -> Detection:
    """Gradient norm of the loss in the last layer: ``‖p − e_y‖ · √(‖h‖² + 1)``, in closed form.

    The square is the sample's TracIn self-influence at the last layer (arXiv 2002.08484).
    """
    h = signals.per_sample["head_input_norm"]
    return Detection(np.linalg.norm(_error(signals), axis=1) * np.sqrt(h**2 + 1))


@detectors.register("attribution", kind="label", needs=("attribution",))
def attribution(signals: Signals) -> Detection:
    """Label-conditional gradient × activation, summed: ``−Σ_j h_j ∂(z_y − z_rival)/∂h_j``.

    The published attribution takes the maximum over classes and so cannot see a wrong label
    (arXiv 2506.11615); this one asks what the layer says for the given label against the best
    other.
    """
    return Detection(-signals.per_sample["attribution"])


@detectors.register("layerwise_attribution", kind="label", needs=("deep",))
def layerwise_attribution(signals: Signals) -> Detection:
    """Label-conditional gradient × activation, summed at every stage of the network.

    The mean over stages of ``attribution``, each over its standard deviation. Not a default: the
    earlier the stage, the less it says (docs/detection.md). Costs a forward and a backward pass.
    """
    columns = [v for k, v in signals.per_sample.items() if k.startswith("attribution.")]
    return Detection(-np.mean([v / max(float(v.std()), 1e-12) for v in columns], axis=0))


@detectors.register("attribution_mass", kind="input", needs=("mass",))
def attribution_mass(signals: Signals) -> Detection:
    """Size of the label-free attribution, ``Σ_j |h_j max_c ∂z_c/∂h_j|``, compared within class.

    Its logarithm, centred on the predicted class (median) and scaled by the median absolute
    deviation. Corrupted inputs can excite a network too little or too much: the sign is set so that
    larger goes with less certainty over the samples (rank correlation), which needs no truth.
    """
    mass = np.log(np.maximum(signals.per_sample["attribution_mass"], 1e-12))
    centred = centred_by_class(mass, signals.logits.argmax(axis=1))
    # Not the loss of the given label: wrong labels must not decide which inputs look bad.
    doubt = -log_softmax(signals.logits.astype(np.float64), axis=1).max(axis=1)
    sign = spearmanr(centred, doubt).statistic if np.ptp(centred) and np.ptp(doubt) else 0.0
    return Detection(-centred if sign < 0 else centred)


@detectors.register("attribution_clusters", kind="input", needs=("vectors",))
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


@detectors.register("knn_disagreement", kind="label", needs=("features",))
def knn_disagreement(
    signals: Signals,
    *,
    k: int | None = None,
    neighbour_search: Search = "exact",
    chunk_size: int = 1024,
) -> Detection:
    """How much the nearest neighbours' labels speak against the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log v_c − log v_y``, with v the smoothed label shares of the
    k nearest other samples by cosine of centred, pooled features. k defaults to ``√n / 3`` within
    5 … 50. A layer that has memorised the labels agrees with all of them, so it adds the same to
    every sample and spoils nothing; mixing the layers' features before the search would. Features
    of another encoder that came with the samples count as one more layer.

    Cost: n² · Σ d multiply-adds in chunks of ``chunk_size × n``; memory n · Σ d floats. Beyond some
    100,000 samples the search ``"approximate"`` is quicker (the extra ``expunge[faiss]``).
    """
    return _disagreement(signals, signals.features, k, neighbour_search, chunk_size)


@detectors.register("attribution_knn", kind="label", needs=("attribution_features",))
def attribution_knn(
    signals: Signals,
    *,
    k: int | None = None,
    neighbour_search: Search = "exact",
    chunk_size: int = 1024,
) -> Detection:
    """``knn_disagreement`` on gradient × activation of the predicted class's logit.

    Not a default: early layers of a network that has not memorised its labels tell more that way,
    last ones less, and all of them less where it has (docs/detection.md). Costs a forward and a
    backward pass more.
    """
    return _disagreement(signals, signals.attribution_features, k, neighbour_search, chunk_size)


def _disagreement(
    signals: Signals,
    features: Mapping[str, np.ndarray],
    k: int | None,
    neighbour_search: Search,
    chunk_size: int,
) -> Detection:
    if neighbour_search not in get_args(Search):
        raise ConfigError(
            f"neighbour_search '{neighbour_search}' is none of: {', '.join(get_args(Search))}"
        )
    n, c = signals.logits.shape
    votes = [
        neighbour_votes(
            f, signals.labels, c, k=k, neighbour_search=neighbour_search, chunk_size=chunk_size
        )
        for f in features.values()
    ]
    if not votes:
        return Detection(np.zeros(n))
    score = np.mean([label_margin(np.log(v), signals.labels) for v in votes], axis=0)
    return Detection(score, tuple(votes))


@detectors.register("lda_margin", kind="label", needs=("features",))
def lda_margin(signals: Signals) -> Detection:
    """How much nearer another class is than the given one, layer by layer.

    The mean over layers of ``max_{c≠y} log p_c − log p_y``, with p the linear discriminant's
    posterior on pooled features, the sample itself left out:
    ``log p_c = −½ (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)`` + const. The means come from the given labels; wrong
    ones pull them together but leave the directions. Cost: n · Σ d².
    """
    posteriors = signals.loo_lda_posteriors
    if not posteriors:
        return Detection(np.zeros(len(signals.ids)))
    margins = [label_margin(np.log(p), signals.labels) for p in posteriors]
    return Detection(np.mean(margins, axis=0), posteriors, left_out=True)


@detectors.register("feature_distance", kind="input", needs=("features",))
def feature_distance(signals: Signals) -> Detection:
    """How unusual a sample's features are, whatever its label.

    The mean over layers of ``log (f − μ)ᵀ Σ⁻¹ (f − μ)``, the squared Mahalanobis distance of pooled
    features to their mean over all samples (arXiv 1807.03888, without classes: a wrong label must
    not look like a bad input). Bad inputs that are all alike, plain noise say, can be many, and
    nearer to the mean than good ones: the sign is turned where the features say less of the class
    in the nearest hundredth than in the farthest, in nine pairs of ten. How much they say is
    ``log max_c p_c``, with p as in ``lda_margin``: a model that has memorised is sure of noise
    too. Cost: n · Σ d².
    """
    squared = [squared_distance(features) for features in signals.features.values()]
    if not squared:
        return Detection(np.zeros(len(signals.ids)))
    distance = np.mean([np.log(np.maximum(d, 1e-12)) for d in squared], axis=0)
    doubt = np.mean([-np.log(p.max(axis=1)) for p in signals.loo_lda_posteriors], axis=0)
    order, n = np.argsort(distance, kind="stable"), len(distance)
    few = min(max(-(-n // 100), _ENDS), -(-n // 2))
    pairs = doubt[order[:few], None] > doubt[order[-few:]]
    return Detection(-distance if pairs.mean() >= _TURNED else distance)


@detectors.register("local_uncertainty", kind="input", needs=("features",))
def local_uncertainty(
    signals: Signals, *, k: int = 50, components: int = 32, most: int = 4_000
) -> Detection:
    """How much doubt about the class a sample shares with those that neurons find alike.

    Doubt is ``−log max_c p_c``, the mean over layers, with p as in ``lda_margin``: whatever the
    label, a bad input says little of its class, and so does many a hard one. But bad inputs also
    look alike, above all to early layers. How many are bad, if any, a regression of doubt on the
    activations tells (`discriminants.regressed`, each sample left out, the mean over layers): where
    inputs are sound its values have no gap. Which ones, the mean doubt of the k nearest others
    among ``most`` samples tells better, where faults are of several kinds: by standardised
    features' first principal components, the mean over the earlier half of the layers. So the score
    has the values of the one and the order of the other. Doubt is compared within the predicted
    class (some are harder): with its median, and for the order with its lower quartile, as half of
    a class may be bad. Sees also what is common and all alike, and in a network that has memorised
    it; not what leaves the class as clear as before. Cost: n · Σ d² + n · most · components.
    """
    n = len(signals.ids)
    if not signals.loo_lda_posteriors:
        return Detection(np.zeros(n))
    centred, above = (_doubt(signals, q) for q in (0.5, 0.25))
    asked, early = _asked(n, most), _early(signals)
    near = _mean_of_scaled([neighbours_mean(f, above, asked, k, components) for f in early])
    foretold = _mean_of_scaled(
        [loo_ridge_predictions(f, centred) for f in signals.features.values()]
    )
    score = np.empty(n)
    score[np.argsort(near, kind="stable")] = np.sort(foretold)
    return Detection(score)


@detectors.register("feature_clusters", kind="input", needs=("features",))
def feature_clusters(
    signals: Signals, *, components: int = 32, most: int = 4_000, separation: float = 8.0
) -> Detection:
    """Two groups of inputs that an early layer holds far apart, one of which leaves more doubt.

    Two means of the first principal components of a layer's standardised features; their distance,
    along Fisher's discriminant of the two groups and in pooled deviations, is Ashman's D of two
    Gaussians there. Of the earlier half of the layers that with the largest D counts. Sound sets
    reach 5, the classes in them; gross noise 29 and more. From ``separation`` on, the group with
    more doubt about the class is bad, if it has more in 55 % of all pairs; doubt is that of
    `local_uncertainty`, above the lower quartile of the predicted class. Sees what is common,
    alike and gross also where the network is in doubt of everything. Two sound sources of data
    that are as
    unlike, the one harder than the other, look the same. Cost: most · components² · layers.
    """
    n = len(signals.ids)
    if not signals.loo_lda_posteriors or n < 2 * _ENDS:
        return Detection(np.zeros(n))
    asked, along, least = _asked(n, most), np.zeros(n), separation
    for features in _early(signals):
        project = _principal(features, asked, components)
        axis, cut, apart = _two_apart(project(asked))
        if apart > least:
            least = apart
            along = (
                np.concatenate([project(rows) @ axis for rows in row_chunks(n, _NEAR_ROWS)]) - cut
            )
    upper = along > 0
    if upper.all() or not upper.any():
        return Detection(np.zeros(n))
    pairs = float(roc_auc_score(upper, _doubt(signals, 0.25)))
    if max(pairs, 1 - pairs) < _LESS_CLEAR:
        return Detection(np.zeros(n))
    return Detection(along if pairs > 0.5 else -along)


def _two_apart(x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Fisher's discriminant of two means' groups, where it cuts them, and Ashman's D along it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        group = KMeans(2, n_init=4, random_state=0).fit_predict(x).astype(bool)
    if min(group.sum(), (~group).sum()) < _ENDS:
        return np.zeros(x.shape[1]), 0.0, 0.0
    within = sum(np.atleast_2d(np.cov(x[g].T, bias=True)) * g.mean() for g in (group, ~group))
    within += max(1e-3 * np.trace(within) / len(within), 1e-12) * np.eye(len(within))
    axis = np.linalg.solve(within, x[group].mean(axis=0) - x[~group].mean(axis=0))
    axis /= (x @ axis).std()
    two = GaussianMixture(2, random_state=0).fit((x @ axis)[:, None])
    means, stds = two.means_[:, 0], np.sqrt(two.covariances_[:, 0, 0])
    cut = float(means @ stds[::-1] / stds.sum())
    return axis, cut, float(ashman_d(means[0], stds[0], means[1], stds[1]))


def _doubt(signals: Signals, q: float) -> np.ndarray:
    """``−log max_c p_c``, the mean over layers, above its q-quantile in the predicted class."""
    doubt = np.mean([-np.log(p.max(axis=1)) for p in signals.loo_lda_posteriors], axis=0)
    return _above_quantile(doubt, signals.logits.argmax(axis=1), q)


def _above_quantile(values: np.ndarray, groups: np.ndarray, q: float) -> np.ndarray:
    """Values minus that quantile of their group."""
    above = values.copy()
    for group in np.unique(groups):
        above[groups == group] -= np.quantile(values[groups == group], q)
    return above


def _asked(n: int, most: int) -> np.ndarray:
    return subsample(n, most, 0, "neighbours")


def _early(signals: Signals) -> list[np.ndarray]:
    """Features of the earlier half of the layers."""
    features = list(signals.features.values())
    return features[: max(1, len(features) // 2)]


def _mean_of_scaled(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of columns, each over its standard deviation."""
    return np.mean([c / max(float(c.std()), 1e-12) for c in columns], axis=0)


def _principal(
    features: np.ndarray, asked: np.ndarray, components: int
) -> Callable[[np.ndarray | slice], np.ndarray]:
    """Puts rows on the first principal components of features, standardised as those asked are."""
    location = features[asked].mean(axis=0)
    scale = safe_scale(features[asked].std(axis=0), location)
    z = (features[asked] - location) / scale
    basis = np.linalg.eigh(z.T @ z)[1][:, -components:]
    return lambda rows: (features[rows] - location) / scale @ basis


def neighbours_mean(
    features: np.ndarray, values: np.ndarray, asked: np.ndarray, k: int, components: int
) -> np.ndarray:
    """``float64[n]``: mean value of each sample's k nearest others among those asked.

    Nearest by the first principal components of the features, standardised as those asked are.
    """
    project = _principal(features, asked, components)
    k = max(1, min(k, len(asked) // 2))
    search = NearestNeighbors(n_neighbors=min(k + 1, len(asked)), algorithm="brute")
    search.fit(project(asked))
    found, everyone = np.empty(len(features)), np.arange(len(features))
    for part in row_chunks(len(features), _NEAR_ROWS):
        rows = everyone[part]
        near = asked[search.kneighbors(project(rows), return_distance=False)]
        others = near != rows[:, None]
        others &= np.cumsum(others, axis=1) <= k
        found[rows] = (values[near] * others).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    return found


@detectors.register("augmented_loss", kind="label", needs=("views",))
def augmented_loss(signals: Signals) -> Detection:
    """Cross-entropy of the given label, averaged over random views of the input.

    Views that the training did not use bring back what memorisation hides.
    """
    assert signals.augmented_loss is not None
    assert signals.augmented_probs is not None
    return Detection(signals.augmented_loss.astype(np.float64), _views_if_trusted(signals))


@detectors.register("augmented_margin", kind="label", needs=("views",))
def augmented_margin(signals: Signals) -> Detection:
    """Log-odds of the best other label against the given one under the mean over random views.

    ``max_{c≠y} log p_c − log p_y`` with the probabilities smoothed as one vote in twenty would, so
    that an overconfident network cannot outvote all other evidence.
    """
    assert signals.augmented_probs is not None
    margin = label_margin(np.log(_smoothed(signals.augmented_probs)), signals.labels)
    return Detection(margin, _views_if_trusted(signals))


@detectors.register("external_margin", kind="label")
def external_margin(signals: Signals) -> Detection:
    """Log-odds of the best other label against the given one in probabilities from elsewhere.

    Out-of-sample probabilities (arXiv 1911.00068) or means over a training's checkpoints; see
    `Samples`. Smoothed as in ``augmented_margin``; the mean where there are several sources.
    """
    if not signals.external_probs:
        raise DataError(
            "detector 'external_margin' needs probabilities from elsewhere",
            fix="give the samples some: dataclasses.replace(samples, external_probs={'folds': p})",
        )
    sources = [_smoothed(p) for p in signals.external_probs.values()]
    margins = [label_margin(np.log(p), signals.labels) for p in sources]
    return Detection(np.mean(margins, axis=0), tuple(sources))


def _smoothed(probs: np.ndarray) -> np.ndarray:
    """As if every class had a share of one more vote in twenty."""
    return (20 * probs.astype(np.float64) + 1 / probs.shape[1]) / 21


def opinion_pool(
    sources: Sequence[np.ndarray], labels: np.ndarray, trusted: np.ndarray | None = None
) -> np.ndarray:
    """One class distribution out of many: ``p ∝ Π_s q_s^{β_s}``, ``float64[n, c]``.

    The weights β ≥ 0 maximise the likelihood of the given labels (a logarithmic opinion pool, doi
    10.1214/ss/1177013825; convex, few parameters). So a poor or overconfident source gets little
    weight, and the result is calibrated for labels as noisy as the given ones are; which class is
    the most likely is as it would be for the right ones, as long as wrong labels scatter. Where
    100 samples or more are trusted, only these fit the weights: calibrated for right labels.
    """
    logs = np.stack([np.log(np.maximum(q, 1e-12)) for q in sources])
    usable = np.arange(len(labels))
    if trusted is not None and trusted.sum() >= _POOL_TRUSTED:
        usable = np.flatnonzero(trusted)
    chosen = subsample(usable, _POOL_ROWS, 0, "opinion pool")
    fitted, given = logs[:, chosen], labels[chosen]
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
    if signals.augmented_probs is None or not sources:
        return sources
    limit = _agreement(signals.augmented_probs, signals) + MEMORISED
    agreement = [_agreement(q, signals) for q in sources]
    trusted = [q for q, a in zip(sources, agreement, strict=True) if a <= limit]
    return trusted or [sources[int(np.argmin(agreement))]]


def _views_if_trusted(signals: Signals) -> tuple[np.ndarray, ...]:
    """Views of a network that fits the labels far better than its views has memorised: no say.

    They lean towards the wrong labels too, and the likelihood of these would favour them.
    """
    assert signals.augmented_probs is not None
    gap = _agreement(signals.logits, signals) - _agreement(signals.augmented_probs, signals)
    return () if gap > MEMORISED else (signals.augmented_probs,)


def _agreement(values: np.ndarray, signals: Signals) -> float:
    return float((values.argmax(axis=1) == signals.labels).mean())


def neighbour_votes(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    k: int | None = None,
    neighbour_search: Search = "exact",
    chunk_size: int = 1024,
) -> np.ndarray:
    """``float64[n, c]``: label shares among the k nearest other samples, smoothed by one vote."""
    n = len(labels)
    k = k if k is not None else int(np.clip(round(np.sqrt(n) / 3), 5, 50))
    k = min(k, n - 1)
    space = _unit_rows(features)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels.copy()), classes).float()
    find = _exact(space) if neighbour_search == "exact" else _approximate(space)
    votes = torch.empty(n, classes)
    for start in range(0, n, chunk_size):
        votes[start : start + chunk_size] = one_hot[find(start, chunk_size, k)].sum(dim=1)
    return ((votes + 1.0 / classes) / (k + 1.0)).double().numpy()


# From the first of some rows, how many, and k, to the k nearest other rows of each: int64[rows, k].
Find = Callable[[int, int, int], torch.Tensor]


def _exact(space: torch.Tensor) -> Find:
    def find(start: int, count: int, k: int) -> torch.Tensor:
        similarity = space[start : start + count] @ space.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        return similarity.topk(k, dim=1, sorted=False).indices

    return find


def _approximate(space: torch.Tensor) -> Find:
    """An inverted file (faiss): √n / 2 cells, of which the 16 nearest are searched."""
    try:
        import faiss
    except ImportError as error:
        raise extra_required("faiss", "faiss") from error
    n, d = space.shape
    cells = max(1, round(np.sqrt(n) / 2))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.nprobe = min(16, cells)
    rows = space.numpy()
    index.train(rows)
    index.add(rows)

    def find(start: int, count: int, k: int) -> torch.Tensor:
        # One more, for the row itself; where the cells held too few, the nearest counts again.
        _, near = index.search(rows[start : start + count], k + 1)
        own = near == np.arange(start, start + len(near))[:, None]
        own[~own.any(axis=1), -1] = True
        others = near[~own].reshape(len(near), k)
        return torch.from_numpy(np.where(others < 0, others[:, :1], others))

    return find


def label_margin(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``max_{c≠y} v_c − v_y`` for each row of ``v``, ``float[n, c]``."""
    rows = np.arange(len(labels))
    others = values.copy()
    others[rows, labels] = -np.inf
    return others.max(axis=1) - values[rows, labels]


def centred_by_class(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values minus their group's median, over the median absolute deviation of all that is left."""
    centred = _above_quantile(values.astype(np.float64), groups, 0.5)
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
