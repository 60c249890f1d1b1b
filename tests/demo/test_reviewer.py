"""The simulated reviewer: as right, mistaken and lazy as it says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expunge.demo import digits
from expunge.demo.noise import GroundTruth
from expunge.demo.reviewer import Reviewer, simulate_review
from expunge.errors import ConfigError
from oracles_review import planted

pytestmark = pytest.mark.usefixtures("few_trees")


def truth_of(partition, true):
    none = np.zeros(len(true), dtype=bool)
    return GroundTruth(true, true != partition.labels, none)


def right_share(partition, true, answers):
    row = {int(i): k for k, i in enumerate(partition.ids)}
    return np.mean([a.label == true[row[a.id]] for a in answers])


def test_mistakes_come_at_their_rate_and_a_lazy_reviewer_confirms():
    partition, true = planted(n=4000)
    truth = truth_of(partition, true)
    careful = simulate_review(partition, truth, n=1500, reviewer=Reviewer(0.1), asking="random")
    assert right_share(partition, true, careful) == pytest.approx(0.9, abs=0.03)
    lazy = simulate_review(partition, truth, n=500, reviewer=Reviewer(0.0, lazy=0.999))
    suggested = dict(zip(partition.ids.tolist(), partition.suggested_label, strict=True))
    assert np.mean([a.label == suggested[a.id] for a in lazy]) > 0.98
    lazy = simulate_review(
        partition, truth, n=500, reviewer=Reviewer(0.0, lazy=0.999, suggestions="after")
    )
    is_wrong = dict(zip(partition.ids.tolist(), true != partition.labels, strict=True))
    assert all((a.verdict == "wrong") == is_wrong[a.id] for a in lazy)
    named = [a.label == suggested[a.id] for a in lazy if a.verdict == "wrong"]
    assert np.mean(named) > 0.5


@pytest.mark.parametrize("asking", ["queue", "random", "suspicious"])
def test_every_way_of_asking_asks_as_often_as_it_should(asking):
    partition, true = planted(n=500)
    answers = simulate_review(partition, truth_of(partition, true), n=60, asking=asking)
    assert len(answers) == 60
    assert all((a.draw is None) == (asking == "suspicious") for a in answers)
    if asking == "suspicious":
        assert {a.id for a in answers} == set(
            partition.ids[np.argsort(-partition.p_noisy)[:60]].tolist()
        )


def test_bad_inputs_are_called_so():
    partition, true = planted(n=200)
    bad = np.ones(200, dtype=bool)
    truth = GroundTruth(true, np.zeros(200, dtype=bool), bad)
    answers = simulate_review(partition, truth, n=20, reviewer=Reviewer(0.0))
    assert {a.verdict for a in answers} == {"bad-input"}


def test_rates_and_ways_of_asking_are_checked():
    with pytest.raises(ConfigError, match="mistakes must lie in"):
        Reviewer(1.5)
    partition, true = planted(n=50)
    with pytest.raises(ConfigError, match="unknown asking 'rnd'"):
        simulate_review(partition, truth_of(partition, true), n=5, asking="rnd")


def test_the_demo_repairs_with_simulated_answers(tmp_path, monkeypatch):
    from dataclasses import replace

    from expunge.models.zoo import mlp

    monkeypatch.setattr(digits, "TRAINING", replace(digits.TRAINING, epochs=2))
    monkeypatch.setattr(digits, "digits_network", lambda seed: mlp(inputs=64, classes=10, hidden=8))
    options = {"overrides": {"tune": {"epochs": 1}}, "baselines": ()}
    with pytest.raises(ConfigError, match="a review is kept in a run folder"):
        digits.run_demo(review=20, **options)
    result, truth = digits.run_demo(review=40, out=tmp_path / "run", **options)
    assert result.review["answered"] >= 36
    assert 0 <= truth["f1_before_review"] <= 1
    lines = (tmp_path / "run" / "reviews.jsonl").read_text().splitlines()
    assert {json.loads(line)["reviewer"] for line in lines} == {"simulated"}
