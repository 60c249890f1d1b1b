"""Rows of the repair benchmark, oracles, and what they measure."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_array_equal

from expunge import stages
from expunge.errors import ConfigError
from expunge.training.loop import TuneConfig
from expunge_bench import cifar, oracles, repair
from expunge_bench.datasets import Setting


@pytest.fixture(scope="module")
def repaired(data, tmp_path_factory):
    """Two seeds of a small suite, with short schedules."""
    out = tmp_path_factory.mktemp("repair")
    settings = [Setting("human_random1", state="overfit", n=100, seed=s) for s in (0, 1)]
    names = ("no-op", "finetune-only", "oracle-finetune", "oracle-retrain", "cleanlab-retrain")
    short = TuneConfig(targets="all", epochs=12, lr=0.05, batch_size=10, augment=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "TRAINING", {"regularised": short, "overfit": short})
        # Neither the partition nor the decision by held-out samples is what is tested.
        patch.setattr(cifar, "MAX_HELD_OUT", 0)
        split = oracles.true_partition(data.noisy_dataset(settings[0]))
        patch.setattr(stages, "partition", lambda *_, **__: split)
        rows = repair.bench(data, settings=settings, names=names, out=out)
    return out, settings, names, rows


def test_every_recipe_has_a_row_with_its_cost(repaired):
    out, _, names, rows = repaired
    assert {r["recipe"] for r in rows} == {*names, "default"}
    assert len(rows) == 2 * 6
    fields = (
        "data n noise rate state recipe seed accuracy macro_f1 worst_class oracle_gap_recovered "
        "wrong_labels_reproduced seconds train_seconds parameters macs"
    )
    assert all(set(fields.split()) <= set(row) for row in rows)
    by_name = {r["recipe"]: r for r in rows if r["seed"] == 0}
    assert by_name["no-op"]["seconds"] == 0 < by_name["default"]["seconds"]
    assert by_name["default"]["parameters"] == by_name["no-op"]["parameters"]  # not memorised
    assert "| human_random1 | overfit | default | 2 |" in (out / "table.md").read_text()


def test_stored_rows_are_not_computed_again(repaired, data, monkeypatch):
    out, settings, names, rows = repaired
    monkeypatch.setattr(repair, "cached_model", None)
    assert repair.bench(data, settings=settings, names=names, out=out) == rows


def test_the_oracle_gap_is_measured_from_the_unrepaired_model_to_the_oracle():
    key = {"data": "d", "n": 1, "noise": "x", "rate": 0.1, "state": "regularised", "seed": 0}
    accuracy = {"no-op": 0.4, "oracle-retrain": 0.8, "default": 0.7}
    rows = [{**key, "recipe": k, "accuracy": v} for k, v in accuracy.items()]
    gaps = {r["recipe"]: r["oracle_gap_recovered"] for r in repair.with_oracle_gaps(rows)}
    assert gaps == {"no-op": 0, "oracle-retrain": 1, "default": pytest.approx(0.75)}
    assert [r["oracle_gap_recovered"] for r in repair.with_oracle_gaps(rows[2:])] == [None]


def test_reproduced_wrong_labels_are_counted(data):
    dataset = data.noisy_dataset(Setting("human_random1", n=100))
    wrong = dataset.truth.label_fault

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    torch.nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.eye(10)[1]
    expected = (dataset.train.labels[wrong] == 1).mean()
    assert repair.wrong_labels_reproduced(network, dataset) == expected > 0
    assert (
        repair.wrong_labels_reproduced(network, data.noisy_dataset(Setting("none", n=50))) is None
    )


def test_the_true_partition_is_the_ground_truth(data):
    dataset = data.noisy_dataset(Setting("human_random1", n=100))
    split = oracles.true_partition(dataset)
    assert_array_equal(split.flagged, dataset.truth.noisy)
    assert_array_equal(split.suggested_label, dataset.truth.labels)


def test_unknown_recipes_are_refused_before_any_training(data, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'oracle-retrain'"):
        repair.bench(data, settings=[Setting("none")], names=("oracle-retrian",), out=tmp_path)
