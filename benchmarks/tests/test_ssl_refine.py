"""The benchmark of label refinement: rows, tables, resume."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge.demo.noise import GroundTruth, NoisyDataset
from expunge.errors import ConfigError
from expunge.selfsupervised.refinement import RefineConfig
from expunge.selfsupervised.simclr import SimclrConfig
from expunge.training.loop import TuneConfig
from expunge_bench import ssl_refine
from expunge_bench.cli import bench as bench_commands
from expunge_bench.instance_noise import instance_dependent
from expunge_bench.ssl_refine import methods, suite, tables
from oracles_digits import clean, digits, network, noisy

pytestmark = pytest.mark.usefixtures("few_trees")

CONFIG = RefineConfig(
    simclr=SimclrConfig(epochs=2, batch_size=64, hidden=32, projection=16, precision="float32"),
    n_rounds=2,
    trainings_per_round=2,
    epochs=2,
    first_round_epochs=3,
    final_epochs=3,
    augmentation_strengths=(0.0,),
    tune=TuneConfig(targets="all", lr=0.05, batch_size=32, precision="float32"),
)


@dataclass(frozen=True)
class Small:
    """Digits in the place of CIFAR-10."""

    name = "small"

    def network(self, seed):
        return network(seed)

    def noisy_dataset(self, setting):
        x, y = (part[: setting.n] for part in digits())
        given = instance_dependent(x, y, rate=setting.rate, classes=10, seed=setting.seed)
        train = replace(noisy(setting.n), labels=given)
        return NoisyDataset(
            train, clean(200), GroundTruth(y, given != y, np.zeros(len(y), dtype=bool))
        )


def bench(out, **more):
    settings = {"rates": (0.4,), "n": 300, "config": CONFIG, "out": out}
    return ssl_refine.bench(Small(), **{**settings, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    return out, bench(out)


def test_every_method_has_a_row_and_about_the_same_seconds(made):
    _, rows = made
    by_method = {row["method"]: row for row in rows}
    assert set(by_method) == {"simclr", *methods.methods.names()}
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    budget = by_method["ssl-refine"]["seconds"]
    # Short trainings on a busy machine are timed badly: only the order of magnitude is tested.
    assert 0.2 < by_method["cross-entropy"]["seconds"] / budget < 5
    noise = by_method["ssl-refine"]["noise_statistics"]
    assert abs(noise["rate"] - 0.4) < 0.08
    assert np.allclose(np.sum(noise["transition"], axis=1), 1, atol=1e-3)
    json.dumps(rows)


def test_rounds_count_changes_of_labels(made):
    _, rows = made
    rounds = next(row for row in rows if row["method"] == "ssl-refine")["rounds"]
    assert len(rounds) == CONFIG.n_rounds
    for one, before in zip(rounds[1:], rounds[:-1], strict=True):
        assert one["label_accuracy_before"] == before["label_accuracy"]
    for one in rounds:
        gained = (one["n_wrong_to_right"] - one["n_right_to_wrong"]) / 300
        assert one["label_accuracy"] - one["label_accuracy_before"] == pytest.approx(gained)
        assert 0 <= one["full_weight"] <= 1


def test_the_default_repair_has_rows_with_and_without_encoder_features(made):
    _, rows = made
    by_method = {row["method"]: row for row in rows}
    plain, more = (by_method[name]["detection"] for name in ("default", "default+simclr"))
    assert {"auroc", "f1", "flagged_rate"} <= set(plain) & set(more)
    assert plain["knn_auroc"] != more["knn_auroc"]
    assert by_method["default+simclr"]["seconds"] > by_method["default"]["seconds"] / 2


def test_stored_rows_are_not_computed_again(made, monkeypatch):
    out, rows = made
    monkeypatch.setattr(suite, "pretrain", None)
    monkeypatch.setattr(methods, "refine", None)
    assert bench(out) == rows
    text = (out / "table.md").read_text()
    assert "| instance 0.4 | ssl-refine | 1 |" in text
    assert "| instance 0.4 | ssl-refine | 2 |" in text
    assert (out / "table.html").exists()


def test_an_encoder_is_pretrained_once_for_all_rates(made, monkeypatch):
    out, rows = made
    monkeypatch.setattr(suite, "pretrain", None)
    more = bench(out, rates=(0.2,), names=("cross-entropy",))[len(rows) :]
    assert [row["method"] for row in more] == ["ssl-refine", "cross-entropy"]
    assert more[0]["seconds"] > next(r for r in rows if r["method"] == "simclr")["seconds"]


def test_means_are_over_seeds_and_differences_are_paired():
    rows = [
        {"data": "d", "n": 9, "noise": "instance", "rate": 0.4, "method": m, "seed": s}
        | {"accuracy": a, "seconds": 10.0, "epochs": 3, "noise_statistics": {"rate": 0.4}}
        for m, values in (("ssl-refine", (0.6, 0.7)), ("cross-entropy", (0.5, 0.5)))
        for s, a in enumerate(values)
    ]
    lines = tables.tables(rows)[0].rows
    assert lines[0][:5] == ("instance 0.4", "ssl-refine", "2", "65.0 ± 63.5", "–")
    assert lines[1][3:5] == ("50.0 ± 0.0", "+15.0 ± 63.5")


def test_unknown_methods_and_noise_are_refused_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cross-entropy'"):
        bench(tmp_path, names=("cross-entropie",))
    with pytest.raises(ConfigError, match="choose one of: ambiguous, instance, instance-raw"):
        bench(tmp_path, noise="pair")
    assert not list(tmp_path.iterdir())


def test_the_command_passes_its_options_on(tmp_path, monkeypatch):
    seen = {}

    def bench(data, **settings):
        seen.update(settings, data=data)
        return [{"method": "ssl-refine"}]

    monkeypatch.setattr(ssl_refine, "bench", bench)
    arguments = ["--data", "images", "--rate", "0.3", "--seeds", "2", "--method", "cross-entropy"]
    given = ["ssl-refine", *arguments, "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(bench_commands, given)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == [{"method": "ssl-refine"}]
    assert (seen["data"].path.name, list(seen["seeds"])) == ("images", [0, 1])
    assert (seen["rates"], seen["names"], seen["n"]) == ([0.3], ["cross-entropy"], 5_000)
