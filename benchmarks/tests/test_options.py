"""The commands of the benchmarks and the options that they share."""

from __future__ import annotations

import json
import re
from importlib.metadata import entry_points

import pytest
import typer
from typer.testing import CliRunner

from expunge_bench import detect, noise_layers, repair
from expunge_bench.cifar import Cifar
from expunge_bench.cli import bench
from expunge_bench.datasets import Setting
from expunge_bench.digits import Digits

COMMANDS = typer.main.get_command(bench).commands
GRID = {"data", "noise", "rate", "state", "n", "labels", "true_labels", "seeds"}


def run(*arguments):
    return CliRunner().invoke(bench, [str(a) for a in arguments])


def options(name):
    return {parameter.name for parameter in COMMANDS[name].params}


def test_the_entry_point_adds_the_group():
    found = {p.name: p.value for p in entry_points(group="expunge.commands")}
    assert found["bench"] == "expunge_bench.cli:bench"


def test_the_commands_are_those_of_the_benchmarks():
    assert set(COMMANDS) == {
        *("digits", "detect", "repair", "prune", "rlap", "memory", "ssl-refine"),
        *("text-noise", "noise-layers", "relearning", "nmtune", "zoo"),
        *("review", "without-model", "corrective", "scale"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_folder_json_and_help(name):
    assert {"out", "as_json"} <= options(name)
    assert ("seeds" in options(name)) == (name not in ("memory", "scale", "zoo", "without-model"))
    out = next(p for p in COMMANDS[name].params if p.name == "out")
    assert str(out.default) == f"runs/bench-{name}"
    assert COMMANDS[name].help
    assert all(p.help for p in COMMANDS[name].params)


@pytest.mark.parametrize("name", ["detect", "repair", "prune"])
def test_commands_over_settings_share_the_options_of_the_grid(name):
    assert options(name) >= GRID


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("detect", "--truth", "--true-labels"),
        ("noise-layers", "--on", "--dataset"),
        ("noise-layers", "--attacked", "--n-attacked"),
        ("noise-layers", "--relearning", "the command 'relearning'"),
    ],
)
def test_a_renamed_option_is_an_error_that_names_the_new_one(command, old, new):
    found = run(command, old, "x")
    assert found.exit_code == 2
    words = " ".join(re.sub(r"[^\w'\s-]", " ", found.output).split())
    assert f"{old} is now called {new}" in words


def test_given_and_true_labels_go_together(tmp_path):
    found = run("detect", "--labels", "a:b", "--out", tmp_path)
    assert found.exit_code == 2
    assert "go together" in found.output


def test_the_grid_reaches_the_benchmark(tmp_path, monkeypatch):
    seen = {}

    def fake(dataset, **settings):
        seen.update(settings, dataset=dataset)
        return [{"a": 1}]

    monkeypatch.setattr(detect, "bench", fake)
    found = run(
        *("detect", "--data", "digits", "--noise", "pair", "--rate", 0.3, "--state", "overfit"),
        *("--seeds", 2, "--n", 200, "--detector", "loss", "--out", tmp_path, "--json"),
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == [{"a": 1}]
    assert isinstance(seen["dataset"], Digits)
    assert seen["settings"] == [Setting("pair", 0.3, "overfit", seed, 200) for seed in (0, 1)]
    assert (seen["names"], seen["out"]) == (["loss"], tmp_path)


def test_label_columns_reach_the_data_set(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(repair, "bench", lambda dataset, **s: seen.update(dataset=dataset) or [])
    given = ("--labels", "l.parquet:a", "--true-labels", "t.parquet:b")
    found = run("repair", "--data", tmp_path, *given, "--out", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    assert isinstance(seen["dataset"], Cifar)
    columns = seen["dataset"].columns
    assert (columns.labels, columns.true_labels) == ("l.parquet:a", "t.parquet:b")


def test_relearning_is_a_command(tmp_path, monkeypatch):
    seen = {}

    def fake(dataset, **settings):
        seen.update(settings, dataset=dataset)
        return []

    monkeypatch.setattr(noise_layers, "bench_relearning", fake)
    found = run("relearning", "--dataset", "digits", "--epochs", 3, "--out", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    assert (seen["dataset"], seen["epochs"], list(seen["seeds"])) == ("digits", [3], [0])
