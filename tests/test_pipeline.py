from __future__ import annotations

import copy
import json
import os
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from scipy.special import softmax
from torch import Tensor, nn
from torch.testing import assert_close

import expunge
from campaigns.actions import in_child
from expunge import pipeline, stages
from expunge._core.rng import generator
from expunge.config import (
    DEFAULT_BASELINES,
    PartitionConfig,
    PartitionKeywords,
    PruneConfig,
    PruneKeywords,
    RankConfig,
    RankKeywords,
    RepairKeywords,
    RepairOptions,
    ScoreConfig,
    ScoreKeywords,
    TuneKeywords,
)
from expunge.data import Preparation, Samples, from_arrays, from_dataset
from expunge.demo.noise import wrong_labels
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError, ModelError, PruneError, RunError
from expunge.models.initialisation import reinitialise
from expunge.models.zoo import mlp, resnet
from expunge.pipeline.forget_run import mask_of_ids
from expunge.pruning import surgery
from expunge.recipes import Recipe, recipes, resolve
from expunge.records import Flag, Partition, PrunePlan, RepairResult
from expunge.storage.weight_files import read_weights
from expunge.storage.weights import load_weights, model_fingerprint
from expunge.training import loop
from expunge.training.loop import TuneConfig
from expunge.training.targets import build_targets
from oracles_digits import (
    CUT,
    FAST,
    QUICK,
    TRAINING,
    clean,
    contents,
    digits,
    memorised,
    network,
    noisy,
    noisy_arrays,
)
from oracles_models import ConvNet, build, inputs

pytestmark = pytest.mark.usefixtures("few_trees")
# FAST, but that the repair decides whether to cut.
OPEN = {name: value for name, value in FAST.items() if name != "prune"}


def repaired(**changes: Any) -> RepairResult:
    settings = {"overrides": FAST, "baselines": (), "seed": 0}
    return pipeline.repair(memorised(), noisy(), clean(), **{**settings, **changes})


@cache
def plain() -> RepairResult:
    """What `repaired` gives, without a run folder."""
    return repaired()


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def without_seconds(result: Any) -> Any:
    """result.json without what a clock says."""
    if isinstance(result, dict):
        return {k: without_seconds(v) for k, v in result.items() if k not in ("seconds", "run")}
    return [without_seconds(v) for v in result] if isinstance(result, list) else result


def assert_same_run(a: Path, b: Path) -> None:
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert pq.read_table(a / "partition.parquet") == pq.read_table(b / "partition.parquet")
    first, second = (json.loads((f / "result.json").read_text()) for f in (a, b))
    assert without_seconds(first) == without_seconds(second)
    assert first["seconds"].keys() == second["seconds"].keys()


# ------------------------------------------------------------------------------ the whole


