"""The noise that suites put into data, what they measure, and their rows on disk."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.stats import t

from expunge import stages
from expunge.demo.noise import GroundTruth, mild_inputs
from expunge.detection.detectors import detectors
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError, RunError
from expunge.records import Partition
from expunge.training.loop import TuneConfig
from expunge_bench import cifar, detect, memory, prune, published, repair
from expunge_bench.digits import Digits
from expunge_bench.fields import Setting, cached_model, grid
from expunge_bench.instance_noise import instance_dependent
from expunge_bench.peers import BenchmarkCase, Verdict, peers
from expunge_bench.suites import ResultStore, Table, mean

N = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10 in the Hub's layout, small: ten classes of coloured noise."""
    path = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for split, n in (("train", N), ("test", 40)):
        labels = np.arange(n) % 10
        images = []
        for label in labels:
            pixels = rng.integers(0, 60, (32, 32, 3)) + 18 * label
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = {"id": np.arange(n) + 1000, "image": images, "label": labels}
        if split == "train":
            table["human_random1"] = np.where(np.arange(n) % 6 == 0, (labels + 1) % 10, labels)
        pq.write_table(pa.table(table), path / f"{split}.parquet")
    return path


@pytest.fixture(scope="module")
def data(folder):
    return cifar.Cifar(folder)


# ------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_instance_dependent_labels_are_wrong_at_the_rate_and_depend_on_the_input(rate):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 4000)
    x = rng.standard_normal((4000, 64)).astype(np.float32)
    noisy = instance_dependent(x, labels, rate=rate, classes=5, seed=1)
    assert abs((noisy != labels).mean() - rate) < 0.03
    assert_array_equal(noisy, instance_dependent(x, labels, rate=rate, classes=5, seed=1))
    # An image and its double go the same way when both go wrong; drawn labels would in a quarter.
    twice = instance_dependent(np.tile(x, (2, 1)), np.tile(labels, 2), rate=rate, classes=5, seed=1)
    first, second = twice[:4000], twice[4000:]
    both = (first != labels) & (second != labels)
    assert (first == second)[both].mean() > 0.8


def test_mild_corruption_changes_as_many_images_as_asked_and_no_others():
    x = np.random.default_rng(0).random((90, 3, 16, 16)).astype(np.float32)
    corrupted, fault = mild_inputs(x, rate=1 / 3, seed=0)
    assert fault.sum() == 30
    assert_array_equal(corrupted[~fault], x[~fault])
    assert (np.abs(corrupted - x).max(axis=(1, 2, 3))[fault] > 0.05).all()
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    low = corrupted.std(axis=(1, 2, 3))[fault] / x.std(axis=(1, 2, 3))[fault]
    assert (np.isclose(low, 0.2, atol=1e-3)).sum() == 10  # a third fades to a fifth


@pytest.mark.parametrize("noise", [n for n in cifar.NOISES if n not in ("idn_20", "labels")])
def test_scenes_say_the_truth_about_their_faults(data, noise):
    if noise == "human_aggregate":
        with pytest.raises(DataError, match="human_aggregate"):
            data.scene(Setting(noise, n=100))
        return
    rate = (cifar.NOISES[noise] or (0.0,))[0]
    scene = data.scene(Setting(noise, rate, n=100))
    clean = data.scene(Setting("none", n=100))
    assert_array_equal(scene.truth.labels, clean.train.labels)
    assert_array_equal(scene.truth.label_fault, scene.train.labels != clean.train.labels)
    rows = np.arange(100)
    changed = (scene.train.inputs.batch(rows) != clean.train.inputs.batch(rows)).flatten(1).any(1)
    assert_array_equal(scene.truth.input_fault, changed.numpy())
    wanted = {"none": 0.0, "human_random1": 1 / 6, "both": 0.36}.get(noise, rate)
    assert abs(scene.truth.noisy.mean() - wanted) < (0.15 if noise == "instance" else 0.05)
    assert len(scene.test) == 40


def test_published_noise_is_clipped_to_the_unit_interval_of_standardised_images(data):
    scene = data.scene(Setting("gaussian", 0.5, n=100))
    bad = np.flatnonzero(scene.truth.input_fault)
    x = scene.train.batch(bad)
    assert (x.min(), x.max()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))


