"""`expunge.detect`: noise in features and labels, without a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import expunge
from expunge.detection_run import Columns, detect_file
from expunge.errors import ConfigError, DataError

pd = pytest.importorskip("pandas")
NAMES = np.array(["ant", "bee", "cat"])


def made(n=300, rate=0.2, seed=0, spread=0.35):
    """Features, given labels, and which of these are wrong."""
    rng = np.random.default_rng(seed)
    right = np.arange(n) % 3
    x = (np.eye(3, 6)[right] + spread * rng.standard_normal((n, 6))).astype(np.float32)
    bad = rng.random(n) < rate
    return x, np.where(bad, (right + 1 + rng.integers(0, 2, n)) % 3, right), bad


class Stored:
    """An array as h5py and Zarr have it: NumPy can read it, and it is no sequence."""

    def __init__(self, values):
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __array__(self, dtype=None, copy=None):
        return self.values


X, Y, BAD = made()
REFERENCE = expunge.detect(X, Y)
PROBS = np.eye(3)[Y] * 0.7 + 0.1


def test_wrong_labels_are_found_and_corrected():
    assert roc_auc_score(BAD, REFERENCE.p_noisy) > 0.97
    right = np.arange(300) % 3
    assert (REFERENCE.suggested == right).mean() > 0.95 > (right == Y).mean()
    assert REFERENCE.noise_rate[1] <= BAD.mean() <= REFERENCE.noise_rate[2]
    assert isinstance(REFERENCE, expunge.Partition)
    assert all(source.name != "model" for source in REFERENCE.pooled.sources)


@pytest.mark.parametrize("n", [20, 1000])
def test_classes_without_samples_change_nothing(n):
    labels = 7 + 4 * Y
    found = expunge.detect(X, labels, classes=[str(k) for k in range(n)])
    assert (found.flagged == REFERENCE.flagged).all()
    np.testing.assert_allclose(found.noise_rate, REFERENCE.noise_rate, atol=1e-3)
    assert set(found.suggested_label) == {7, 11, 15}


@pytest.mark.parametrize(
    ("features", "labels", "values"),
    [
        (pd.DataFrame(X), pd.Series(Y), [0, 1, 2]),
        (torch.from_numpy(X), torch.from_numpy(Y), [0, 1, 2]),
        (torch.from_numpy(X).to_sparse(), Y, [0, 1, 2]),
        (Stored(X), Stored(Y), [0, 1, 2]),
        (X.tolist(), Y.tolist(), [0, 1, 2]),
        (X, Y.astype(np.float64), [0, 1, 2]),
        (X, Y[:, None], [0, 1, 2]),
        (X, Y + 1, [1, 2, 3]),
        (X, Y * 10 - 5, [-5, 5, 15]),
        (X, NAMES[Y], NAMES.tolist()),
        (X, NAMES[Y].astype(object), NAMES.tolist()),
        (pd.DataFrame(X), pd.Series(pd.Categorical(NAMES[Y])), NAMES.tolist()),
    ],
)
def test_every_form_of_features_and_labels_gives_the_same_result(features, labels, values):
    result = expunge.detect(features, labels)
    np.testing.assert_array_equal(result.p_noisy, REFERENCE.p_noisy)
    assert result.class_values.tolist() == values
    assert result.suggested.tolist() == np.array(values)[REFERENCE.suggested_label].tolist()


def test_space_around_labels_does_not_count_and_odd_classes_are_noted():
    x, names = X[:60], NAMES[Y[:60]]
    spaced = np.char.add(names, np.where(np.arange(60) % 2, " ", ""))
    plain, odd = expunge.detect(x, spaced), expunge.detect(x, ["Ant", *names[1:]])
    assert plain.classes == ("ant", "bee", "cat")
    assert not plain.notes
    assert odd.notes == ("the classes 'Ant' and 'ant' differ in case or invisible signs alone",)


def test_minus_one_is_a_class_if_it_is_named_or_one_of_two():
    names = ("-1", "0", "1")
    assert expunge.detect(X[:60], Y[:60] - 1, classes=names).classes == names
    assert expunge.detect(X[:60], 2 * (Y[:60] > 0) - 1).classes == ("-1", "1")


def test_a_class_for_each_sample_is_too_few_samples():
    assert [flag.code for flag in expunge.detect(X[:20], np.arange(20)).flags] == [
        "too-few-samples"
    ]


def test_two_classes_may_be_truth_values():
    result = expunge.detect(X, Y > 0)
    assert result.classes == ("False", "True")
    assert result.suggested.dtype == bool
    assert ((Y > 0) == result.suggested).mean() > 0.7
    with pytest.raises(DataError, match="probs have 3 columns, and the labels 2 classes"):
        expunge.detect(X, Y > 0, PROBS)


def test_the_order_of_the_samples_changes_nothing():
    ids, order = np.arange(300), np.random.default_rng(1).permutation(300)
    moved = expunge.detect(X[order], Y[order], ids=ids[order])
    np.testing.assert_allclose(moved.p_noisy, REFERENCE.p_noisy[order], atol=1e-4)


def test_out_of_sample_probabilities_are_one_more_source():
    weak = np.hstack([X[:, :1], np.zeros((300, 1))])  # features that hardly help
    probs = cross_val_predict(LogisticRegression(), X, Y, method="predict_proba")
    alone, both = expunge.detect(weak, Y), expunge.detect(weak, Y, probs)
    aurocs = [roc_auc_score(BAD, r.p_noisy) for r in (alone, both)]
    assert aurocs[1] > aurocs[0] + 0.05
    assert both.probs == "out-of-sample"
    assert not any(flag.code == "probs-in-sample" for flag in both.flags)
    declared = expunge.detect(weak, Y, probs, probs_source="out-of-sample")
    np.testing.assert_array_equal(declared.p_noisy, both.p_noisy)


def test_in_sample_probabilities_are_recognised_and_do_no_harm():
    probs = KNeighborsClassifier(1).fit(X, Y).predict_proba(X)
    result = expunge.detect(X, Y, probs)
    assert result.probs == "in-sample"
    assert result.flags[0].code == "probs-in-sample"
    assert roc_auc_score(BAD, result.p_noisy) > roc_auc_score(BAD, REFERENCE.p_noisy) - 0.01
    declared = expunge.detect(X, Y, probs, probs_source="in-sample")
    np.testing.assert_array_equal(declared.p_noisy, result.p_noisy)


def test_columns_of_probabilities_are_matched_by_name():
    probs = cross_val_predict(LogisticRegression(), X, Y, method="predict_proba")
    frame = pd.DataFrame(probs, columns=NAMES)[["cat", "ant", "bee"]]
    a, b = (expunge.detect(X, NAMES[Y], p) for p in (probs, frame))
    np.testing.assert_array_equal(a.p_noisy, b.p_noisy)
    wider = np.hstack([probs, np.zeros((300, 1))])
    assert expunge.detect(X, Y, wider).classes == ("0", "1", "2", "3")


def test_trusted_labels_are_never_flagged():
    assert not expunge.detect(X, Y, trusted=BAD).flagged[BAD].any()


def test_a_single_feature_missing_values_and_few_samples_give_a_result():
    x = X.argmax(axis=1).astype(np.float64)
    x[::9] = np.nan
    result = expunge.detect(x, Y)
    assert roc_auc_score(BAD, result.p_noisy) > 0.6
    assert "values are missing" in result.notes[0]
    few = expunge.detect(X[:6], Y[:6])
    assert not few.flagged.any()
    assert any(flag.code == "too-few-samples" for flag in few.flags)
    rare = expunge.detect(X, np.where(np.arange(300) < 2, "dog", NAMES[Y]))
    assert [flag.message for flag in rare.flags if flag.code == "too-few-samples"] == [
        "There are 300 samples, 2 of class 'dog': too few for cross-fitted evidence."
    ]


def test_features_without_information_are_a_red_flag():
    noise = np.random.default_rng(3).standard_normal((300, 4))
    result = expunge.detect(noise, Y)
    assert any(flag.code == "labels-independent-of-inputs" for flag in result.flags)


FRAME = pd.DataFrame(X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expunge.detect(X, Y[:-1]), "300 rows of features, 299 labels and 300 ids"),
        (lambda: expunge.detect(X, np.zeros(300)), "all samples have the same label"),
        (lambda: expunge.detect(X, Y + 0.5), "labels are fractions or .*, expected classes"),
        (lambda: expunge.detect(X, Y * 1e19), "numbers of more than 64 bits, expected classes"),
        (
            lambda: expunge.detect(X, NAMES[Y], pd.DataFrame(PROBS, columns=["ant", "bee", "x"])),
            "no column for the classes cat, only ant, bee, x",
        ),
        (lambda: expunge.detect(X, [None, *Y[1:].tolist()]), "missing values .* in labels: ids 0"),
        (lambda: expunge.detect(X, [np.nan, *Y[1:].tolist()]), "ids 0"),
        (lambda: expunge.detect(X, np.eye(3)[Y]), r"y\.argmax\(1\)"),
        (lambda: expunge.detect(X, {*Y}), r"labels must be .* not set\n.*list\(labels\)"),
        (lambda: expunge.detect(iter(X), Y), r"got .*iterator.*\n.*list\(features\)"),
        (lambda: expunge.detect(X, [[0], [0, 1]] * 150), "several labels are not supported"),
        (lambda: expunge.detect(X, ["0", 0, 1] * 100), "int and str in labels, expected"),
        (lambda: expunge.detect(X, Y, np.ones((300, 3))), "do not sum to 1"),
        (lambda: expunge.detect(X, NAMES[Y], np.ones((300, 4)) / 4), "probs have 4 columns"),
        (lambda: expunge.detect(X, Y, np.ones((9, 3)) / 3), r"probs have shape \(9, 3\)"),
        (lambda: expunge.detect(X, NAMES[Y], classes=["ant", "bee"]), "no class: cat"),
        (lambda: expunge.detect(X, Y, classes=["ant", "bee"]), "no class: 2"),
        (lambda: expunge.detect(X, Y - 1), r"missing \(-1\): .*\n.*classes=\['-1', '0', '1'\]"),
        (lambda: expunge.detect(X, Y, ids=np.zeros(300, dtype=int)), "duplicate ids: 0"),
        (lambda: expunge.detect(X, Y, ids=np.zeros((300, 2))), "ids must be one value a sample"),
        (lambda: expunge.detect(X, Y.astype("M8[D]")), r"give texts: labels\.astype\(str\)"),
        (lambda: expunge.detect(X, Y, trusted=np.ones(3, dtype=bool)), "trusted must be 300"),
        (lambda: expunge.detect(FRAME, pd.Series(Y, index=range(1, 301))), "different indexes"),
        (lambda: expunge.detect(FRAME.assign(y=Y), pd.Series(Y, name="y")), "column 'y'"),
        (lambda: expunge.detect(FRAME.assign(y=Y), Y), r"hold the label: column 'y' .*\n.*drop"),
        (lambda: expunge.detect(FRAME.assign(code=9.0 - Y), NAMES[Y]), "label: column 'code'"),
        (lambda: expunge.detect(FRAME.assign(kind=np.char.upper(NAMES[Y])), Y), "column 'kind'"),
        (lambda: expunge.detect(np.column_stack([X, 2 * Y]), NAMES[Y]), "label: column '6'"),
        (lambda: expunge.detect(X, np.arange(300) // 1.5 // 1), "200 values, so most stand once"),
        (lambda: expunge.detect({"x": X, "y": Y}, Y), r"column 'y' has another.*\n.*--features"),
        (lambda: expunge.detect({"x": X[None]}, Y), r"its arrays \(x\): features\['x'\]"),
        (lambda: expunge.detect(FRAME, "y"), r"the text 'y'.*\n.*features\['y'\]"),
        (
            lambda: expunge.detect(X, ["", " ", *NAMES[Y[2:]]]),
            "missing values .* in labels: ids 0, 1",
        ),
        (lambda: expunge.detect(X, Y, np.log(PROBS)), "do not sum to 1: .* give the softmax"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_columns_that_tell_one_class_from_the_rest_are_noted():
    (note,) = expunge.detect(FRAME.assign(is_bee=Y == 1), Y).notes
    assert note.startswith("columns with one value in each class: is_bee; leave them out")


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="threshold must lie in"):
        expunge.detect(X, Y, threshold=2)
    with pytest.raises(ConfigError, match="probs_source must be one of"):
        expunge.detect(X, Y, probs_source="guessed")


def test_the_summary_names_counts_corrections_and_samples():
    lines = expunge.detect(X, NAMES[Y], ids=[f"s{k:03}" for k in range(300)]).summary().splitlines()
    assert f"{int(REFERENCE.flagged.sum())} of 300 samples are flagged" in lines[0]
    assert "→" in lines[2]
    assert lines[3].startswith("  id s")


def test_a_file_gives_a_partition_a_summary_and_a_page_that_escapes_it(tmp_path):
    frame = pd.DataFrame(X, columns=[f"f{k}" for k in range(6)])
    frame["where"], frame["kind"] = "<b>north</b>", NAMES[Y]
    frame.loc[::3, "where"] = "south"
    frame.to_csv(tmp_path / "data.csv", index=False)
    result = detect_file(tmp_path / "data.csv", tmp_path / "out", columns=Columns("kind"))
    table = pd.read_parquet(tmp_path / "out" / "partition.parquet")
    assert table["suggested_name"].tolist() == result.suggested.tolist()
    assert table["label_name"].tolist() == NAMES[Y].tolist()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (found["flagged"], found["n"]) == (int(result.flagged.sum()), 300)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;north&lt;/b&gt;" in page
    assert "<b>north</b>" not in page
    assert "<th>f0</th>" in page
    assert "Unlearning audit" not in page
