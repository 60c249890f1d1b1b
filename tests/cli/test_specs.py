from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import expunge
from data.test_data import cifar, labels, pixels
from expunge import pipeline, specs
from expunge.errors import ConfigError, DataError, ExpungeError, ModelError, RunError
from expunge.spec_check import check_spec
from expunge.training.loop import TuneConfig
from oracles_digits import contents, memorised, network, noisy_arrays
from oracles_specs import merged, write_spec

pytestmark = pytest.mark.usefixtures("few_trees")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


# ------------------------------------------------------------------------------ reading


def test_a_spec_names_model_weights_data_and_settings(tmp_path):
    path = write_spec(tmp_path, {"seed": 3, "tune": {"epochs": 2}})
    job = specs.load_spec(path, out=tmp_path / "out")
    assert_same_weights(job.model, memorised())
    assert (len(job.train), len(job.validation)) == (200, 100)
    assert job.train.ids[0] == 1000
    assert job.options["train_seconds"] is None
    assert job.options["seed"] == 3
    assert job.options["baselines"] == ("no-op",)
    assert job.options["overrides"]["tune"] == {"epochs": 2, "batch_size": 32}
    assert not (tmp_path / "out").exists()


def test_what_data_says_holds_for_both_sets_and_each_can_say_otherwise(tmp_path):
    scale = {"mean": 0.5, "std": 0.2}
    data = {"view": "crop", **scale, "max_rows": 50, "validation": {"max_rows": 20}}
    spec = specs.read_spec(write_spec(tmp_path, {"data": data}))
    assert (spec.train_data.mean, spec.train_data.std) == ((0.5,), (0.2,))  # of all channels
    assert spec.train_data.view == spec.validation_data.view == "crop"
    assert (spec.train_data.max_rows, spec.validation_data.max_rows) == (50, 20)


@pytest.mark.parametrize(
    ("changes", "n"),
    [({}, 3), ({"validation": {"split": "train"}}, 10), ({"split": "train"}, 10)],
)
def test_one_cifar_folder_holds_both_sets_and_a_split_that_is_named_counts(tmp_path, changes, n):
    cifar(tmp_path / "batches", pixels(10, side=32), labels(10))
    sets = {"train": {"path": "batches"}, "validation": {"path": "batches"}}
    path = write_spec(tmp_path, {"data": merged(sets, changes)})
    train, validation, _ = specs.read_data(specs.read_spec(path), tmp_path)
    assert (len(train), len(validation)) == (10, n)


def test_the_command_line_goes_before_the_spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_spec(tmp_path / "s", {"out": "from-spec", "seed": 3})
    assert specs.load_spec(path).options["out"] == Path("from-spec")
    job = specs.load_spec(path, out="there", seed=5, recipe="rlap", overwrite=True)
    found = {k: job.options[k] for k in ("out", "seed", "recipe", "overwrite")}
    assert found == {"out": Path("there"), "seed": 5, "recipe": "rlap", "overwrite": True}
    unnamed = write_spec(tmp_path / "s", name="my-repair")
    assert specs.load_spec(unnamed).options["out"] == Path("runs/my-repair")


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8), mode=None).save(stream, "png")
    return stream.getvalue()


