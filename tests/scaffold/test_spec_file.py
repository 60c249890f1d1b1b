"""`expunge init`: six kinds of data lead to a spec that `expunge check` passes and a repair."""

from __future__ import annotations

import io
import json
import tomllib
import wave

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from expunge import pipeline, specs
from expunge.cli import app
from expunge.errors import ConfigError, DataError
from expunge.scaffold.data import NamedColumns, find_splits, inspect_data
from expunge.scaffold.examples import write_example
from expunge.scaffold.model import noted_scale, parse_arguments
from expunge.scaffold.spec_file import Request, write_spec
from oracles_text_models import bert, documents, tokenizer

NAMES = np.array(["cat", "dog"])
N = 80


def init(*words):
    return CliRunner().invoke(app, ["init", *map(str, words)])


def labels(n=N):
    return NAMES[np.random.default_rng(0).permutation(n) % 2]


def picture(label, i, size=8):
    rng = np.random.default_rng(i)
    x = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
    x[:, : size // 2] += np.uint8(150 if label == "cat" else 0)
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return file.getvalue()


def images_in_parquet(folder):
    y = labels()
    column = [{"bytes": picture(label, i), "path": None} for i, label in enumerate(y)]
    table = pa.table({"picture": column, "animal": y, "id": np.arange(N)})
    pq.write_table(table, folder / "data.parquet")
    return folder / "data.parquet", {"kind": "image", "shape": (3, 8, 8)}


def image_folder(folder):
    for i, label in enumerate(labels()):
        file = folder / "train" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(label, i, size=8 if i % 3 else 12))
    return folder / "train", {"kind": "image", "shape": (3, 8, 8)}


def vectors():
    y = labels()
    rng = np.random.default_rng(1)
    return (rng.standard_normal((N, 6)) + 3 * (y == "cat")[:, None]).astype(np.float32), y


def embeddings_in_npz(folder):
    x, y = vectors()
    np.savez(folder / "emb.npz", features=x, target=y)
    return folder / "emb.npz", {"kind": "features", "shape": (6,)}


def data_frame(folder):
    x, y = vectors()
    frame = pd.DataFrame(x, columns=list("abcdef")).assign(kind=y, id=[f"s{i}" for i in range(N)])
    frame.to_parquet(folder / "frame.parquet")
    return folder / "frame.parquet", {"kind": "table", "shape": (6,)}


def table_in_csv(folder):
    x, y = vectors()
    pd.DataFrame(x, columns=list("abcdef")).assign(kind=y).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv", {"kind": "table", "shape": (6,)}


def sound_folder(folder):
    for i, label in enumerate(labels(40)):
        file = folder / "clips" / label / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(2000 + 10 * (i % 2)) / 4000
        x = np.sin(2 * np.pi * (300 if label == "cat" else 900) * t) * 8000
        with wave.open(str(file), "wb") as clip:
            clip.setnchannels(1)
            clip.setsampwidth(2)
            clip.setframerate(4000)
            clip.writeframes(x.astype("<i2").tobytes())
    return folder / "clips", {"kind": "audio", "shape": (2000,)}


def test_texts_in_csv_are_read_with_the_tokenizer_of_the_model_that_is_named(tmp_path):
    pytest.importorskip("transformers")
    texts, given, _ = documents(80, classes=2, longest=12)
    names = np.array(["c0", "c1"])[given]
    pd.DataFrame({"text": texts, "label": names}).to_csv(tmp_path / "texts.csv", index=False)
    with pytest.raises(DataError, match="no model with a tokenizer is named"):
        inspect_data(tmp_path / "texts.csv")
    bert(2).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    target = tmp_path / "spec.toml"
    facts = write_spec(Request(tmp_path / "texts.csv", str(tmp_path / "model")), target)
    assert facts[0] == "80 training samples: text, of any length"
    assert tomllib.loads(target.read_text())["model"] == {"pretrained": "model"}
    assert [p for p in specs.check(target) if "hardly more than the most frequent" not in p] == []
    loaded = specs.load_spec(target, out=tmp_path / "run")
    overrides = {"tune": {"epochs": 1}, "score": {"views": 1}}
    options = {**loaded.options, "overrides": overrides}
    result = pipeline.repair(loaded.model, loaded.train, None, **options)
    assert (tmp_path / "run" / "report.html").is_file()
    assert result.decision.action in ("keep", "skip")


