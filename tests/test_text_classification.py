"""Text classifiers from end to end: a Trainer folder and a CSV file, adapters, reports, exports."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.testing import assert_close
from typer.testing import CliRunner

import expunge
from expunge import cli, specs
from expunge._core.rng import temp_seed
from expunge.data import DictInputs, Samples, from_arrays, from_texts
from expunge.data.texts import TextInputs
from expunge.detection.pooling import default_feature_layers
from expunge.detection.signals import collect
from expunge.errors import ConfigError, ModelError, RunError
from expunge.export.pretrained import filled_with_zeros
from expunge.models.huggingface import class_names, load_pretrained
from expunge.models.inspection import inspect_layers
from expunge.pruning import surgery
from expunge.records import PrunePlan
from expunge.reporting.media import rows_for
from expunge.spec_check import check_spec
from oracles_specs import toml
from oracles_text_models import bert, documents, tokenizer

pytestmark = pytest.mark.usefixtures("few_trees")

NAMES = ["sport", "art", "law"]


def fitted(model, samples, epochs=25, lr=5e-3):
    """The model after a short training on the given labels."""
    optimiser = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    with temp_seed(0, "test"):
        for _ in range(epochs):
            for rows in torch.randperm(len(samples)).split(32):
                batch = samples.batch(rows.numpy())
                y = torch.as_tensor(samples.labels[rows.numpy()])
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(**batch).logits, y).backward()
                optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    """A BERT that was trained on texts with a quarter of wrong labels, and its data."""
    texts, given, right = documents(150)
    samples = from_texts(texts, given, tokenizer=tokenizer(), classes=NAMES)
    return fitted(bert(names=NAMES), samples), samples, right


def write_csv(path, texts, labels):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "topic"])
        rows.writerows([text, NAMES[c]] for text, c in zip(texts, labels, strict=True))


@pytest.fixture
def folder(trained, tmp_path):
    """A checkpoint as a Trainer writes it, CSV files, and a spec."""
    trained[0].save_pretrained(tmp_path / "checkpoint-10")
    tokenizer().save_pretrained(tmp_path / "checkpoint-10")
    texts, given, _ = documents(150)
    write_csv(tmp_path / "train.csv", texts, given)
    test, _, right = documents(60, seed=1)
    write_csv(tmp_path / "test.csv", test, right)
    table = {
        "baselines": ["no-op"],
        "model": {"pretrained": "checkpoint-10"},
        "data": {
            "source": "csv",
            "input": "text",
            "label": "topic",
            "length": 32,
            "train": {"path": "train.csv"},
            "validation": {"path": "test.csv"},
        },
        "tune": {"epochs": 1, "optimizer": "adamw", "lr": 1e-3},
    }
    (tmp_path / "spec.toml").write_text(toml(table))
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_trainer_folder_and_a_csv_file_go_through_the_command_line(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    spec, out = folder / "spec.toml", folder / "run"
    run("check", spec)
    found = json.loads(run("repair", spec, "--out", out, "--json"))
    assert found["partition"]["flagged"] > 0
    page = (out / "report.html").read_text()
    assert "sport" in page
    texts = documents(150)[0]
    assert sum(text in page for text in texts) >= 5
    run("export", spec, "--run", out, "--out", folder / "repaired")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "repaired")
    tokens = AutoTokenizer.from_pretrained(folder / "repaired")(texts[:3], padding=True)
    assert model.config.id2label == dict(enumerate(NAMES))
    batch = {k: torch.tensor(v) for k, v in tokens.items()}
    loaded = specs.load_spec(spec, out=out)
    repaired = expunge.load_run(out, model=loaded.model, data=loaded.train).model
    with torch.no_grad():
        assert_close(model.eval()(**batch).logits, repaired(**batch).logits)


def test_class_names_and_tokenizer_of_the_folder_are_those_of_the_data(folder):
    loaded = specs.load_spec(folder / "spec.toml", out=folder / "run")
    # In the order of the logits, which is not that of the alphabet.
    assert loaded.train.classes == tuple(NAMES)
    assert loaded.train.labels.tolist() == documents(150)[1].tolist()
    assert class_names(folder / "checkpoint-10") == tuple(NAMES)
    with torch.no_grad():
        batch = loaded.train.batch(np.arange(8))
        expected = load_pretrained(folder / "checkpoint-10")(**batch).logits
        assert_close(loaded.model(**batch).logits, expected)


def test_padding_changes_neither_features_nor_scores(trained):
    model, samples, _ = trained
    some = samples.subset(np.arange(40))
    batch = some.batch(np.arange(40))
    wide = {k: nn.functional.pad(v, (0, 20)) for k, v in batch.items()}
    items = [
        {**{k: v[i] for k, v in wide.items()}, "label": int(c)} for i, c in enumerate(some.labels)
    ]
    padded = expunge.from_dataset(items, classes=NAMES)
    needs = frozenset({"features"})
    signals = collect(model, some, needs=needs, precision="float32")
    for other in (padded, replace(some, inputs=DictInputs(wide))):
        seen = collect(model, other, needs=needs, precision="float32")
        np.testing.assert_allclose(seen.inputs, signals.inputs, atol=1e-5)
        for name, features in signals.features.items():
            np.testing.assert_allclose(seen.features[name], features, atol=1e-4)


def test_short_texts_are_no_bad_inputs():
    texts, given, _ = documents(200, wrong=0.0)
    short = np.arange(200) % 5 == 0
    texts = [" ".join(t.split()[:4]) if s else t for t, s in zip(texts, short, strict=True)]
    samples = from_texts(texts, given, tokenizer=tokenizer(), classes=NAMES)
    split = expunge.partition(expunge.score(fitted(bert(names=NAMES), samples, 6), samples))
    assert (split.p_input_fault[short] > 0.5).mean() < 0.1


def test_feature_layers_of_a_transformer_are_the_outputs_of_its_blocks(trained):
    model, samples, _ = trained
    layout = inspect_layers(model, samples.example())
    assert layout.blocks == ("bert.encoder.layer.0", "bert.encoder.layer.1")
    chosen = default_feature_layers(layout)
    assert chosen[:2] == layout.blocks
    assert not any("attention" in name for name in chosen)
    assert layout.head == "classifier"


def test_wrong_labels_are_found_and_the_report_shows_their_texts(trained):
    model, samples, right = trained
    scores = expunge.score(model, samples)
    split = expunge.partition(scores)
    wrong = samples.labels != right
    assert roc_auc_score(wrong, split.p_noisy) > 0.85
    ids = samples.ids[:3].tolist()
    shown = rows_for(samples, ids)
    assert shown.names == ("text",)
    assert [shown.values[i] for i in ids] == [(text,) for text in documents(150)[0][:3]]


@pytest.mark.parametrize("view", ["token-dropout", "span-mask"])
def test_views_of_texts_augment_the_training_and_leave_scores_as_they_are(trained, view):
    model, samples, _ = trained
    texts = documents(150)[0]
    seen = from_texts(texts, samples.labels, tokenizer=tokenizer(), classes=NAMES, view=view)
    needs = frozenset({"features", "views"})
    plain, other = (
        collect(model, data, needs=needs, views=2, precision="float32") for data in (samples, seen)
    )
    np.testing.assert_allclose(other.augmented_probs, plain.augmented_probs)
    assert other.views == 0
    settings = {"targets": "all", "epochs": 1, "optimizer": "adamw", "lr": 1e-3, "batch_size": 50}
    first, again, without = (
        expunge.tune(model, seen, **settings, augment=augment).classifier.weight
        for augment in (True, True, False)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, without)


def test_a_pruned_model_is_saved_in_its_original_size_with_the_same_logits(trained, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model, samples, _ = trained
    plan = PrunePlan(
        {
            "bert.encoder.layer.0.intermediate.dense": (0, 5, 7),
            "bert.encoder.layer.1.attention": (1,),
            "bert.pooler.dense": (2,),  # behind a tanh
        },
        5,
    )
    small = surgery.prune(model, plan, samples.batch(np.arange(1)))
    assert small.bert.encoder.layer[0].intermediate.dense.out_features == 21
    assert small.bert.encoder.layer[1].attention.self.num_attention_heads == 1
    out = expunge.save_pretrained(
        small, tmp_path / "saved", samples, plan=plan, tokenizer=tokenizer()
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(out).eval()
    batch = samples.batch(np.arange(9))
    with torch.no_grad():
        assert_close(loaded(**batch).logits, small(**batch).logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(RunError, match="is not empty"):
        expunge.save_pretrained(small, out, samples, plan=plan)
    assert not (out / "model.onnx").exists()
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "classify(inputs, truncation=True)" in card  # longer texts than the model takes
    state = filled_with_zeros(bert(names=NAMES), plan, batch, small.state_dict())
    kept = state["bert.encoder.layer.0.intermediate.dense.weight"]
    assert (kept[[0, 5, 7]] == 0).all()
    assert (kept[[1, 2]] != 0).all()


def test_texts_that_are_longer_than_the_model_takes_are_named_before_any_work(trained):
    model, samples, _ = trained
    ids = [[1, 1], *[[1] * 5] * 4, [1] * 900]
    names = ("input_ids", "attention_mask", "token_type_ids")
    rows = TextInputs(dict.fromkeys(names, ids))
    long = Samples(np.arange(6) + 10_000, np.arange(6) % 3, tuple(NAMES), rows)
    with pytest.raises(ModelError, match=r"fails on sample 10005: .*\n.*set length if the 900 tok"):
        expunge.score(model, long)
    with pytest.raises(ModelError, match="fails on sample 10005: "):
        expunge.repair(model, samples, held_out=long, progress=lambda *_: pytest.fail("too late"))


def test_a_pruned_text_classifier_is_written_as_onnx_beside_its_weights(trained, tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model, samples, _ = trained
    plan = PrunePlan({"bert.encoder.layer.0.attention": (0,)}, 1)
    small = surgery.prune(model, plan, samples.batch(np.arange(1)))
    out = expunge.save_pretrained(small, tmp_path / "saved", samples, plan=plan, onnx=True)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert {i.name for i in session.get_inputs()} == set(samples.batch(np.arange(1)))
    for rows in (np.arange(1), np.arange(40, 57)):
        batch = samples.batch(rows)
        got = session.run(None, {k: x.numpy() for k, x in batch.items()})[0]
        with torch.no_grad():
            assert_close(torch.from_numpy(got), small(**batch).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_repaired_on_its_frozen_base_and_saved_as_an_adapter(trained, tmp_path):
    peft = pytest.importorskip("peft")
    _, samples, _ = trained
    base = bert(names=NAMES)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(load_pretrained(tmp_path / "base"), config)
    fitted(model, samples, 5)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    tuned = expunge.tune(
        model, samples, targets="all", epochs=1, optimizer="adamw", lr=1e-2, augment=False
    )
    trainable = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]
    for name, weight in tuned.named_parameters():
        if name in before:
            assert_close(weight, before[name])
    out = expunge.save_pretrained(tuned, tmp_path / "adapter", samples)
    assert not (out / "model.safetensors").exists()
    settings = json.loads((out / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (out / "adapter_config.json").write_text(json.dumps(settings))
    loaded = load_pretrained(out)
    batch = samples.batch(np.arange(5))
    with torch.no_grad():
        assert_close(loaded(**batch).logits, tuned(**batch).logits)


def test_a_folder_is_loaded_as_the_class_that_wrote_it(tmp_path):
    """A classifier of sound is a `…ForSequenceClassification`, and DeiT has two classes."""
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    assert type(load_pretrained(tmp_path)) is DeiTForImageClassificationWithTeacher


def test_what_is_no_classifier_is_refused(tmp_path, trained):
    from transformers import BertModel

    with pytest.raises(ModelError, match="no such model folder"):
        load_pretrained(tmp_path / "none")
    data = {"train": {"path": "a.csv"}, "input": "text"}
    spec = toml({"model": {"pretrained": "none"}, "data": data})
    (tmp_path / "spec.toml").write_text(spec)
    assert len(found := check_spec(tmp_path / "spec.toml")) == 1
    assert "no such model folder" in found[0]
    with pytest.raises(ModelError, match=r"neither config\.json nor adapter_config\.json"):
        load_pretrained(tmp_path)
    BertModel(bert().config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="holds BertModel, expected a classifier"):
        load_pretrained(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no weights for classifier"):
        load_pretrained(tmp_path / "encoder")
    own = config | {"architectures": ["OwnForSequenceClassification"]}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match="has no OwnForSequenceClassification"):
        load_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pretrained(tmp_path / "encoder")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "someone/model"}'
    )
    with pytest.raises(ModelError, match="base model 'someone/model' is not on disk"):
        load_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="neither constructor nor pretrained"):
        specs.ModelConfig()
    with pytest.raises(ConfigError, match="pretrained stands beside constructor and weights"):
        specs.ModelConfig("a:b", pretrained="x", weights="y")


def test_indices_in_arrays_are_padded_with_their_embeddings_padding():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 6, padding_idx=1)
            self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            real = (x != 1).float()[:, :, None]
            return self.head((self.mix(self.embed(x)) * real).sum(1) / real.sum(1))

    rng = np.random.default_rng(0)
    x = rng.integers(2, 20, (60, 9))
    x[::3, 5:] = 1
    wide = np.concatenate([x, np.ones((60, 7), dtype=x.dtype)], axis=1)
    y = np.arange(60) % 2
    with temp_seed(0, "words"):
        model = Words()
    a, b = (
        collect(model, from_arrays(v, y), needs=frozenset({"features"}), precision="float32")
        for v in (x, wide)
    )
    np.testing.assert_allclose(a.inputs, b.inputs, atol=1e-5)
    np.testing.assert_allclose(a.features["mix"], b.features["mix"], atol=1e-5)
