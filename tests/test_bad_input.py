"""The bad input of users: each gives one of our errors that says what, where and how to fix it."""

from __future__ import annotations

import csv
import errno
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import expunge
from expunge import cli, pipeline
from expunge.data import DataConfig, from_arrays, read
from expunge.errors import (
    ConfigError,
    DataError,
    ExpungeError,
    ModelError,
    PartitionError,
    PruneError,
    RunError,
)
from expunge.models.zoo import mlp
from expunge.storage.weights import load_weights, save_weights
from oracles_digits import FAST, clean, contents, memorised, noisy, noisy_arrays
from oracles_results import make_partition
from oracles_specs import write_spec

Case = tuple[Callable[[Path], object], type[ExpungeError], str]


def fixing(model: nn.Module | None = None, train: Any = None, **settings: Any) -> object:
    settings = {"overrides": FAST, "baselines": (), **settings}
    validation = settings.pop("validation", None)
    return pipeline.repair(
        model if model is not None else memorised(),
        train if train is not None else noisy(200),
        validation,
        **settings,
    )


# ------------------------------------------------------------------------------ data


def arrays(folder: Path, **changes: Any) -> object:
    x, y = noisy_arrays(20)
    given = {"x": x, "y": y, **changes}
    np.savez(folder / "bad.npz", **{k: v for k, v in given.items() if v is not None})
    return read(DataConfig(path="bad.npz"), folder=folder)


def with_nan(x: np.ndarray, value: float = np.nan) -> np.ndarray:
    x = x.copy()
    x[7, 0, 2, 2] = value
    return x


def images(folder: Path, *, odd: Image.Image, **settings: Any) -> object:
    """Two classes of pictures, of which one file is odd."""
    for i, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png", "dog/odd.png"]):
        file = folder / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = odd if file.name == "odd.png" else Image.new("RGB", (8, 8), (i, 0, 0))
        picture.save(file)
    return read(DataConfig(path="pictures", **settings), folder=folder)


def manifest(folder: Path, rows: list[dict[str, object]]) -> object:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return read(DataConfig(path="list.csv", id="id"), folder=folder)


def first_batch(x: np.ndarray) -> object:
    return from_arrays(x, np.arange(len(x)) % 2, ids=np.arange(len(x)) + 100).batch(np.arange(20))


