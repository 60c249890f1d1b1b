"""The function that runs detectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax

from expunge.detection.detectors import Detection, detect, detectors, needs_of
from expunge.detection.feature_detectors import knn_disagreement
from expunge.detection.lda import layer_posteriors
from expunge.detection.memorisation import informative_sources
from expunge.detection.opinion_pool import opinion_pool, smooth
from expunge.errors import ConfigError, DataError
from oracles_detection import signals


def test_detect_names_scores_and_kinds_and_takes_options():
    s = signals()
    made = detect(s, ("loss", "knn_disagreement"), {"knn_disagreement": {"k": 3}})
    assert list(made.values) == ["loss", "knn_disagreement"]
    assert made.kinds == {"loss": "label", "knn_disagreement": "label"}
    alone = knn_disagreement(s, k=3)
    assert (made.values["knn_disagreement"] == alone.score).all()
    informative = informative_sources(alone.class_probs, s)
    assert_allclose(made.class_probs, opinion_pool(informative, s.labels), rtol=1e-5)
    assert (made.ids == s.ids).all()


def test_without_a_class_distribution_the_softmax_is_taken():
    s = signals()
    assert_allclose(detect(s, ("loss",)).class_probs, softmax(s.logits, axis=1), rtol=1e-5)


def test_scores_hold_how_often_model_and_views_agree_with_the_labels():
    s = signals(views=4)
    made = detect(s, ("loss",))
    assert made.agreement["plain"] == (s.logits.argmax(axis=1) == s.labels).mean()
    assert made.agreement["augmented"] == (s.augmented_probs.argmax(axis=1) == s.labels).mean()
    assert "augmented" not in detect(signals(), ("loss",)).agreement


@pytest.mark.parametrize(
    ("name", "missing", "change"),
    [
        ("augmented_margin", "views", {"augmented_probs": None}),
        ("attribution_clusters", "attributions", {"attributions": None}),
        ("self_influence", "head_input_norm", {"per_sample": {}}),
    ],
)
def test_signals_without_what_a_detector_needs_are_refused(name, missing, change):
    with pytest.raises(DataError, match=f"detector '{name}' needs {missing}"):
        detect(signals(**change), (name,))


def test_wrong_names_and_options_are_refused():
    s = signals()
    with pytest.raises(ConfigError, match=r"no detector is named\n.*choose from"):
        detect(s, ())
    with pytest.raises(ConfigError, match=r"no detector is called 'los'\n.*did you mean 'loss'"):
        detect(s, ("los",))
    with pytest.raises(ConfigError, match="'knn_disagreement' has no option 'kk'"):
        detect(s, ("knn_disagreement",), {"knn_disagreement": {"kk": 3}})


def test_needs_are_those_of_all_named_detectors():
    assert needs_of(("loss",)) == frozenset()
    assert needs_of(("self_influence", "augmented_loss", "loss")) == {"head_input_norm", "views"}
    with pytest.raises(ConfigError, match="no detector is called"):
        needs_of(("nothing_like_it",))


def test_a_detector_without_a_kind_detects_wrong_labels(monkeypatch):
    monkeypatch.setattr(detectors, "_items", {**detectors._items})
    monkeypatch.setattr(detectors, "_metadata", {**detectors._metadata})
    detectors.register("theirs")(lambda s: Detection(np.zeros(len(s.ids))))
    assert detectors.metadata("theirs").kind == "label"
    assert needs_of(("theirs",)) == frozenset()
    assert not detect(signals(), ("theirs",)).values["theirs"].any()


def test_leave_one_out_probabilities_are_kept_apart_from_votes():
    s = signals()
    made = detect(s, ("knn_disagreement", "lda_margin"))
    assert_allclose(made.loo_probs, np.stack(layer_posteriors(s)), rtol=1e-6)
    assert len(detect(s, ("knn_disagreement",)).loo_probs) == 0


def test_sources_that_have_memorised_are_not_pooled_and_trusted_samples_fit_the_pool():
    s = signals(400, augmented_probs=np.full((400, 4), 0.25))
    repeats = np.full((400, 4), 0.01) + 0.96 * np.eye(4)[s.labels]
    s = replace(s, external_probs={"repeats": repeats, **s.external_probs})
    made = detect(s, ("external_margin",))
    other = opinion_pool([smooth(s.external_probs["folds"])], s.labels)
    assert_allclose(made.class_probs, other, rtol=1e-5)
    trusted = np.arange(400) < 200
    s = replace(s, trusted=trusted, augmented_probs=None)
    sources = [smooth(p) for p in s.external_probs.values()]
    made = detect(s, ("external_margin",))
    assert_allclose(made.class_probs, opinion_pool(sources, s.labels, trusted), rtol=1e-5)