def test_labels_from_other_files_are_joined_by_id(data, folder, tmp_path):
    ids = np.arange(N)[::-1] + 1000
    given = np.full(N, 3)
    pq.write_table(pa.table({"id": ids, "said": given}), tmp_path / "l.parquet")
    extra = cifar.Extra(f"{tmp_path / 'l.parquet'}:said", f"{folder / 'train.parquet'}:label")
    scene = cifar.Cifar(folder, extra).scene(Setting("human_random1", n=100))
    assert scene.truth.noisy.any()
    with pytest.raises(DataError, match="same label"):  # all are 3
        cifar.Cifar(folder, extra).scene(Setting("labels", n=100))
    pq.write_table(pa.table({"id": ids, "said": (ids - 999) % 10}), tmp_path / "l.parquet")
    scene = cifar.Cifar(folder, extra).scene(Setting("labels", n=100))
    assert_array_equal(scene.train.labels, (np.arange(100) + 1) % 10)
    assert scene.truth.label_fault.all()
    with pytest.raises(ConfigError, match="FILE:COLUMN"):
        cifar.Cifar(folder, cifar.Extra("no-colon", "x:y")).scene(Setting("labels", n=100))
    with pytest.raises(ConfigError, match="FILE:COLUMN"):
        data.scene(Setting("labels", n=100))


def test_more_samples_than_there_are_is_an_error(data):
    with pytest.raises(DataError, match=f"{N + 1} samples of {N}"):
        data.scene(Setting("none", n=N + 1))
    with pytest.raises(DataError, match="1199 digits of 1198"):
        Digits().scene(Setting("none", n=1199))


@pytest.mark.parametrize(("noise", "rate"), [("symmetric", 0.4), ("human_random1", 0.0)])
def test_what_is_held_out_has_faults_of_its_own_and_is_not_trained_on(data, noise, rate):
    scene = data.scene(Setting(noise, rate, n=100))
    assert len(scene.held_out) == 20
    assert not set(scene.held_out.ids) & set(scene.train.ids)
    truth = data.train.subset(np.arange(100, 120)).labels
    wrong = (scene.held_out.labels != truth).mean()
    assert wrong == pytest.approx(rate or 1 / 6, abs=0.05)
    assert data.scene(Setting("none", n=N)).held_out is None


@pytest.mark.parametrize("noise", Digits.noises)
def test_digits_are_split_in_three_and_the_truth_is_told(noise):
    rate = (Digits.noises[noise] or (0.0,))[0]
    scene = Digits().scene(Setting(noise, rate, n=1000))
    sets = (scene.train, scene.held_out, scene.test)
    assert [len(s) for s in sets] == [1000, 198, 599]
    assert len(set(np.concatenate([s.ids for s in sets]))) == 1797
    clean = Digits().scene(Setting("none", n=1000))
    assert_array_equal(scene.truth.labels, clean.train.labels)
    assert_array_equal(scene.truth.label_fault, scene.train.labels != clean.train.labels)
    assert scene.truth.noisy.mean() == pytest.approx({"both": 0.36}.get(noise, rate), abs=0.01)
    assert_array_equal(scene.test.labels, clean.test.labels)


def test_a_grid_is_refused_where_a_noise_is_not_known(data):
    with pytest.raises(ConfigError, match="noise 'loud' is none of: none, symmetric"):
        grid(data, noises=["loud"])
    assert len(grid(Digits(), seeds=[0, 1])) == 5 * 2 * 2


# ----------------------------------------------------------------------------- measures


def test_every_number_of_a_row_against_counting_by_hand():
    truth = GroundTruth(
        labels=np.array([0, 1, 2, 0, 1]),
        label_fault=np.array([True, False, False, True, False]),
        input_fault=np.array([False, True, False, False, False]),
    )
    p_label = np.array([0.9, 0.8, 0.1, 0.2, 0.0])
    p_input = np.array([0.0, 0.7, 0.0, 0.1, 0.0])
    p = 1 - (1 - p_label) * (1 - p_input)
    suggested = np.array([0, 0, 2, 0, 1])
    split = Partition(
        np.arange(5), np.array([1, 1, 2, 1, 1]), p, p_label, p_input, suggested,
        np.ones(5), 0.5, (0.5, 0.4, 0.6),
    )  # fmt: skip
    found = detect.measured(Verdict(p, p > 0.5, 0.5, split, suggested), truth)
    assert found["auroc"] == 1
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
    assert (found["best_f1"], found["miss_rate"]) == (1, 0)
    assert found["kind_accuracy"] == 0.5  # the second looks more like a wrong label
    assert found["suggested_accuracy"] == 0.8
    assert (found["rate_true"], found["rate_estimated"], found["flagged"]) == (0.6, 0.5, 0.4)