X, Y = noisy_arrays(20)
DATA: dict[str, Case] = {
    "a missing file": (
        lambda f: read(DataConfig(path="nowhere.parquet"), folder=f),
        DataError,
        r"nowhere\.parquet: no such file",
    ),
    "no samples": (lambda f: arrays(f, x=X[:0], y=Y[:0]), DataError, "no samples"),
    "no samples in memory": (lambda f: from_arrays(X[:0], Y[:0]), DataError, "no samples"),
    "an empty folder": (
        lambda f: read(DataConfig(path="."), folder=f),
        DataError,
        "neither class folders nor",
    ),
    "one class": (lambda f: arrays(f, y=np.zeros(20, int)), DataError, "class|same label"),
    "labels above the classes": (
        lambda f: from_arrays(X, Y + 5, classes=[str(c) for c in range(10)]),
        DataError,
        r"labels outside 0…9",
    ),
    "labels below zero": (lambda f: arrays(f, y=Y - 3), DataError, r"labels outside 0…\d: .*-1"),
    "labels of text where the names differ": (
        lambda f: from_arrays(X, ["cat"] * 10 + ["dgo"] * 10, classes=["cat", "dog"]),
        DataError,
        r"labels that are no class: dgo(.|\n)*did you mean 'dog'",
    ),
    "fractions as labels": (lambda f: arrays(f, y=Y + 0.5), DataError, "must be integers"),
    "NaN labels": (
        lambda f: arrays(f, y=np.where(np.arange(20) == 3, np.nan, Y)),
        DataError,
        "labels are NaN or infinite: ids 3",
    ),
    "labels that are pairs": (
        lambda f: arrays(f, y=np.eye(10)[Y]),
        DataError,
        "labels must be one value a sample",
    ),
    "complex inputs": (lambda f: arrays(f, x=X + 1j), DataError, "x has dtype complex"),
    "inputs of text": (lambda f: arrays(f, x=X.astype(str)), DataError, "x has dtype"),
    "pickled objects in an array": (
        lambda f: arrays(f, x=np.array([{}] * 20, dtype=object)),
        DataError,
        r"plain arrays: an array of Python objects\n  fix: .* texts as y\.astype\(str\)",
    ),
    "unequal lengths": (lambda f: arrays(f, y=Y[:7]), DataError, "20 inputs, 7 labels"),
    "NaN inputs": (
        lambda f: first_batch(with_nan(X)),
        DataError,
        r"inputs are NaN or infinite: ids 107\n  fix: remove",
    ),
    "infinite inputs": (lambda f: first_batch(with_nan(X, np.inf)), DataError, "ids 107"),
    "NaN inputs in a repair": (
        lambda f: fixing(train=(with_nan(X), Y)),
        DataError,
        "inputs are NaN or infinite: ids 7",
    ),
    "duplicate ids": (
        lambda f: arrays(f, ids=np.arange(20) // 2),
        DataError,
        r"duplicate ids: 0, 1, 2, 3, 4 … \(10 in all\); give each sample an id of its own",
    ),
    "duplicate ids in a list": (
        lambda f: manifest(f, [{"image": "a.png", "label": c, "id": 5} for c in (0, 1)]),
        DataError,
        "duplicate ids: 5",
    ),
    "a picture that is missing": (
        lambda f: manifest(
            f, [{"image": n, "label": c, "id": c} for c, n in enumerate(["a.png", "b.png"])]
        ),
        DataError,
        r"(?s)one class is left.*samples that cannot be read \(No such file or directory\): ids 1\n"
        "  fix: ",
    ),
    "a picture of another size": (
        lambda f: images(f, odd=Image.new("RGB", (9, 8))),
        DataError,
        r"(?s)odd\.png.*size|size.*odd\.png",
    ),
    "a picture of another mode": (
        lambda f: images(f, odd=Image.new("L", (8, 8))),
        DataError,
        r"(?s)odd\.png.*mode|mode.*odd\.png",
    ),
    "something else as data": (
        lambda f: fixing(train={"x": X}),
        DataError,
        r"got dict, expected Samples, a pair of arrays",
    ),
    "validation ids inside the training ids": (
        lambda f: fixing(validation=noisy(30)),
        DataError,
        "ids inside the training ids: 1000, 1001",
    ),
}


# ------------------------------------------------------------------------------ models


class Opens:
    """A pickle of it writes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def pickled(folder: Path, name: str) -> object:
    (folder / name).write_bytes(pickle.dumps(Opens(folder / "executed")))
    return load_weights(memorised(), folder / name)


def saved(folder: Path, name: str, value: object) -> object:
    torch.save(value, folder / name)
    return load_weights(memorised(), folder / name)


def with_weight(value: float) -> nn.Module:
    model = memorised()
    with torch.no_grad():
        model[3].weight[2, 2] = value
    return model


def nan_weights(folder: Path) -> object:
    torch.save(with_weight(float("nan")).state_dict(), folder / "nan.pt")
    return load_weights(memorised(), folder / "nan.pt")


class NoLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


def with_output(change: Callable[[torch.Tensor], object]) -> nn.Module:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = memorised()

        def forward(self, x: torch.Tensor) -> object:
            return change(self.net(x))

    return Changed()


def other_shape(folder: Path) -> object:
    save_weights(mlp(inputs=64, classes=10, hidden=32), folder / "w.safetensors")
    return load_weights(memorised(), folder / "w.safetensors")


MODELS: dict[str, Case] = {
    "no weights file": (
        lambda f: load_weights(memorised(), f / "none.safetensors"),
        ModelError,
        "there is no such weights file",
    ),
    "weights of another shape": (
        other_shape,
        ModelError,
        r"wrong shape: 1.weight is \[32, 64\], the model has \[48, 64\]",
    ),
    "weights of other names": (
        lambda f: saved(f, "w.pt", {"fc.weight": torch.zeros(2, 2)}),
        ModelError,
        r"(?s)missing: 1\.bias, 1\.weight.*unexpected: fc\.weight",
    ),
    "NaN weights": (nan_weights, ModelError, r"NaN or infinite weights in 3\.weight"),
    "NaN weights in memory": (
        lambda f: fixing(with_weight(float("nan"))),
        ModelError,
        r"weights are NaN or infinite: 3\.weight",
    ),
    "infinite weights in memory": (
        lambda f: fixing(with_weight(float("inf"))),
        ModelError,
        r"weights are NaN or infinite: 3\.weight",
    ),
    "a pickle named .pt": (lambda f: pickled(f, "w.pt"), ModelError, r"w\.pt"),
    "a pickle named .pth": (lambda f: pickled(f, "w.pth"), ModelError, r"w\.pth"),
    "a pickle named .pkl": (lambda f: pickled(f, "w.pkl"), ModelError, "not '.pkl'"),
    "a pickle named .safetensors": (
        lambda f: pickled(f, "w.safetensors"),
        ModelError,
        "not a safetensors file",
    ),
    "a pickle inside torch's file": (
        lambda f: saved(f, "w.pt", {"state_dict": Opens(f / "executed")}),
        ModelError,
        "opening it could run code",
    ),
    "a whole model": (
        lambda f: saved(f, "w.pt", memorised()),
        ModelError,
        "opening it could run code",
    ),
    "a damaged file": (
        lambda f: (f / "w.pt").write_bytes(b"hello") and load_weights(memorised(), f / "w.pt"),
        ModelError,
        r"w\.pt",
    ),
    "a model without a layer": (
        lambda f: fixing(NoLayer()),
        ModelError,
        "no linear or convolution layer is called",
    ),
    "a model without a hidden layer": (
        lambda f: expunge.rank(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), noisy(60), split_of(noisy(60))
        ),
        ModelError,
        "no hidden layer",
    ),
    "NaN logits": (
        lambda f: expunge.score(
            with_output(lambda z: z / 0 * 0), noisy(60, ids=np.arange(60) + 7), detectors=["loss"]
        ),
        ModelError,
        "logits are NaN or infinite for ids 7, 8",
    ),
    "no logits": (
        lambda f: fixing(with_output(lambda z: z[..., None, None].expand(-1, -1, 2, 2))),
        ModelError,
        r"expected logits of shape \[batch, classes\]",
    ),
    "an unknown layer": (
        lambda f: expunge.score(
            memorised(),
            noisy(60),
            attribution_layer="33",
            detectors=["attribution"],
            feature_layers=[],
        ),
        ModelError,
        "the model has no layer '33'",
    ),
    "a layer that nobody can cut": (
        lambda f: fixing(overrides={**FAST, "rank": {"layers": ["fc"]}}),
        ExpungeError,
        "'fc'",
    ),
}


# ------------------------------------------------------------------------------ settings


def split_of(samples: Any, p: np.ndarray | float = 0.0) -> Any:
    p = np.broadcast_to(np.asarray(p, dtype=float), len(samples))
    return make_partition(
        len(samples),
        ids=samples.ids,
        labels=samples.labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(len(samples)),
        suggested_label=samples.labels,
        evidence={},
    )


def occupied(folder: Path) -> object:
    fixing(out=folder / "run")
    return fixing(out=folder / "run", seed=1)


def strange(folder: Path) -> object:
    (folder / "thesis.tex").write_text("mine")
    return fixing(out=folder)


def tuned(p: Callable[[Any], Any]) -> object:
    samples = noisy(60)
    return expunge.tune(memorised(), samples, split_of(samples, p(samples)), epochs=1)


SETTINGS: dict[str, Case] = {
    "an unknown recipe": (
        lambda f: fixing(recipe="rlpa"),
        ConfigError,
        "no recipe is called 'rlpa'\n  fix: did you mean 'rlap'",
    ),
    "an unknown detector": (
        lambda f: expunge.score(memorised(), noisy(60), detectors=["margni"]),
        ConfigError,
        "no detector is called 'margni'\n  fix: did you mean 'margin'",
    ),
    "an unknown option": (
        lambda f: fixing(overrides={"prune": {"fraction": 0.2, "options": {"sede": 1}}}),
        ConfigError,
        "has no option 'sede'",
    ),
    "an option of another name": (
        lambda f: expunge.repair(memorised(), noisy(60), heldout=noisy(60)),
        ConfigError,
        "unknown option 'heldout': did you mean 'held_out'",
    ),
    "options of wrong types": (
        lambda f: expunge.repair(memorised(), noisy(60), recipe=None, overrides=["a"], out=3),
        ConfigError,
        "recipe must be a name, not None(.|\n)*overrides must be settings by stage, not"
        r"(.|\n)*out must be a path, not 3",
    ),
    "an unknown tracker as a text": (
        lambda f: fixing(trackers="tensorbord"),
        ConfigError,
        "no tracker is called 'tensorbord'",
    ),
    "an unknown key": (
        lambda f: fixing(overrides={"tune": {"epohcs": 1}}),
        ConfigError,
        "unknown key 'tune.epohcs': did you mean 'epochs'",
    ),
    "an unknown stage": (
        lambda f: fixing(overrides={"tuen": {"epochs": 1}}),
        ConfigError,
        "unknown key 'tuen': did you mean 'tune'",
    ),
    "an unknown keyword": (
        lambda f: expunge.score(memorised(), noisy(60), detector="loss"),
        ConfigError,
        "unknown key 'detector': did you mean 'detectors'",
    ),
    "options of an unknown detector": (
        lambda f: expunge.score(memorised(), noisy(60), options={"pooled_margins": {"views": 1}}),
        ConfigError,
        "no detector is called 'pooled_margins'\n  fix: did you mean 'pooled_margin'",
    ),
    "a path as a data set": (
        lambda f: expunge.from_dataset("train.csv"),
        DataError,
        r"expected a data set, got 'train.csv'\n  fix: expunge.data.read\(",
    ),
    "a path as features": (
        lambda f: expunge.detect("x.csv", [0, 1]),
        DataError,
        "got str, expected an array.*\n  fix: read the file first",
    ),
    "an unknown way to prune": (
        lambda f: expunge.prune(
            memorised(), expunge.PrunePlan({"0": (1,)}, requested=1), noisy(60), mode="cut"
        ),
        ConfigError,
        "'mode' is 'cut'.*: choose one of: mask, remove",
    ),
    "a plan of an unknown layer": (
        lambda f: expunge.prune(
            memorised(), expunge.PrunePlan({"9": (1,)}, requested=1), noisy(60)
        ),
        PruneError,
        r"plan: the model has no layer '9': choose one of: 1, 3, 5$",
    ),
    "a checkpoint instead of a list": (
        lambda f: expunge.average_checkpoint_probs(memorised(), noisy(60), "last.safetensors"),
        ConfigError,
        r"trajectory: expected a list of checkpoints, got a str\n  fix: put it into a list",
    ),
    "a seed that is a text": (
        lambda f: expunge.tune(memorised(), noisy(60), epochs=1, seed="1"),
        ConfigError,
        "seed must be an integer, not '1'",
    ),
    "a seed with decimals": (
        lambda f: fixing(seed=1.5),
        ConfigError,
        "seed must be an integer, not 1.5",
    ),
    "a wrong type": (
        lambda f: fixing(overrides={"tune": {"epochs": "three"}}),
        ConfigError,
        r"'tune.epochs' must be int, not 'three' \(str\)",
    ),
    "a fraction in percent": (
        lambda f: fixing(overrides={"prune": {"fraction": 20}}),
        ConfigError,
        r"prune.fraction must lie in \[0, 1\], not 20",
    ),
    "a fraction below zero": (
        lambda f: expunge.plan(ranking(), fraction=-0.1),
        ConfigError,
        r"fraction must lie in \[0, 1\], not -0.1",
    ),
    "a plan that cuts nothing": (
        lambda f: expunge.plan(ranking(), count=5, max_layer_fraction=0.0),
        PruneError,
        r"10 units were to be cut and none can be: .*\n  fix: raise max_layer_fraction",
    ),
    "a threshold outside [0, 1]": (
        lambda f: fixing(overrides={"partition": {"threshold": 50.0}}),
        ConfigError,
        r"partition.threshold must lie in \[0, 1\], not 50.0",
    ),
    "a partition that keeps nothing": (
        lambda f: tuned(lambda s: 1.0),
        PartitionError,
        r"every sample was flagged\n  fix: raise partition.threshold",
    ),
    "an edit that keeps nothing": (
        lambda f: expunge.edit(
            memorised(), noisy(60), split_of(noisy(60), 1.0), method="ridge-head"
        ),
        PartitionError,
        r"edit: every sample was flagged\n  fix: raise partition.threshold",
    ),
    "a deletion decided by held-out samples": (
        lambda f: expunge.forget(memorised(), noisy(60), [1000], held_out=clean(60)),
        ConfigError,
        "forget: a deletion takes no held_out.*\n  fix: give .* as validation",
    ),
    "a class with nothing kept": (
        lambda f: tuned(lambda s: (s.labels == 4) * 1.0),
        PartitionError,
        "every sample of class 4 was flagged\n",
    ),
    "a partition of other samples": (
        lambda f: expunge.tune(memorised(), clean(60), split_of(noisy(60)), epochs=1),
        DataError,
        "there are no rows for ids 5000, 5001",
    ),
    "a folder with another run": (occupied, RunError, "seed: was 0, is 1"),
    "a folder with other files": (strange, RunError, r"holds other files: thesis\.tex"),
}


def ranking() -> Any:
    samples = noisy(60)
    p = np.random.default_rng(0).uniform(size=60)
    return expunge.rank(memorised(), samples, split_of(samples, p))


@pytest.mark.parametrize("case", [*DATA, *MODELS, *SETTINGS])
def test_bad_input_is_one_clear_error_that_leaves_the_files_alone(tmp_path, monkeypatch, case):
    work, kind, message = {**DATA, **MODELS, **SETTINGS}[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    folder = tmp_path / "work"
    folder.mkdir()
    before = contents(tmp_path)
    with pytest.raises(kind, match=message) as error:
        work(folder)
    assert type(error.value) in ExpungeError.__subclasses__()
    assert len(str(error.value)) < 1500
    assert before.items() <= contents(tmp_path).items()
    assert not (folder / "executed").exists()


def test_a_second_look_at_bad_input_gives_the_same_error_and_no_new_file(tmp_path):
    for work, kind, _ in (DATA["NaN labels"], MODELS["a pickle named .pt"]):
        said = []
        for _ in range(2):
            with pytest.raises(kind) as error:
                work(tmp_path)
            said.append(str(error.value))
            seen = contents(tmp_path)
        assert said[0] == said[1]
        assert seen == contents(tmp_path)


def test_the_pickle_of_these_tests_would_have_run(tmp_path):
    """Else the tests above would show nothing."""
    pickle.loads(pickle.dumps(Opens(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    "call", ["os.replace", "pyarrow.parquet.write_table", "pathlib.Path.mkdir"]
)
def test_a_disk_that_does_not_take_it_is_one_of_our_errors(tmp_path, monkeypatch, code, call):
    def refuse(*args: object, **settings: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "mine.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(RunError, match=f"cannot be written: {os.strerror(code)}\n  fix: free"):
            fixing(out=tmp_path / "run")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "result.json").exists()
    fixing(out=tmp_path / "run")  # with room again, it goes on
    assert (tmp_path / "run" / "result.json").exists()


# ------------------------------------------------------------------------------ command line

COMMANDS = {
    "a missing spec": ({}, ["repair", "nowhere.toml"], "there is no such spec file"),
    "a folder as a spec": ({}, ["repair", "."], "is a folder, expected a spec file"),
    "a folder to write a spec to": (
        {},
        ["init", "train.npz", "--out", "."],
        "is a folder, expected a file to write the spec to",
    ),
    "a missing spec of a report": (
        {},
        ["report", "no.toml"],
        "no.toml: there is no such spec file",
    ),
    "a missing spec of a review": (
        {},
        ["review", "no.toml"],
        "no.toml: there is no such spec file",
    ),
    "a missing file": (
        {"data": {"train": {"path": "missing.npz"}}},
        ["repair", "spec.toml"],
        "missing.npz: no such file",
    ),
    "a pickle": (
        {"model": {"weights": "bad.pt"}},
        ["score", "spec.toml"],
        "could run code",
    ),
    "an unknown key": ({"sede": 1}, ["repair", "spec.toml"], "did you mean 'seed'?"),
    "a fraction in percent": (
        {"prune": {"fraction": 20}},
        ["prune", "spec.toml"],
        "prune.fraction must lie in [0, 1]",
    ),
    "one set for both": (
        {"data": {"validation": {"path": "train.npz"}}},
        ["repair", "spec.toml"],
        "validation data: ids inside the training ids",
    ),
    "a folder with other files": (
        {},
        ["repair", "spec.toml", "--out", "."],
        "the folder holds other files",
    ),
    "no finished run": ({}, ["report", "."], "holds no finished run"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_on_the_command_line_it_is_exit_code_1_without_traceback(
    tmp_path, monkeypatch, capsys, case
):
    changes, arguments, message = COMMANDS[case]
    write_spec(tmp_path, changes)
    torch.save({"w": Opens(tmp_path / "executed")}, tmp_path / "bad.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr("sys.argv", ["expunge", *arguments])
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert {k: v for k, v in contents(tmp_path).items() if k != ".lock"} == before
    assert not (tmp_path / "executed").exists()


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="exclude each other"):
        expunge.plan(ranking(), fraction=0.1, count=3)
    good = split_of(noisy(60))
    with pytest.raises(DataError, match=r"p_noisy must lie in \[0, 1\]"):
        replace(good, p_noisy=good.p_noisy + 2)
