"""What the mixture finds in planted evidence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from expunge._core.rng import derive
from expunge.detection.class_arithmetic import label_margin
from expunge.detection.gaussian_mixture import fit_evidence, odds_rule
from expunge.detection.mixture_partitioner import mixture
from expunge.errors import ConfigError
from oracles_detection import both_kinds, scores, two_groups


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
def test_two_groups_are_separated_and_their_share_is_estimated(kind, rate):
    e, bad = two_groups(1000, rate)
    s = scores([e], contradicted=bad) if kind == "label" else scores(inputs=[e])
    made = mixture(s, seed=0)
    assert roc_auc_score(bad, made.p_noisy) > 0.95
    value, low, high = made.noise_rate
    assert abs(value - rate) < 0.05
    assert low < value < high
    assert high - low < 0.2
    assert (made.flagged == bad).mean() > 0.95


def test_intervals_cover_the_true_share_about_as_often_as_claimed():
    covered = 0
    for seed in range(6):
        e, bad = two_groups(300, 0.3, apart=5.0, seed=seed)
        _, low, high = mixture(scores([e], contradicted=bad), seed=0).noise_rate
        covered += low <= 0.3 <= high
    assert covered >= 5


def test_posteriors_are_those_of_the_planted_mixture():
    e, _ = two_groups(4000, 0.3)
    # The class distribution says the same as the score: odds of e^(e − 2) against the given label.
    labels = np.zeros(4000, dtype=int)
    probs = np.full((4000, 4), 1e-9)
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
    made = mixture(scores([e], contradicted=bad), seed=0)
    assert (made.flagged == bad).mean() > 0.95


def test_groups_whose_labels_are_supported_are_not_wrong():
    e, _ = two_groups()
    assert not mixture(scores([e]), seed=0).flagged.any()


def test_bad_inputs_and_wrong_labels_are_separated():
    rng = np.random.default_rng(0)
    n = 2000
    group = rng.choice([0, 1, 2], n, p=[0.6, 0.25, 0.15])
    wrong, bad = group == 1, group == 2
    label = rng.standard_normal(n) + 5 * wrong + 1.5 * bad
    inputs = rng.standard_normal(n) + 6 * bad
    made = mixture(scores([label], [inputs], contradicted=wrong), seed=0)
    assert ((made.p_label_fault > 0.5) == wrong)[~bad].mean() > 0.95
    assert ((made.p_input_fault > 0.5) == bad).mean() > 0.97
    assert (made.flagged == (group > 0)).mean() > 0.95
    assert made.noise_rate[0] == pytest.approx(0.4, abs=0.05)


def test_a_score_that_does_not_separate_groups_has_little_weight():
    e, bad = two_groups(1000, 0.3)
    blind = np.random.default_rng(9).standard_normal((2, 1000))
    alone = mixture(scores([e], contradicted=bad), seed=0)
    made = mixture(scores([e, *blind], contradicted=bad), seed=0)
    assert roc_auc_score(bad, made.p_noisy) > 0.97
    assert abs(made.noise_rate[0] - alone.noise_rate[0]) < 0.05


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_scale_of_a_score_does_not_matter(factor):
    e, bad = two_groups(300)
    expected = mixture(scores([e], contradicted=bad), seed=0)
    made = mixture(scores([e * factor + 3 * factor], contradicted=bad), seed=0)
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


def test_groups_that_are_closer_than_the_separation_are_one():
    e, _ = two_groups(apart=6.0)
    assert mixture(scores(inputs=[e]), seed=0).flagged.any()
    assert not mixture(scores(inputs=[e]), seed=0, separation=20.0).flagged.any()


@pytest.mark.parametrize(("option", "value"), [("components", 0), ("separation", -1.0)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} must be .* or more, not {value}"):
        mixture(both_kinds("mixture"), seed=0, **{option: value})


def test_labels_of_bad_inputs_do_not_shape_the_mixture_of_label_evidence():
    label, wrong = two_groups(600, 0.3, apart=6.0)
    inputs, bad = two_groups(600, 0.2, apart=12.0, seed=1)
    s = scores([np.where(bad, 3.0, label)], [inputs], contradicted=wrong)
    made = mixture(s, seed=0)
    odds = label_margin(np.log(s.class_probs.astype(np.float64)), s.labels)
    expected, _ = fit_evidence(
        made.evidence["label_evidence"],
        ~bad,
        kind="label",
        components=3,
        rule=odds_rule(odds),
        seed=derive(0, "mixture", "label"),
    )
    assert ((made.p_input_fault > 0.5) == bad).all()
    assert made.fits[-1] == expected
