"""The benchmarks of noise inside layers: rows, resume, tables, plot, command."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from expunge.errors import ConfigError
from expunge.reporting.charts import line_chart
from expunge.training import loop
from expunge_bench.cli import bench as bench_commands
from expunge_bench.noise_layers import METHODS, bench, bench_relearning, suite
from expunge_bench.noise_layers.tables import tables
from expunge_bench.results import ResultStore

pytestmark = pytest.mark.usefixtures("few_trees")

TINY = {"n": 100, "epochs": 1, "n_attacked": 20, "queries": 2}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "ATTACK_STEPS", 3)
        return bench("digits", **TINY, factors=(0.5,), out=out), out


def test_every_method_expectation_and_sigma_has_a_row(done):
    rows, out = done
    found = {(r["method"], r["expectation"], r["queries"]) for r in rows}
    for name, method in METHODS.items():
        for expectation in method.expectations:
            assert (name, expectation, 2) in found
            assert ((name, expectation, 0) in found) == method.has_noise
    for row in rows:
        assert {"fgsm", "pgd", "margin"} <= set(row["accuracy"])
        assert ("square" in row["accuracy"]) == (row["queries"] > 0)
        assert ("transfer" in row["accuracy"]) == (row["method"] != "plain")
        assert all(0 <= v <= 1 for by in row["accuracy"].values() for v in by.values())
        assert row["seconds"] > 0
        assert "no-budget-is-survived" in row["checks"]
    assert (out / "table.md").is_file()


def test_stored_rows_are_not_computed_again(done, monkeypatch):
    rows, out = done
    monkeypatch.setattr(loop, "tune", None)
    assert bench("digits", **TINY, factors=(0.5,), out=out) == rows


def test_the_tables_show_costs_and_failed_checks(done):
    rows, _ = done
    main, sweep = tables(rows)
    assert main.caption == ("Accuracy under attack: data digits, n 100, epochs 1, n_attacked 20")
    assert main.head[-2:] == ("time / plain", "gradient-masking checks failed")
    plain = next(line for line in main.rows if line[0] == "plain")
    assert plain[-2] == "1.0"
    assert len(main.rows) == sum(len(m.expectations) for m in METHODS.values())
    assert len(sweep.rows) == len(rows)
    masked = [{**rows[0], "checks": {"square-not-stronger": [False, ""]}}]
    assert tables(masked)[0].rows[0][-1] == "square-not-stronger"


def test_the_plot_is_a_file(done):
    _, out = done
    root = ElementTree.parse(out / "sigma.svg").getroot()
    text = "".join(root.itertext())
    assert "linearised, clean" in text
    assert "PGD 0.2" in text


def test_a_line_chart_goes_through_its_points():
    picture = line_chart({"a<b": [(0.0, 0.0), (1.0, 50.0)], "none": []}, x="x", y="y")
    root = ElementTree.fromstring(picture)
    line = root.find("{*}polyline")
    assert line is not None
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in line.get("points").split())
    assert (x0, y0) == (52.0, 280.0)
    assert x1 > x0
    assert y1 == pytest.approx(280 * (1 - 1 / 1.06), abs=0.1)
    assert "a<b" in "".join(root.itertext())
    assert "none" not in "".join(root.itertext())


def test_relearning_compares_variants_on_one_partition(tmp_path):
    variants = (("plain", 0.0), ("diagonal", 0.5))
    settings = {"n": 200, "epochs": (1, 2), "variants": variants, "out": tmp_path}
    rows = bench_relearning("digits", **settings)
    assert [(r["epochs"], r["method"]) for r in rows] == [
        (e, m) for e in (1, 2) for m in ("plain", "diagonal")
    ]
    assert len({r["n_missed"] for r in rows}) == 1
    assert all(0 <= r[k] <= 1 for r in rows for k in ("accuracy", "wrong_labels_reproduced"))
    assert bench_relearning("digits", **settings) == rows
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "missed wrong labels reproduced (%)" in table


def test_unknown_names_are_refused_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'sampled'"):
        bench("digits", methods=("sample",), out=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        bench("cifar", out=tmp_path)


def test_the_command_prints_the_table_or_the_rows(tmp_path, done, monkeypatch):
    _, out = done
    monkeypatch.setattr(loop, "tune", None)
    arguments = [
        "noise-layers",
        "--dataset",
        "digits",
        "--out",
        str(out),
        "--factor",
        "0.5",
    ]
    for name, value in TINY.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    found = CliRunner().invoke(bench_commands, arguments)
    assert found.exit_code == 0, found.output
    assert "| linearised | plain |" in found.stdout
    found = CliRunner().invoke(bench_commands, [*arguments, "--json"])
    assert len(json.loads(found.stdout)) == len(ResultStore(out, ()).rows())
