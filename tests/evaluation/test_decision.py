from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expunge.config import RoundsConfig
from expunge.evaluation import decision
from expunge.evaluation.decision import Candidate, HeldOutLabels
from expunge.recipes import Recipe, recipes
from expunge.records import Partition

CLASSES = 4


def pair_flipped(labels: np.ndarray, rate: float, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).random(len(labels)) < rate
    return np.where(chosen, (labels + 1) % CLASSES, labels)


def right_for(truth: np.ndarray, accuracy: float, seed: int) -> np.ndarray:
    """Predictions that are right that often, and evenly wrong else."""
    rng = np.random.default_rng(seed)
    wrong = (truth + rng.integers(1, CLASSES, len(truth))) % CLASSES
    return np.where(rng.random(len(truth)) < accuracy, truth, wrong)


def flips(rate: float) -> np.ndarray:
    return (1 - rate) * np.eye(CLASSES) + rate * np.roll(np.eye(CLASSES), 1, axis=1)


def held_out(labels: np.ndarray) -> HeldOutLabels:
    return HeldOutLabels(labels, np.ones(len(labels)))


def partition(labels, p, suggested, threshold=0.5) -> Partition:
    n = len(labels)
    return Partition(
        ids=np.arange(n),
        labels=labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(n),
        suggested_label=suggested,
        suggested_probability=np.ones(n),
        threshold=threshold,
        noise_rate=(0.1, 0.0, 0.2),
    )


def test_the_gain_on_noisy_labels_is_the_gain_on_right_ones():
    truth = np.random.default_rng(0).integers(0, CLASSES, 40_000)
    before, after = right_for(truth, 0.6, 1), right_for(truth, 0.7, 2)
    found = decision.gain(after, before, held_out(pair_flipped(truth, 0.3, 3)), flips(0.3))
    truly = (after == truth).mean() - (before == truth).mean()
    assert found.low < truly < found.high
    assert found.value == pytest.approx(truly, abs=0.01)


def test_a_model_that_has_learned_the_noise_of_a_class_gains_nothing_by_it():
    truth = np.random.default_rng(0).integers(0, CLASSES, 40_000)
    most = np.random.default_rng(1).random(len(truth)) < 0.7
    labels = np.where((truth == 0) & most, 1, truth)
    noise = np.eye(CLASSES)
    noise[0, :2] = 0.3, 0.7
    before = right_for(truth, 0.7, 2)
    after = np.where(truth == 0, 1, before)
    assert decision.gain(after, before, held_out(labels), np.eye(CLASSES)).low > 0
    found = decision.gain(after, before, held_out(labels), noise)
    truly = (after == truth).mean() - (before == truth).mean()
    assert found.low < truly < found.high < 0


def test_the_interval_holds_the_gain_as_often_as_it_says():
    truth = np.random.default_rng(0).integers(0, CLASSES, 400)
    hits = 0
    for seed in range(300):
        before, after = right_for(truth, 0.5, 3 * seed), right_for(truth, 0.6, 3 * seed + 1)
        labels = pair_flipped(truth, 0.2, 3 * seed + 2)
        found = decision.gain(after, before, held_out(labels), flips(0.2))
        hits += found.low <= 0.1 <= found.high
    assert 0.9 < hits / 300 < 0.99


def test_samples_without_weight_do_not_count():
    labels = np.array([0, 1, 2, 3])
    before, after = np.array([0, 1, 0, 0]), np.array([1, 1, 2, 3])
    found = decision.gain(after, before, HeldOutLabels(labels, np.array([1, 1, 0, 0.0])), np.eye(4))
    assert found.value == pytest.approx(-0.5)


def test_a_transition_that_cannot_be_inverted_is_not_used():
    labels = np.array([0, 1, 2, 3])
    found = decision.gain(labels, (labels + 1) % 4, held_out(labels), np.full((4, 4), 0.25))
    assert found.value == 1.0


def test_no_gain_is_beyond_100_points():
    labels = np.array([0, 1, 2, 3])
    found = decision.gain(labels, (labels + 1) % 4, held_out(labels), flips(0.4))
    assert (found.value, found.high) == (1.0, 1.0)


def test_the_transition_is_the_one_that_made_the_labels():
    truth = np.random.default_rng(0).integers(0, CLASSES, 20_000)
    labels = pair_flipped(truth, 0.3, 1)
    sure = partition(labels, (labels != truth).astype(float), truth)
    assert decision.transition(sure, CLASSES) == pytest.approx(flips(0.3), abs=0.02)
    assert decision.transition(sure, CLASSES).sum(axis=1) == pytest.approx(1)


def test_a_doubt_without_a_suggestion_is_spread_over_the_other_classes():
    labels = np.arange(CLASSES)
    doubted = partition(labels, np.full(CLASSES, 0.3), labels)
    expected = 0.7 * np.eye(CLASSES) + 0.1 * (1 - np.eye(CLASSES))
    assert decision.transition(doubted, CLASSES) == pytest.approx(expected)


def test_bad_inputs_say_nothing_of_the_transition():
    truth = np.random.default_rng(0).integers(0, CLASSES, 20_000)
    labels = pair_flipped(truth, 0.3, 1)
    sure = partition(labels, (labels != truth).astype(float), truth)
    bad = np.random.default_rng(2).random(len(truth)) < 0.3
    some = replace(sure, p_label_fault=np.where(bad, 0.9, sure.p_label_fault), p_input_fault=bad)
    assert decision.transition(some, CLASSES) == pytest.approx(flips(0.3), abs=0.02)


def test_a_class_that_nothing_speaks_for_keeps_its_labels():
    labels = np.array([0, 0, 1])
    found = decision.transition(partition(labels, np.zeros(3), labels), CLASSES)
    assert found == pytest.approx(np.eye(CLASSES))


