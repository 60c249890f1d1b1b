"""Files of weights as people have them."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from expunge.errors import ModelError
from expunge.models.zoo import mlp
from expunge.storage.weight_files import read_weights
from expunge.storage.weights import load_weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(inputs=3, classes=2, hidden=4)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_weights(network(), path)
    return str(caught.value)


def assert_loads(path: Path) -> None:
    into = network(seed=1)
    load_weights(into, path)
    assert_close(into.state_dict(), network().state_dict(), rtol=0, atol=0)


def touch(name: str) -> None:
    Path(name).touch()


class Touches:
    def __reduce__(self):
        return (touch, ("ran",))


BESIDE = {
    "settings": argparse.Namespace(lr=0.1),
    "a path": Path("runs"),
    "a metric of NumPy": np.float64(0.5),
    "an array": np.arange(3),
    "code": Touches(),
    "metrics": {"loss": 0.1},
    "an optimiser": torch.optim.Adam(network().parameters()).state_dict(),
}


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "ema"])
@pytest.mark.parametrize("beside", BESIDE)
def test_weights_are_found_beside_other_objects_which_are_not_made(
    tmp_path, monkeypatch, key, beside
):
    monkeypatch.chdir(tmp_path)
    torch.save({key: network().state_dict(), "beside": BESIDE[beside]}, "best.pth.tar")
    assert_loads(Path("best.pth.tar"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("averages", ["model_ema", "ema.module"])
def test_averaged_weights_beside_those_that_are_read_are_named(tmp_path, caplog, averages):
    first, *below = averages.split(".")
    average = {f"module.{k}": v for k, v in network(seed=1).state_dict().items()}
    beside = dict.fromkeys(below, average) | {"decay": 0.9} if below else average
    torch.save({"model": network().state_dict(), first: beside}, tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt")
    assert f"under 'model' are read, not those of the same shapes under {averages};" in caplog.text


def run_fix(message: str) -> None:
    """Run the code that a message advises."""
    start = message.index("torch.save(")
    exec(message[start : message.index("'weights.pt')") + len("'weights.pt')")], {"torch": torch})


def whole(path: str) -> None:
    torch.save(network(), path)


def whole_under_a_key(path: str) -> None:
    torch.save({"epoch": 3, "model": network()}, path)


def two_state_dicts(path: str) -> None:
    torch.save({"ema": network().state_dict(), "net": network(seed=1).state_dict()}, path)


def scripted(path: str) -> None:
    torch.jit.script(network()).save(path)


def exported(path: str) -> None:
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3),)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("save", "name", "reason"),
    [
        (whole, "w.pt", "holds an object of the class torch.nn.modules.container.Sequential"),
        (whole_under_a_key, "w.ckpt", "holds an object of the class torch.nn"),
        (two_state_dicts, "w.pt", "holds several state dicts: ema, net"),
        (scripted, "w.pt", "a program of TorchScript"),
        (exported, "w.pt2", "a program of torch.export"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_code_that_makes_one(
    tmp_path, monkeypatch, save, name, reason
):
    monkeypatch.chdir(tmp_path)
    save(name)
    message = refusal(Path(name))
    assert reason in message
    run_fix(message)
    assert_loads(Path("weights.pt"))


def test_the_index_of_several_files_names_all_weights(tmp_path):
    state = network().state_dict()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({n: t for n, t in state.items() if files[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    assert_loads(index)
    assert "name a file in it: model.safetensors.index.json" in refusal(tmp_path)
    index.write_text("{}", encoding="utf-8")
    assert "not an index of weights files" in refusal(index)


def test_the_message_for_a_folder_says_which_file_holds_the_weights(tmp_path):
    assert "name a file of weights" in refusal(tmp_path)
    torch.save({}, tmp_path / "optimizer.pt")
    assert "name a file in it: optimizer.pt" in refusal(tmp_path)
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    assert refusal(tmp_path).endswith("name a file in it: model.safetensors")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "set pretrained = " in refusal(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    assert "dcp_to_torch_save" in refusal(tmp_path)


def test_a_name_that_torch_does_not_use_is_to_be_changed(tmp_path):
    torch.save(network().state_dict(), tmp_path / "best.model")
    assert "if torch.save wrote it, name it best.pt" in refusal(tmp_path / "best.model")
    assert_loads((tmp_path / "best.model").rename(tmp_path / "best.pt"))


def test_weights_under_one_prefix_are_loaded_and_the_rest_is_named(tmp_path, caplog):
    state = {f"net.{n}": t for n, t in network().state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(2)}}, tmp_path / "w.ckpt")
    with caplog.at_level(logging.WARNING):
        assert_loads(tmp_path / "w.ckpt")
    assert "left out: loss.weight" in caplog.text
    torch.save(
        state | {f"ema.{n}": t for n, t in network().state_dict().items()}, tmp_path / "w.pt"
    )
    assert "under several prefixes: ema., net." in refusal(tmp_path / "w.pt")


def test_averaged_weights_are_loaded_into_the_network_itself(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    torch.save(averaged.state_dict(), tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt")


def test_the_users_list_of_safe_classes_does_not_change(tmp_path):
    before = {*torch.serialization.get_safe_globals()}
    torch.save({"model": network().state_dict(), "args": argparse.Namespace()}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == network().state_dict().keys()
    (tmp_path / "w.pt").write_bytes(pickle.dumps(argparse.Namespace()))
    assert "the pickle is damaged or holds more than tensors" in refusal(tmp_path / "w.pt")
    assert {*torch.serialization.get_safe_globals()} == before
