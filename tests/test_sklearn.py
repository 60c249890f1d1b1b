"""The estimators in the conventions of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

import expunge
from expunge.detection import gaussian_mixture, probes
from expunge.sklearn import CleanedClassifier, NoiseFilter

RNG = np.random.default_rng(0)
RIGHT = np.arange(240) % 3
X = np.eye(3, 5)[RIGHT] + 0.25 * RNG.standard_normal((240, 5))
BAD = RNG.random(240) < 0.25
Y = np.where(BAD, (RIGHT + 1) % 3, RIGHT)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """The conventions do not depend on the numbers of trees, landmarks and resamples."""
    monkeypatch.setattr(probes, "N_TREES", 20)
    monkeypatch.setattr(probes, "N_LANDMARKS", 60)
    monkeypatch.setattr(gaussian_mixture, "_BOOTSTRAP_SAMPLES", 10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [NoiseFilter(), CleanedClassifier(LogisticRegression())])
def test_estimators_follow_the_conventions_of_scikit_learn(estimator, monkeypatch):
    monkeypatch.setattr(probes, "N_TREES", 3)  # for some fifty fits
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    assert [(c["check_name"], c["exception"]) for c in found if c["status"] == "failed"] == []
    assert len(found) > 50


def test_the_filter_takes_sparse_matrices():
    dense, sparse = NoiseFilter().fit(X, Y), NoiseFilter()
    kept, _ = sparse.fit_resample(csr_array(X), Y)
    np.testing.assert_array_equal(sparse.p_noisy_, dense.p_noisy_)
    np.testing.assert_array_equal(kept.toarray(), X[~dense.flagged_])
    np.testing.assert_array_equal(sparse.predict(csr_array(X)), dense.predict(X))


def test_the_filter_is_detect():
    noise, result = NoiseFilter().fit(X, Y), expunge.detect(X, Y)
    np.testing.assert_array_equal(noise.p_noisy_, result.p_noisy)
    np.testing.assert_array_equal(noise.suggested_labels_, result.suggested)
    np.testing.assert_array_equal(noise.flagged_, result.flagged)
    assert (noise.predict(X) == RIGHT).mean() > 0.97
    kept_x, kept_y = NoiseFilter().fit_resample(X, Y)
    np.testing.assert_array_equal(kept_x, X[result.kept])
    np.testing.assert_array_equal(kept_y, Y[result.kept])
    pd = pytest.importorskip("pandas")
    column = pd.Series(np.array(["u", "v", "w"])[Y], index=np.arange(len(Y)) + 7)
    named = NoiseFilter()
    assert named.fit_resample(X, column)[1].equals(column[result.kept])
    assert named.result_.classes == ("u", "v", "w")  # as the labels call them
    assert named.result_.suggested.tolist() == named.suggested_labels_.tolist()
    assert named.suggested_labels_[0] in ("u", "v", "w")


@pytest.mark.parametrize(
    "made",
    [NoiseFilter(noise_rate=0.35), CleanedClassifier(DecisionTreeClassifier(), noise_rate=0.35)],
)
def test_a_known_rate_takes_the_place_of_the_estimate(made):
    result = made.fit(X, Y).result_
    np.testing.assert_array_equal(result.p_noisy, expunge.detect(X, Y, noise_rate=0.35).p_noisy)
    assert result.noise_rate[0] == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize("targets", ["filter", "relabel", "reweight"])
def test_a_classifier_learns_the_right_labels(targets):
    tree = DecisionTreeClassifier(min_samples_leaf=3, random_state=0)
    noisy = (tree.fit(X, Y).predict(X) == RIGHT).mean()
    model = CleanedClassifier(tree, targets=targets).fit(X, Y)
    assert (model.predict(X) == RIGHT).mean() > max(0.9, noisy + 0.03)
    assert model.predict_proba(X).shape == (240, 3)


def test_pipelines_cross_validation_and_frames_with_categories():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X[:, :2], columns=["a", "b"]).assign(kind=np.array(["u", "v", "w"])[RIGHT])
    prepare = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), ["a", "b"]))
    model = CleanedClassifier(make_pipeline(prepare, LogisticRegression()))
    assert (model.fit(frame, Y).predict(frame) == RIGHT).mean() > 0.97
    scores = cross_val_score(make_pipeline(StandardScaler(), NoiseFilter()), X, Y, cv=2)
    assert scores.min() > 0.6
    dated = frame.drop(columns="kind").assign(day=pd.date_range("2020", periods=len(frame)))
    with pytest.raises(ValueError, match="hold no numbers: day; encode them"):
        NoiseFilter().fit(dated, Y)
    with pytest.raises(ValueError, match="hold no numbers: kind; encode them"):
        NoiseFilter().fit(frame, Y)


def test_frames_of_polars_stay_frames():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(X[:, :2], schema=["a", "b"]).with_columns(
        kind=pl.Series(np.array(["u", "v", "w"])[RIGHT]).cast(pl.Categorical)
    )
    prepare = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), ["a", "b"]))
    model = CleanedClassifier(make_pipeline(prepare, LogisticRegression()))
    assert (model.fit(frame, pl.Series(Y)).predict(frame) == RIGHT).mean() > 0.97
    kept, _ = NoiseFilter().fit_resample(frame[["a", "b"]], pl.Series(Y))
    assert kept.columns == ["a", "b"]
    with pytest.raises(ValueError, match="hold no numbers: kind; encode them"):
        NoiseFilter().fit(frame, Y)


def test_several_labels_are_fitted_one_at_a_time():
    both = np.stack([Y > 0, Y > 1], axis=1).astype(int)
    for estimator in (NoiseFilter(), CleanedClassifier(LogisticRegression())):
        with pytest.raises(ValueError, match=r"shape \(240, 2\); .*MultiOutputClassifier"):
            estimator.fit(X, both)
    model = MultiOutputClassifier(NoiseFilter()).fit(X, both)
    right = np.stack([RIGHT > 0, RIGHT > 1], axis=1)
    assert (model.predict(X) == right).mean() > 0.95


@pytest.mark.parametrize("gap", [None, np.nan, ""])
def test_missing_labels_are_named(gap):
    y = [gap, *map(str, Y[1:])]
    for estimator in (NoiseFilter(), CleanedClassifier(LogisticRegression())):
        with pytest.raises(ValueError, match=r"y contains NaN.*: rows 0; leave out"):
            estimator.fit(X, np.array(y, dtype=object))


def test_weights_are_handed_on_and_samples_without_weight_take_no_part():
    weight = np.where(BAD, 0.0, 2.0)
    model = CleanedClassifier(LogisticRegression()).fit(X, Y, sample_weight=weight)
    assert len(model.result_.ids) == int((~BAD).sum())
    plain = LogisticRegression().fit(
        X[~BAD][model.result_.kept],
        Y[~BAD][model.result_.kept],
        sample_weight=weight[~BAD][model.result_.kept],
    )
    np.testing.assert_allclose(model.estimator_.coef_, plain.coef_)


def test_a_class_of_which_all_samples_are_flagged_is_kept():
    model = CleanedClassifier(LogisticRegression(), threshold=0.0).fit(X, Y)
    assert model.result_.flagged.all()
    assert model.classes_.tolist() == [0, 1, 2]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="targets must be one of"):
        CleanedClassifier(LogisticRegression(), targets="drop").fit(X, Y)
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        CleanedClassifier(KNeighborsClassifier(), targets="reweight").fit(X, Y)
    with pytest.raises(ValueError, match="LinearRegression is no classifier"):
        CleanedClassifier(LinearRegression()).fit(X, Y)
    with pytest.raises(ValueError, match="threshold must lie in"):
        NoiseFilter(threshold=3).fit(X, Y)
    with pytest.raises(AttributeError, match="decision_function"):
        CleanedClassifier(DecisionTreeClassifier()).decision_function  # noqa: B018
