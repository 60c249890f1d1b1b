"""Which samples a review asks, and with which probability."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from expunge.errors import ConfigError, RunError
from expunge.review import Queue, extend_queue, plan_queue
from expunge.review.answer_log import QUEUE
from expunge.review.queue import allocate
from expunge.review.run_files import read_queue
from oracles_review import planted


def test_the_strata_of_a_batch_are_a_partition_of_what_no_earlier_batch_drew():
    partition, _ = planted()
    queue = plan_queue(partition, budget=100)
    more = extend_queue(queue, partition, size=60)
    for batch, population in ((0, 2000), (1, 2000 - len({i.id for i in queue.items}))):
        sizes = {i.draw.stratum: i.draw.stratum_size for i in more.items if i.draw.batch == batch}
        assert sum(sizes.values()) == population
    drawn = [i.id for i in more.items if not i.repeat]
    assert len(drawn) == len(set(drawn))
    assert len(more.items) == 100


def test_samples_are_drawn_as_often_as_their_probability_says():
    partition, _ = planted(n=200)
    drawn, expected = Counter(), {}
    repetitions = 200
    for seed in range(repetitions):
        for item in plan_queue(partition, budget=40, seed=seed, first_share=1.0).items:
            if not item.repeat:
                drawn[item.id] += 1
                expected[item.id] = item.draw.probability
    share = np.array([drawn[i] / repetitions for i in partition.ids.tolist()])
    p = np.array([expected[i] for i in partition.ids.tolist()])
    assert np.abs(share - p).max() < 5 * np.sqrt(p * (1 - p) / repetitions).max()


def test_every_prefix_asks_the_strata_evenly():
    partition, _ = planted()
    items = [i for i in plan_queue(partition, budget=80, first_share=1.0).items if not i.repeat]
    for n in (20, 40, 60):
        counts = Counter(i.draw.stratum for i in items[:n])
        assert max(counts.values()) - min(counts.values()) <= 2
    by_stratum = {}
    for item in items:
        by_stratum.setdefault(item.draw.stratum, []).append(item.draw.order)
    assert all(orders == list(range(len(orders))) for orders in by_stratum.values())


def test_later_batches_ask_where_the_probabilities_are_undecided():
    partition, _ = planted()
    queue = plan_queue(partition, budget=100)
    more = extend_queue(queue, partition, size=60)
    p = dict(zip(partition.ids.tolist(), partition.p_noisy, strict=True))

    def undecided(items):
        return np.mean([0.1 < p[i.id] < 0.9 for i in items])

    assert undecided(more.items[len(queue.items) :]) > undecided(queue.items) + 0.1


def test_a_class_with_few_answers_is_asked_more():
    partition, _ = planted()
    queue = plan_queue(partition, budget=100)
    answered = np.zeros(40, dtype=np.int64)  # all of class 0
    label = dict(zip(partition.ids.tolist(), partition.labels, strict=True))
    plain, more = (
        extend_queue(queue, partition, size=60, answered_classes=a).items[len(queue.items) :]
        for a in (None, answered)
    )
    share = [np.mean([label[i.id] != 0 for i in items]) for items in (plain, more)]
    assert share[1] > share[0]


@pytest.mark.parametrize("budget", [1, 2, 7, 40, 100_000])
def test_any_budget_is_met_as_far_as_there_are_samples(budget):
    partition, _ = planted(n=50)
    queue = plan_queue(partition, budget=budget, first_share=1.0)
    drawn = [i for i in queue.items if not i.repeat]
    assert 1 <= len(queue.items) <= budget
    assert len({i.id for i in drawn}) == len(drawn) <= 50
    assert len(extend_queue(queue, partition, size=100).items) >= len(queue.items)


def test_equal_probabilities_are_asked_by_their_evidence():
    partition, _ = planted(n=300)
    queue = plan_queue(partition, budget=30, seed=4)
    assert Queue.from_json(queue.to_json()) == queue
    assert queue == plan_queue(partition, budget=30, seed=4)
    assert queue != plan_queue(partition, budget=30, seed=5)


def test_a_budget_of_nothing_is_refused():
    partition, _ = planted(n=50)
    with pytest.raises(ConfigError, match="budget must be 1 or more"):
        plan_queue(partition, budget=0)


def test_shares_are_largest_remainders_within_limits():
    assert allocate([1, 1, 1], 7, [9, 9, 9]) in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert sum(allocate([0.5, 3, 1], 20, [2, 30, 30])) == 20
    assert allocate([1, 1], 9, [2, 3]) == [2, 3]


@pytest.mark.parametrize(
    "change",
    [{"order": -1}, {"stratum_size": 0}, {"probability": float("nan")}, {"id": [1]}, {"id": 1}],
)
def test_a_queue_that_was_changed_is_refused(tmp_path, change):
    partition, _ = planted(n=50)
    facts = plan_queue(partition, budget=10).to_json()
    facts["items"][0] |= change
    (tmp_path / QUEUE).write_text(json.dumps(facts))
    with pytest.raises(RunError, match="is no queue of a review"):
        read_queue(tmp_path, partition)
