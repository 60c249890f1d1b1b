"""The review benchmark: what a row says of a planted partition, and that rows are made once."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.demo.noise import GroundTruth
from expunge.records import Partition
from expunge_bench.review import REVIEWERS, SUITE, ReviewCase, _group, measure_review

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture(scope="module")
def case() -> ReviewCase:
    rng = np.random.default_rng(0)
    evidence = 2.5 * rng.standard_normal(1500) - 1.5
    wrong = rng.random(1500) < 1 / (1 + np.exp(-evidence))
    labels = rng.integers(0, 3, 1500)
    p = 1 / (1 + np.exp(1.5 - evidence))
    partition = Partition(
        ids=np.arange(1500),
        labels=labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(1500),
        suggested_label=(labels + 1) % 3,
        suggested_probability=p,
        threshold=0.5,
        noise_rate=(float(p.mean()), 0.0, 0.2),
        evidence={"label_evidence": evidence},
    )
    true = np.where(wrong, (labels + 1) % 3, labels)
    return ReviewCase(partition, GroundTruth(true, wrong, np.zeros(1500, dtype=bool)))


def row(case, answers, asking="queue", reviewer="careful"):
    key = {"answers": answers, "asking": asking, "reviewer": reviewer}
    return measure_review(case, key, repetitions=6)


def test_answers_improve_every_number(case):
    before, after = row(case, 0), row(case, 150)
    assert after["f1"] > before["f1"]
    assert after["rate_error"] < before["rate_error"]
    assert after["ece"] < before["ece"]
    assert after["coverage"] >= 0.8
    assert before["accuracy"] is None
    tuned = measure_review(
        case._replace(accuracy=lambda split: float(split.flagged.mean())),
        {"answers": 50, "asking": "queue", "reviewer": "careful"},
        repetitions=1,
    )
    assert 0 < tuned["accuracy"] < 1


def test_the_most_suspicious_alone_say_nothing_of_the_rate(case):
    found = row(case, 100, "suspicious")
    assert found["coverage"] is None
    assert found["rate_error"] > row(case, 100)["rate_error"]


def test_a_lazy_reviewer_is_worse(case):
    at_once = row(case, 200, reviewer="lazy")["rate_error"]
    assert at_once > row(case, 200)["rate_error"]
    assert at_once > row(case, 200, reviewer="lazy, suggestions after")["rate_error"]


def test_rows_are_made_once_and_tables_name_every_way(case, tmp_path):
    keys = {"data": "planted", "n": 1500, "noise": "x", "rate": 0.0, "state": "late", "seed": 0}
    made = []

    def make():
        made.append(1)
        return case

    group = _group(keys, make, [0, 30], 1)
    rows = SUITE.run([group], out=tmp_path)
    assert len(rows) == 1 + 3 * len(REVIEWERS)
    SUITE.run([group], out=tmp_path)
    assert made == [1]
    assert "suspicious" in (tmp_path / "table.md").read_text()
