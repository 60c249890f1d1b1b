"""A repaired model that is written, read and asked again: weights, manifest and ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from typer.testing import CliRunner

import expunge
from expunge import cli, pipeline, specs
from expunge._core.rng import temp_seed
from expunge.data import Samples, TensorInputs, from_arrays
from expunge.data.dataset import DictInputs
from expunge.editing.readout import build_classifier
from expunge.errors import ConfigError, DataError, ExpungeError, ModelError, RunError
from expunge.export import onnx
from expunge.export.exported_model import CARD, GRAPH, WEIGHTS, export_run
from expunge.export.manifest import MANIFEST
from expunge.models.audio import MFCC
from expunge.models.calls import logits_of
from expunge.models.zoo import kws, resnet
from expunge.pruning import surgery
from expunge.records import HeadPlan, PrunePlan
from expunge.storage.json_files import seal
from oracles_audio import noise, tone
from oracles_digits import clean, memorised
from oracles_specs import write_spec

pytestmark = pytest.mark.usefixtures("few_trees")

MLP = {
    "constructor": "expunge.models:mlp",
    "arguments": {"inputs": 64, "classes": 10, "hidden": 48},
}
PLAN = PrunePlan({"1": (0, 3, 47), "3": (5,)}, 4)
WORDS = {"classes": 3, "n_mels": 20, "widths": [8, 12, 12], "strides": [2, 1]}
SPEECH = {"constructor": "expunge.models:kws", "arguments": WORDS}


def pruned() -> nn.Module:
    return surgery.prune(memorised(), PLAN, clean().example()).eval()


class EndOfText(nn.Module):
    """As BART and T5: it reads the position of the token that ends a text."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        is_end = input_ids == 2
        if not is_end.any(dim=1).all():
            raise ValueError("a text has no end")
        x = self.embedding(input_ids)[torch.arange(len(is_end)), is_end.int().argmax(dim=1)]
        return self.head(torch.relu(self.hidden(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.n_heads = 4

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(2, 3) + (mask[:, None, None] - 1) * 1e9
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Attentive(nn.Module):
    """Without positions: its attention to equal tokens does not depend on queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.attention, self.head = Attention(), nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(input_ids))
        return self.head((x + self.attention(x, attention_mask))[:, -1])


def test_a_cut_attention_is_exported(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 20, (12, 5))
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    samples, model = from_arrays(inputs, np.arange(12) % 3), Attentive().eval()
    (name,) = surgery.trace(model, samples.example()).n_heads
    plan = PrunePlan({name: (1,)}, 1)
    small = surgery.prune(model, plan, samples.example())
    exported = expunge.export_model(small, samples, tmp_path, constructor=Attentive, plan=plan)
    assert_allclose(exported(inputs), logits_of(small, samples.batch(np.arange(12))).detach())


def test_a_cut_model_that_looks_for_a_token_is_exported(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(3, 20, (12, 5))
    tokens[:, 4] = 2
    samples, plan = (
        from_arrays({"input_ids": tokens}, np.arange(12) % 3),
        PrunePlan({"hidden": (1,)}, 1),
    )
    small = surgery.prune(EndOfText().eval(), plan, samples.example())
    exported = expunge.export_model(small, samples, tmp_path, constructor=EndOfText, plan=plan)
    assert_allclose(
        exported({"input_ids": tokens}), logits_of(small, samples.batch(np.arange(12))).detach()
    )


def sound(n: int = 70) -> Samples:
    """Tones, soft noise and, as recordings may have it, nothing at all."""
    clips = [
        tone(4000, hertz=300 + 7 * i) if i % 3 == 0 else noise(4000, seed=i) * (i % 3 == 1)
        for i in range(n)
    ]
    inputs = TensorInputs(torch.from_numpy(np.stack(clips).astype(np.int16)))
    labels = np.arange(n) % 3
    return Samples(np.arange(n), labels, ("low", "hiss", "hush"), inputs, sample_rate=16_000)


def words() -> tuple[nn.Module, PrunePlan]:
    """A cut network for words whose batch norms have seen some sound."""
    with temp_seed(0, "network"):
        model = kws(**{**WORDS, "widths": (8, 12, 12), "strides": (2, 1)})
        model.train()(sound().batch(np.arange(70)))
    plan = PrunePlan({"3": (1, 2), "6.3": (0, 11)}, 4)
    return surgery.prune(model.eval(), plan, sound().example()).eval(), plan


def images() -> Samples:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 3, 16, 16)).astype(np.uint8)
    settings = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "view": "flip"}
    return from_arrays(x, np.arange(40) % 4, classes=("a", "b", "c", "d"), **settings)


# --------------------------------------------------------------------- weights and manifest


def test_what_is_read_gives_the_logits_of_what_was_written(tmp_path):
    model, data = pruned(), clean()
    with torch.inference_mode():
        expected = model(data.batch(np.arange(len(data))))
    expunge.export_model(model, data, tmp_path / "out", **MLP, plan=PLAN)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {MANIFEST, WEIGHTS, CARD}
    found = expunge.load_exported_model(tmp_path / "out")
    stored = data.inputs.batch(np.arange(len(data)))
    assert torch.equal(found(stored), expected)
    assert found.predict(stored[:9]) == [str(c) for c in expected[:9].argmax(dim=1).tolist()]
    assert not found.model.training
    assert sum(p.numel() for p in found.model.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


def test_the_manifest_says_all_that_is_needed(tmp_path):
    model, plan = words()
    expunge.export_model(model, sound(), tmp_path / "out", **SPEECH, plan=plan)
    said = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert said["constructor"] == "expunge.models:kws"
    assert said["arguments"] == WORDS
    assert said["plan"] == {"3": [1, 2], "6.3": [0, 11]}
    assert said["classes"] == ["low", "hiss", "hush"]
    assert said["inputs"] == {"input": {"shape": [4000], "dtype": "int16", "scale": 1 / 32768}}
    assert said["sample_rate"] == 16_000
    assert list(said["sha256"]) == [WEIGHTS]
    assert said["versions"]["torch"] == torch.__version__
    assert said["onnx"] is None
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()


@pytest.mark.parametrize("what", ["sound", "images"])
def test_stored_inputs_are_prepared_as_in_training(tmp_path, what):
    if what == "sound":
        (model, plan), data, how = words(), sound(), SPEECH
    else:
        with temp_seed(0, "network"):
            model, plan, data = (
                resnet(classes=4, widths=(4, 8), blocks=(1, 1)).eval(),
                None,
                images(),
            )
        arguments = {"classes": 4, "widths": [4, 8], "blocks": [1, 1]}
        how = {"constructor": "expunge.models:resnet", "arguments": arguments}
    expunge.export_model(model, data, tmp_path / "out", **how, plan=plan)
    rows = np.arange(20)
    with torch.inference_mode():
        expected = model(data.batch(rows))
    stored = data.inputs.batch(rows)
    found = expunge.load_exported_model(tmp_path / "out")
    assert torch.equal(found(stored), expected)
    assert torch.equal(found(stored.numpy()), expected)
    assert found.predict(stored.numpy()) == found.predict(stored)


def test_inputs_of_another_form_than_the_manifest_s_are_refused(tmp_path):
    model, plan = words()
    found = expunge.export_model(model, sound(), tmp_path / "out", **SPEECH, plan=plan)
    x = sound().inputs.batch(np.arange(3)).numpy()
    for wrong, message in {
        "one": (x[0], r"got int16\[4000\], expected int16\[b, 4000\]\n.*x\[None\] makes a batch"),
        "short": (x[:, :99], r"got int16\[3, 99\], expected int16\[b, 4000\]\n.*as they were"),
        "unscaled": (x.astype(np.float32), r"floats as large .* 1/32768\n.*x\.astype\('int16'\)"),
        "wide": (x.astype(np.int64), r"got int64\[3, 4000\], expected int16"),
        "text": (x.astype(str), "got dtype <U6, expected floats, uint8 or signed integers"),
        "list": (x.tolist(), "got a list, expected an array .*\n  fix: numpy.asarray"),
    }.values():
        with pytest.raises(DataError, match=message):
            found.predict(wrong)
    assert found.predict(x.astype(np.float64) / 32768) == found.predict(x)
    small = resnet(classes=4, widths=(4,), blocks=(1,)).eval()
    how = {"arguments": {"classes": 4, "widths": [4], "blocks": [1]}}
    how["constructor"] = "expunge.models:resnet"
    of_images = expunge.export_model(small, images(), tmp_path / "images", **how)
    with pytest.raises(DataError, match=r"fix: x\.transpose\(0, 3, 1, 2\)"):
        of_images.predict(images().inputs.batch(np.arange(3)).numpy().transpose(0, 2, 3, 1))
    broken = x.astype(np.float32) / 32768
    broken[1] = np.nan
    with pytest.raises(DataError, match=r"logits are NaN or infinite for rows 1\n  fix: fill"):
        found.predict(broken)


def test_code_that_is_not_there_is_to_be_copied_into_the_folder(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    code = "from expunge.models import mlp\n"
    (tmp_path / "code" / "net_of_mine.py").write_text(code, encoding="utf-8")
    how = {**MLP, "constructor": "net_of_mine:mlp"}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "code")
        expunge.export_model(pruned(), clean(), tmp_path / "out", **how, plan=PLAN)
    sys.modules.pop("net_of_mine")
    with pytest.raises(ModelError, match="net_of_mine: cannot be imported") as error:
        expunge.load_exported_model(tmp_path / "out")
    assert f"copy net_of_mine.py into {tmp_path / 'out'}, or install" in str(error.value)
    (tmp_path / "out" / "net_of_mine.py").write_text(code, encoding="utf-8")
    assert expunge.load_exported_model(tmp_path / "out").predict(np.zeros((2, 1, 8, 8), np.float32))
    sys.modules.pop("net_of_mine")


def test_masked_units_stay_masked(tmp_path):
    model, data = memorised(), clean()
    surgery.mask(model, PLAN, data.example())
    expunge.export_model(model, data, tmp_path / "out", **MLP, plan=PLAN, mode="mask")
    found = expunge.load_exported_model(tmp_path / "out")
    rows = np.arange(50)
    with torch.inference_mode():
        expected, whole = model(data.batch(rows)), memorised()(data.batch(rows))
    assert torch.equal(found(data.inputs.batch(rows)), expected)
    assert not torch.allclose(expected, whole)


class Sum(nn.Module):
    """A model of two inputs by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(5, width), nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.token(ids).mean(dim=1) * scale)}


def test_models_of_several_inputs_come_back(tmp_path):
    inputs = DictInputs({"ids": torch.arange(12).view(6, 2) % 5, "scale": torch.rand(6, 1)})
    data = Samples(np.arange(6), np.arange(6) % 2, ("a", "b"), inputs)
    with temp_seed(0, "network"):
        model = Sum(3).eval()
    how = {"constructor": f"{__name__}:Sum", "arguments": {"width": 3}}
    expunge.export_model(model, data, tmp_path / "out", **how)
    found = expunge.load_exported_model(tmp_path / "out")
    expected = logits_of(model, data.batch(np.arange(6)))
    stored = data.inputs.batch(np.arange(6))
    assert torch.equal(found(stored), expected)
    assert torch.equal(found({name: x.numpy() for name, x in stored.items()}), expected)
    with pytest.raises(DataError, match="takes several inputs: ids, scale"):
        found(stored["ids"])
    with pytest.raises(DataError, match="there is no 'scale'"):
        found({"ids": stored["ids"]})
    require_onnx()
    expunge.export_model(model, data, tmp_path / "graph", **how, onnx=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "graph" / GRAPH)
    assert [i.name for i in session.get_inputs()] == ["ids", "scale"]
    got = session.run(None, {name: x.numpy() for name, x in stored.items()})[0]
    assert_allclose(got, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_another_network_than_the_one_given_is_refused_and_nothing_is_written(tmp_path):
    wrong = {
        "hidden": ({"inputs": 64, "classes": 10, "hidden": 40}, PLAN, "units 0 to 39, not 47"),
        "plan": (MLP["arguments"], None, "wrong shape"),
        "plain": ({"inputs": object()}, PLAN, "arguments must be plain values"),
    }
    for arguments, plan, message in wrong.values():
        how = {"constructor": MLP["constructor"], "arguments": arguments}
        with pytest.raises(ExpungeError, match=message):
            expunge.export_model(pruned(), clean(), tmp_path / "out", **how, plan=plan)
    with pytest.raises(ModelError, match="do not give the model's own logits"):
        expunge.export_model(
            nn.Sequential(*memorised(), nn.Softmax(dim=1)), clean(), tmp_path / "out", **MLP
        )
    assert list(tmp_path.iterdir()) == []


class Drawing(nn.Module):
    """Draws in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(x.flatten(1), 0.5, training=True))


class Descending(nn.Module):
    """Takes a step along its own gradient, as energy models do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.head(x).logsumexp(dim=1).sum(), x)
        return self.head(x - slope)


def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), backend="eager")


