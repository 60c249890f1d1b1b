"""scikit-learn estimators: find wrong labels, and train any classifier without them.

`expunge.detect` in the conventions of scikit-learn, for pipelines and cross-validation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self, get_args

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.impute import SimpleImputer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_is_fitted,
    column_or_1d,
    has_fit_parameter,
    validate_data,
)

from expunge._core.arrays import Array, Bools, Floats
from expunge.data.labels import is_missing
from expunge.detection.probes import n_neighbours
from expunge.errors import ExpungeError, format_ids
from expunge.model_free import detect
from expunge.records import DetectionResult

Targets = Literal["filter", "reweight", "relabel"]
# Flagged samples whose suggested label is less probable are left out instead of relabelled.
MIN_RELABEL_CONFIDENCE = 0.8


class NoiseFilter(ClassifierMixin, BaseEstimator):
    """Find wrong labels in numbers and labels; see `expunge.detect`.

    Parameters
    ----------
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].
    fdr
        Sets the threshold instead: the largest expected share of clean samples among the flagged.
    noise_rate
        The share of wrong labels, if it is known, in (0, 1); else it is estimated.
    random_state
        Seed of the fits.

    Attributes
    ----------
    p_noisy_
        ``float64[n]``, the probability that each training sample is noisy.
    flagged_
        ``bool[n]``.
    suggested_labels_
        ``[n]``, the label that the evidence supports for each training sample.
    noise_rate_
        The estimated share of noisy samples.
    result_
        The `DetectionResult`.
    classes_, n_features_in_
        As in scikit-learn.

    Notes
    -----
    Missing values (NaN) are allowed. For tables with categories use `CleanedClassifier` or
    `expunge.detect`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> right = np.arange(200) % 2
    >>> x = right[:, None] + 0.1 * rng.standard_normal((200, 3))
    >>> given = np.where(np.arange(200) < 20, 1 - right, right)
    >>> noise = NoiseFilter().fit(x, given)
    >>> int(noise.flagged_[:20].sum()), noise.suggested_labels_[:2].tolist()
    (20, [0, 1])
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        fdr: float | None = None,
        noise_rate: float | None = None,
        random_state: int = 0,
    ) -> None:
        self.threshold = threshold
        self.fdr = fdr
        self.noise_rate = noise_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Find the noisy samples of a training set.

        Parameters
        ----------
        X
            ``float[n, d]``, NaN where a value is missing; also a sparse matrix, of which a dense
            copy is made.
        y
            ``[n]``, the given labels; -1 is a class, as in scikit-learn's classifiers.
        """
        y = _labels(y)
        try:
            X, y = validate_data(
                self,
                X,
                y,
                accept_sparse=True,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan",
            )
        except (ValueError, TypeError) as error:  # of dates
            texts = _columns_without_numbers(X)
            if not texts:
                raise
            raise ValueError(
                f"columns that hold no numbers: {format_ids(texts)}; encode them, e.g. with "
                "OneHotEncoder, or use CleanedClassifier or expunge.detect, which take them"
            ) from error
        check_classification_targets(y)
        X = _dense(X)
        self.result_ = _detect(self, X, y)
        self.classes_ = np.unique(y)
        self.p_noisy_: Floats = self.result_.p_noisy
        self.flagged_: Bools = self.result_.flagged
        self.suggested_labels_ = self.result_.suggested
        self.noise_rate_ = self.result_.noise_rate[0]
        kept = _kept(self.result_)
        votes = KNeighborsClassifier(n_neighbours(int(kept.sum())))
        impute = SimpleImputer(strategy="median", keep_empty_features=True)
        self.classifier_ = make_pipeline(impute, StandardScaler(), votes).fit(X[kept], y[kept])
        return self

    def predict(self, X: Any) -> Array:
        """Return the labels that the unflagged training samples support for new ones, ``[n]``.

        The vote of the 25 nearest.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse=True, ensure_all_finite="allow-nan")
        labels: Array = self.classifier_.predict(_dense(X))
        return labels

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Fit, and return the unflagged samples, as samplers of imbalanced-learn do."""
        kept = _kept(self.fit(X, y).result_)
        return _rows(X, kept), _rows(y, kept)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        return tags


def _delegates(method: str) -> Any:
    """Whether the classifier, fitted or not, has this method."""

    def check(self: CleanedClassifier) -> bool:
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return available_if(check)


class CleanedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Train a classifier without the wrong labels of its training set.

    Parameters
    ----------
    estimator
        A classifier. It is cloned.
    targets
        ``"filter"`` leaves flagged samples out; ``"relabel"`` gives them their suggested label if
        that has a probability of 0.8 or more, and leaves out the others; ``"reweight"`` weights
        samples by ``1 − p_noisy``.
    threshold, fdr, noise_rate, random_state
        See `NoiseFilter`.

    Attributes
    ----------
    estimator_
        The fitted classifier.
    result_
        The `DetectionResult` of the training set.
    classes_
        The classes.

    Notes
    -----
    A class of which every sample is flagged is kept whole. Features may be a DataFrame with
    categories, if the classifier takes it; see `expunge.detect`. ``score`` measures on the labels
    that it is given: on noisy ones even a perfect classifier falls short.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> rng = np.random.default_rng(0)
    >>> right = np.arange(300) % 2
    >>> x = right[:, None] + 0.2 * rng.standard_normal((300, 3))
    >>> given = np.where(np.arange(300) < 60, 1 - right, right)
    >>> model = CleanedClassifier(DecisionTreeClassifier(random_state=0)).fit(x, given)
    >>> bool(model.score(x, right) > 0.95)
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        targets: Targets = "filter",
        threshold: float = 0.5,
        fdr: float | None = None,
        noise_rate: float | None = None,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.targets = targets
        self.threshold = threshold
        self.fdr = fdr
        self.noise_rate = noise_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Find the noisy samples, and fit a clone of the classifier on the others.

        Parameters
        ----------
        X
            ``[n, d]``.
        y
            ``[n]``, the given labels.
        sample_weight
            ``[n]``, handed on to the classifier. Samples of weight 0 take no part.
        """
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, not {self.targets!r}")
        X = self._validated(X, reset=True)
        y = _labels(y)
        check_classification_targets(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
            used = sample_weight > 0
            X, y, sample_weight = _rows(X, used), y[used], sample_weight[used]
        self.result_ = _detect(self, X, y)
        kept, y, weight = self._training_set(y, sample_weight)
        options = {} if weight is None else {"sample_weight": weight[kept]}
        self.estimator_ = clone(self.estimator).fit(_rows(X, kept), y[kept], **options)
        if not hasattr(self.estimator_, "classes_"):
            raise ValueError(
                f"{type(self.estimator).__name__} is no classifier: it has no classes_"
            )
        self.classes_ = self.estimator_.classes_
        return self

    def _training_set(self, y: Array, weight: Floats | None) -> tuple[Bools, Array, Floats | None]:
        """Return which samples are used, their labels, and their weights if any."""
        result, kept = self.result_, _kept(self.result_)
        if self.targets == "relabel":
            sure = result.suggested_probability >= MIN_RELABEL_CONFIDENCE
            y = np.where(result.flagged & sure, result.suggested, y)
            kept = kept | (result.flagged & sure)
        if self.targets == "reweight":
            if not has_fit_parameter(self.estimator, "sample_weight"):
                name = type(self.estimator).__name__
                raise ValueError(f"{name} takes no sample_weight: set targets='filter'")
            trust = np.where(kept & result.flagged, 1.0, 1 - result.p_noisy)
            return np.ones(len(y), dtype=bool), y, trust if weight is None else trust * weight
        return kept, y, weight

    @_delegates("predict")
    def predict(self, X: Any) -> Array:
        """Return the classes that the classifier predicts, ``[n]``."""
        return self._call("predict", X)

    @_delegates("predict_proba")
    def predict_proba(self, X: Any) -> Array:
        """Return the classifier's class probabilities, ``[n, c]``."""
        return self._call("predict_proba", X)

    @_delegates("predict_log_proba")
    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the classifier's class probabilities, ``[n, c]``."""
        return self._call("predict_log_proba", X)

    @_delegates("decision_function")
    def decision_function(self, X: Any) -> Array:
        """Return the classifier's decision function."""
        return self._call("decision_function", X)

    def _call(self, method: str, X: Any) -> Array:
        check_is_fitted(self)
        found: Array = getattr(self.estimator_, method)(self._validated(X, reset=False))
        return found

    def _validated(self, X: Any, *, reset: bool) -> Any:
        """Check features; a DataFrame goes to the classifier as it is."""
        if _is_frame(X):
            return validate_data(self, X, reset=reset, skip_check_array=True)
        tags = get_tags(self.estimator).input_tags
        return validate_data(
            self,
            X,
            reset=reset,
            accept_sparse=tags.sparse,
            ensure_all_finite="allow-nan" if tags.allow_nan else True,
        )

    def __sklearn_tags__(self) -> Any:
        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.classifier_tags = inner.classifier_tags
        return tags


def _labels(y: Any) -> Array:
    """One label for each sample, ``[n]``; ValueError for several, and for missing ones."""
    shape: tuple[int, ...] = getattr(y, "shape", ())
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y should be a 1d array, got one of shape {shape}; for several labels a sample use "
            "sklearn.multioutput.MultiOutputClassifier, which fits a copy for each"
        )
    labels: Array = column_or_1d(y, warn=True)
    missing = [is_missing(v) or v != v for v in labels.tolist()]
    if any(missing):
        raise ValueError(
            f"Input y contains NaN, None or empty texts: rows {format_ids(np.flatnonzero(missing))}"
            "; leave out samples without a label"
        )
    return labels