MODULE = """
from torch import nn

def small(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_parquet_images_a_constructor_beside_the_spec_and_weights(tmp_path, suffix):
    x, y = noisy_arrays(40)
    images = [{"bytes": png(image[0]), "path": None} for image in x]
    table = pa.table({"image": images, "label": y, "key": [f"k{i}" for i in range(40)]})
    path = write_spec(
        tmp_path,
        {
            "model": {
                "constructor": f"nets_{suffix}:small",
                "arguments": {"inputs": None, "classes": None, "hidden": None, "width": 12},
                "weights": f"w.{suffix}",
            },
            "data": {"train": {"path": "train.parquet", "id": "key"}, "validation": None},
        },
    )
    (tmp_path / f"nets_{suffix}.py").write_text(MODULE)
    pq.write_table(table, tmp_path / "train.parquet")
    before = list(sys.path)
    model = specs.build_model(specs.ModelConfig(f"nets_{suffix}:small", {"width": 12}), tmp_path, 1)
    if suffix == "pt":
        torch.save(model.state_dict(), tmp_path / "w.pt")
    else:
        save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert all("of the given labels" in problem for problem in check_spec(path))  # untrained
    job = specs.load_spec(path, out=tmp_path / "out")
    assert sys.path == before
    assert_same_weights(job.model, model)
    assert job.train.ids[:2].tolist() == ["k0", "k1"]
    assert job.train.labels.tolist() == y.tolist()
    np.testing.assert_allclose(job.train.batch(np.arange(40)).numpy(), x, atol=0.5 / 255 + 1e-6)


def test_environment_variables_stand_in_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_spec(
        tmp_path / "s",
        {
            "model": {"weights": "${SOME_WEIGHTS}/weights.safetensors"},
            "data": {"train": {"path": "${SOME_DATA:-.}/train.npz"}},
        },
    )
    monkeypatch.setenv("SOME_WEIGHTS", str(tmp_path / "s"))
    assert check_spec(path) == []
    monkeypatch.setenv("SOME_DATA", str(tmp_path / "nowhere"))
    (problem,) = check_spec(path)
    assert "nowhere/train.npz" in problem
    monkeypatch.setenv("SOME_DATA", "s")  # relative: to the working directory
    assert check_spec(path) == []
    monkeypatch.delenv("SOME_WEIGHTS")
    (problem,) = check_spec(path)
    assert "SOME_WEIGHTS is not set" in problem


def test_without_weights_the_model_is_trained_first_and_resumes(tmp_path):
    path = write_spec(
        tmp_path, {"model": {"weights": None}, "train": {"epochs": 4, "batch_size": 32}}
    )
    whole = specs.load_spec(path, out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        assert what == "train"
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specs.load_spec(path, out=tmp_path / "run", progress=stop)
    resumed = specs.load_spec(path, out=tmp_path / "run")
    assert_same_weights(whole.model, resumed.model)
    assert resumed.options["train_seconds"] > 0
    again: list[int] = []
    read = specs.load_spec(path, out=tmp_path / "run", progress=lambda w, d, t: again.append(d))
    assert again == []
    assert_same_weights(read.model, resumed.model)
    with pytest.raises(AssertionError):
        assert_same_weights(network(), resumed.model)
    result = pipeline.repair(read.model, read.train, **read.options)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seconds"]["train"] > 0
    assert result.run == str(tmp_path / "run")


def test_a_trained_spec_takes_all_labels_as_given_unless_it_says_otherwise(tmp_path):
    assert specs.read_spec(write_spec(tmp_path, {"train": {"epochs": 1}})).train == TuneConfig(
        targets="all", epochs=1
    )


@pytest.mark.parametrize("what", ["other files", "another run"])
def test_nothing_is_trained_for_a_folder_that_will_be_refused(tmp_path, what):
    path = write_spec(tmp_path / "s", {"model": {"weights": None}, "train": {"epochs": 1}})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    if what == "another run":
        (folder / "run.json").write_text("{}")
    before = contents(tmp_path)

    def fail(*args: object) -> None:
        pytest.fail("nothing must be trained")

    with pytest.raises(RunError, match="other files: thesis" if what == "other files" else "out=…"):
        specs.load_spec(path, out=folder, progress=fail)
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------ checking


def test_a_sound_spec_has_no_problems_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_spec(tmp_path)
    before = contents(tmp_path)
    assert check_spec(path) == []
    assert contents(tmp_path) == before


def test_check_lists_five_independent_mistakes_at_once(tmp_path, monkeypatch):
    path = write_spec(
        tmp_path,
        {
            "recipe": "defualt",
            "baselines": ["no-oop"],
            "model": {"weights": "wieghts.safetensors"},
            "data": {"train": {"path": "missing.npz"}},
            "tune": {"epoch": 3},
            "sede": 4,
        },
    )
    before = contents(tmp_path)
    monkeypatch.setattr(pipeline, "train", lambda *a, **k: pytest.fail("nothing is trained"))
    problems = check_spec(path)
    text = "\n".join(problems)
    for part in (
        "no recipe is called 'defualt'\n  fix: did you mean 'default'?",
        "no recipe is called 'no-oop'\n  fix: did you mean 'no-op'?",
        "wieghts.safetensors: there is no such weights file",
        "missing.npz",
        "unknown key 'tune.epoch': did you mean 'epochs'?",
        "unknown key 'sede': did you mean 'seed'?",
    ):
        assert text.count(part) == 1, (part, text)
    assert len(problems) == 6
    assert contents(tmp_path) == before


def test_each_of_several_problems_of_one_kind_is_listed_by_itself(tmp_path):
    path = write_spec(tmp_path, {"sede": 1, "data": {"train": {"paht": "x"}}})
    where = f"{path}: unknown key"
    assert check_spec(path) == [
        f"{where} 'sede': did you mean 'seed'?",
        f"{where} 'data.train.paht': did you mean 'path'?",
    ]


def test_every_unknown_name_and_option_of_a_recipe_is_listed(tmp_path):
    path = write_spec(
        tmp_path,
        {
            "score": {"detectors": ["loss", "margni", "attributoin"], "attribution_layer": "9"},
            "partition": {"method": "mixtrue"},
            "rank": {"layers": ["1", "33"], "options": {"nonsense": 1}},
            "prune": {"method": "ranekd"},
        },
    )
    text = "\n".join(check_spec(path))
    for name in ("'margni'", "'attributoin'", "'mixtrue'", "'ranekd'", "'nonsense'"):
        assert text.count(f"{name}") == 1, (name, text)
    assert "did you mean 'margin'?" in text


def test_check_finds_what_model_and_data_do_not_agree_on(tmp_path):
    path = write_spec(tmp_path, {"model": {"weights": None}, "train": {"epochs": 1}})
    assert check_spec(path) == []
    for arguments, message in (
        ({"classes": 7}, "the model gives 7 logits, the data have 10 classes"),
        ({"inputs": 60}, "the model fails on the first sample"),
        ({"widht": 3}, "unexpected keyword argument 'widht'"),
        ({"hidden": -3}, "RuntimeError"),
    ):
        changes = {"model": {"weights": None, "arguments": arguments}, "train": {"epochs": 1}}
        (problem,) = check_spec(write_spec(tmp_path, changes))
        assert message in problem


def test_check_notes_classes_without_samples(tmp_path):
    write_spec(tmp_path)
    stored = dict(np.load(tmp_path / "train.npz"))
    kept = ~np.isin(stored["y"], (3, 5))
    np.savez(tmp_path / "train.npz", **{name: values[kept] for name, values in stored.items()})
    notes = []
    assert check_spec(write_spec(tmp_path), on_note=notes.append) == []
    assert "no sample has the class 3, 5" in "\n".join(notes)


def test_check_names_the_order_of_the_classes_that_the_model_knows(tmp_path):
    names = np.array(list("bcdefghija"))
    write_spec(tmp_path)
    for file in (tmp_path / "train.npz", tmp_path / "test.npz"):
        stored = dict(np.load(file))
        np.savez(file, **{**stored, "y": names[stored["y"]]})
    (problem,) = check_spec(write_spec(tmp_path))
    order = json.dumps(names.tolist())
    assert f"if the classes have the order of its training: classes = {order} in [data]" in problem
    assert check_spec(write_spec(tmp_path, {"data": {"classes": names.tolist()}})) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make(:", "SyntaxError: invalid syntax"),
        ("made = undefined", "NameError: name 'undefined' is not defined (own_0.py, line 1)"),
        ("open('weights.none')", "FileNotFoundError"),
        ("def make():\n    assert False, 'no'", "AssertionError: no (own_0.py, line 2)"),
        ("def make():\n    return undefined", "NameError: name 'undefined' is not defined"),
        (
            "from torch import nn\n\nclass Own(nn.Linear):\n    def forward(self, x):\n"
            "        assert x.shape[1] == 3, 'colours'\n\ndef make():\n    return Own(2, 10)",
            "the model fails on the first sample: AssertionError: colours",
        ),
    ],
)
def test_errors_in_the_user_s_own_file_are_problems_beside_others(tmp_path, source, message):
    name = f"own_{len(source)}"  # modules are imported once
    (tmp_path / f"{name}.py").write_text(source)
    model = {"constructor": f"{name}:make", "weights": None, "arguments": None}
    path = write_spec(tmp_path, {"model": model, "train": {"epochs": 1}, "baselines": ["no-oop"]})
    problems = check_spec(path)
    assert len(problems) == 2, problems
    assert message.replace("own_0", name) in "\n".join(problems)
    with pytest.raises(ExpungeError):
        specs.load_spec(path, out=tmp_path / "out")


def test_check_names_layers_that_are_not_there(tmp_path):
    (problem,) = check_spec(write_spec(tmp_path, {"rank": {"layers": ["1", "33"]}}))
    assert "no layer of units: '33'" in problem
    (problem,) = check_spec(write_spec(tmp_path, {"score": {"attribution_layer": "net"}}))
    assert "the model has no layer 'net'" in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"weights": None}}, r"no weights, and there is no table \[train\]"),
        ({"model": {"constructor": "nets"}}, "'nets' names no constructor"),
        ({"model": {"constructor": "nots:small"}}, "nots: cannot be imported: No module"),
        ({"model": {"constructor": "expunge.models:mpl"}}, "did you mean 'mlp'?"),
        (
            {"model": {"constructor": "expunge.errors:format_ids"}},
            r"format_ids\(\) (got|missing) an unexpected",
        ),
        ({"model": "mlp"}, "'model' must be a table"),
        ({"train": 3}, "'train' must be TuneConfig|'train' must be a table"),
        ({"seed": "one"}, r"'seed' must be int, not 'one' \(str\)"),
        ({"baselines": "no-op"}, "'baselines' must be a list"),
        ({"prune": {"fraction": 1.5}}, r"prune.fraction must lie in \[0, 1\], not 1.5"),
        ({"data": {"train": {"pth": "x"}}}, "unknown key 'data.train.pth': did you mean 'path'"),
        ({"data": {"train": {"size": 0}}}, "data.train: size must be 1 or more"),
        ({"data": {"held_out": {}}}, "'data.held_out.path' is missing"),
        ({"data": {"heldout": {"path": "x"}}}, "'data.heldout': did you mean 'held_out'"),
        ({"data": {"val": {}}}, "'data.val': choose one of: held_out, train, validation"),
        ({"data": {"veiw": "crop"}}, "unknown key 'data.veiw': did you mean 'view'"),
        ({"data": {"validation": "x.npz"}}, "'data.validation' must be a table, not 'x.npz'"),
        ({"data": {"train": {"source": "npz"}}}, "no source is called 'npz'"),
        (
            {"data": {"validation": {"path": "train.npz"}}},
            "validation data: ids inside the training ids",
        ),
    ],
)
def test_check_gives_one_clear_sentence_for_one_mistake(tmp_path, changes, message):
    problems = check_spec(write_spec(tmp_path, changes))
    assert len(problems) == 1, problems
    assert re.search(message, problems[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", r"is not valid TOML"),
        ("seed = 1", r"the table \[data.train\] is missing"),
        ("data = 3", r"the table \[data.train\] is missing"),
        ('[data]\npath = "x"', r"the table \[data.train\] is missing"),
        ('[data.train]\npath = "x"', "'model' is missing"),
    ],
)
def test_a_file_that_is_no_spec_is_an_error(tmp_path, text, message):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        specs.read_spec(path)
    assert re.search(message, "\n".join(check_spec(path)))


def test_a_missing_spec_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="there is no such spec file\n  fix: check the path"):
        specs.read_spec(tmp_path / "none.toml")
    (problem,) = check_spec(tmp_path / "none.toml")
    assert "no such spec file" in problem


def test_preparing_raises_what_check_lists(tmp_path):
    for changes, kind in (
        ({"data": {"train": {"path": "missing.npz"}}}, DataError),
        ({"model": {"constructor": "nots:small"}}, ModelError),
        ({"model": {"weights": None}}, ConfigError),
        ({"sede": 1}, ConfigError),
    ):
        with pytest.raises(kind):
            specs.load_spec(write_spec(tmp_path, changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_are_specs(path):
    spec = specs.read_spec(path)
    assert spec.validation_data is not None
    assert spec.model.weights or spec.train is not None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_have_no_problems_where_the_data_are(path, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    data = Path(os.environ.get("EXPUNGE_DATA", root.parent / "shared" / "data"))
    if not all((data / name).is_dir() for name in ("cifar10", "speech_commands")):
        pytest.skip(f"the data of the examples are not in {data}: set EXPUNGE_DATA")
    monkeypatch.setenv("EXPUNGE_DATA", str(data.resolve()))
    monkeypatch.chdir(tmp_path)
    assert EXAMPLES
    assert check_spec(path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "defualt"}, "did you mean 'default'"),
        ({"baselines": ["no-oop"]}, "did you mean 'no-op'"),
        ({"prune": {"fraction": 2.0}}, "prune.fraction must lie"),
        (
            {"data": {"validation": {"path": "train.npz"}}},
            "validation data: ids inside the training",
        ),
    ],
)
def test_what_a_repair_would_refuse_is_refused_before_a_training(tmp_path, changes, message):
    train = {"model": {"weights": None}, "train": {"epochs": 1}}
    path = write_spec(tmp_path, {**train, **changes})
    with pytest.raises((ConfigError, DataError), match=message):
        specs.load_spec(path, out=tmp_path / "out", progress=lambda *a: pytest.fail("trained"))
    assert not (tmp_path / "out").exists()


def test_a_training_holds_samples_out_where_the_spec_names_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = {"model": {"weights": None}, "train": {"epochs": 1}}
    path = write_spec(tmp_path, {**trained, "hold_out": 0.2})
    notes = []
    assert check_spec(path, on_note=notes.append) == []
    assert any(note.startswith("40 of 200 training samples are held out") for note in notes)
    loaded = specs.load_spec(path)
    assert (len(loaded.train), len(loaded.held_out)) == (160, 40)
    assert not set(loaded.train.ids) & set(loaded.held_out.ids)
    result = expunge.repair(loaded.model, loaded.train, held_out=loaded.held_out, **loaded.options)
    assert any("40 of 200" in note for note in result.notes)
    assert "40 of 200 training samples" in (Path(result.run) / "report.md").read_text()
    # Fewer than 1,000 samples are all trained on by default.
    assert specs.load_spec(write_spec(tmp_path, trained, "small")).held_out is None
    off = specs.read_spec(write_spec(tmp_path, {**trained, "hold_out": 0}, "off"))
    assert not off.holds_out
    assert specs.read_spec(write_spec(tmp_path, trained, "on")).holds_out
    named = {"data": {"held_out": {"path": "test.npz"}}}
    assert not specs.read_spec(write_spec(tmp_path, {**trained, **named}, "named")).holds_out
    assert not specs.read_spec(write_spec(tmp_path, {}, "weights")).holds_out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"held_out": {"path": "test.npz"}}}, "stands beside a table"),
        ({"model": {"weights": "weights.safetensors"}}, "has been trained already"),
        ({"hold_out": 0.7}, "hold_out must lie in"),
        ({"hold_out": "a tenth"}, "hold_out"),
    ],
)
def test_what_cannot_be_held_out_is_refused(tmp_path, changes, message):
    trained = {"model": {"weights": None}, "train": {"epochs": 1}, "hold_out": 0.2}
    path = write_spec(tmp_path, merged(trained, changes))
    with pytest.raises(ConfigError, match=message):
        specs.read_spec(path)
    assert sum(message in problem for problem in check_spec(path)) == 1


def test_the_columns_of_a_table_may_be_a_list(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(
        '[model]\nconstructor = "expunge.models:mlp"\n[data]\nsource = "table"\n'
        'input = ["width", "height"]\n[data.train]\npath = "a.csv"\n'
    )
    assert specs.read_spec(path).train_data.input == "width,height"
    path.write_text(path.read_text().replace("height", "a, b"))
    with pytest.raises(ConfigError, match=r"'data.train.input' must be str"):
        specs.read_spec(path)
