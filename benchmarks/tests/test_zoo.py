"""The zoo: what its settings are, that its noise is what it says, and that rows are made once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from expunge.demo.noise import GroundTruth
from expunge.errors import ConfigError, DataError
from expunge_bench import without_model
from expunge_bench.zoo import bench, measure, summary, zoo_settings
from expunge_bench.zoo_data import FROM_FILES, ZooSetting, load_zoo_set, with_noise, zoo_sets

pytestmark = pytest.mark.usefixtures("few_trees")


def test_no_setting_is_developed_on_and_reported():
    settings = zoo_settings()
    assert len(settings) >= 100
    assert len({s.name for s in settings}) == len(settings)
    parts = {
        part: {(s.data, s.seed) for s in settings if s.part == part}
        for part in ("development", "reported")
    }
    assert not parts["development"] & parts["reported"]
    assert len({s.data for s in settings}) >= 10
    assert any(s.views for s in settings)


@pytest.mark.parametrize("name", zoo_sets.names())
def test_every_set_is_small_and_the_same_every_time(name):
    first, second = (load_zoo_set(name, 1) for _ in range(2))
    assert 100 <= len(first.labels) == len(first.x) <= 3000
    assert set(np.unique(first.labels)) == set(range(first.classes))
    assert_allclose(first.x, second.x)


@pytest.mark.parametrize("name", FROM_FILES)
def test_sets_from_files_ask_for_their_folder(name):
    with pytest.raises(ConfigError, match="needs a folder"):
        load_zoo_set(name, 0)


@pytest.mark.parametrize("run", [bench, without_model.bench])
def test_a_folder_without_the_files_is_refused_before_anything_is_measured(tmp_path, run):
    with pytest.raises(DataError, match=r"(?s)there is no .*bbc_news_summary/train.*--data"):
        run(part="reported", out=tmp_path / "out", data=tmp_path)
    assert not list(tmp_path.glob("out/rows*"))


@pytest.mark.parametrize(
    ("noise", "rate"),
    [("symmetric", 0.2), ("pair", 0.25), ("annotator", 0.2), ("ambiguous", 0.2), ("class", 0.15)],
)
def test_labels_are_wrong_at_the_rate_and_the_truth_knows_them(noise, rate):
    data = load_zoo_set("made4", 3)
    x, given, truth = with_noise(data, noise, rate, 3)
    assert_allclose(truth.noisy.mean(), rate, atol=0.03)
    assert (truth.label_fault == (given != truth.labels)).all()
    assert_allclose(x, data.x)


def test_contradicting_copies_share_their_input():
    x, given, truth = with_noise(load_zoo_set("iris", 0), "duplicates", 0.1, 0)
    for row in np.flatnonzero(truth.noisy):
        twins = np.flatnonzero((x == x[row]).all(axis=1))
        assert len(twins) >= 2
        assert len(np.unique(given[twins])) >= 2


def test_bad_inputs_keep_their_labels():
    data = load_zoo_set("iris", 0)
    x, given, truth = with_noise(data, "inputs", 0.2, 0)
    assert (given == data.labels).all()
    assert_allclose(truth.input_fault.mean(), 0.2)
    assert ((x != data.x).any(axis=1) == truth.input_fault).all()


def test_numbers_of_a_row_come_from_the_truth():
    noisy = np.array([True, True, False, False])
    truth = GroundTruth(np.zeros(4, dtype=int), noisy, np.zeros(4, dtype=bool))
    row = measure((np.array([4.0, 3.0, 2.0, 1.0]), noisy, 0.4, (0.3, 0.45)), truth)
    assert (row["auroc"], row["f1"], row["max_f1"], row["holds"]) == (1.0, 1.0, 1.0, False)
    assert_allclose(row["rate_error"], 0.1)


def test_rows_are_made_once_and_summed_up(tmp_path):
    setting = ZooSetting("iris", "symmetric", 0.2, "early", seed=5)
    settings = [setting, replace(setting, noise="none", rate=0.0)]
    kept = {"part": "development", "out": tmp_path, "settings": settings}
    rows = bench(**kept, methods=["evidence-pool", "argmax-pool"])
    assert len(rows) == 4
    assert bench(**kept, methods=["evidence-pool"]) == rows
    found = summary(rows)["evidence-pool"]
    assert found["auroc"] > 0.9
    assert found["clean_rows"] == 1
    assert "evidence-pool" in (tmp_path / "table.md").read_text(encoding="utf-8")
