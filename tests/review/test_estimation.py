"""The estimates of a review against a planted truth, and what answers do to a partition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

from expunge.errors import ConfigError, DataError
from expunge.records import Partition
from expunge.review import Answer, Draw, extend_queue, plan_queue, reviewed
from expunge.review.answers import RowIndex, judge, latest
from expunge.review.estimation import ReviewModel, best_threshold
from expunge.review.rate import counted_answers, estimate_mistakes
from expunge.review.recalibration import Features, recalibrate
from oracles_review import answers_of, planted


def reviewed_twice(partition, true, budget, seed, mistakes=0.03):
    queue = plan_queue(partition, budget=budget, seed=seed)
    answers = answers_of(queue.items, partition, true, mistakes=mistakes, seed=seed)
    model = ReviewModel(partition, 4)
    first = model.apply(answers)
    more = extend_queue(queue, first.partition, size=budget - len(queue.items))
    new = more.items[len(queue.items) :]
    answers += answers_of(new, partition, true, mistakes=mistakes, seed=seed + 1)
    return model.apply(answers), answers


def test_the_interval_holds_the_true_rate_as_often_as_it_says():
    covered, errors = [], []
    for seed in range(20):
        partition, true = planted(seed)
        review, _ = reviewed_twice(partition, true, 100, seed)
        rate = float((true != partition.labels).mean())
        covered.append(review.noise_rate.low <= rate <= review.noise_rate.high)
        errors.append(review.noise_rate.value - rate)
    assert np.mean(covered) >= 0.9
    assert np.sqrt(np.mean(np.square(errors))) < 0.04
    assert abs(np.mean(errors)) < 0.02


def test_the_interval_holds_if_the_partition_knows_nothing():
    covered = []
    for seed in range(12):
        partition, true = planted(seed)
        blind = replace(
            partition,
            p_noisy=np.zeros(len(true)),
            p_label_fault=np.zeros(len(true)),
            evidence={"label_evidence": np.random.default_rng(seed).standard_normal(len(true))},
        )
        queue = plan_queue(blind, budget=100, seed=seed, first_share=1.0)
        review = reviewed(blind, answers_of(queue.items, blind, true), n_classes=4)
        rate = float((true != partition.labels).mean())
        covered.append(review.noise_rate.low <= rate <= review.noise_rate.high)
    assert np.mean(covered) >= 0.85


def test_answers_repair_the_decision_and_the_calibration():
    partition, true = planted(1)
    wrong = true != partition.labels
    review, _ = reviewed_twice(partition, true, 150, 1)

    def f1(flagged):
        return 2 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum())

    assert f1(review.partition.flagged) > f1(partition.flagged) + 0.05
    assert abs(review.partition.p_noisy.mean() - wrong.mean()) < 0.05
    assert abs(partition.p_noisy.mean() - wrong.mean()) > 0.1


def test_an_answer_decides_about_its_sample():
    partition, _ = planted()
    answers = [Answer(0, "right"), Answer(3, "wrong", 2), Answer(6, "bad-input")]
    given = int(partition.labels[1])
    answers[1] = Answer(3, "wrong", (given + 2) % 4)
    review = reviewed(partition, answers, n_classes=4)
    split = review.partition
    assert split.reviewed.nonzero()[0].tolist() == [0, 1, 2]
    assert split.p_noisy[:3].tolist() == [0.0, 1.0, 1.0]
    assert split.p_input_fault[:3].tolist() == [0.0, 0.0, 1.0]
    assert split.suggested_label[1] == (given + 2) % 4
    assert split.suggested_probability[1] == 1.0
    assert [
        x.nonzero()[0].tolist() for x in (review.trusted, review.corrected, review.dropped)
    ] == [
        [0],
        [1],
        [2],
    ]
    assert not review.is_design_based
    assert len(partition.ids) == len(split.ids)


@pytest.mark.parametrize(
    ("answers", "is_right", "low", "high"),
    [(1, True, 0.93, 0.96), (6, True, 0.95, 0.98), (6, False, 0.2, 0.7), (40, False, 0.0, 0.15)],
)
def test_suggestions_are_as_probable_as_answers_show(answers, is_right, low, high):
    n = 200
    p, given = np.full(n, 0.98), np.zeros(n, dtype=int)
    partition = Partition(
        np.arange(n), given, p, p, np.zeros(n), given + 1, np.full(n, 0.95), 0.5, (0.9, 0.8, 1.0)
    )
    said = [Answer(i, "wrong", 1 if is_right else 2) for i in range(answers)]
    split = reviewed(partition, said, n_classes=3).partition
    assert (split.suggested_probability[answers:] >= low).all()
    assert (split.suggested_probability[answers:] <= high).all()


def test_without_answers_nothing_changes():
    partition, _ = planted()
    review = reviewed(partition, [], n_classes=4)
    assert_allclose(review.partition.p_noisy, partition.p_noisy)
    assert review.partition.threshold == partition.threshold
    assert review.noise_rate == partition.noise_rate


def test_the_order_of_samples_and_answers_of_others_do_not_matter():
    partition, true = planted(2, n=400)
    queue = plan_queue(partition, budget=60, first_share=1.0)
    answers = answers_of(queue.items, partition, true)
    one = reviewed(partition, answers, n_classes=4)
    two = reviewed(partition, answers[::-1], n_classes=4)
    assert_allclose(one.noise_rate, two.noise_rate)
    assert_allclose(one.partition.p_noisy, two.partition.p_noisy, atol=1e-6)


def test_self_chosen_answers_do_not_move_the_rate_of_the_design():
    """Whoever looks for wrong labels only must not raise the rate."""
    partition, true = planted(3)
    queue = plan_queue(partition, budget=100, first_share=1.0)
    fair = answers_of(queue.items, partition, true)
    drawn = {item.id for item in queue.items}
    wrong = [
        Answer(int(i), "wrong", int(t))
        for i, t, y in zip(partition.ids, true, partition.labels, strict=True)
        if t != y and int(i) not in drawn
    ][:80]
    before, after = (
        reviewed(partition, a, n_classes=4).noise_rate.value for a in (fair, fair + wrong)
    )
    assert before == after


def test_a_prefix_of_a_stratum_counts_and_what_comes_after_a_hole_does_not():
    def answer(k, order, verdict="right"):
        return Answer(3 * k, verdict, draw=Draw(0, 0, 100, order, 0.1))

    partition, _ = planted()
    answers = [answer(0, 0), answer(1, 1, "cannot-tell"), answer(2, 2), answer(4, 4)]
    found = counted_answers(judge(partition, answers, n_classes=4))
    assert [draw.order for draw, _ in found] == [0, 1, 2]
    assert [k is None for _, k in found] == [False, True, False]


def test_reviewers_who_disagree_settle_nothing_and_a_third_decides():
    partition, _ = planted()
    given = int(partition.labels[0])
    two = [Answer(0, "right", reviewer="a"), Answer(0, "wrong", (given + 1) % 4, reviewer="b")]
    review = reviewed(partition, two, n_classes=4)
    assert review.disputed == (0,)
    assert (review.pairs, review.disagreements) == (1, 1)
    assert not review.partition.reviewed.any()
    both_wrong = [Answer(0, "wrong", (given + k) % 4, reviewer=str(k)) for k in (1, 2)]
    review = reviewed(partition, both_wrong, n_classes=4)
    assert (review.disputed, review.pairs, review.disagreements) == ((0,), 1, 0)
    settled = reviewed(partition, [*two, Answer(0, "right", reviewer="c")], n_classes=4)
    assert settled.disputed == ()
    assert settled.trusted[0]


def test_the_last_answer_counts_unless_it_was_undone():
    answers = [Answer(1, "right"), Answer(1, "cannot-tell"), Answer(2, "right"), Answer(2, "undo")]
    assert [(a.id, a.verdict) for a in latest(answers)] == [(1, "cannot-tell")]


def test_the_rate_of_mistakes_is_found_from_repeats():
    assert estimate_mistakes(0, 0).rate == pytest.approx(0.025, abs=0.001)
    many = estimate_mistakes(1000, 180)  # 2 ε (1 − ε) = 0.18
    assert many.rate == pytest.approx(0.1, abs=0.01)
    assert estimate_mistakes(10, 5, known=0.04).rate == 0.04


def test_mistakes_are_taken_out_of_the_rate():
    partition, true = planted(5, n=4000)
    queue = plan_queue(partition, budget=1500, first_share=1.0)
    answers = answers_of(queue.items, partition, true, mistakes=0.2)
    rate = float((true != partition.labels).mean())
    found = reviewed(partition, answers, n_classes=4, mistakes=0.2)
    naive = reviewed(partition, answers, n_classes=4, mistakes=0.0)
    assert abs(found.noise_rate.value - rate) < 0.04
    assert abs(naive.noise_rate.value - rate) > abs(found.noise_rate.value - rate)


def test_the_recalibration_finds_the_coefficients_of_a_logistic_model():
    rng = np.random.default_rng(0)
    log_odds, column = rng.standard_normal(20_000) * 2, rng.standard_normal(20_000)
    y = (rng.random(20_000) < expit(1 + 0.7 * log_odds - 0.5 * column)).astype(float)
    found = recalibrate(Features(log_odds, column[:, None]), y)
    assert_allclose([found.shift, found.slope, found.weights[0]], [1, 0.7, -0.5], atol=0.08)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all(seed):
    p = np.random.default_rng(seed).beta(0.3, 0.7, 200)
    t = best_threshold(p)

    def f1(threshold):
        flagged = p > threshold
        return 2 * p[flagged].sum() / (flagged.sum() + p.sum())

    assert f1(t) >= max(f1(x) for x in np.linspace(0, 0.5, 501)) - 1e-9


def test_the_transition_has_rows_of_sum_one_and_is_that_of_the_answers():
    partition, true = planted(6, n=4000)
    queue = plan_queue(partition, budget=400, first_share=1.0)
    review = reviewed(partition, answers_of(queue.items, partition, true), n_classes=4)
    assert_allclose(review.transition.sum(axis=1), 1)
    counts = np.zeros((4, 4))
    np.add.at(counts, (true, partition.labels), 1)
    assert_allclose(review.transition, counts / counts.sum(1, keepdims=True), atol=0.08)


def test_what_is_wrong_with_answers_is_named():
    partition, _ = planted()
    answers = [Answer(1, "right"), Answer(3, "wrong", 9)]
    with pytest.raises(DataError, match=r"no sample has the id 1\b") as error:
        reviewed(partition, answers, n_classes=4)
    assert "expected a class in 0 … 3" in str(error.value)
    with pytest.raises(ConfigError, match="mistakes must lie in"):
        reviewed(partition, [], mistakes=0.5)


def test_rows_are_found_by_numbers_and_by_text():
    assert RowIndex(np.array([5, 3])).rows([3, "5", "x", "9" * 30]).tolist() == [1, 0, -1, -1]
    assert RowIndex(np.array(["b", "a"])).rows(["a", 1]).tolist() == [1, -1]
