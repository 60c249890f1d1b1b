"""The laws that every registered partitioner keeps, and what the mixture finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from expunge.detection.gaussian_mixture import noisy_posterior
from expunge.detection.lda import ashman_d
from expunge.detection.mixture_partitioner import mixture
from expunge.detection.partitioners import partitioners, with_input_faults
from expunge.detection.thresholds import fdr_threshold
from expunge.errors import ConfigError
from expunge.records import Component, Scores

NAMES = partitioners.names()
CLASSES = 4


def scores(label=None, inputs=None, *, doubted=None, seed=0, **changes):
    """Scores from columns of evidence; the class distribution doubts the labels of some."""
    columns = {f"l{i}": v for i, v in enumerate(label or [])}
    columns |= {f"i{i}": v for i, v in enumerate(inputs or [])}
    n = len(next(iter(columns.values())))
    labels = np.random.default_rng(seed).integers(0, CLASSES, n)
    doubted = np.zeros(n, dtype=bool) if doubted is None else doubted
    probs = np.full((n, CLASSES), 0.1)
    probs[np.arange(n), (labels + doubted) % CLASSES] = 0.7
    fields = {
        "ids": np.arange(n) * 2,
        "labels": labels,
        "values": columns,
        "kinds": {k: "label" if k[0] == "l" else "input" for k in columns},
        "class_probs": probs,
    }
    return Scores(**{**fields, **changes})


def rows(s, at):
    return Scores(
        s.ids[at],
        s.labels[at],
        {k: v[at] for k, v in s.values.items()},
        s.kinds,
        s.class_probs[at],
    )


def two_groups(n=1000, rate=0.3, apart=4.0, seed=0):
    """Evidence whose bad share lies higher, and which samples those are."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) < round(rate * n)
    rng.shuffle(bad)
    return rng.standard_normal(n) + apart * bad, bad


def squashed(values):
    return 1 / (1 + np.exp(2.0 - values))


def both_kinds(name, n=300, seed=0):
    """Scores of both kinds that the partitioner takes."""
    label, wrong = two_groups(n, apart=6.0, seed=seed)
    inputs, _ = two_groups(n, rate=0.1, apart=6.0, seed=seed + 1)
    if name == "posterior":
        label, inputs = squashed(label), squashed(inputs)
    return scores([label], [inputs], doubted=wrong)


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
    columns = [label, other] if name == "mixture" else [squashed(label), squashed(other)]
    s = scores(columns, doubted=wrong)
    order = np.random.default_rng(1).permutation(len(label))
    made = partitioners.get(name)(s, seed=0)
    mixed = partitioners.get(name)(rows(s, order), seed=0)
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
    made = partitioners.get(name)(scores([squashed(label)], doubted=wrong), seed=0)
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
@pytest.mark.parametrize("doubt", ["all", "high"])
def test_odd_evidence_gives_a_partition(name, case, doubt):
    e = odd_evidence()[case]
    doubted = {"all": e >= e.min(), "high": e > e.mean()}[doubt]
    made = partitioners.get(name)(scores([e, e[::-1]], [e], doubted=doubted), seed=0)
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


# ------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize("name", NAMES)
def test_wrong_labels_get_the_best_supported_label(name):
    s = both_kinds(name)
    made = partitioners.get(name)(s, seed=0)
    best = s.class_probs.argmax(axis=1)
    mended = (made.suggested_label != s.labels) & (best != s.labels)
    assert mended.sum() > 50
    assert (made.suggested_label[mended] == best[mended]).all()
    # The posterior of another label: p · q_c / (1 − q_y).
    rest = 1 - s.class_probs[np.arange(300), s.labels]
    q = s.class_probs.max(axis=1) / rest
    assert_allclose(made.suggested_probability[mended], (made.p_label_fault * q)[mended], rtol=1e-5)
    stays = made.suggested_label == s.labels
    assert_allclose(made.suggested_probability[stays], 1 - made.p_label_fault[stays])


def test_a_label_that_is_as_well_supported_as_another_stays():
    e = np.array([0.5, 1.0, 0.5])
    probs = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    s = scores([e], labels=np.array([1, 1, 1]), class_probs=probs)
    made = partitioners.get("posterior")(s, seed=0)
    assert made.suggested_label.tolist() == [1, 1, 1]
    assert made.suggested_probability.tolist() == [0.5, 0.0, 0.5]


