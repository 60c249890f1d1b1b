"""A repair takes answers into account, and recomputes only what depends on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import expunge
from expunge import Answer
from expunge.errors import DataError
from expunge.pipeline import repair_until
from expunge.reporting.html import render_html
from expunge.review.answer_log import AnswerLog
from expunge.training.optimisation import TuneConfig
from expunge.training.targets import build_targets

pytestmark = pytest.mark.usefixtures("few_trees")

OPTIONS = {
    "overrides": {"tune": {"epochs": 1}, "partition": {"threshold": 0.3}},
    "baselines": ("finetune-only",),
}


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 4)).astype(np.float32)
    true = (x[:, 0] > 0).astype(np.int64)
    given = np.where(rng.random(160) < 0.25, 1 - true, true)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    train = expunge.from_arrays(x, given)
    return expunge.tune(model, train, targets="all", epochs=5), train, (x, true), true


def answers_about(train, true, rows):
    found = []
    for k in rows:
        verdict = "right" if true[k] == train.labels[k] else "wrong"
        found.append(Answer(int(k), verdict, int(true[k]), "a", "2026-01-01T00:00:00+00:00"))
    return found


def test_answers_change_the_repair_and_the_scores_are_not_made_again(noisy, tmp_path):
    model, train, validation, true = noisy
    out = tmp_path / "run"
    first = expunge.repair(model, train, validation, out=out, **OPTIONS)
    assert first.review is None
    score = (out / "1-score" / "stage.json").read_bytes()
    partition = (out / "2-partition" / "stage.json").read_bytes()
    log = AnswerLog(out, train.classes)
    log.append(answers_about(train, true, range(40)))
    second = expunge.repair(model, train, validation, out=out, **OPTIONS)
    assert (out / "1-score" / "stage.json").read_bytes() == score
    assert (out / "2-partition" / "stage.json").read_bytes() == partition
    wrong = true[:40] != train.labels[:40]
    assert (second.partition.p_noisy[:40] == wrong).all()
    assert second.review["corrected"] == wrong.sum()
    assert "Review" in (out / "report.md").read_text()
    assert "What the answers of reviewers changed" in render_html(second)
    assert json.loads((out / "result.json").read_text())["review"] == second.review
    assert expunge.load_run(out).review == second.review
    assert expunge.load_run(out).partition.reviewed.sum() == 40
    # Nothing is computed again without new answers; withdrawn ones bring the first result back.
    tuned = {p: p.stat().st_mtime_ns for p in out.rglob("stage.json")}
    expunge.repair(model, train, validation, out=out, **OPTIONS)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("stage.json")} == tuned
    log.append([Answer(k, "undo", reviewer="a") for k in range(40)])
    third = expunge.repair(model, train, validation, out=out, **OPTIONS)
    assert third.review is None
    assert third.after.accuracy == first.after.accuracy
    assert not (out / "2-review").exists()


def test_answers_change_a_repair_in_closed_form(noisy, tmp_path):
    model, train, validation, true = noisy
    settings = {"recipe": "instant", "baselines": (), "out": tmp_path / "run"}
    first = expunge.repair(model, train, validation, **settings)
    AnswerLog(tmp_path / "run", train.classes).append(answers_about(train, true, range(40)))
    second = expunge.repair(model, train, validation, **settings)
    assert first.head is not None
    assert second.review["answered"] == 40
    assert not torch.equal(second.model.head.weight, first.model.head.weight)


def test_a_repair_that_was_reviewed_from_the_start_is_the_same(noisy, tmp_path):
    """The order does not matter: answers first or the repair first."""
    model, train, validation, true = noisy
    answers = answers_about(train, true, range(30))
    expunge.repair(model, train, validation, out=tmp_path / "a", **OPTIONS)
    (tmp_path / "b").mkdir()
    results = []
    for name in ("a", "b"):
        if name == "b":
            repair_until(model, train, validation, until="partition", out=tmp_path / "b", **OPTIONS)
        AnswerLog(tmp_path / name, train.classes).append(answers)
        results.append(expunge.repair(model, train, validation, out=tmp_path / name, **OPTIONS))
    one, two = (r.model.state_dict() for r in results)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_answers_about_other_samples_are_an_error_and_nothing_is_lost(noisy, tmp_path):
    model, train, validation, _ = noisy
    expunge.repair(model, train, validation, out=tmp_path / "run", **OPTIONS)
    log = AnswerLog(tmp_path / "run", train.classes)
    log.append([Answer(100_000, "right", reviewer="a")])
    with pytest.raises(DataError, match="no sample has the id 100000"):
        expunge.repair(model, train, validation, out=tmp_path / "run", **OPTIONS)
    assert len(log.read()) == 1


@pytest.mark.parametrize("targets", ["filter", "reweight", "relabel"])
def test_corrected_labels_are_learned_and_bad_inputs_dropped(noisy, targets):
    model, train, _, _ = noisy
    partition = expunge.partition(expunge.score(model, train, detectors=("loss",)))
    given = train.labels
    answers = [
        Answer(0, "wrong", int(1 - given[0])),
        Answer(1, "right"),
        Answer(2, "bad-input"),
    ]
    split = expunge.reviewed(partition, answers, n_classes=2).partition
    found = build_targets(train, split, TuneConfig(targets=targets))
    label = dict(zip(found.positions.tolist(), found.labels.tolist(), strict=True))
    weight = dict(zip(found.positions.tolist(), found.weights.tolist(), strict=True))
    assert label[0] == 1 - given[0]
    assert label[1] == given[1]
    assert 2 not in label
    assert weight[0] == weight[1] == 1.0