@pytest.mark.parametrize(
    ("accuracy", "retrained", "action"),
    [
        (0.8, None, "keep"),
        (0.5, None, "revert"),
        (0.8, 0.9, "retrain"),
        (0.8, 0.8, "keep"),
        (0.5, 0.9, "retrain"),
        (0.5, 0.55, "revert"),
    ],
)
def test_the_decision_follows_the_held_out_labels(accuracy, retrained, action):
    truth = np.random.default_rng(0).integers(0, CLASSES, 4_000)
    labels = pair_flipped(truth, 0.2, 1)
    before, repaired = right_for(truth, 0.6, 2), right_for(truth, accuracy, 3)
    others = (
        {} if retrained is None else {"retrain": Candidate(right_for(truth, retrained, 4), 60.0)}
    )
    made = decision.decide(before, Candidate(repaired, 10.0), others, held_out(labels), flips(0.2))
    assert made.action == action
    assert made.gain is not None
    assert made.kept == (accuracy > 0.6)


def test_the_same_predictions_are_no_reason_for_a_repair():
    labels = np.array([0, 1, 2, 3])
    made = decision.decide(labels, Candidate(labels, 1.0), {}, held_out(labels), np.eye(4))
    assert made.action == "revert"


def test_a_repair_is_begun_only_where_it_can_help():
    labels = np.repeat(np.arange(CLASSES), 25)
    names = tuple("abcd")
    p = np.zeros(100)
    assert "fewer than the 2.0%" in decision.reason_to_skip(
        partition(labels, p, labels), Recipe(), names
    )
    p[:2] = 1.0
    assert decision.reason_to_skip(partition(labels, p, labels), Recipe(), names) == ""
    p[25:50] = 1.0
    kept = recipes.get("iterative")(Recipe(rounds=RoundsConfig(targets="filter")))
    assert "every sample of b was flagged" in decision.reason_to_skip(
        partition(labels, p, labels), kept, names
    )


@pytest.mark.parametrize(("flagged", "skipped"), [(0, True), (4, True), (5, False), (6, False)])
def test_a_repair_needs_the_minimum_of_flagged_samples(flagged, skipped):
    labels = np.repeat(np.arange(CLASSES), 25)
    p = (np.arange(100) < flagged).astype(float)
    recipe = replace(Recipe(), min_flagged_fraction=0.05)
    reason = decision.reason_to_skip(partition(labels, p, labels), recipe, tuple("abcd"))
    assert bool(reason) == skipped
    if skipped:
        assert reason.startswith(f"{flagged} of 100 training samples are flagged, fewer than the 5")


@pytest.mark.parametrize(("lead", "action"), [(0, "keep"), (3, "keep"), (8, "retrain")])
def test_a_retrained_network_must_be_better_by_more_than_the_interval(lead, action):
    truth = np.arange(100) % CLASSES
    before, repaired, retrained = (
        np.where(np.arange(100) < right, truth, (truth + 1) % CLASSES)
        for right in (50, 60, 60 + lead)
    )
    made = decision.decide(
        before,
        Candidate(repaired, 1.0),
        {"retrain": Candidate(retrained, 2.0)},
        held_out(truth),
        np.eye(CLASSES),
    )
    assert made.action == action
    assert made.gain.value == pytest.approx(0.1)
    if action == "retrain":
        assert made.recipe == "retrain"
        assert "from scratch (recipe retrain, 2.0 s) is better than the repair" in made.reason
        assert "+8.0" in made.reason


def test_the_interval_is_the_normal_one_of_the_weighted_paired_differences():
    rng = np.random.default_rng(0)
    truth, w = rng.integers(0, CLASSES, 200), rng.random(200)
    before, after = right_for(truth, 0.5, 1), right_for(truth, 0.7, 2)
    inverse = np.linalg.inv(flips(0.2))
    difference = [
        inverse[y, a] - inverse[y, b] for y, a, b in zip(truth, after, before, strict=True)
    ]
    mean = sum(x * d for x, d in zip(w, difference, strict=True)) / sum(w)
    squares = sum((x * (d - mean)) ** 2 for x, d in zip(w, difference, strict=True))
    found = decision.gain(after, before, HeldOutLabels(truth, w), flips(0.2))
    assert found.value == pytest.approx(mean)
    assert found.high - found.value == pytest.approx(1.96 * squares**0.5 / sum(w))
    assert found.value - found.low == pytest.approx(1.96 * squares**0.5 / sum(w))
    assert found.n == 200


@pytest.mark.parametrize(("condition", "used"), [(99, True), (101, False)])
def test_a_transition_is_used_up_to_a_condition_number_of_100(condition, used):
    off = (1 - 1 / condition) / 2
    noise = np.array([[1 - off, off], [off, 1 - off]])
    labels, is_wrong = np.tile([0, 1], 100), np.arange(200) < 2
    found = decision.gain(labels, labels ^ is_wrong, held_out(labels), noise)
    assert found.value == pytest.approx(0.01 * (condition if used else 1))
    assert decision.gain(labels, 1 - labels, held_out(labels), noise).value == 1


def test_a_repair_that_loses_anything_is_reverted_whatever_the_interval():
    """The estimate decides: a loss within the interval is no reason to keep the repair."""
    labels = np.random.default_rng(0).integers(0, CLASSES, 200)
    before, after = labels.copy(), labels.copy()
    after[:3], before[3:5] = (after[:3] + 1) % CLASSES, (before[3:5] + 1) % CLASSES
    made = decision.decide(before, Candidate(after, 1.0), {}, held_out(labels), np.eye(CLASSES))
    assert made.gain.low < made.gain.value < 0 < made.gain.high
    assert (made.action, made.kept) == ("revert", False)