@pytest.mark.parametrize("make", [Drawing, Descending, compiled])
def test_the_constructor_s_network_may_draw_descend_or_be_compiled(tmp_path, make):
    expunge.export_model(make(), clean(), tmp_path / "out", constructor=make)
    loaded = expunge.load_exported_model(tmp_path / "out").model
    assert not [name for name in loaded.state_dict() if name.startswith("_orig_mod")]


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Linear(64, 10), "fails on the first sample"), (memorised().half(), "not float32")],
)
def test_a_model_that_does_not_run_is_not_exported(tmp_path, model, message):
    with pytest.raises(ModelError, match=message):
        expunge.export_model(model, clean(), tmp_path / "out", **MLP)


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        expunge.export_model(pruned(), clean(), tmp_path, **MLP, plan=PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_files_that_have_changed_are_refused(tmp_path):
    expunge.export_model(pruned(), clean(), tmp_path / "out", **MLP, plan=PLAN)
    file, said = tmp_path / "out" / MANIFEST, json.loads((tmp_path / "out" / MANIFEST).read_text())
    file.write_text(json.dumps({**said, "schema": 9}))
    with pytest.raises(RunError, match="has the schema 9, this version reads 2"):
        expunge.load_exported_model(tmp_path / "out")
    file.write_text(json.dumps({**said, "mode": "mask"}))
    with pytest.raises(RunError, match="has changed since it was written"):
        expunge.load_exported_model(tmp_path / "out")
    plain = {k: v for k, v in said.items() if k != "digest"}
    huge = {"input": {"shape": [10**12], "dtype": "float32"}}
    for inputs in (huge, {"input": {"shape": [64], "dtype": "load"}}):
        file.write_text(json.dumps(seal({**plain, "inputs": inputs})))
        with pytest.raises(RunError, match="input 'input' is"):
            expunge.load_exported_model(tmp_path / "out")
    file.write_text(json.dumps(seal({**plain, "clases": 3})))
    with pytest.raises(ConfigError, match="did you mean 'classes'"):
        expunge.load_exported_model(tmp_path / "out")
    file.write_text(json.dumps(said))
    with (tmp_path / "out" / WEIGHTS).open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x55")
    with pytest.raises(RunError, match="has changed since it was written"):
        expunge.load_exported_model(tmp_path / "out")
    (tmp_path / "out" / WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: cannot be read: No such file"):
        expunge.load_exported_model(tmp_path / "out")
    with pytest.raises(RunError, match=r"manifest\.json: cannot be read"):
        expunge.load_exported_model(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, nn.Module]:
    """A spec, the folder of its run, and the repaired model."""
    spec = write_spec(tmp_path_factory.mktemp("spec"))
    run = spec.parent / "run"
    job = specs.load_spec(spec, out=run)
    result = pipeline.repair(job.model, job.train, job.validation, **job.options)
    assert result.plan is not None
    assert result.plan.granted > 0
    return spec, run, result.model


def test_the_command_writes_the_model_of_a_finished_run(finished, tmp_path):
    spec, run, model = finished
    command = ["export", str(spec), "--run", str(run), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(cli.app, command)
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith(f"{tmp_path / 'out'}: {WEIGHTS}, {MANIFEST}, README.md\n")
    data = clean()
    found = expunge.load_exported_model(tmp_path / "out")(data.inputs.batch(np.arange(99)))
    with torch.inference_mode():
        assert_allclose(found, model(data.batch(np.arange(99))), rtol=1e-5, atol=1e-5)
    again = CliRunner().invoke(cli.app, [*command[:-1], str(tmp_path / "other"), "--json"])
    assert json.loads(again.stdout)["folder"] == str(tmp_path / "other")


def test_a_run_that_held_some_training_samples_out_is_exported(tmp_path):
    trained = {"model": {"weights": None}, "train": {"epochs": 1}, "recipe": "instant"}
    spec = write_spec(tmp_path / "job", {**trained, "hold_out": 0.2})
    job = specs.load_spec(spec, seed=3, out=tmp_path / "run")
    result = pipeline.repair(
        job.model, job.train, job.validation, held_out=job.held_out, **job.options
    )
    exported = export_run(spec, tmp_path / "out", run=tmp_path / "run")
    x = clean().batch(np.arange(9))
    with torch.inference_mode():
        assert_allclose(exported(x), result.model(x), rtol=1e-5, atol=1e-5)


def test_runs_that_are_not_finished_or_of_other_data_are_refused(finished, tmp_path):
    spec, run, _ = finished
    with pytest.raises(RunError, match="holds no finished run"):
        export_run(spec, tmp_path / "out", run=tmp_path)
    other = write_spec(spec.parent, {"data": {"train": {"max_rows": 150}}}, name="other")
    with pytest.raises(RunError, match="other training data than the spec names: ids, labels"):
        export_run(other, tmp_path / "out", run=run)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- ONNX


def require_onnx() -> None:
    for package in onnx.PACKAGES:
        pytest.importorskip(package, reason="expunge[onnx] is not installed")


def asked(file: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": x})[0]


def test_a_waveform_goes_into_the_onnx_file_and_the_model_s_logits_come_out(tmp_path):
    require_onnx()
    (model, plan), data = words(), sound()
    found = expunge.export_model(model, data, tmp_path / "out", **SPEECH, plan=plan, onnx=True)
    assert found.manifest.onnx.n_samples == 70
    assert found.manifest.onnx.max_difference < 1e-4
    assert found.manifest.onnx.agreement == 1
    with torch.inference_mode():
        for n in (1, 7, 70):
            rows = np.arange(n)
            x = data.inputs.batch(rows).numpy().astype(np.float32) / 32768
            got, expected = asked(tmp_path / "out" / GRAPH, x), model(data.batch(rows)).numpy()
            assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    again = expunge.load_exported_model(tmp_path / "out")
    assert again.manifest == found.manifest
    assert set(again.manifest.sha256) == {WEIGHTS, GRAPH}


def test_cepstra_with_a_cut_below_the_loudest_are_in_the_graph_too(tmp_path):
    require_onnx()
    with temp_seed(0, "network"):
        model = nn.Sequential(MFCC(), nn.Flatten(), nn.Linear(40 * 8, 3)).eval()
    onnx.write_graph(model, sound(), tmp_path / "m.onnx")
    parity = onnx.compare_graph(model, sound(), tmp_path / "m.onnx", tolerance=1e-2)
    assert parity.agreement == 1


def test_mean_and_deviation_are_in_the_graph(tmp_path):
    require_onnx()
    with temp_seed(0, "network"):
        model = resnet(classes=4, widths=(4, 8), blocks=(1, 1)).eval()
    onnx.write_graph(model, images(), tmp_path / "m.onnx")
    x = images().inputs.batch(np.arange(5)).numpy().astype(np.float32) / 255
    with torch.inference_mode():
        expected = model(images().batch(np.arange(5))).numpy()
    assert_allclose(asked(tmp_path / "m.onnx", x), expected, rtol=1e-4, atol=1e-4)


def test_a_head_in_closed_form_is_in_the_graph(tmp_path):
    require_onnx()
    with temp_seed(0, "network"):
        model = resnet(classes=4, widths=(4, 8), blocks=(1, 1)).eval()
        plan = HeadPlan(("stages.0.0", "stages.1.0"), 512, 4 * 17 + 8 * 17, 4)
        cut = build_classifier(model, plan, images().example()).eval()
        nn.init.normal_(cut.head.weight)
    onnx.write_graph(cut, images(), tmp_path / "m.onnx")
    parity = onnx.compare_graph(cut, images(), tmp_path / "m.onnx", tolerance=1e-2)
    assert parity.agreement == 1


def test_masks_are_in_the_graph(tmp_path):
    require_onnx()
    model, data = memorised(), clean()
    surgery.mask(model, PLAN, data.example())
    expunge.export_model(model, data, tmp_path / "out", **MLP, plan=PLAN, mode="mask", onnx=True)
    whole = memorised()
    with pytest.raises(ModelError, match="from the model's on 300 samples"):
        onnx.compare_graph(whole, data, tmp_path / "out" / GRAPH, tolerance=1e-3)


def test_a_graph_that_does_not_give_the_model_s_logits_is_not_written(tmp_path):
    require_onnx()
    (model, plan), data = words(), sound()
    with pytest.raises(ModelError, match="more than -1"):
        expunge.export_model(
            model, data, tmp_path / "out", **SPEECH, plan=plan, onnx=True, tolerance=-1
        )
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_the_runtime_refuses_is_an_error(tmp_path):
    """As torch writes for ``x.squeeze(1)`` of a batch of vectors."""
    require_onnx()
    from onnx import TensorProto, helper, save

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 64]) for n in "xy")
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("Squeeze", ["x", "axes"], ["y"])
    save(helper.make_model(helper.make_graph([node], "g", [x], [y], [axes])), tmp_path / GRAPH)
    with pytest.raises(ModelError, match=r"cannot run the graph.*Squeeze"):
        onnx.compare_graph(pruned(), clean(), tmp_path / GRAPH, tolerance=1)


def test_without_the_packages_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'onnx' is not installed") as error:
        expunge.export_model(pruned(), clean(), tmp_path / "out", **MLP, plan=PLAN, onnx=True)
    assert "expunge[onnx]" in str(error.value)
    assert list(tmp_path.iterdir()) == []
