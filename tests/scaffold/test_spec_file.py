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
from expunge.spec_check import check_spec
from oracles_text_models import bert, documents, tokenizer

pytestmark = pytest.mark.usefixtures("few_trees")

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
    return folder / "data.parquet", {
        "kind": "image",
        "shape": (3, 8, 8),
        "fact": "images of 3 × 8 × 8",
    }


def image_folder(folder):
    for i, label in enumerate(labels()):
        file = folder / "train" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(label, i, size=8 if i % 3 else 12))
    return folder / "train", {"kind": "image", "shape": (3, 8, 8), "fact": "images of 3 × 8 × 8"}


def vectors():
    y = labels()
    rng = np.random.default_rng(1)
    return (rng.standard_normal((N, 6)) + 3 * (y == "cat")[:, None]).astype(np.float32), y


def embeddings_in_npz(folder):
    x, y = vectors()
    np.savez(folder / "emb.npz", features=x, target=y)
    return folder / "emb.npz", {"kind": "features", "shape": (6,), "fact": "arrays of 6"}


def data_frame(folder):
    x, y = vectors()
    frame = pd.DataFrame(x, columns=list("abcdef")).assign(kind=y, id=[f"s{i}" for i in range(N)])
    frame.to_parquet(folder / "frame.parquet")
    return folder / "frame.parquet", {
        "kind": "table",
        "shape": (6,),
        "fact": "a table of 6 columns",
    }


def table_in_csv(folder):
    x, y = vectors()
    pd.DataFrame(x, columns=list("abcdef")).assign(kind=y).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv", {"kind": "table", "shape": (6,), "fact": "a table of 6 columns"}


def sound_folder(folder):
    for i, label in enumerate(labels(40)):
        file = folder / "clips" / label / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(2000 + 10 * (i % 2)) / 4000
        x = np.sin(2 * np.pi * (300 if label == "cat" else 900) * t + i) * 8000
        with wave.open(str(file), "wb") as clip:
            clip.setnchannels(1)
            clip.setsampwidth(2)
            clip.setframerate(4000)
            clip.writeframes(x.astype("<i2").tobytes())
    return folder / "clips", {"kind": "audio", "shape": (2000,), "fact": "clips of 2000 values"}


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
    assert facts[0] == "80 training samples: texts"
    assert tomllib.loads(target.read_text())["model"] == {"pretrained": "model"}
    assert [p for p in check_spec(target) if "hardly more than the most frequent" not in p] == []
    loaded = specs.load_spec(target, out=tmp_path / "run")
    overrides = {"tune": {"epochs": 1}, "score": {"views": 1}}
    options = {**loaded.options, "overrides": overrides}
    result = pipeline.repair(loaded.model, loaded.train, None, **options)
    assert (tmp_path / "run" / "report.html").is_file()
    assert result.decision.action in ("keep", "skip")


def vit(folder):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "image_size": 16, "patch_size": 8, "num_labels": 2}
    config = transformers.ViTConfig(**sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def wav2vec(folder):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "conv_dim": (4,), "conv_stride": (8,), "conv_kernel": (16,)}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": 2}
    config = transformers.Wav2Vec2Config(**sizes)
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=2000).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make_data", "make_model", "expected"),
    [
        (image_folder, vit, {"transform": "model", "view": "crop"}),
        (sound_folder, wav2vec, {"transform": "model", "view": "speech", "sample_rate": 2000}),
    ],
)
def test_the_processor_of_a_model_prepares_its_inputs(tmp_path, make_data, make_model, expected):
    path, _ = make_data(tmp_path)
    make_model(tmp_path / "model")
    target = tmp_path / "spec.toml"
    write_spec(Request(path, str(tmp_path / "model")), target)
    written = tomllib.loads(target.read_text())["data"]
    assert written | expected == written
    assert "size" not in written
    assert [p for p in check_spec(target) if "hardly more than the most frequent" not in p] == []


KINDS = [images_in_parquet, image_folder, embeddings_in_npz, data_frame, table_in_csv, sound_folder]


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_data_of_every_kind_lead_to_a_spec_without_problems_and_a_repair(make, tmp_path):
    path, expected = make(tmp_path)
    found = inspect_data(path)
    assert (found.kind, found.shape) == (expected["kind"], expected["shape"])
    assert found.samples.classes == ("cat", "dog")
    target = tmp_path / "spec.toml"
    facts = write_spec(Request(path, training={"epochs": 2}), target)
    assert facts[0] == f"{len(found.samples)} training samples: {expected['fact']}"
    assert check_spec(target) == []
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
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop.name)
    assert init(path, "--out", loop).exit_code == 0  # a link is replaced
    assert not loop.is_symlink()


def test_a_model_that_is_no_constructor_and_no_folder_is_an_error_that_says_what_to_name(tmp_path):
    path, _ = table_in_csv(tmp_path)
    found = init(path, "--out", tmp_path / "my.toml", "--model", "bert-base-uncased")
    assert "neither a constructor nor the folder of a model" in str(found.exception)


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
    assert check_spec(target) == []


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