def test_without_noise_there_is_no_auroc_but_a_share_flagged():
    truth = GroundTruth(np.arange(4), np.zeros(4, bool), np.zeros(4, bool))
    found = detect.measured(Verdict(np.arange(4.0), np.array([1, 0, 0, 0], bool), 0.2), truth)
    assert found["auroc"] is None
    assert found["flagged"] == 0.25


def test_means_carry_the_t_interval():
    values = [0.5, 0.6, 0.9]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert mean(values) == f"0.667 ± {half:.3f}"
    assert mean([0.5, None]) == "0.500"
    assert mean([None]) == "–"


# -------------------------------------------------------------------------------- rows


def test_rows_on_disk_survive_a_cut_off_line(tmp_path):
    ledger = ResultStore(tmp_path, ("a",))
    ledger.add({"a": 1, "x": 0.5})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"a": 2, "x"')
    assert {"a": 1} in ledger
    assert {"a": 2} not in ledger
    ledger.add({"a": 2, "x": None})
    assert ledger.rows() == [{"a": 1, "x": 0.5}, {"a": 2, "x": None}]


def test_rows_of_something_else_are_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"b": 1}\n')
    with pytest.raises(RunError, match="line 1 is no row of this suite"):
        ResultStore(tmp_path, ("a",)).rows()


def test_tables_are_escaped_in_html(tmp_path):
    table = Table(("a", "b"), (("<b>", "1"),), "Caption")
    text = ResultStore(tmp_path, ("a",)).write("T", "expunge bench", [table])
    assert text == "Caption\n\n| a | b |\n| --- | --- |\n| <b> | 1 |\n"
    assert "&lt;b&gt;" in (tmp_path / "table.html").read_text()


def test_a_suite_makes_each_row_once(data, tmp_path, monkeypatch):
    settings = grid(data, noises=["human_random1", "gaussian"], states=["fresh"], n=100)
    rows = detect.bench(data, settings=settings, names=("loss", "expunge-fast"), out=tmp_path)
    assert [(r["noise"], r["detector"]) for r in rows] == [
        ("human_random1", "loss"),
        ("human_random1", "expunge-fast"),
        ("gaussian", "loss"),
        ("gaussian", "expunge-fast"),
    ]
    fields = (
        "data n noise rate state detector seed auroc auprc f1 best_f1 miss_rate ece rate_true "
        "rate_estimated kind_accuracy suggested_accuracy seconds passes peak_bytes"
    )
    assert set(fields.split()) <= set(rows[0])
    assert rows[0]["seconds"] > 0
    json.dumps(rows)
    monkeypatch.setattr(detect, "judged", None)
    assert (
        detect.bench(data, settings=settings, names=("loss", "expunge-fast"), out=tmp_path) == rows
    )
    assert "| gaussian 0.5 | fresh | loss | 1 |" in (tmp_path / "table.md").read_text()