# ------------------------------------------------------------------------------- the mixture


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_clean_data_are_not_flagged(seed, shape):
    rng = np.random.default_rng(seed)
    e = rng.standard_normal(1500)
    if shape == "skewed":
        # Margins of a good classifier: few samples near the border, their labels still supported.
        e = -(rng.gamma(2.0, 2.0, 1500))
    made = mixture(scores([e], [rng.standard_normal(1500)]), seed=0)
    assert not made.flagged.any()
    assert made.noise_rate[0] < 0.01


@pytest.mark.parametrize("kind", ["label", "input"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.45])
def test_two_groups_are_told_apart_and_their_share_is_estimated(kind, rate):
    e, bad = two_groups(1000, rate)
    s = scores([e], doubted=bad) if kind == "label" else scores(inputs=[e])
    made = mixture(s, seed=0)
    assert roc_auc_score(bad, made.p_noisy) > 0.95
    value, low, high = made.noise_rate
    assert abs(value - rate) < 0.05
    assert low < value < high
    assert high - low < 0.2
    assert (made.flagged == bad).mean() > 0.95


def test_intervals_cover_the_true_share_about_as_often_as_they_say():
    covered = 0
    for seed in range(6):
        e, bad = two_groups(300, 0.3, apart=5.0, seed=seed)
        _, low, high = mixture(scores([e], doubted=bad), seed=0).noise_rate
        covered += low <= 0.3 <= high
    assert covered >= 5


def test_posteriors_are_those_of_the_planted_mixture():
    e, _ = two_groups(4000, 0.3)
    # The class distribution says the same as the score: odds of e^(e − 2) against the given label.
    labels = np.zeros(4000, dtype=int)
    probs = np.full((4000, CLASSES), 1e-9)
    probs[:, 1] = 1 / (1 + np.exp(2 - e))
    probs[:, 0] = 1 - probs[:, 1]
    made = mixture(scores([e], labels=labels, class_probs=probs), seed=0)
    w, f1, f0 = 0.3, norm.pdf(e, 4.0), norm.pdf(e, 0.0)
    assert_allclose(made.p_noisy, w * f1 / (w * f1 + (1 - w) * f0), atol=0.1)
    (fit,) = made.fits
    assert [c.noisy for c in fit.components] == [False, True]
    assert fit.bic[2] < min(fit.bic[1], fit.bic[3])
    assert fit.separation == pytest.approx(4.0, abs=0.3)


def test_a_majority_of_wrong_labels_is_seen_as_well():
    e, bad = two_groups(2000, 0.6, apart=5.0)
    made = mixture(scores([e], doubted=bad), seed=0)
    assert (made.flagged == bad).mean() > 0.95


def test_groups_whose_labels_are_supported_are_not_wrong():
    e, _ = two_groups()
    assert not mixture(scores([e]), seed=0).flagged.any()


def test_bad_inputs_and_wrong_labels_are_told_apart():
    rng = np.random.default_rng(0)
    n = 2000
    group = rng.choice([0, 1, 2], n, p=[0.6, 0.25, 0.15])
    wrong, bad = group == 1, group == 2
    label = rng.standard_normal(n) + 5 * wrong + 1.5 * bad
    inputs = rng.standard_normal(n) + 6 * bad
    made = mixture(scores([label], [inputs], doubted=wrong), seed=0)
    assert ((made.p_label_fault > 0.5) == wrong)[~bad].mean() > 0.95
    assert ((made.p_input_fault > 0.5) == bad).mean() > 0.97
    assert (made.flagged == (group > 0)).mean() > 0.95
    assert made.noise_rate[0] == pytest.approx(0.4, abs=0.05)


def test_a_score_that_sees_one_group_only_says_little():
    e, bad = two_groups(1000, 0.3)
    blind = np.random.default_rng(9).standard_normal((2, 1000))
    alone = mixture(scores([e], doubted=bad), seed=0)
    made = mixture(scores([e, *blind], doubted=bad), seed=0)
    assert roc_auc_score(bad, made.p_noisy) > 0.97
    assert abs(made.noise_rate[0] - alone.noise_rate[0]) < 0.05


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_scale_of_a_score_does_not_matter(factor):
    e, bad = two_groups(300)
    expected = mixture(scores([e], doubted=bad), seed=0)
    made = mixture(scores([e * factor + 3 * factor], doubted=bad), seed=0)
    assert_allclose(made.p_noisy, expected.p_noisy, atol=1e-6)