def test_small_data_are_held_out_unless_a_set_or_weights_are_named(tmp_path):
    x, y = vectors()
    order = np.argsort(y)
    np.savez(tmp_path / "sorted.npz", x=x[order], y=y[order])
    np.savez(tmp_path / "large.npz", x=np.tile(x, (13, 1)), y=np.tile(y, 13))
    target = tmp_path / "spec.toml"
    for request, expected in (
        (Request(tmp_path / "sorted.npz"), 0.2),
        (Request(tmp_path / "large.npz"), None),
        (Request(tmp_path / "sorted.npz", held_out=tmp_path / "large.npz"), None),
    ):
        write_spec(request, target, overwrite=True)
        assert tomllib.loads(target.read_text()).get("hold_out") == expected
    write_spec(Request(tmp_path / "sorted.npz"), target, overwrite=True)
    held_out = specs.load_spec(target, out=tmp_path / "run").held_out
    assert len(held_out) == N // 5
    assert len(np.unique(held_out.labels)) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"x": "X", "y": "y"}, {"input": "X"}),
        ({"x": "embeddings", "y": "labels"}, {"input": "embeddings", "label": "labels"}),
        ({"x": "latent", "y": "whatever"}, {"input": "latent", "label": "whatever"}),
        ({"x": "x_train", "y": "y_train"}, {"input": "x_train", "label": "y_train"}),
    ],
    ids=["X", "usual", "only", "train"],
)
def test_arrays_are_found_by_a_usual_name_or_by_their_axes(names, expected, tmp_path):
    x, y = vectors()
    np.savez(tmp_path / "a.npz", **{names["x"]: x, names["y"]: y})
    config = inspect_data(tmp_path / "a.npz").config
    assert {k: getattr(config, k) for k in expected} == expected
    assert config.id is None


def test_two_arrays_that_could_be_inputs_are_an_error(tmp_path):
    x, y = vectors()
    np.savez(tmp_path / "a.npz", left=x, right=x, y=y)
    with pytest.raises(DataError, match="inputs is not clear; arrays: left, right, y"):
        inspect_data(tmp_path / "a.npz")
    assert inspect_data(tmp_path / "a.npz", columns=NamedColumns(inputs=("left",))).shape == (6,)


def test_a_test_set_in_the_same_file_is_the_validation_set(tmp_path):
    x, y = vectors()
    arrays = {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}
    np.savez(tmp_path / "a.npz", **arrays)
    target = tmp_path / "spec.toml"
    write_spec(Request(tmp_path / "a.npz"), target)
    train, validation, _ = specs.read_data(specs.read_spec(target), tmp_path)
    assert (len(train), len(validation)) == (60, 20)
    assert check_spec(target) == []


def test_grey_images_of_16_bits_stay_as_they_are_and_are_grey_beside_others(tmp_path):
    for i, label in enumerate(labels(20)):
        file = tmp_path / "deep" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 3000 * i, dtype=np.uint16)).save(file)
    found = inspect_data(tmp_path / "deep")
    assert (found.config.mode, found.shape) == (None, (1, 8, 8))
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(file)
    found = inspect_data(tmp_path / "deep")
    assert (found.config.mode, found.shape) == ("L", (1, 8, 8))


def test_an_index_or_id_of_a_data_frame_is_no_feature(tmp_path):
    x, y = vectors()
    frame = pd.DataFrame(x[:, :2], columns=["a", "b"]).assign(PassengerId=range(N, 2 * N), Class=y)
    frame.assign(note="n").to_csv(tmp_path / "t.csv")  # with an index that has no name
    found = inspect_data(tmp_path / "t.csv")
    config = found.config
    assert (config.input, config.label, config.id) == ("a, b", "Class", "PassengerId")
    assert found.unused == ("note",)
    frame.drop(columns="PassengerId").sample(frac=1, random_state=0).to_parquet(
        tmp_path / "t.parquet"
    )
    config = inspect_data(tmp_path / "t.parquet").config
    assert (config.input, config.id) == ("a, b", "__index_level_0__")
    facts = write_spec(Request(tmp_path / "t.csv"), tmp_path / "spec.toml")
    assert "columns that are not used: note" in facts
    assert "# not used: note" in (tmp_path / "spec.toml").read_text()


