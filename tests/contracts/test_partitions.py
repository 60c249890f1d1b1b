"""The laws that every registered partitioner keeps, and what the mixture finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from expunge.detection.partitioners import partitioners
from expunge.errors import ConfigError
from oracles_detection import both_kinds, score_rows, scores, squash, two_groups

NAMES = partitioners.names()


# ------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", NAMES)
def test_partitions_hold_probabilities_that_belong_together(name):
    s = both_kinds(name)
    made = partitioners.get(name)(s, seed=0)
    for part in ("p_noisy", "p_label_fault", "p_input_fault", "suggested_probability"):
        values = getattr(made, part)
        assert (values.shape, values.dtype) == ((300,), np.float64)
        assert values.min() >= 0
        assert values.max() <= 1
    assert_allclose(made.p_noisy, 1 - (1 - made.p_label_fault) * (1 - made.p_input_fault))
    rate, low, high = made.noise_rate
    assert 0 <= low <= rate <= high <= 1
    assert rate == pytest.approx(made.p_noisy.mean())
    assert (made.ids == s.ids).all()
    assert (made.labels == s.labels).all()
    assert (made.flagged == (made.p_noisy > 0.5)).all()
    assert np.ptp(made.p_noisy) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_partitions_are_the_same_every_time_and_change_nothing(name):
    s, state = both_kinds(name), torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (partitioners.get(name)(x, seed=3) for x in (s, both_kinds(name)))
    assert (first.p_noisy == second.p_noisy).all()
    assert first.noise_rate == second.noise_rate
    assert torch.equal(state, torch.get_rng_state())
    assert (legacy == np.random.get_state()[1]).all()  # noqa: NPY002
    assert all((s.values[k] == v).all() for k, v in both_kinds(name).values.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("apart", [3.0, 6.0])
def test_partitions_follow_the_samples_whatever_their_order(name, apart):
    label, wrong = two_groups(300, apart=apart)
    other = label + np.random.default_rng(5).standard_normal(len(label))
    columns = [label, other] if name == "mixture" else [squash(label), squash(other)]
    s = scores(columns, contradicted=wrong)
    order = np.random.default_rng(1).permutation(len(label))
    made = partitioners.get(name)(s, seed=0)
    mixed = partitioners.get(name)(score_rows(s, order), seed=0)
    assert_allclose(mixed.p_noisy, made.p_noisy[order], atol=1e-7)
    assert_allclose(mixed.noise_rate, made.noise_rate, atol=1e-7)
    assert (mixed.suggested_label == made.suggested_label[order]).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_evidence_never_means_less_suspicion(name):
    s = both_kinds(name)
    made = partitioners.get(name)(s, seed=0)
    label = made.evidence.get("label_evidence", s.values["l0"])
    for evidence, p in ((label, made.p_label_fault), (s.values["i0"], made.p_input_fault)):
        order = np.argsort(evidence, kind="stable")
        assert (np.diff(p[order]) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_without_scores_has_no_faults(name):
    label, wrong = two_groups(200, apart=8.0)
    made = partitioners.get(name)(scores([squash(label)], contradicted=wrong), seed=0)
    assert not made.p_input_fault.any()
    assert_allclose(made.p_noisy, made.p_label_fault, atol=1e-12)


def odd_evidence():
    rng = np.random.default_rng(0)
    few = rng.random(25)
    return {
        "constant": np.full(100, 0.3),
        "zero": np.zeros(100),
        "two values": np.repeat([0.0, 1.0], 50),
        "one outlier": np.append(np.zeros(99), 1.0),
        "many ties": rng.integers(0, 4, 80) / 4,
        "one sample": np.array([0.5]),
        "three samples": np.array([0.1, 0.5, 0.9]),
        "twenty samples": few[:20],
        "twenty-five samples": few,
        "tiny": rng.random(100) * 1e-30,
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", list(odd_evidence()))
@pytest.mark.parametrize("which", ["all", "high"])
def test_odd_evidence_gives_a_partition(name, case, which):
    e = odd_evidence()[case]
    contradicted = {"all": e >= e.min(), "high": e > e.mean()}[which]
    made = partitioners.get(name)(scores([e, e[::-1]], [e], contradicted=contradicted), seed=0)
    assert np.isfinite(made.p_noisy).all()
    rate, low, high = made.noise_rate
    assert 0 <= low <= rate <= high <= 1
    if case == "constant" and name == "mixture":
        assert not made.flagged.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_fraction(name, threshold):
    with pytest.raises(ConfigError, match=r"threshold must lie in \[0, 1\], not"):
        partitioners.get(name)(both_kinds(name), seed=0, threshold=threshold)
    assert not partitioners.get(name)(both_kinds(name), seed=0, threshold=1.0).flagged.any()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_labels_get_the_best_supported_label(name):
    s = both_kinds(name)
    made = partitioners.get(name)(s, seed=0)
    best = s.class_probs.argmax(axis=1)
    corrected = (made.suggested_label != s.labels) & (best != s.labels)
    assert corrected.sum() > 50
    assert (made.suggested_label[corrected] == best[corrected]).all()
    # The posterior of another label: p · q_c / (1 − q_y).
    rest = 1 - s.class_probs[np.arange(300), s.labels]
    q = s.class_probs.max(axis=1) / rest
    assert_allclose(
        made.suggested_probability[corrected], (made.p_label_fault * q)[corrected], rtol=1e-5
    )
    stays = made.suggested_label == s.labels
    assert_allclose(made.suggested_probability[stays], 1 - made.p_label_fault[stays])