def test_unknown_detectors_are_refused_before_any_training(data, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cleanlab'"):
        detect.bench(data, settings=[Setting("none")], names=("cleanlap",), out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", peers.names())
def test_peers_say_something_of_every_sample(data, tmp_path, name):
    setting = Setting("human_random1", n=100)
    scene = data.scene(setting)
    model = cached_model(data, scene, setting, tmp_path).model
    verdict = peers.get(name)(BenchmarkCase(data, model, scene, setting, tmp_path, lambda *_: None))
    assert verdict.score.shape == verdict.flagged.shape == (100,)
    assert np.isfinite(verdict.score).all()
    assert verdict.flagged.dtype == bool
    assert 0 <= verdict.rate <= 1


def test_captum_agrees_with_the_closed_form_of_self_influence_but_for_the_bias(data, tmp_path):
    setting = Setting("human_random1", n=100)
    scene = data.scene(setting)
    model = cached_model(data, scene, setting, tmp_path).model
    case = BenchmarkCase(data, model, scene, setting, tmp_path, lambda *_: None)
    theirs = np.exp(peers.get("tracin")(case).score)
    signals = collect(model, scene.train, needs=frozenset({"head_input_norm"}), precision="float32")
    ours = detectors.get("self_influence")(signals).score ** 2
    h = signals.per_sample["head_input_norm"]
    assert_allclose(theirs, ours * h**2 / (h**2 + 1), rtol=1e-4, atol=1e-9)


def test_memory_is_measured_apart_from_the_features(data, tmp_path):
    rows = memory.bench(data, sizes=[60, 150], views=1, out=tmp_path)
    assert [(r["n"], r["views"]) for r in rows] == [(60, 1), (150, 1)]
    assert rows[1]["cache_bytes"] == 2.5 * rows[0]["cache_bytes"] > 0
    assert "| 150 | 1 |" in (tmp_path / "table.md").read_text()


def test_more_images_than_there_are_are_moved_ones():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 1, 4)
    more = memory.Shifted(images, 8)
    found = more.batch(np.array([7, 0, 4]))
    assert torch.equal(found[0], images[1].roll(2, dims=-1))
    assert torch.equal(found[1], images[0])
    assert torch.equal(found[2], images[1].roll(1, dims=-1))


# ------------------------------------------------------------------------- as published


def test_the_published_protocol_has_a_row_for_each_way(data, tmp_path, monkeypatch):
    # What a hundred images would let one find is not asked here.
    split = repair.true_partition(data.scene(Setting("gaussian", 0.5, n=100)))
    monkeypatch.setattr(stages, "partition", lambda *_, **__: split)
    protocol = published.on_images(data, epochs=2, width=4)
    rows = published.bench(protocol, n=100, out=tmp_path)
    names = ["L-FT", "F-FT", "F-FT, nothing cut", "retrain"]
    expected = {"noisy", *(f"{who} {name}" for who in ("rlap", "expunge") for name in names)}
    by_name = {r["model"]: r for r in rows}
    assert by_name.keys() == expected
    assert len(rows) == len(expected)
    assert by_name["noisy"]["parameters"] == by_name["rlap retrain"]["parameters"]
    # Of the hidden layer of 16, one unit in six and its incoming and outgoing weights.
    assert by_name["noisy"]["parameters"] - by_name["rlap F-FT"]["parameters"] == 2 * (32 + 1 + 10)
    assert "| 100 | 2 | rlap F-FT | 1 |" in (tmp_path / "table.md").read_text()
    assert published.bench(protocol, n=100, out=tmp_path) == rows


def test_the_protocol_is_that_of_the_paper(data):
    protocol = published.on_images(data)
    assert protocol.training.epochs == 60
    assert (protocol.training.lr, protocol.training.schedule) == (0.1, "constant")
    assert (protocol.published.epochs, protocol.published.optimizer) == (30, "adamw")
    assert not protocol.training.augment
    assert not protocol.published.augment
    assert protocol.ours == 24


# ------------------------------------------------------------------------------ repair


@pytest.fixture(scope="module")
def repaired(data, tmp_path_factory):
    """Two seeds of a small suite, with short schedules."""
    out = tmp_path_factory.mktemp("repair")
    settings = [Setting("human_random1", state="memorised", n=100, seed=s) for s in (0, 1)]
    names = ("no-op", "finetune-only", "oracle-finetune", "oracle-retrain", "cleanlab-retrain")
    short = TuneConfig(targets="all", epochs=12, lr=0.05, batch_size=10, augment=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "TRAINING", {"fresh": short, "memorised": short})
        # What a hundred images and a weak network would let one find is not asked here, nor what
        # twenty more would say to it.
        patch.setattr(cifar, "HELD_OUT", 0)
        split = repair.true_partition(data.scene(settings[0]))
        patch.setattr(stages, "partition", lambda *_, **__: split)
        rows = repair.bench(data, settings=settings, names=names, out=out)
    return out, settings, names, rows


def test_every_recipe_has_a_row_with_its_costs(repaired):
    out, _, names, rows = repaired
    assert {r["recipe"] for r in rows} == {*names, "default"}
    assert len(rows) == 2 * 6
    fields = (
        "data n noise rate state recipe seed accuracy macro_f1 worst_class gap_recovered "
        "forgetting seconds train_seconds parameters macs"
    )
    assert all(set(fields.split()) <= set(row) for row in rows)
    by_name = {r["recipe"]: r for r in rows if r["seed"] == 0}
    assert by_name["no-op"]["seconds"] == 0 < by_name["default"]["seconds"]
    assert by_name["default"]["parameters"] == by_name["no-op"]["parameters"]  # not by heart
    assert "| human_random1 | memorised | default | 2 |" in (out / "table.md").read_text()


def test_rows_of_a_repair_are_made_once(repaired, data, monkeypatch):
    out, settings, names, rows = repaired
    monkeypatch.setattr(repair, "trained", None)
    assert repair.bench(data, settings=settings, names=names, out=out) == rows


def test_the_gap_is_the_share_of_the_way_from_noisy_to_oracle():
    key = {"data": "d", "n": 1, "noise": "x", "rate": 0.1, "state": "fresh", "seed": 0}
    accuracy = {"no-op": 0.4, "oracle-retrain": 0.8, "default": 0.7}
    rows = [{**key, "recipe": k, "accuracy": v} for k, v in accuracy.items()]
    gaps = {r["recipe"]: r["gap_recovered"] for r in repair.with_gaps(rows)}
    assert gaps == {"no-op": 0, "oracle-retrain": 1, "default": pytest.approx(0.75)}
    assert [r["gap_recovered"] for r in repair.with_gaps(rows[2:])] == [None]


def test_wrong_labels_that_are_still_predicted_are_counted(data):
    scene = data.scene(Setting("human_random1", n=100))
    wrong = scene.truth.label_fault

    says = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    torch.nn.init.zeros_(says[1].weight)
    says[1].bias.data = torch.eye(10)[1]
    expected = (scene.train.labels[wrong] == 1).mean()
    assert repair.still_predicted(says, scene) == expected > 0
    assert repair.still_predicted(says, data.scene(Setting("none", n=50))) is None


def test_oracles_know_the_truth_and_nobody_else_does(data):
    scene = data.scene(Setting("human_random1", n=100))
    split = repair.true_partition(scene)
    assert_array_equal(split.flagged, scene.truth.noisy)
    assert_array_equal(split.suggested_label, scene.truth.labels)


def test_cuts_of_every_size_start_from_one_network_and_partition(data, tmp_path, monkeypatch):
    short = TuneConfig(targets="all", epochs=12, lr=0.05, batch_size=10, augment=False)
    monkeypatch.setattr(cifar, "TRAINING", {"fresh": short, "memorised": short})
    monkeypatch.setattr(cifar, "HELD_OUT", 0)
    settings = [Setting("human_random1", state="memorised", n=100)]
    split = repair.true_partition(data.scene(settings[0]))
    monkeypatch.setattr(stages, "partition", lambda *_, **__: split)
    tuned = []
    monkeypatch.setattr(
        prune.stages, "tune", lambda model, _, given, **settings: tuned.append(given) or model
    )
    rows = prune.bench(data, settings=settings, fractions=(0.25, 0.5), out=tmp_path)

    assert [(r["ranking"], r["fraction"]) for r in rows] == [
        ("no-op", 0.0),
        *((name, f) for f in (0.25, 0.5) for name in prune.RANKINGS),
    ]
    assert all((given.flagged == split.flagged).all() for given in tuned)
    assert len(tuned) == 7
    sizes = {(r["ranking"], r["fraction"]): r["parameters"] for r in rows}
    whole, quarter, half = (sizes[k] for k in (("no-op", 0), ("default", 0.25), ("default", 0.5)))
    assert whole > quarter > half
    assert {sizes[name, 0.5] for name in prune.RANKINGS} == {half}
    assert len({r["accuracy"] for r in rows if r["fraction"] == 0.5}) > 1  # other units have gone
    table = (tmp_path / "table.md").read_text()
    assert (
        f"| human_random1 | memorised | 50 | default | 1 | {100 * rows[4]['accuracy']:.1f} |"
        in table
    )

    monkeypatch.setattr(prune, "trained", None)
    assert prune.bench(data, settings=settings, fractions=(0.25, 0.5), out=tmp_path) == rows


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"fractions": (1.5,)}, "must lie in"), ({"rankings": ("randm-units",)}, "random-units")],
)
def test_cuts_that_cannot_be_are_refused_before_any_training(data, tmp_path, wrong, said):
    with pytest.raises(ConfigError, match=said):
        prune.bench(data, settings=[Setting("none")], out=tmp_path, **wrong)


def test_unknown_recipes_are_refused_before_any_training(data, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'oracle-retrain'"):
        repair.bench(data, settings=[Setting("none")], names=("oracle-retrian",), out=tmp_path)
