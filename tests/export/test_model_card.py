"""The model card of an exported model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import expunge
from expunge.errors import DataError
from expunge.export.manifest import InputFormat, Manifest
from expunge.export.model_card import render_model_card
from expunge.models import mlp
from expunge.reporting.summary import summarise


def test_the_card_states_what_was_found_and_done_and_the_hub_reads_it(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    torch.manual_seed(0)
    rng, right = np.random.default_rng(0), np.arange(120) % 2
    x = (right[:, None] + 0.3 * rng.standard_normal((120, 3))).astype(np.float32)
    given = np.where(np.arange(120) < 24, 1 - right, right)
    frame = pd.DataFrame(x, columns=["size", "<b>", "age"])
    train = expunge.from_arrays(frame, given, classes=["cat", "<b>dog</b>"])
    model = mlp(inputs=3, classes=2, hidden=8)
    result = expunge.repair(
        model,
        train,
        train,
        overrides={"tune": {"epochs": 1}, "prune": {"fraction": 0}},
        baselines=(),
    )
    how = {
        "constructor": "expunge.models:mlp",
        "arguments": {"inputs": 3, "classes": 2, "hidden": 8},
    }
    expunge.export_model(result.model, train, tmp_path / "m", summary=summarise(result), **how)
    card = hub.ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.library_name == "expunge"
    assert card.data.pipeline_tag == "tabular-classification"
    assert f"{int(result.partition.flagged.sum()):,} of 120 training samples" in card.text
    assert f"Decision: {result.decision.action}" in card.text
    assert ("left it unchanged" in card.text) == (not result.decision.kept)
    assert f"| after | {100 * result.after.accuracy.value:.1f}%" in card.text
    assert "<b>" not in card.text
    assert "columns of the inputs, in this order: size, " in card.text
    found = expunge.load_exported_model(tmp_path / "m")
    assert found.manifest.columns == ("size", "<b>", "age")
    fix = r"x\[list\(exported.manifest.columns\)\].to_numpy\(\).astype\(.float32.\)"
    with pytest.raises(DataError, match=rf"got a DataFrame, expected .*\n  fix: {fix}"):
        found.predict(frame)
    other = frame[["age", "<b>", "size"]][list(found.manifest.columns)]
    assert found.predict(other.to_numpy().astype("float32")) == found.predict(x)


@pytest.mark.parametrize(
    ("shapes", "sample_rate", "task"),
    [
        ({"input": (3, 8, 8)}, None, "image-classification"),
        ({"input": (16_000,)}, 16_000, "audio-classification"),
        ({"input": (5,)}, None, "tabular-classification"),
        ({"input_ids": (8,), "attention_mask": (8,)}, None, "text-classification"),
    ],
)
def test_the_task_follows_the_inputs(shapes, sample_rate, task):
    inputs = {name: InputFormat(shape, "float32", 1.0) for name, shape in shapes.items()}
    manifest = Manifest("m:f", {}, ("a", "b"), inputs, {}, sample_rate=sample_rate)
    card = render_model_card(manifest)
    assert f"pipeline_tag: {task}\n" in card
    assert "What was found" not in card
    assert "copy m.py into this folder" in card


def test_packages_are_installed_and_what_a_constructor_loads_is_named():
    inputs = {"input": InputFormat((5,), "float32", 1.0)}
    manifest = Manifest("numpy:Net.from_pretrained", {}, ("a", "b"), inputs, {})
    card = render_model_card(manifest)
    assert "It imports numpy: install that. Its constructor loads what its arguments name" in card
    assert "copy" not in card