def test_one_component_means_no_noise():
    e, bad = two_groups(apart=6.0)
    made = mixture(scores(inputs=[e]), seed=0, components=1)
    assert not made.p_noisy.any()
    assert made.fits[0].separation == 0.0
    assert (mixture(scores(inputs=[e]), seed=0, components=2).flagged == bad).mean() > 0.99


@pytest.mark.parametrize(("rate", "found"), [(0.5, 0.5), (0.8, 0.0)])
def test_what_two_thirds_of_the_inputs_have_in_common_is_no_fault(rate, found):
    e, _ = two_groups(rate=rate, apart=8.0)
    split = mixture(scores(inputs=[e]), seed=0)
    assert split.flagged.mean() == pytest.approx(found, abs=0.02)


def test_groups_that_are_closer_than_asked_for_are_one():
    e, _ = two_groups(apart=6.0)
    assert mixture(scores(inputs=[e]), seed=0).flagged.any()
    assert not mixture(scores(inputs=[e]), seed=0, separation=20.0).flagged.any()


@pytest.mark.parametrize(("option", "value"), [("components", 0), ("separation", -1.0)])
def test_options_that_make_no_sense_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} must be .* or more, not {value}"):
        mixture(both_kinds("mixture"), seed=0, **{option: value})


def test_ashman_is_the_distance_in_pooled_deviations():
    assert float(ashman_d(3.0, 1.0, 0.0, 1.0)) == pytest.approx(3.0)
    assert float(ashman_d(0.0, 3.0, 10.0, 4.0)) == pytest.approx(np.sqrt(2) * 10 / 5)


def test_a_posterior_agrees_with_the_formula_between_the_means_and_never_turns():
    parts = (Component(0.7, 0.0, 2.0, False), Component(0.3, 4.0, 0.5, True))
    e = np.linspace(-20, 20, 401)
    made = noisy_posterior(e, parts)
    inside = (e >= 0) & (e <= 4)
    clean, noisy = 0.7 * norm.pdf(e, 0, 2), 0.3 * norm.pdf(e, 4, 0.5)
    raw = (noisy / (clean + noisy))[inside]
    assert_allclose(made[inside], np.maximum.accumulate(raw), atol=1e-12)
    assert (np.diff(made) >= 0).all()
    assert_allclose(made[e > 4], made[e <= 4].max())
    # Between two noisy components the clean one would come back.
    more = (Component(0.5, 0.0, 3.0, False), parts[1], Component(0.2, 12.0, 0.5, True))
    assert (np.diff(noisy_posterior(e, more)) >= 0).all()
    assert not noisy_posterior(e, parts[:1]).any()
    assert noisy_posterior(e, parts[1:]).all()


def test_given_posteriors_are_probabilities_and_the_largest_counts():
    a, b = np.array([0.1, 0.9, 0.0]), np.array([0.4, 0.2, 0.0])
    made = partitioners.get("posterior")(scores([a, b], [b]), seed=0)
    assert made.p_label_fault.tolist() == [0.4, 0.9, 0.0]
    assert_allclose(made.p_noisy, [1 - 0.6 * 0.6, 1 - 0.1 * 0.8, 0])
    for wrong in (np.array([0.0, 1.01, 0.0]), np.array([0.0, -0.01, 0.0])):
        with pytest.raises(ConfigError, match=r"takes scores in \[0, 1\]\n.*use .*'mixture'"):
            partitioners.get("posterior")(scores([a, wrong]), seed=0)


def test_a_threshold_for_false_discoveries_is_that_of_labels_and_inputs_together():
    n, rng = 400, np.random.default_rng(0)
    label = np.where(np.arange(n) < 40, 0.6, 0.05)
    bad = np.where(np.arange(n) >= 300, 1.0, rng.random(n) * 0.02)
    labels, inputs = (
        partitioners.get("posterior")(s, seed=0) for s in (scores([label]), scores(inputs=[bad]))
    )
    both = with_input_faults(labels, inputs, fdr=0.05)
    assert both.threshold == fdr_threshold(both.p_noisy, 0.05)
    assert both.flagged[300:].all()
    assert (1 - both.p_noisy[both.flagged]).mean() <= 0.05
    assert with_input_faults(labels, inputs).threshold == labels.threshold
