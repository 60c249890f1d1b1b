"""The published protocol."""

from __future__ import annotations

import pytest

from expunge import stages
from expunge_bench import oracles, rlap
from expunge_bench.datasets import Setting

pytestmark = pytest.mark.usefixtures("few_trees")


def test_the_published_protocol_has_a_row_for_each_repair(data, tmp_path, monkeypatch):
    # The partition is not what is tested.
    split = oracles.true_partition(data.noisy_dataset(Setting("gaussian", 0.5, n=60)))
    monkeypatch.setattr(stages, "partition", lambda *_, **__: split)
    protocol = rlap.image_protocol(data, epochs=2, width=4)
    rows = rlap.bench(protocol, n=60, out=tmp_path)
    names = ["L-FT", "F-FT", "F-FT, unpruned", "retrain"]
    expected = {"noisy", *(f"{who} {name}" for who in ("rlap", "expunge") for name in names)}
    by_name = {r["model"]: r for r in rows}
    assert by_name.keys() == expected
    assert len(rows) == len(expected)
    assert by_name["noisy"]["parameters"] == by_name["rlap retrain"]["parameters"]
    # Of the hidden layer of 16, one unit in six and its incoming and outgoing weights.
    assert by_name["noisy"]["parameters"] - by_name["rlap F-FT"]["parameters"] == 2 * (32 + 1 + 10)
    assert "| 60 | 2 | rlap F-FT | 1 |" in (tmp_path / "table.md").read_text()
    assert rlap.bench(protocol, n=60, out=tmp_path) == rows


def test_the_protocol_is_that_of_the_paper(data):
    protocol = rlap.image_protocol(data)
    assert protocol.training.epochs == 60
    assert (protocol.training.lr, protocol.training.schedule) == (0.1, "constant")
    assert (protocol.published_tuning.epochs, protocol.published_tuning.optimizer) == (30, "adamw")
    assert not protocol.training.augment
    assert not protocol.published_tuning.augment
    assert protocol.our_epochs == 24