def test_a_repair_makes_a_network_that_memorised_noise_better_and_smaller():
    result = repaired(overrides={**CUT, "tune": {"epochs": 6, "batch_size": 32}})
    assert result.gain.low > 0
    assert result.after.accuracy.value - result.before.accuracy.value > 0.04
    assert result.size_after.parameters < 0.9 * result.size_before.parameters
    assert result.partition.noise_rate[1] < 0.3 < result.partition.noise_rate[2] + 0.1
    wrong = noisy().labels != digits()[1][:400]
    assert result.partition.p_noisy[wrong].mean() > 2 * result.partition.p_noisy[~wrong].mean()


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others():
    first, second, other = (repaired(overrides=QUICK, seed=seed) for seed in (0, 0, 1))
    assert_same_weights(first.model, second.model)
    assert np.array_equal(first.partition.p_noisy, second.partition.p_noisy)
    assert first.plan == second.plan
    assert any(
        x.shape != y.shape or not torch.equal(x, y)
        for x, y in zip(first.model.parameters(), other.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("recipe", ["default", "no-op"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_given_is_left_as_it_was(recipe, training):
    model = memorised()
    model.train(training)
    model[1].eval()
    model[1].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    result = pipeline.repair(
        model, noisy(), clean(), recipe=recipe, overrides=FAST, baselines=("no-op",)
    )
    assert_same_weights(model, before)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    assert result.model is not model
    assert not any(m.training for m in result.model.modules())


def test_a_repair_takes_arrays_and_data_sets_as_well():
    x, y = noisy_arrays()
    given = {"overrides": FAST, "baselines": ()}
    arrays = pipeline.repair(memorised(), (x, y), **given)
    pairs = pipeline.repair(memorised(), list(zip(x, y.tolist(), strict=True)), **given)
    assert_same_weights(arrays.model, pairs.model)


def test_named_samples_are_forgotten_and_nothing_else_is_looked_for(tmp_path):
    ids = noisy().ids[5:45]
    given = {"overrides": {"tune": {"epochs": 6, "batch_size": 32}}, "baselines": ()}
    result = pipeline.forget(memorised(), noisy(), ids, clean(), out=tmp_path, **given)
    split = result.partition
    assert split.ids[split.flagged].tolist() == ids.tolist()
    assert np.array_equal(split.suggested_label, split.labels)
    before, after = result.audit.predicted
    assert before > 0.85
    assert after < before - 0.2
    kept = noisy().subset(np.flatnonzero(~split.flagged))
    targets = build_targets(noisy(), split, TuneConfig(**result.config["tune"]))
    assert not np.isin(noisy().ids[targets.positions], ids).any()
    assert len(targets.positions) == len(kept)
    named = [str(i) for i in ids]  # as a file would name them
    again = pipeline.forget(memorised(), noisy(), named, clean(), out=tmp_path, **given)
    assert_same_weights(again.model, result.model)


def test_samples_like_the_named_ones_are_found_and_forgotten_too(tmp_path):
    wrong = noisy().labels != digits()[1][:400]
    ids = noisy().ids[wrong][::3]
    given = {"overrides": QUICK, "baselines": ()}
    result = pipeline.forget(
        memorised(), noisy(), ids, clean(), find_more=True, out=tmp_path, **given
    )
    split = result.partition
    named = np.isin(split.ids, ids)
    found, hidden = split.flagged & ~named, wrong & ~named
    assert (found & hidden).sum() > 0.7 * found.sum()
    assert (found & hidden).sum() > 0.5 * hidden.sum()
    assert (split.p_noisy[named] == 1).all()
    assert result.notes[0].startswith(f"{found.sum()} samples resemble the {named.sum()} named")
    assert result.config["tune"]["targets"] == "complement"
    assert result.audit.predicted[1] < result.audit.predicted[0]
    assert sum(label.samples for label in result.audit.labels) == split.flagged.sum()
    assert expunge.load_run(tmp_path).audit == result.audit
    again = pipeline.forget(
        memorised(), noisy(), ids, clean(), find_more=True, out=tmp_path, **given
    )
    assert_same_weights(again.model, result.model)
    with pytest.raises(RunError, match="find_more"):
        pipeline.forget(memorised(), noisy(), ids, clean(), out=tmp_path, **given)
    with pytest.raises(DataError, match="4 of 400 samples are named"):
        pipeline.forget(memorised(), noisy(), ids[:4], find_more=True, **given)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([5], "no training sample has the id 5"),
        (["10001"], "no training sample has the id 10001"),  # longer than all that there are
        ([], "no id is given"),
        ("12", "a list or array of ids, got str"),
        (5, "a list or array of ids, got int"),
        (b"12", "a list or array of ids, got bytes"),
        (None, "a list or array of ids, got NoneType"),
        ({"5": 1}, "a list or array of ids, got dict"),
        ([None], r"missing values \(null or empty\) in ids"),
        (np.array([True, False]), "got 2 truth values for 400 training samples"),
    ],
)
def test_ids_that_are_not_there_are_an_error(ids, says):
    with pytest.raises(DataError, match=says):
        pipeline.forget(memorised(), noisy(), ids)


@pytest.mark.parametrize("kind", ["mask", "list of truth values", "tensor", "set", "text", "range"])
def test_ids_of_every_kind_name_the_same_samples(kind):
    samples = noisy()
    wanted = np.isin(np.arange(len(samples)), (5, 6, 7))
    ids = samples.ids[wanted]
    given = {
        "mask": wanted,
        "list of truth values": wanted.tolist(),
        "tensor": torch.from_numpy(ids.copy()),
        "set": set(ids.tolist()),
        "text": ids.astype(str),
        "range": range(ids[0], ids[-1] + 1),
    }[kind]
    assert np.array_equal(mask_of_ids(samples, given), wanted)


def test_a_class_is_not_forgotten_whole_but_by_a_cut_alone(tmp_path):
    ids = noisy().ids[noisy().labels == 3]
    with pytest.raises(DataError, match=r"of class 3 would be left\n.*give fewer ids"):
        pipeline.forget(memorised(), noisy(), ids, baselines=(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    cut = {"prune": {"fraction": 0.1}, "tune": {"epochs": 0}}
    result = pipeline.forget(memorised(), noisy(), ids, overrides=cut, baselines=())
    assert result.plan.granted > 0


def test_another_deletion_is_another_run(tmp_path):
    given = {"overrides": QUICK, "baselines": ()}
    pipeline.forget(memorised(), noisy(), [1000, 1001, 1002], out=tmp_path, **given)
    with pytest.raises(RunError, match="forget"):
        pipeline.forget(memorised(), noisy(), [1000, 1001, 1003], out=tmp_path, **given)


def test_the_certificate_counts_what_the_models_say():
    result = plain()
    split, data = result.partition, noisy()
    found = result.audit
    said = [collect(m, data).logits.argmax(axis=1) for m in (memorised(), result.model)]
    for share, predicted in zip(found.predicted, said, strict=True):
        assert share == pytest.approx((predicted == data.labels)[split.flagged].mean())
    assert found.churn == pytest.approx((said[0] != said[1])[split.kept].mean())
    sure = lambda d: softmax(collect(result.model, d).logits, axis=1).max(axis=1)  # noqa: E731
    members, others = sure(data)[split.flagged], sure(clean())
    wins = (members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean()
    assert found.membership_auroc[1] == pytest.approx(wins, abs=1e-3)
    assert found.samples == split.flagged.sum()


def test_an_audit_is_made_where_all_flagged_samples_have_one_label():
    data, split = noisy(), plain().partition
    bad = np.where(data.labels == data.labels[0], 1.0, 0.0)
    split = replace(split, p_noisy=bad, p_label_fault=bad, p_input_fault=np.zeros(len(bad)))
    found = expunge.audit(memorised(), memorised(), data, split, clean())
    assert found.samples == split.flagged.sum() == (data.labels == data.labels[0]).sum()
    assert found.predicted[0] == found.predicted[1]
    assert found.churn == 0


def test_a_model_with_next_to_no_noise_is_left_alone_and_the_baselines_show_why():
    overrides = {**FAST, "partition": {"threshold": 1.0}}
    result = repaired(overrides=overrides, baselines=("finetune-only",))
    assert result.decision.action == "skip"
    assert_same_weights(result.model, memorised())
    assert result.plan is None
    assert result.gain.value == 0
    control = result.baselines["finetune-only"].model
    assert not torch.equal(control[-1].weight, result.model[-1].weight)
    assert expunge.report(result).startswith("# ")
    assert "Decision: skip, because 0 of 400 training samples" in expunge.report(result)


def test_a_partition_that_leaves_nothing_of_a_class_leaves_the_model_alone():
    overrides = {**FAST, "partition": {"threshold": 0.0}, "tune": {"targets": "filter"}}
    result = repaired(overrides=overrides, baselines=("finetune-only", "finetune-all-labels"))
    assert result.decision.action == "skip"
    assert "every sample of" in result.decision.reason
    assert_same_weights(result.model, memorised())
    assert list(result.baselines) == [
        "finetune-all-labels"
    ]  # the other would have nothing to learn


def held_out() -> Samples:
    """New digits with as many wrong labels as the training set has."""
    labels = wrong_labels(clean().labels, rate=0.3, noise="symmetric", classes=10, seed=1)
    return replace(clean(), labels=labels)


def test_held_out_labels_keep_a_repair_that_helps_and_their_noise_is_taken_into_account():
    result = repaired(overrides={"tune": {"epochs": 6, "batch_size": 32}}, held_out=held_out())
    assert result.decision.action == "keep"
    assert result.decision.gain.low > 0
    truly = stages.compare(memorised(), result.model, clean()).gain
    assert result.decision.gain.low < truly.value < result.decision.gain.high
    assert result.seconds["decide"] > 0


def test_held_out_samples_that_were_trained_on_decide_nothing():
    (x, y), train = (held_out().inputs.tensor, held_out().labels), noisy()
    both = torch.cat([x, train.inputs.tensor[:50]]), np.concatenate([y, train.labels[:50]])
    result, expected = (repaired(held_out=data) for data in (both, (x, y)))
    note = f"50 of {len(x) + 50} held-out samples are training inputs, and were left out"
    assert note in result.notes
    assert result.decision == expected.decision


def test_a_repair_that_does_harm_is_reverted(tmp_path):
    harm = {**FAST, "tune": {"epochs": 1, "lr": 1e-6}, "prune": {"fraction": 0.9}}
    result = repaired(overrides=harm, held_out=held_out(), out=tmp_path)
    assert result.decision.action == "revert"
    assert result.decision.gain.value < 0
    assert_same_weights(result.model, memorised())
    assert result.plan is None
    assert result.size_after == result.size_before
    assert "Decision: revert, because the repair would change accuracy by −" in expunge.report(
        result
    )
    assert "Nothing is pruned: the model is unchanged." in expunge.report(result)
    told = json.loads((tmp_path / "result.json").read_text())["decision"]
    assert told["action"] == "revert"
    assert told["gain"]["value"] == result.decision.gain.value


def test_without_held_out_labels_only_a_repair_that_destroys_the_model_is_reverted():
    lr = {"epochs": 1, "lr": 1e3, "optimizer": "sgd", "max_gradient_norm": 1.0}
    result = repaired(overrides={**FAST, "tune": lr, "prune": {"fraction": 0.0}})
    assert (result.decision.action, result.decision.gain) == ("revert", None)
    assert "of the labels of unflagged training samples" in result.decision.reason
    assert_same_weights(result.model, memorised())


def test_what_is_to_be_forgotten_is_not_rolled_back():
    overrides = {**FAST, "tune": {"epochs": 1, "lr": 1e-6}, "prune": {"fraction": 0.9}}
    result = pipeline.forget(memorised(), noisy(), noisy().ids[:2], overrides=overrides)
    assert result.decision.action == "keep"
    assert result.plan is not None


def retrain_well(recipe: Recipe) -> Recipe:
    tune = replace(recipe.tune, targets="filter", epochs=30, lr=0.05, batch_size=32)
    return replace(recipe, start="scratch", prune=PruneConfig(fraction=0.0), tune=tune)


def test_a_network_retrained_from_scratch_that_is_ahead_is_recommended(monkeypatch):
    weak = {**FAST, "tune": {"epochs": 1, "lr": 1e-6}, "prune": {"fraction": 0.0}}
    monkeypatch.setitem(recipes._items, "retrain-well", retrain_well)
    result = repaired(overrides=weak, held_out=held_out(), baselines=("retrain-well",))
    assert result.decision.action == "retrain"
    assert result.decision.recipe == "retrain-well"
    assert "retrain-well" in result.decision.reason
    assert expunge.report(result).count("Decision: retrain, because") == 1
    assert result.decision.kept == (result.decision.gain.value > 0)


def test_a_repair_that_does_harm_is_reverted_also_where_retraining_is_ahead(monkeypatch):
    harm = {**FAST, "tune": {"epochs": 1, "lr": 1e-6}, "prune": {"fraction": 0.9}}
    monkeypatch.setitem(recipes._items, "retrain-well", retrain_well)
    result = repaired(overrides=harm, held_out=held_out(), baselines=("retrain-well",))
    assert (result.decision.action, result.decision.kept) == ("retrain", False)
    assert_same_weights(result.model, memorised())
    assert "The model is unchanged" in expunge.report(result)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: np.repeat(x, 3, axis=1), "float[3, 8, 8]"),
        (lambda x: np.repeat(np.repeat(x, 2, axis=2), 2, axis=3), "float[1, 16, 16]"),
        (lambda x: (255 * x).astype(np.uint8), "uint8[1, 8, 8]"),
    ],
)
@pytest.mark.parametrize("name", ["validation", "held_out"])
def test_sets_that_are_stored_in_another_way_are_refused_before_any_work(changed, message, name):
    x, y = digits()
    other = from_arrays(changed(x[500:600]), y[500:600], classes=clean().classes, name="others")
    sets = {"validation": clean(), name: other}
    with pytest.raises(DataError) as error:
        pipeline.repair(memorised(), noisy(), **sets, progress=lambda *_: pytest.fail("too late"))
    assert f"others: inputs are float[1, 8, 8] in noisy digits, {message} here" in str(error.value)


def test_sets_that_are_prepared_in_another_way_are_refused():
    with pytest.raises(DataError, match="prepared as"):
        repaired(held_out=replace(held_out(), prepare=Preparation((0.1,), (2.0,))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network().state_dict(), "expected a torch.nn.Module, got OrderedDict"),
        (lambda: mlp(inputs=64, classes=8), "gives 8 logits, the data have 10 classes"),
        (lambda: mlp(inputs=60, classes=10), "fails on the first sample: RuntimeError"),
        (lambda: network().double(), r"weights are torch.float64, not float32; pass `model.float"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_any_work(model, message):
    for act in (pipeline.repair, lambda m, d, **_: pipeline.train(m, d, TuneConfig(epochs=1))):
        with pytest.raises(ModelError, match=message):
            act(model(), noisy(), progress=lambda *_: pytest.fail("too late"))


def test_a_seed_may_be_a_number_of_numpy(tmp_path):
    repaired(out=tmp_path, seed=np.int64(0))
    repaired(out=tmp_path)


def test_held_out_samples_of_other_classes_are_refused():
    other = replace(clean(), classes=tuple("abcdefghij"))
    with pytest.raises(DataError, match=r"(?s)has the classes a, b.*classes=…"):
        repaired(held_out=other)


def test_another_round_looks_again_with_the_repaired_model(tmp_path):
    rounds = {**FAST, "rounds": {"epochs": [2], "min_flag_change": 0.0}}
    result = repaired(overrides=rounds, out=tmp_path / "whole")
    first = plain()
    assert not np.array_equal(result.partition.p_noisy, first.partition.p_noisy)
    again = stages.score(first.model, noisy(), **FAST["score"])
    expected = stages.partition(again)
    assert np.array_equal(result.partition.p_noisy, expected.p_noisy)
    assert (tmp_path / "whole" / "rounds" / "2" / "5-tune").is_dir()
    # Interrupted in the second round, it goes on to the same end.
    with pytest.raises(KeyboardInterrupt):
        repaired(overrides=rounds, out=tmp_path / "cut", progress=_stop_at("rounds/2/5-tune"))
    repaired(overrides=rounds, out=tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def _stop_at(stage):
    def progress(what, done, total):
        if what == stage and done > 1:
            raise KeyboardInterrupt

    return progress


def test_a_round_that_sees_nothing_new_is_the_last_and_has_the_epochs_of_all(tmp_path):
    tune = {**FAST["tune"], "targets": "all", "epochs": 2}
    rounds = {
        **FAST,
        "tune": tune,
        "rounds": {"epochs": [1, 2, 1], "targets": "all", "min_flag_change": 1.0},
    }
    progress: list[tuple[str, int, int]] = []
    repaired(overrides=rounds, out=tmp_path, progress=lambda *told: progress.append(told))
    assert sorted(p.name for p in (tmp_path / "rounds").iterdir()) == ["2"]
    total = {what: total for what, _, total in progress}
    assert total["rounds/2/5-tune"] == 2 * total["5-tune"]  # of four epochs and of two


def test_rounds_that_a_recipe_leaves_open_fit_the_optimiser():
    progress: list[tuple[str, int, int]] = []
    settings = {**FAST, "tune": {**FAST["tune"], "optimizer": "adamw"}}
    repaired(overrides=settings, baselines=["semi"], progress=lambda *said: progress.append(said))
    total = {what: total for what, _, total in progress if what.endswith("tune")}
    steps = total["baselines/semi/5-tune"] // 2  # of two epochs
    later = [n for what, n in total.items() if what.startswith("baselines/semi/rounds/")]
    assert sum(later) == (3 + 8) * steps


def test_what_the_first_look_says_of_inputs_stands_in_all_rounds():
    rounds = {**FAST, "score": {}, "rounds": {"epochs": [1], "min_flag_change": 0.0}}
    first = repaired(overrides={**rounds, "rounds": {"epochs": []}}).partition
    last = repaired(overrides=rounds).partition
    assert np.array_equal(last.p_input_fault, first.p_input_fault)
    assert not np.array_equal(last.p_label_fault, first.p_label_fault)
    expected = 1 - (1 - last.p_label_fault) * (1 - first.p_input_fault)
    assert np.allclose(last.p_noisy, expected)
    assert last.noise_rate[1] < last.noise_rate[0] == last.p_noisy.mean() < last.noise_rate[2]
    assert {*last.evidence} == {*first.evidence} == {"label_evidence", "input_evidence", "novelty"}
    for name in ("input_evidence", "novelty"):
        assert np.array_equal(last.evidence[name], first.evidence[name])
    assert [fit.kind for fit in last.fits] == [fit.kind for fit in first.fits]


def test_a_round_that_leaves_nothing_of_a_class_is_not_followed(monkeypatch):
    looks, partition = [], stages.partition

    def blind(scores: Any, *config: Any, **settings: Any) -> Any:
        looks.append(partition(scores, *config, **settings))
        return looks[0] if len(looks) == 1 else replace(looks[-1], threshold=0.0)

    monkeypatch.setattr(stages, "partition", blind)
    tune = {**FAST["tune"], "targets": "filter"}
    result = repaired(overrides={**FAST, "tune": tune, "rounds": {"epochs": [1, 1]}})
    assert len(looks) == 2
    assert result.partition.threshold == 0.5
    monkeypatch.undo()
    assert_same_weights(result.model, repaired(overrides={**FAST, "tune": tune}).model)


def test_rounds_go_on_as_long_as_they_see_something_new(tmp_path):
    rounds = {**FAST, "rounds": {"epochs": [1, 1], "min_flag_change": 0.0}}
    repaired(overrides=rounds, out=tmp_path)
    assert sorted(p.name for p in (tmp_path / "rounds").iterdir()) == ["2", "3"]


def test_without_validation_nothing_is_measured_and_no_control_runs(tmp_path):
    result = pipeline.repair(memorised(), noisy(), overrides=FAST, out=tmp_path / "run")
    assert result.before is result.after is result.gain is None
    assert result.baselines == {}
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["before"] is None
    assert (tmp_path / "run" / "report.html").exists()
    assert_same_weights(result.model, plain().model)


def test_validation_decides_nothing():
    validation = clean()
    wrong = clean(labels := 300)
    shuffled = from_arrays(
        digits()[0][500 : 500 + labels],
        np.random.default_rng(0).permutation(wrong.labels),
        classes=wrong.classes,
    )
    results = [
        pipeline.repair(memorised(), noisy(), v, overrides=FAST, baselines=())
        for v in (validation, shuffled)
    ]
    assert_same_weights(results[0].model, results[1].model)
    assert results[0].after.accuracy.value > results[1].after.accuracy.value


def test_string_ids_name_the_same_samples(tmp_path):
    names = np.array([f"img/{i}.png" for i in range(400)])
    data = noisy(ids=names)
    for _ in range(2):  # made, and read again
        named = pipeline.repair(
            memorised(), data, clean(), overrides=FAST, baselines=(), out=tmp_path / "run"
        )
        assert named.partition.ids.tolist() == names.tolist()
        assert np.array_equal(named.partition.p_noisy, plain().partition.p_noisy)
        assert_same_weights(named.model, plain().model)
    table = pq.read_table(tmp_path / "run" / "partition.parquet")
    assert table["id"].to_pylist() == names.tolist()


class DictModel(nn.Module):
    """Takes named tensors and returns an object with logits, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, *, pixels: Tensor, bias: Tensor) -> Any:
        return SimpleNamespace(logits=self.net(pixels + bias[:, :, None, None]))


def test_a_model_of_dictionaries_is_repaired_as_one_of_tensors():
    x, y = noisy_arrays()
    bias = np.zeros(1, dtype=np.float32)
    items = [{"pixels": x[i], "bias": bias, "label": int(y[i])} for i in range(len(x))]
    model = DictModel()
    model.net.load_state_dict(memorised().state_dict())
    result = pipeline.repair(model, from_dataset(items), overrides=FAST)
    np.testing.assert_allclose(result.partition.p_noisy, plain().partition.p_noisy, atol=1e-6)
    assert {f"net.{k}": v for k, v in plain().plan.units.items()} == result.plan.units


def test_masks_silence_as_many_units_and_leave_the_size(tmp_path):
    cut, masked = (
        repaired(overrides={**FAST, "prune": {"fraction": 0.2, "mode": mode}}, out=tmp_path / mode)
        for mode in ("remove", "mask")
    )
    assert masked.plan == cut.plan
    assert masked.size_after == masked.size_before
    x = clean().batch(np.arange(20))
    for layer, units in masked.plan.units.items():
        with torch.no_grad():  # silent: their weights make no difference to the output
            before = masked.model(x)
            masked.model.get_submodule(layer).bias[list(units)] += 100.0
            assert_close(masked.model(x), before)
    again = repaired(
        overrides={**FAST, "prune": {"fraction": 0.2, "mode": "mask"}}, out=tmp_path / "mask"
    )
    with torch.no_grad():
        assert_close(again.model(x), before)


# ------------------------------------------------------------------------------ stage by stage


def test_stage_by_stage_gives_the_partition_and_the_plan_of_a_repair():
    model, data = memorised(), noisy()
    result = repaired(overrides=QUICK)
    scores = expunge.score(model, data, views=3)
    split = expunge.partition(scores)
    ranking = expunge.rank(model, data, split)
    plan = expunge.plan(ranking, fraction=result.config["prune"]["fraction"])
    assert np.array_equal(split.p_noisy, result.partition.p_noisy)
    assert np.array_equal(split.suggested_label, result.partition.suggested_label)
    assert np.array_equal(ranking.effect, result.ranking.effect)
    assert plan == result.plan
    pruned = expunge.prune(model, plan, data)
    fixed = expunge.tune(pruned, data, split, seed=0, **result.config["tune"])
    assert [p.shape for p in fixed.parameters()] == [p.shape for p in result.model.parameters()]
    found = expunge.compare(model, fixed, clean())
    assert found.gain.low > 0
    assert found.before.accuracy == result.before.accuracy
    assert "accuracy" in str(found)
    assert_same_weights(model, memorised())


def test_what_a_repair_cuts_where_it_is_left_open_depends_on_memorisation(monkeypatch):
    prune_skipped_reason = repaired(overrides=OPEN, baselines=("finetune-only", "random-units"))
    assert prune_skipped_reason.plan is None
    assert prune_skipped_reason.size_after == prune_skipped_reason.size_before
    assert "has not memorised wrong labels" in expunge.report(prune_skipped_reason)
    for control in prune_skipped_reason.baselines.values():  # the repair itself
        assert_same_weights(control.model, prune_skipped_reason.model)
    assert "random-baseline-as-good" not in {flag.code for flag in prune_skipped_reason.flags}
    cut = plain().plan
    monkeypatch.setattr(Partition, "memorised_wrong_labels", True)
    assert repaired(overrides=OPEN).plan == cut


@pytest.mark.parametrize("until", ["score", "rank", "tune"])
def test_stages_end_where_asked_and_the_repair_goes_on_from_them(tmp_path, until):
    folder, order = tmp_path / "run", ["score", "partition", "rank", "prune", "tune"]
    settings = {"overrides": FAST, "baselines": (), "out": folder}
    made = pipeline.repair_until(memorised(), noisy(), clean(), until=until, **settings)
    done = order[: order.index(until) + 1]
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        f"{order.index(name) + 1}-{name}" for name in done
    }
    assert (made.partition is not None) == ("partition" in done)
    assert (made.ranking is not None) == ("rank" in done)
    assert (made.plan is not None) == ("prune" in done)
    before = {k: v for k, v in contents(folder).items() if k.endswith("stage.json")}
    result = pipeline.repair(memorised(), noisy(), clean(), **settings)
    assert before.items() <= contents(folder).items()
    assert_same_weights(result.model, plain().model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_repair_on_a_gpu_leaves_models_where_they_were(home):
    given = memorised().to(home)
    result = pipeline.repair(given, noisy(), clean(), overrides=FAST, baselines=("random-units",))
    assert {p.device.type for m in (given, result.model) for p in m.parameters()} == {home}
    assert result.after.accuracy.value > result.before.accuracy.value


def test_what_is_cut_learns_with_its_norms_where_only_the_head_is_tuned():
    model, data = build(ConvNet), from_arrays(inputs(ConvNet).numpy(), np.arange(4) % 3)
    plan = PrunePlan({"conv1": (0, 5)}, requested=2)
    cut = stages.prune(model, plan, data)
    tuned = stages.tune(cut, data, epochs=1, scope="head", layers=("conv1",))
    moved = {n for n, p in tuned.named_parameters() if not torch.equal(p, cut.get_parameter(n))}
    assert {name.partition(".")[0] for name in moved} == {"conv1", "bn1", "head"}
    assert not torch.equal(tuned.bn1.running_mean, cut.bn1.running_mean)
    assert torch.equal(tuned.bn2.running_mean, cut.bn2.running_mean)


def test_whole_blocks_can_be_named_where_only_the_head_is_tuned():
    x, y = digits()
    model, data = resnet(channels=1, classes=10, widths=(4, 8), blocks=(1, 1)), from_arrays(x, y)
    few = data.subset(np.arange(200))
    tuned = stages.tune(model, few, epochs=1, scope="head", layers=("stages.1",))
    moved = {n for n, p in tuned.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert {name.partition(".")[0] for name in moved} == {"stages", "head"}
    assert not any(name.startswith("stages.0") for name in moved)


def test_stages_of_a_recipe_that_cuts_nothing():
    made = pipeline.repair_until(
        memorised(), noisy(), until="prune", recipe="finetune-only", overrides=OPEN
    )
    assert made.partition is not None
    assert made.ranking is made.plan is None


# ------------------------------------------------------------------------------ resuming


class Killed(Exception):
    """Stands for whatever ends a process."""


WITH_BASELINES = ("random-units", "retrain-filtered")
STOPS = [
    ("score", 1),
    ("rank", 1),
    ("5-tune", 1),
    ("5-tune", 20),
    ("baselines/random-units/5-tune", 15),
    ("baselines/retrain-filtered/5-tune", 30),
    ("evaluate", 1),
]


def whole_repair(out: Path, progress: Any = lambda *a: None) -> RepairResult:
    return repaired(out=out, baselines=WITH_BASELINES, progress=progress)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    whole_repair(out)
    return out


@pytest.mark.parametrize(("stage", "step"), [STOPS[2], STOPS[3], STOPS[5]])
def test_resumed_after_a_stop_anywhere_equals_uninterrupted(tmp_path, uninterrupted, stage, step):
    seen = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what == stage and (done >= step or done == total):
            raise Killed

    with pytest.raises(Killed):
        whole_repair(tmp_path / "run", stop)
    assert not (tmp_path / "run" / "result.json").exists()
    whole_repair(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)
    assert stage in seen


def test_stopped_again_and_again_equals_uninterrupted(tmp_path, uninterrupted):
    left = [*STOPS, ("none", 0)]

    def stop(what: str, done: int, total: int) -> None:
        if what == left[0][0] and (done >= left[0][1] or done == total):
            raise Killed

    while left:
        try:
            whole_repair(tmp_path / "run", stop)
        except Killed:
            assert left[0][0] != "none"
        left.pop(0)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_resumed_after_sigkill_equals_uninterrupted(tmp_path, uninterrupted):
    out = tmp_path / "run"

    def kill(what, done, total):
        if what == "5-tune" and done == 20:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: str(whole_repair(out, kill))) == "killed"
    assert (out / "5-tune.partial" / "epoch.safetensors").exists()
    assert not (out / "5-tune").exists()
    whole_repair(out)
    assert_same_run(out, uninterrupted)
    assert not (out / "5-tune.partial").exists()


def test_a_second_repair_reads_everything_and_gives_the_same(tmp_path):
    first = repaired(out=tmp_path / "run")
    calls: list[str] = []
    second = repaired(out=tmp_path / "run", progress=lambda what, *a: calls.append(what))
    assert set(calls) == {"evaluate"}
    assert_same_weights(first.model, second.model)
    assert {k: v for k, v in first.seconds.items() if k != "compare"} == {
        k: v for k, v in second.seconds.items() if k != "compare"
    }


def changed_labels() -> Samples:
    x, y = noisy_arrays()
    y[7] = (y[7] + 1) % 10
    return from_arrays(x, y, ids=noisy().ids, classes=noisy().classes)


def changed_inputs() -> Samples:
    x, y = noisy_arrays()
    x[7, 0, 3, 3] += 0.125
    return from_arrays(x, y, ids=noisy().ids, classes=noisy().classes)


def other_model() -> nn.Module:
    model = memorised()
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-3
    return model


CHANGES = {
    "a label": ({"train": changed_labels}, "train.labels"),
    "a pixel": ({"train": changed_inputs}, "train.inputs"),
    "an id": ({"train": lambda: noisy(ids=np.arange(400) + 2000)}, "train.ids"),
    "the class names": (
        {
            "train": lambda: noisy(classes=[f"d{i}" for i in range(10)]),
            "validation": lambda: clean(classes=[f"d{i}" for i in range(10)]),
        },
        "train.classes",
    ),
    "the preparation": (
        {
            "train": lambda: noisy(mean=(0.3,), std=(0.4,)),
            "validation": lambda: clean(mean=(0.3,), std=(0.4,)),
        },
        "train.preparation",
    ),
    "the view": ({"train": lambda: noisy(view="crop")}, "train.view"),
    "the validation set": ({"validation": lambda: clean(200)}, "validation.inputs"),
    "no validation set": ({"validation": lambda: None}, "validation"),
    "a weight": ({"model": other_model}, "model"),
    "the seed": ({"seed": 1}, "seed: was 0, is 1"),
    "the recipe": (
        {"recipe": "no-op"},
        'recipe: was "default", is "no-op"',
    ),
    "a setting": (
        {"overrides": {**FAST, "tune": {"epochs": 2, "batch_size": 32}}},
        "settings.tune.epochs: was 3, is 2",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    repaired(out=out)
    return out


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_refused_and_named_and_nothing_touched(finished, change):
    given, message = CHANGES[change]
    before = contents(finished)
    settings = {"overrides": FAST, "baselines": (), "seed": 0, "out": finished}
    settings |= {k: v for k, v in given.items() if k not in ("model", "train", "validation")}
    made = {"model": memorised, "train": noisy, "validation": clean} | given
    with pytest.raises(RunError, match="what differs") as error:
        pipeline.repair(made["model"](), made["train"](), made["validation"](), **settings)
    assert f"\n  {message}" in str(error.value)
    assert contents(finished) == before


def test_a_control_that_looks_in_another_way_makes_its_own_partition(tmp_path):
    result = repaired(out=tmp_path / "a", baselines=("rlap",), overrides={"tune": {"epochs": 1}})
    alone = repaired(out=tmp_path / "b", recipe="rlap", overrides={"tune": {"epochs": 1}})
    own = pq.read_table(tmp_path / "a" / "baselines" / "rlap" / "2-partition" / "partition.parquet")
    theirs = pq.read_table(tmp_path / "b" / "2-partition" / "partition.parquet")
    assert own == theirs
    assert result.baselines["rlap"].evaluation.accuracy == alone.after.accuracy
    assert_same_weights(result.baselines["rlap"].model, alone.model)


@pytest.mark.parametrize(
    ("found", "changes", "rate"),
    [
        ((), {}, 0.05),
        ((Flag("model-memorised-its-labels", "x"),), {}, 0.15),
        ((Flag("model-memorised-its-labels", "x"),), {"lr": 0.01}, 0.01),
    ],
)
def test_a_model_that_has_memorised_has_further_to_go(monkeypatch, found, changes, rate):
    seen = []

    def spy(*args: Any, **kwargs: Any) -> nn.Module:
        seen.append(args[3].lr)
        return loop.tune(*args, **kwargs)

    monkeypatch.setattr(stages, "memorised", lambda _: found)
    monkeypatch.setattr(stages, "loop", SimpleNamespace(**{**vars(loop), "tune": spy}))
    tune = {**FAST["tune"], **changes}
    repaired(overrides={**FAST, "tune": tune}, baselines=("retrain-filtered",))
    assert seen == [rate, changes.get("lr", 0.1)]


def test_a_ranking_looks_at_as_many_samples_as_it_says():
    data, split = noisy(), plain().partition
    drawn = np.sort(generator(3, "rank").permutation(len(data))[:100])
    few = stages.rank(memorised(), data, split, seed=3, max_samples=100)
    expected = stages.rank(memorised(), data.subset(drawn), split)
    assert np.array_equal(few.effect, expected.effect)
    assert not np.array_equal(few.effect, stages.rank(memorised(), data, split).effect)


def test_units_that_an_addition_shares_are_ranked_only_if_asked_for():
    net = resnet(classes=10, channels=1, widths=(4, 8), blocks=(1, 1))
    x, y = noisy_arrays()
    split = plain().partition
    data = from_arrays(x, y, ids=split.ids, classes=tuple("0123456789"))
    found = stages.rank(net, data, split).units_by_layer()
    assert list(found) == ["stages.0.0.conv1", "stages.1.0.conv1"]
    last = stages.rank(net, data, split, last_n_layers=1).units_by_layer()
    assert list(last) == ["stages.1.0.shortcut.0"]


def test_another_control_is_added_to_what_is_there(tmp_path):
    repaired(out=tmp_path, baselines=("no-op",))
    told: list[str] = []
    both = repaired(
        out=tmp_path,
        baselines=("no-op", "finetune-only"),
        progress=lambda what, *_: told.append(what),
    )
    assert list(both.baselines) == ["no-op", "finetune-only"]
    assert {w for w in told if w.endswith("5-tune")} == {"baselines/finetune-only/5-tune"}


def test_fresh_does_a_changed_repair_in_the_same_folder(tmp_path):
    repaired(out=tmp_path / "run", seed=1)
    (tmp_path / "run" / "notes.md").write_text("mine")
    fresh = repaired(out=tmp_path / "run", overwrite=True)
    assert_same_weights(fresh.model, plain().model)
    assert (tmp_path / "run" / "notes.md").read_text() == "mine"


def test_training_resumes_and_equals_uninterrupted(tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if done == 50:
            raise Killed

    config = TRAINING.__class__(targets="all", epochs=6, batch_size=32, lr=0.05)
    whole = pipeline.train(network(), noisy(), config)
    with pytest.raises(Killed):
        pipeline.train(network(), noisy(), config, out=tmp_path / "t", progress=stop)
    model = network()
    resumed = pipeline.train(model, noisy(), config, out=tmp_path / "t")
    assert_same_weights(whole.model, resumed.model)
    assert_same_weights(model, network())
    read = pipeline.train(network(), noisy(), config, out=tmp_path / "t")
    assert_same_weights(whole.model, read.model)
    assert read.seconds == resumed.seconds
    with pytest.raises(RunError, match="seed: was 0, is 1"):
        pipeline.train(network(), noisy(), config, seed=1, out=tmp_path / "t")


# ------------------------------------------------------------------------------ what is left


def test_the_saved_model_rebuilds_from_constructor_plan_and_weights(finished):
    result = repaired(out=finished)
    file = finished / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        units = json.loads(opened.metadata()["plan"])
    plan = PrunePlan({k: tuple(v) for k, v in units.items()}, requested=0)
    assert plan.units == result.plan.units
    x = clean().batch(np.arange(50))
    found = surgery.rebuild(network(seed=5), plan, x[:1], read_weights(file))
    assert torch.equal(found(x), result.model(x))
    with pytest.raises(ModelError, match="wrong shape"):
        load_weights(network(), file)


def test_a_model_saved_by_torch_rebuilds_too(tmp_path):
    result = plain()
    torch.save(result.model.state_dict(), tmp_path / "fixed.pt")
    x = clean().batch(np.arange(50))
    state = read_weights(tmp_path / "fixed.pt")
    found = surgery.rebuild(network(seed=5), result.plan, x[:1], state)
    assert torch.equal(found(x), result.model(x))


def test_the_run_folder_holds_what_the_result_says(finished):
    result = repaired(out=finished)
    found = json.loads((finished / "result.json").read_text())
    assert found["after"]["accuracy"] == {
        k: getattr(result.after.accuracy, k) for k in ("value", "low", "high", "n")
    }
    assert found["pruning"]["granted"] == result.plan.granted
    assert found["run"] == str(finished)
    assert not any(Path(p).is_absolute() for p in contents(finished))
    table = pq.read_table(finished / "partition.parquet")
    assert table.column_names[:4] == ["id", "label", "label_name", "p_noisy"]
    names = np.array(noisy().classes)
    assert table["label_name"].to_pylist() == names[noisy().labels].tolist()
    suggested = names[result.partition.suggested_label].tolist()
    assert table["suggested_name"].to_pylist() == suggested
    assert found["classes"] == names.tolist()
    assert table["id"].to_pylist() == noisy().ids.tolist()
    assert np.array_equal(table["p_noisy"].to_numpy(), result.partition.p_noisy)
    assert table["flagged"].to_pylist() == result.partition.flagged.tolist()
    assert [p.name for p in finished.glob(".partial*")] == []


# ------------------------------------------------------------------------------ baselines


@pytest.fixture(scope="module")
def controlled() -> RepairResult:
    return repaired(baselines=(*DEFAULT_BASELINES, "no-op"))


def test_baselines_cut_as_many_units_of_each_layer_as_the_repair(controlled):
    size = controlled.size_after
    assert controlled.baselines["random-units"].size == size
    assert controlled.baselines["magnitude"].size == size
    for name in ("finetune-only", "retrain-filtered", "no-op"):
        assert controlled.baselines[name].size == controlled.size_before, name


def test_a_baseline_that_is_the_repair_itself_is_left_out():
    result = repaired(
        recipe="retrain-filtered",
        overrides={stage: FAST[stage] for stage in ("score", "tune")},
        baselines=("finetune-only", "retrain-filtered", "no-op"),
    )
    assert list(result.baselines) == ["no-op"]


def test_the_control_that_does_nothing_measures_the_model_given(controlled):
    nothing = controlled.baselines["no-op"]
    assert nothing.evaluation.accuracy == controlled.before.accuracy
    assert nothing.gain == controlled.gain


def test_a_control_changes_nothing_of_the_repair(controlled):
    assert_same_weights(controlled.model, plain().model)


def test_a_control_equals_the_recipe_of_its_name_in_what_it_cuts():
    as_recipe = repaired(recipe="magnitude")
    effect = as_recipe.ranking.effect
    assert as_recipe.plan.granted == plain().plan.granted
    assert np.all(np.diff(effect) <= 0)


# ------------------------------------------------------------------------------ fingerprints


def test_the_model_s_fingerprint_changes_with_any_weight_and_the_architecture():
    first = model_fingerprint(memorised())
    assert first == model_fingerprint(memorised())
    seen = {first}
    for name, _ in memorised().named_parameters():
        model = memorised()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[-1] += 1e-4
        seen.add(model_fingerprint(model))
    model = memorised()
    model[2] = nn.Tanh()
    seen.add(model_fingerprint(model))
    assert len(seen) == 2 + len(list(memorised().parameters()))


def test_buffers_and_their_kind_are_part_of_the_fingerprint():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    first = model_fingerprint(model)
    model[1].running_mean[1] = 0.5
    assert model_fingerprint(model) != first


def test_the_data_s_fingerprint_names_the_part_that_changed():
    first = noisy().fingerprint()
    for change, part in (
        (changed_labels, "labels"),
        (changed_inputs, "inputs"),
        (lambda: noisy(ids=np.arange(400)), "ids"),
        (lambda: noisy(classes=[f"d{i}" for i in range(10)]), "classes"),
        (lambda: noisy(mean=(0.1,), std=(1.0,)), "preparation"),
        (lambda: noisy(view="flip"), "view"),
    ):
        found = change().fingerprint()
        assert {k for k in first if first[k] != found[k]} == {part}


# ------------------------------------------------------------------------------ settings


def test_settings_are_checked_before_anything_is_done(tmp_path):
    def fail(*args: object) -> None:
        pytest.fail("nothing must run")

    common = {"out": tmp_path / "run", "progress": fail}
    with pytest.raises(ConfigError, match="no recipe is called 'defalt'\n  fix: did you mean"):
        repaired(recipe="defalt", **common)
    with pytest.raises(ConfigError, match="no recipe is called 'random'"):
        repaired(baselines=("random",), **common)
    with pytest.raises(ConfigError, match=r"unknown key 'tune.epoch': did you mean 'epochs'"):
        repaired(overrides={"tune": {"epoch": 3}}, **common)
    assert not (tmp_path / "run").exists()


def test_parameters_that_cannot_be_drawn_anew_change_places():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2))
    model.register_parameter("positions", nn.Parameter(torch.arange(40.0).view(5, 8)))
    fresh = reinitialise(model, 0)
    assert not torch.equal(fresh.positions, model.positions)
    assert torch.equal(fresh.positions.flatten().sort().values, torch.arange(40.0))
    assert not torch.equal(fresh[0].self_attn.in_proj_weight, model[0].self_attn.in_proj_weight)
    assert torch.equal(model.positions, torch.arange(40.0).view(5, 8))


@pytest.mark.parametrize("hidden", [0, 4])
def test_where_nobody_asked_for_a_cut_that_is_not_possible_the_repair_goes_on(hidden):
    width = 64
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 10))
    if hidden:
        model = mlp(inputs=width, classes=10, hidden=hidden, depth=1)
    result = pipeline.forget(model, noisy(), noisy().ids[:5], clean(), overrides=OPEN, baselines=())
    assert result.plan is None
    assert result.size_after == result.size_before
    why = "less than one unit" if hidden else "no hidden layer"
    assert "Pruning skipped: this network cannot be pruned:" in expunge.report(result)
    assert why in result.prune_skipped_reason
    cut = {**OPEN, "prune": {"fraction": 0.2}}
    with pytest.raises((ModelError, PruneError), match=why):
        pipeline.forget(model, noisy(), noisy().ids[:5], clean(), overrides=cut, baselines=())


class Frozen(nn.Module):
    """A body that runs without gradients, and a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(inputs=64, classes=16, hidden=32), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x)
        return self.head(features)


@pytest.mark.parametrize("learns", [False, True])
def test_a_body_without_gradients_is_not_cut_and_named(learns):
    model = Frozen()
    model.head.requires_grad_(learns)
    message = r"(?s)no gradient reaches body.*take torch.no_grad"
    if not learns:  # the head is frozen
        message = "no hidden layer whose units could be ranked and that is not frozen"
    with pytest.raises(ModelError, match=message):
        stages.rank(model, noisy(), plain().partition)
    if learns:
        named = noisy().ids[:5]
        result = pipeline.forget(model, noisy(), named, clean(), overrides=OPEN, baselines=())
        assert "no gradient reaches body" in result.prune_skipped_reason


def test_fresh_weights_depend_on_the_seed_alone():
    first, second, other = (reinitialise(memorised(), s) for s in (0, 0, 1))
    assert_same_weights(first, second)
    assert not torch.equal(first[1].weight, other[1].weight)
    assert not torch.equal(first[1].weight, memorised()[1].weight)


def test_cutting_needs_an_amount():
    ranking = plain().ranking
    with pytest.raises(ConfigError, match="nothing to prune"):
        expunge.plan(ranking)
    assert not PruneConfig().is_enabled
    assert expunge.plan(ranking, count=2).granted == 2 * len(ranking.units_by_layer())
    with pytest.raises(PruneError, match=r"fraction 1e-06 of \d+ units is less than one unit"):
        expunge.plan(ranking, fraction=1e-6)


def test_classes_of_training_and_validation_must_agree():
    with pytest.raises((ConfigError, DataError), match="classes"):
        pipeline.repair(memorised(), noisy(), clean(classes=[f"d{i}" for i in range(10)]))


def test_every_recipe_is_documented():
    assert all(recipes.summary(name) for name in recipes.names())


# ------------------------------------------------------------------------------ public surface


def test_a_stage_by_itself_does_what_the_repair_does():
    """Scores, partition, plan and tuned weights of the stages equal those of the repair."""
    result, data = plain(), noisy()
    recipe = resolve("default", FAST)
    scores = expunge.score(memorised(), data, recipe.score, seed=0)
    split = expunge.partition(scores, recipe.partition, seed=0)
    assert np.array_equal(split.p_noisy, result.partition.p_noisy)
    plan = expunge.plan(expunge.rank(memorised(), data, split, recipe.rank), recipe.prune)
    assert plan == result.plan
    tuned = expunge.tune(expunge.prune(memorised(), plan, data), data, split, recipe.tune, seed=0)
    assert_same_weights(tuned, result.model)


def test_keywords_replace_single_settings_of_a_config():
    scores = plain().scores
    config = PartitionConfig(threshold=0.9)
    assert expunge.partition(scores, config).threshold == 0.9
    assert expunge.partition(scores, config=config, threshold=0.4).threshold == 0.4
    with pytest.raises(ConfigError, match="unknown key 'treshold': did you mean 'threshold'"):
        expunge.partition(scores, treshold=0.4)
    with pytest.raises(ConfigError, match="expected a PartitionConfig, got ScoreConfig"):
        expunge.partition(scores, ScoreConfig())


@pytest.mark.parametrize(
    "pair",
    [
        (ScoreConfig, ScoreKeywords),
        (PartitionConfig, PartitionKeywords),
        (RankConfig, RankKeywords),
        (PruneConfig, PruneKeywords),
        (TuneConfig, TuneKeywords),
        (RepairOptions, RepairKeywords),
    ],
)
def test_the_typed_keywords_are_the_fields_of_the_config(pair):
    config, keywords = (get_type_hints(kind) for kind in pair)
    assert config == keywords


def test_options_by_their_former_names_are_refused_with_the_new_one():
    with pytest.raises(
        ConfigError, match="unknown option 'controls': it is now called 'baselines'"
    ):
        expunge.repair(memorised(), noisy(), controls=())
    with pytest.raises(ConfigError, match=r"unknown key 'tune.data': it is now called 'targets'"):
        repaired(overrides={"tune": {"data": "filter"}})
    with pytest.raises(ConfigError, match=r"'soft' .*it is now called 'reweight'"):
        repaired(overrides={"tune": {"targets": "soft"}})
    with pytest.raises(ConfigError, match="it is now called 'iterative'"):
        repaired(recipe="rounds")
    with pytest.raises(AttributeError, match="it is now called 'audit'"):
        _ = expunge.certify


def test_a_run_is_read_again_as_the_repair_returned_it(tmp_path):
    made = repaired(out=tmp_path / "run", baselines=("finetune-only",))
    read = expunge.load_run(tmp_path / "run")
    for name in ("recipe", "seed", "classes", "plan", "gain", "audit", "decision", "flags"):
        assert getattr(read, name) == getattr(made, name), name
    for name in ("size_before", "size_after", "prune_skipped_reason", "seconds"):
        assert getattr(read, name) == getattr(made, name), name
    assert json.loads(json.dumps(read.config)) == json.loads(json.dumps(made.config))
    for name in ("p_noisy", "suggested_label"):
        assert np.array_equal(getattr(read.partition, name), getattr(made.partition, name))
    assert np.array_equal(read.ranking.effect, made.ranking.effect)
    assert np.array_equal(read.after.correct, made.after.correct)
    assert read.after.metrics == made.after.metrics
    assert read.after.per_class == made.after.per_class
    other, same = read.baselines["finetune-only"], made.baselines["finetune-only"]
    assert (other.gain, other.size, other.seconds) == (same.gain, same.size, same.seconds)
    assert expunge.report(read) == expunge.report(made)


def test_the_model_of_a_run_needs_its_network_to_be_called(tmp_path):
    made = repaired(out=tmp_path / "run")
    weights = expunge.load_run(tmp_path / "run").model
    assert weights.state_dict().keys() == made.model.state_dict().keys()
    with pytest.raises(ModelError, match=r"without its network.*\n.*load_run\(folder, model="):
        weights(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="data are needed"):
        expunge.load_run(tmp_path / "run", network())
    with pytest.raises(ModelError, match=r"(?s)has not the units that were cut.*fix: give"):
        expunge.load_run(tmp_path / "run", torch.nn.Linear(64, 10), noisy())
    read = expunge.load_run(tmp_path / "run", torch.nn.DataParallel(network()), noisy())
    assert_same_weights(read.model, made.model)
    with pytest.raises(RunError, match="holds no finished run"):
        expunge.load_run(tmp_path)


def test_a_run_whose_units_were_masked_is_read_with_its_masks(tmp_path):
    masked = {**FAST, "prune": {"fraction": 0.3, "mode": "mask"}}
    made = repaired(out=tmp_path / "run", overrides=masked)
    read = expunge.load_run(tmp_path / "run", network(), noisy())
    x = clean().batch(np.arange(20))
    assert_close(read.model(x), made.model(x))


def test_a_result_is_shown_in_a_few_lines(tmp_path):
    shown = repr(repaired(out=tmp_path / "run")).splitlines()
    assert len(shown) <= 6
    for part in ("keep", "flagged", "report.html"):
        assert any(part in line for line in shown), part


def test_a_folder_of_an_older_format_is_refused_and_kept(tmp_path):
    folder = tmp_path / "run"
    repaired(out=folder)
    header = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**header, "schema": 1}))
    before = contents(folder)
    with pytest.raises(RunError, match="holds a run of format 1, this version reads 3"):
        repaired(out=folder)
    assert contents(folder) == before


def test_a_baseline_that_diverges_is_reported_and_the_repair_goes_on(tmp_path, monkeypatch):
    whole = stages.tune

    def diverging(model, *arguments, stream="", checkpoint=None, **settings):
        if checkpoint is not None and "baselines" in str(checkpoint._file):
            checkpoint.save(1, {"w": torch.zeros(1)})
            raise ModelError("the loss is nan", where="epoch 2")
        return whole(model, *arguments, stream=stream, checkpoint=checkpoint, **settings)

    monkeypatch.setattr(stages, "tune", diverging)
    result = repaired(baselines=("finetune-only", "no-op"), out=tmp_path / "run")
    assert set(result.baselines) == {"no-op"}
    flag = next(f for f in result.flags if f.code == "baseline-failed")
    assert flag.message == "the baseline finetune-only failed and is not compared: the loss is nan"
    assert flag.message in (tmp_path / "run" / "report.md").read_text()
    assert list((tmp_path / "run").rglob("*.partial")) == []
    assert expunge.load_run(tmp_path / "run").flags == result.flags