def test_a_column_without_values_is_no_feature(tmp_path):
    x, y = vectors()
    frame = pd.DataFrame(x[:, :2], columns=["a", "b"]).assign(y=y, c=np.nan, d="NA")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = inspect_data(tmp_path / name)
        assert (found.config.input, found.unused) == ("a, b", ("c", "d"))
    frame.assign(b=["NA", *frame.b[1:]]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="missing values: 1 in column 'b'"):
        inspect_data(tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("numbers", [(-1, 1), (1, 2), (90_210, 10_115)])
def test_numbers_that_are_no_indices_name_the_classes(numbers, suffix, tmp_path):
    x, y = vectors()
    path, given = tmp_path / f"t{suffix}", np.where(y == y[0], *numbers)
    frame = pd.DataFrame(x[:, :2], columns=["a", "b"]).assign(y=given)
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    write_spec(Request(path), tmp_path / "spec.toml")
    assert not check_spec(tmp_path / "spec.toml")
    spec = tomllib.loads((tmp_path / "spec.toml").read_text())
    assert spec["data"]["classes"] == [str(n) for n in sorted(numbers)]
    assert spec["model"]["arguments"]["classes"] == 2
    train = inspect_data(path).samples
    assert np.array(train.classes)[train.labels].tolist() == given.astype(str).tolist()


def test_weights_may_have_an_output_for_a_number_that_is_left_out(tmp_path):
    x, y = vectors()
    frame = pd.DataFrame(x[:, :2], columns=["a", "b"])
    frame.assign(y=np.where(y == y[0], 1, 2)).to_csv(tmp_path / "t.csv", index=False)
    assert inspect_data(tmp_path / "t.csv", has_weights=True).samples.classes == ("0", "1", "2")
    frame.assign(y=np.where(y == y[0], -1, 1)).to_csv(tmp_path / "t.csv", index=False)
    assert inspect_data(tmp_path / "t.csv", has_weights=True).samples.classes == ("-1", "1")


def test_of_several_text_columns_the_longest_is_the_input(tmp_path):
    long = "a document of many words that never ends. " * 40  # no file can be called so
    rows = {"title": ["three words only"] * 20, "body": [f"{i} {long}" for i in range(20)]}
    pd.DataFrame({**rows, "y": labels(20)}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'body' holds texts, and no model"):
        inspect_data(tmp_path / "t.parquet")


def test_parts_beside_the_training_set_are_found(tmp_path):
    for name in ("train", "val", "test", "other", "a", "a_test", "b-train", "b-val", "b-test"):
        (tmp_path / f"{name}.csv").touch()
    found = find_splits(tmp_path / "train.csv")
    assert {k: p.name for k, p in found.items()} == {
        "train": "train.csv",
        "held_out": "val.csv",
        "validation": "test.csv",
    }
    assert find_splits(tmp_path / "other.csv") == {"train": tmp_path / "other.csv"}
    found = {n: find_splits(tmp_path / f"{n}.csv")["validation"].name for n in ("a", "b-train")}
    assert found == {"a": "a_test.csv", "b-train": "b-test.csv"}
    (tmp_path / "test.csv").unlink()
    assert find_splits(tmp_path / "train.csv")["validation"].name == "val.csv"


def test_a_folder_of_files_or_of_folders_with_a_file_each_is_divided(tmp_path):
    frame = pd.read_csv(table_in_csv(tmp_path)[0])
    for name in ("train", "val"):
        for file in (tmp_path / "files" / f"{name}.csv", tmp_path / "folders" / name / "data.csv"):
            file.parent.mkdir(parents=True, exist_ok=True)
            frame.to_csv(file, index=False)
    files, folders = tmp_path / "files", tmp_path / "folders"
    assert find_splits(files) == {"train": files / "train.csv", "validation": files / "val.csv"}
    assert find_splits(folders) == {
        "train": folders / "train" / "data.csv",
        "validation": folders / "val" / "data.csv",
    }
    assert find_splits(folders / "train") == find_splits(folders)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_clone_of_the_hub_brings_its_other_sets(tmp_path, held_out):
    x, y = vectors()
    for split in ("train", "test", *(("validation",) if held_out else ())):
        file = tmp_path / "clone" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"emb": list(x + (split == "validation")), "label": y}), file)
    clone = tmp_path / "clone"
    sets = ("train", "validation", *(("held_out",) if held_out else ()))
    assert find_splits(clone) == dict.fromkeys(sets, clone)
    assert inspect_data(clone).config.input == "emb"
    assert init(clone, "--out", tmp_path / "spec.toml").exit_code == 0
    assert check_spec(tmp_path / "spec.toml") == []
    spec = specs.read_spec(tmp_path / "spec.toml")
    assert [len(made) for made in specs.read_data(spec, tmp_path) if made] == [N] * len(sets)
    splits = [c.split for c in (spec.train_data, spec.validation_data, spec.held_out_data) if c]
    assert splits == ["train", "test", "validation"][: len(sets)]


def test_a_column_with_the_number_of_the_class_is_no_input(tmp_path):
    frame = pd.read_csv(table_in_csv(tmp_path)[0])
    codes = frame.assign(code=9 - frame["kind"].astype("category").cat.codes)
    codes.to_csv(tmp_path / "codes.csv", index=False)
    found = inspect_data(tmp_path / "codes.csv")
    assert "code" not in found.config.input
    assert "code" in found.unused


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
    assert check_spec(tmp_path / name / "spec.toml") == []
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
