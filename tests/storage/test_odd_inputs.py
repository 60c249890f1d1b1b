"""Tensors of rare kinds, paths that no disk takes, settings that no training survives."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import expunge
from expunge import specs
from expunge.data import DataConfig, from_arrays, read
from expunge.errors import ExpungeError
from expunge.models.zoo import mlp
from expunge.review.exchange import formats
from expunge.storage.json_files import read_json
from expunge.storage.weights import load_weights

LONG = "x" * 5000


TENSORS = {
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "complex": lambda x: x.to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_weights_of_rare_kinds_are_read_or_refused(tmp_path, kind):
    model = mlp(inputs=3, classes=2, hidden=4)
    name = next(iter(model.state_dict()))
    torch.save({**model.state_dict(), name: TENSORS[kind](torch.ones(4, 3))}, tmp_path / "w.pt")
    try:
        load_weights(model, tmp_path / "w.pt")
    except ExpungeError:
        return
    assert torch.isfinite(model(torch.zeros(1, 3))).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_inputs_of_rare_kinds_are_read_or_refused(kind):
    try:
        samples = from_arrays(TENSORS[kind](torch.ones(4, 3)), [0, 1, 0, 1])
    except ExpungeError:
        return
    assert samples.batch(np.arange(2)).shape == (2, 3)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv", ".jsonl", ""])
def test_a_path_that_no_disk_takes_is_our_error(tmp_path, suffix):
    with pytest.raises(ExpungeError):
        read(DataConfig(LONG + suffix), folder=tmp_path)
    for reader in (specs.read_spec, read_json, expunge.load_run):
        with pytest.raises(ExpungeError):
            reader(tmp_path / (LONG + suffix))
    for name in formats.names():
        with pytest.raises(ExpungeError):
            formats.get(name)().read(tmp_path / (LONG + suffix))


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.jsonl", "x.json", "x.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    readers = {".json": read_json, ".toml": specs.read_spec}
    with pytest.raises(ExpungeError, match=r"pipe or a device|no such"):
        readers.get(path.suffix, lambda path: read(DataConfig(name), folder=tmp_path))(path)


def test_a_pipe_among_images_is_skipped_as_what_cannot_be_read(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for k in range(30):
            Image.new("L", (4, 4), k).save(tmp_path / label / f"{k}.png")
    os.mkfifo(tmp_path / "a" / "x.png")
    samples = read(DataConfig("."), folder=tmp_path)
    assert (len(samples), list(samples.skipped)) == (60, ["a/x.png"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"momentum": -1.0}, "momentum"), ({"lr": 1e308}, "lr"), ({"lr": float("inf")}, "lr")],
)
def test_a_training_that_cannot_go_well_is_refused(setting, message):
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    data = x, (x[:, 0] > 0).astype(np.int64)
    with pytest.raises(ExpungeError, match=re.escape(message)):
        expunge.tune(mlp(inputs=3, classes=2), data, targets="all", epochs=1, **setting)