KINDS = [images_in_parquet, image_folder, embeddings_in_npz, data_frame, table_in_csv, sound_folder]


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_data_of_every_kind_lead_to_a_spec_without_problems_and_a_repair(make, tmp_path):
    path, expected = make(tmp_path)
    if make is embeddings_in_npz:
        columns = NamedColumns("target", ("features",))
    else:
        columns = NamedColumns()
    found = inspect_data(path, columns=columns)
    assert (found.kind, found.shape) == (expected["kind"], expected["shape"])
    assert found.samples.classes == ("cat", "dog")
    target = tmp_path / "spec.toml"
    write_spec(Request(path, columns=columns, training={"epochs": 2}), target)
    assert specs.check(target) == []
    loaded = specs.load_spec(target, out=tmp_path / "run")
    options = {**loaded.options, "baselines": ()}
    result = pipeline.repair(
        loaded.model, loaded.train, loaded.validation, held_out=loaded.held_out, **options
    )
    assert result.decision.action in ("keep", "skip", "revert", "retrain")
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_command_prints_what_it_found_and_keeps_a_file_that_is_there(tmp_path):
    path, _ = table_in_csv(tmp_path)
    target = tmp_path / "my.toml"
    first = init(path, "--out", target, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["problems"] == []
    assert any("2 classes: cat, dog" in line for line in found["found"])
    before = target.read_text()
    second = init(path, "--out", target)
    assert isinstance(second.exception, ConfigError)
    assert target.read_text() == before
    assert init(path, "--out", target, "--overwrite").exit_code == 0


def test_without_data_and_terminal_the_message_says_what_to_name():
    assert "expunge init DATA" in str(init().exception)


def test_the_constructor_that_is_named_gets_what_the_data_say(tmp_path):
    path, _ = image_folder(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, in_channels, *, width, depth=1):\n"
        "    layers = [nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]\n"
        "    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    target = tmp_path / "spec.toml"
    facts = write_spec(Request(path, model="mine:network"), target)
    spec = tomllib.loads(target.read_text())
    assert spec["model"]["arguments"] == {"num_classes": 2, "in_channels": 3}
    assert "arguments that the model needs too: width" in facts
    assert "CHANGE: required too: width" in target.read_text()
    named = Request(path, model="mine:network", arguments=parse_arguments(["width=8"]))
    write_spec(named, target, overwrite=True)
    assert specs.check(target) == []


def test_weights_bring_the_scale_of_their_training_or_none(tmp_path):
    path, _ = data_frame(tmp_path)
    weights = tmp_path / "model" / "w.safetensors"
    weights.parent.mkdir()
    save_file(torch.nn.Linear(6, 2).state_dict(), weights)
    request = Request(
        path, "torch.nn:Linear", arguments={"in_features": 6, "out_features": 2}, weights=weights
    )
    target = tmp_path / "spec.toml"
    write_spec(request, target)
    spec = tomllib.loads(target.read_text())
    assert spec["model"]["weights"] == "model/w.safetensors"
    assert "train" not in spec
    assert "mean" not in spec["data"]
    assert "held_out" not in spec["data"]  # the weights may have been trained on every row
    assert "mean, std: CHANGE" in target.read_text()
    (weights.parent / "config.json").write_text('{"pretrained_cfg": {"mean": [1], "std": [2.0]}}')
    assert noted_scale(weights) == ((1.0,), (2.0,), "config.json")
    write_spec(request, target, overwrite=True)
    assert tomllib.loads(target.read_text())["data"]["mean"] == [1.0]


def test_the_last_fifth_is_held_out_unless_the_rows_are_sorted(tmp_path):
    x, y = vectors()
    for name, order in (("mixed", np.arange(N)), ("sorted", np.argsort(y))):
        np.savez(tmp_path / f"{name}.npz", x=x[order], y=y[order])
        write_spec(Request(tmp_path / f"{name}.npz"), tmp_path / f"{name}.toml")
    mixed = tomllib.loads((tmp_path / "mixed.toml").read_text())["data"]
    assert mixed["train"]["max_rows"] == mixed["held_out"]["skip_rows"] == 64
    assert "held_out" not in tomllib.loads((tmp_path / "sorted.toml").read_text())["data"]


def test_parts_beside_the_training_set_are_found(tmp_path):
    for name in ("train.csv", "val.csv", "test.csv", "other.csv"):
        (tmp_path / name).touch()
    found = find_splits(tmp_path / "train.csv")
    assert {k: p.name for k, p in found.items()} == {
        "train": "train.csv",
        "held_out": "val.csv",
        "validation": "test.csv",
    }
    assert find_splits(tmp_path / "other.csv") == {"train": tmp_path / "other.csv"}
    (tmp_path / "test.csv").unlink()
    assert find_splits(tmp_path / "train.csv")["validation"].name == "val.csv"


def test_a_clone_of_the_hub_brings_its_test_set(tmp_path):
    x, y = vectors()
    for split in ("train", "test"):
        file = tmp_path / "clone" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"emb": list(x), "label": y}), file)
    clone = tmp_path / "clone"
    assert find_splits(clone) == {"train": clone, "validation": clone}
    assert inspect_data(clone).config.input == "emb"
    assert init(clone, "--out", tmp_path / "spec.toml").exit_code == 0
    assert specs.check(tmp_path / "spec.toml") == []
    assert len(specs.read_data(specs.read_spec(tmp_path / "spec.toml"), tmp_path)[1]) == N


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    frame = pd.DataFrame({"a": ["x", "y"] * 20, "b": ["u", "v", "v", "u"] * 10, "z": range(40)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="which column holds the labels is not clear"):
        inspect_data(tmp_path / "t.csv")
    found = inspect_data(tmp_path / "t.csv", columns=NamedColumns("a", ("z",)))
    assert found.config.label == "a"
    with pytest.raises(DataError, match="did you mean 'z'"):
        inspect_data(tmp_path / "t.csv", columns=NamedColumns("a", ("zz",)))


@pytest.mark.parametrize("name", ["digits", "images", "text", "sound", "table"])
def test_examples_are_folders_with_a_spec_without_problems(name, tmp_path):
    write_example(name, tmp_path / name)
    assert specs.check(tmp_path / name / "spec.toml") == []
    train, validation, held_out = specs.read_data(
        specs.read_spec(tmp_path / name / "spec.toml"), tmp_path / name
    )
    assert len(train) > len(validation) > 50
    assert len(held_out) > 50
    with pytest.raises(ConfigError, match="not empty"):
        write_example(name, tmp_path / name)


def test_specs_of_two_folders_have_run_folders_of_their_own(tmp_path):
    runs = []
    for name in ("one", "two"):
        write_example("digits", tmp_path / name)
        runs.append(specs.read_spec(tmp_path / name / "spec.toml").out)
    assert runs == ["runs/one", "runs/two"]