def _detect(settings: NoiseFilter | CleanedClassifier, X: Any, y: Array) -> DetectionResult:
    """`expunge.detect` with an estimator's settings and the errors that scikit-learn expects."""
    if _num_samples(X) != len(y):
        raise ValueError(f"X has {_num_samples(X)} samples, y {len(y)}")
    values, codes = np.unique(y, return_inverse=True)
    if len(y) and codes.max() == 0:
        raise ValueError("y has only one class; two or more are needed")
    try:
        found = detect(
            X,
            codes,
            threshold=settings.threshold,
            fdr=settings.fdr,
            noise_rate=settings.noise_rate,
            seed=settings.random_state,
        )
    except ExpungeError as error:
        raise ValueError(str(error)) from error
    return replace(found, classes=tuple(map(str, values.tolist())), class_values=values)


def _kept(result: DetectionResult) -> Bools:
    """The unflagged samples, and all of a class that would have none."""
    n_kept = np.bincount(result.labels[result.kept], minlength=len(result.classes))
    kept: Bools = result.kept | (n_kept == 0)[result.labels]
    return kept


def _is_frame(X: Any) -> bool:
    """Whether X is a data frame or column of pandas or polars."""
    return hasattr(X, "iloc") or type(X).__module__.startswith("polars.")


def _columns_without_numbers(X: Any) -> list[str]:
    """The names of such columns of a data frame of pandas or polars."""
    if hasattr(X, "select_dtypes"):
        return list(X.select_dtypes(exclude=["number", "bool"]))
    return [name for name in X.columns if not X[name].dtype.is_numeric()] if _is_frame(X) else []


def _dense(X: Any) -> Any:
    return X.toarray() if hasattr(X, "toarray") else X


def _rows(X: Any, mask: Bools) -> Any:
    """The rows of an array, a list, a sparse matrix or a frame or column of pandas or polars."""
    positions = np.flatnonzero(mask)
    if _is_frame(X):
        return X.iloc[positions] if hasattr(X, "iloc") else X[positions]
    return X.tocsr()[positions] if hasattr(X, "tocsr") else np.asarray(X)[positions]
