"""Rows of the repair benchmark, oracles, and what they measure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from expunge import stages
from expunge._core.progress import silent
from expunge.errors import ConfigError
from expunge.models.initialisation import reinitialise
from expunge.recipes import recipes, resolve
from expunge.training.loop import TuneConfig
from expunge_bench import cifar, oracles, repair
from expunge_bench.datasets import Setting
from expunge_bench.peers import BenchmarkCase

pytestmark = pytest.mark.usefixtures("few_trees")
EPOCHS = 2  # of the network that is repaired


@pytest.fixture(scope="module")
def repaired(data, tmp_path_factory):
    """Two seeds of a small suite, with short schedules."""
    out = tmp_path_factory.mktemp("repair")
    settings = [Setting("human_random1", state="overfit", n=100, seed=s) for s in (0, 1)]
    names = ("no-op", "finetune-only", "oracle-finetune", "oracle-retrain")
    names += ("cleanlab-retrain", "cleanlab-folds-retrain")
    short = TuneConfig(targets="all", epochs=EPOCHS, lr=0.05, batch_size=10, augment=False)
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
    assert len(rows) == 2 * 7
    fields = (
        "data n noise rate state recipe seed accuracy macro_f1 worst_class oracle_gap_recovered "
        "wrong_labels_reproduced seconds train_seconds epochs passes parameters macs"
    )
    assert all(set(fields.split()) <= set(row) for row in rows)
    by_name = {r["recipe"]: r for r in rows if r["seed"] == 0}
    assert by_name["no-op"]["seconds"] == 0 < by_name["default"]["seconds"]
    # Both columns are multiples of the same plain epoch.
    for row in rows:
        assert row["epochs"] == pytest.approx(EPOCHS * row["seconds"] / row["train_seconds"])
        assert row["passes"] >= row["epochs"]
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


# ---------------------------------------------------------------- oracles and measures


@pytest.fixture
def oracle_case(data, tmp_path, monkeypatch):
    """A case, and the arguments of every call of `stages.tune` by an oracle."""
    setting = Setting("human_random1", state="overfit", n=100, seed=5)
    case = BenchmarkCase(
        data, data.network(1), data.noisy_dataset(setting), setting, tmp_path, silent
    )
    calls = []

    def tune(model, samples, partition, config, **options):
        calls.append((model, samples, partition, config, options))
        return model

    monkeypatch.setattr(oracles.stages, "tune", tune)
    return case, calls


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_finetuning_oracle_tunes_the_noisy_model_on_truly_clean_samples(oracle_case):
    case, calls = oracle_case
    result = SimpleNamespace(partition=oracles.true_partition(case.data), scores=None)
    oracles.oracle_finetune(oracles.OracleInput(case, result))
    ((model, samples, partition, config, options),) = calls
    assert model is case.model
    assert samples is case.data.train
    assert_array_equal(partition.flagged, case.data.truth.noisy)
    assert config == replace(resolve("default").tune, targets="filter")
    assert options["seed"] == 5


def test_the_retraining_oracle_trains_a_new_network_on_truly_clean_samples(oracle_case):
    case, calls = oracle_case
    oracles.oracle_retrain(oracles.OracleInput(case, None))
    ((model, _, partition, config, _),) = calls
    assert not same_weights(model, case.model)
    assert same_weights(model, reinitialise(case.model, 5))
    assert_array_equal(partition.flagged, case.data.truth.noisy)
    assert config == replace(cifar.TRAINING["regularised"], targets="filter")


def test_the_cleanlab_peer_retrains_on_what_cleanlab_does_not_flag(oracle_case, monkeypatch):
    case, calls = oracle_case
    flagged = np.arange(100) % 7 == 0
    output = SimpleNamespace(flagged=flagged)
    monkeypatch.setattr(oracles.peers, "get", lambda name: {"cleanlab": lambda _: output}[name])
    oracles.cleanlab_retrain(oracles.OracleInput(case, None))
    ((model, _, partition, config, _),) = calls
    assert_array_equal(partition.flagged, flagged)
    assert not same_weights(model, case.model)
    assert config.targets == "filter"


def test_the_long_baseline_retrains_three_times_as_long_without_pruning():
    short, long = resolve("retrain-filtered"), resolve("retrain-filtered-3x")
    assert long.tune.n_epochs == 3 * short.tune.n_epochs == 3 * resolve("default").tune.n_epochs
    assert replace(long, tune=short.tune) == short
    assert (long.start, long.tune.targets) == ("scratch", "filter")
    assert long.prune.fraction == 0


def test_a_plain_epoch_is_timed_in_the_same_process(oracle_case, monkeypatch):
    case, calls = oracle_case
    monkeypatch.setattr(repair, "timed", lambda work: (work(), 2.0))
    assert repair.plain_epoch_seconds(case) == 2.0
    ((model, _, partition, config, _),) = calls
    assert (model, partition, config.epochs) == (case.model, None, 1)


def test_speed_is_samples_divided_by_seconds_of_at_most_2048(data, monkeypatch):
    seen = []
    monkeypatch.setattr(repair, "collect", lambda model, samples: seen.append(len(samples)))
    monkeypatch.setattr(repair, "timed", lambda work: (work(), 0.5))
    assert repair.samples_per_second(None, data.test) == 80  # 40 test samples
    many = data.test.subset(np.zeros(1, dtype=int))
    monkeypatch.setattr(type(many), "__len__", lambda self: 5_000, raising=True)
    monkeypatch.setattr(type(many), "subset", lambda self, rows: rows)
    assert repair.samples_per_second(None, many) == 4096
    assert seen == [40, 2048]


def test_the_table_shows_repair_minus_baseline():
    shared = dict.fromkeys(
        ("wrong_labels_reproduced", "worst_class", "calibration_error", "oracle_gap_recovered"), 0.5
    )
    shared |= {"parameters": 10, "macs": 20, "samples_per_second": 30.0, "train_seconds": 4.0}
    shared |= {"noise": "pair", "rate": 0.4, "state": "overfit", "n": 9, "seed": 0, "seconds": 1.0}
    rows = [
        {**shared, "recipe": name, "accuracy": accuracy}
        for name, accuracy in (("default", 0.8), ("magnitude", 0.7))
    ]
    (table,) = repair.tables(rows)
    lines = [dict(zip(table.head, line, strict=True)) for line in table.rows]
    assert [line["Δ repair − this (pp)"] for line in lines] == ["–", "+10.0"]
    assert [line["training time (%)"] for line in lines] == ["25", "25"]
    assert lines[0]["noise"] == "pair 0.4"


def test_every_default_name_is_a_recipe():
    assert set(repair.BASELINES) <= set(recipes.names())
    assert repair.REPAIR in recipes.names()
