"""Hidden units and heads of transformers and their like are found, ranked, cut and exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import expunge
from expunge import stages
from expunge._core.rng import temp_seed
from expunge.detection.gradients import attribute, label_direction
from expunge.models.calls import logits_of
from expunge.models.inspection import inspect_layers
from expunge.pruning import hidden_pairs, surgery
from expunge.pruning.dependencies import trace
from expunge.records import Partition, PrunePlan
from oracles_training import split_of

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
}


def hugging_face(name: str) -> nn.Module:
    """A small random network of transformers."""
    transformers = pytest.importorskip("transformers")
    words = {"vocab_size": 50, "pad_token_id": 0}
    image = {"image_size": 16, "patch_size": 4, "num_labels": 3}
    kinds = {
        "Bert": ("SequenceClassification", {**SMALL, **words}),
        "GPT2": (
            "SequenceClassification",
            {"n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3, "bos_token_id": 1}
            | {"eos_token_id": 1, **words},
        ),
        "Llama": (
            "SequenceClassification",
            {**SMALL, **words, "num_attention_heads": 4, "num_key_value_heads": 2},
        ),
        "ModernBert": (
            "SequenceClassification",
            {**SMALL, **words, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1}
            | {"sep_token_id": 1},
        ),
        "OPT": (
            "SequenceClassification",
            {**SMALL, **words, "ffn_dim": 24, "word_embed_proj_dim": 16},
        ),
        "ViT": ("ImageClassification", {**SMALL, **image}),
        "Segformer": (
            "ImageClassification",
            {"hidden_sizes": [8, 16], "depths": [1, 1], "sr_ratios": [2, 1], "num_labels": 3}
            | {"num_attention_heads": [2, 2], "num_encoder_blocks": 2, "patch_sizes": [3, 3]}
            | {"strides": [4, 2], "mlp_ratios": [2, 2]},
        ),
        "Swin": (
            "ImageClassification",
            {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2, **image},
        ),
        "ConvNext": (
            "ImageClassification",
            {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_labels": 3}
            | {"layer_scale_init_value": 1.0},
        ),
    }
    task, settings = kinds[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    with temp_seed(0, "network"):
        model: nn.Module = getattr(transformers, f"{name}For{task}")(config)
    return model.eval()


def vit() -> nn.Module:
    """As a constructor that an export names."""
    return hugging_face("ViT")


def batch(name: str, n: int = 3):
    draw = torch.Generator().manual_seed(1)
    if name in ("Bert", "GPT2", "Llama", "ModernBert", "OPT"):
        words = torch.randint(1, 50, (n, 7), generator=draw)
        return {"input_ids": words, "attention_mask": torch.ones_like(words)}
    side = 32 if name == "ConvNext" else 16
    return torch.randn(n, 3, side, side, generator=draw)


def first(x):
    return {k: v[:1] for k, v in x.items()} if isinstance(x, dict) else x[:1]


HIDDEN = {
    "Bert": ["bert.encoder.layer.{}.intermediate.dense", "bert.pooler.dense"],
    "GPT2": ["transformer.h.{}.mlp.c_fc"],
    "Llama": ["model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"],
    "ModernBert": ["model.layers.{}.mlp"],  # one layer writes gates and values
    "OPT": ["model.decoder.layers.{}.fc1"],  # reads the tokens of all samples in one dimension
    "ViT": ["vit.layers.{}.mlp.fc1"],
    "Segformer": ["segformer.stages.{}.blocks.0.mlp.fc1"],  # and a depthwise convolution
    "Swin": ["swin.encoder.layers.0.blocks.{}.mlp.fc1"],
    "ConvNext": [f"convnext.encoder.stages.{k}.layers.0.pwconv1" for k in range(4)],
}
HEADS = {
    "Bert": "bert.encoder.layer.{}.attention",
    "GPT2": "transformer.h.{}.attn",
    "Llama": "model.layers.{}.self_attn",
    "ModernBert": "model.layers.{}.attn",
    "OPT": "model.decoder.layers.{}.self_attn",
    "ViT": "vit.layers.{}.attention",
    "Segformer": "segformer.stages.{}.blocks.0.attention",
    "Swin": "swin.encoder.layers.0.blocks.{}.attention",
}


def in_blocks(*names: str) -> list[str]:
    return sorted({name.format(k) for name in names for k in range(2)})


@pytest.mark.parametrize("name", HIDDEN)
def test_the_units_of_every_mlp_and_the_heads_of_every_attention_can_be_cut(name):
    model, x = hugging_face(name), batch(name)
    layers, attentions = in_blocks(*HIDDEN[name]), in_blocks(*filter(None, [HEADS.get(name)]))
    assert sorted(surgery.prunable(model, first(x))) == sorted(layers + attentions)
    units = dict.fromkeys(layers, (1, 5)) | dict.fromkeys(attentions, (1,))
    plan = PrunePlan(units, 2 * len(layers) + len(attentions))
    small = surgery.prune(model, plan, first(x))
    with torch.no_grad(), surgery.mask(model, plan, first(x)):
        masked = logits_of(model, x)
    with torch.no_grad():
        assert_close(logits_of(small, x), masked)
        assert not torch.allclose(masked, logits_of(model, x), atol=1e-6)
    sizes = [surgery.size(m, first(x)) for m in (model, small)]
    assert sizes[1].parameters < sizes[0].parameters
    assert sizes[1].macs < sizes[0].macs


class ConvolutionalMlp(nn.Module):
    """An MLP of convolutions, one of them depthwise, in a residual block with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.first, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, x):
        x = self.stem(x)
        z = self.first(self.norm(x.movedim(1, -1)).movedim(-1, 1))
        x = x + self.last(nn.functional.gelu(self.depthwise(z)))
        return self.head(x.mean((2, 3)))


def test_units_of_convolutions_inside_a_block_are_cut():
    with temp_seed(0, "network"):
        model, x = ConvolutionalMlp().eval(), batch("ViT")
    assert surgery.prunable(model, first(x)) == ["first"]
    plan = PrunePlan({"first": (1, 5)}, 2)
    small = surgery.prune(model, plan, first(x))
    with torch.no_grad(), surgery.mask(model, plan, first(x)):
        assert_close(small(x), model(x))
    assert small.depthwise.weight.shape == (10, 1, 3, 3)
    assert (small.depthwise.groups, small.last.in_channels) == (10, 10)


def test_units_of_a_gated_mlp_are_shared():
    model, x = hugging_face("Llama"), batch("Llama")
    gate, up = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"
    assert surgery.groups(model, first(x), [gate, up]) == {gate: gate, up: gate}
    small = surgery.prune(model, PrunePlan({gate: (0,), up: (3,)}, 2), first(x))
    assert small.get_submodule(up).out_features == 22
    assert small.get_submodule("model.layers.0.mlp.down_proj").in_features == 22


@pytest.mark.parametrize("name", ["Llama", "ModernBert", "OPT"])
def test_what_can_be_cut_is_ranked(name):
    model, x = hugging_face(name), batch(name, 30)
    samples = expunge.from_arrays({k: v.numpy() for k, v in x.items()}, np.arange(30) % 3)
    ranked = stages.rank(model, samples, split_of(samples, np.linspace(0, 1, 30)))
    assert set(ranked.units_by_layer()) == {*in_blocks(*HIDDEN[name], HEADS[name])}


def test_layers_that_the_logits_do_not_depend_on_are_not_cut():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = hugging_face("ViT")
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)
            self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            z = self.vit(x).logits
            y = self.second(torch.relu(self.first(z)))[:, None]
            self.heads(y, y, y)
            return z

    x = first(batch("ViT"))
    assert not {"first", "second", "heads"} & {*surgery.prunable(Pooled().eval(), x)}


def test_layers_of_an_attention_and_of_the_residual_stream_are_refused():
    model, x = hugging_face("ViT"), first(batch("ViT"))
    for layer in ("vit.layers.0.attention.v_proj", "vit.layers.0.mlp.fc2"):
        with pytest.raises(expunge.PruneError, match="no layer alone reads its units"):
            surgery.prune(model, PrunePlan({layer: (0,)}, 1), x)
    layers = ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"]
    with pytest.raises(expunge.PruneError, match=r"layers '.*0.mlp.fc2', '.*' cannot be cut: no"):
        surgery.prune(model, PrunePlan(dict.fromkeys(layers, (0,)), 2), x)


@pytest.mark.parametrize("name", ["GPT2", "Swin"])
def test_the_unit_whose_attribution_is_the_noise_is_ranked_first(name):
    n, unit = 60, 3
    model, x = hugging_face(name), batch(name, n)
    with torch.no_grad():
        y = logits_of(model, x).argmax(dim=1)
        rival = logits_of(model, x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    layer = surgery.prunable(model, first(x))[1]  # behind the attention
    readout = inspect_layers(model, first(x)).readouts[layer]
    h, gradient = attribute(model, x, label_direction(y, rival, 3), layers=(readout,))[readout]
    noise = (h * gradient).flatten(1, -2).sum(dim=1)[:, unit]
    assert noise.shape == (n,)
    p = ((noise - noise.min()) / (noise.max() - noise.min())).double().numpy()
    samples = expunge.from_arrays(
        x if isinstance(x, dict) else x.numpy(), y.numpy(), classes=list("abc")
    )
    split = Partition(
        samples.ids, samples.labels, p, p, 0 * p, samples.labels, p, 0.5, (0.5, 0.4, 0.6)
    )
    ranking = stages.rank(model, samples, split, layers=(layer,))
    assert ranking.unit[0] == unit
    assert ranking.layer[0] == layer


def test_a_cut_vision_transformer_is_exported_and_loaded(tmp_path):
    model, x = vit(), batch("ViT", 6)
    plan = PrunePlan({"vit.layers.0.mlp.fc1": (0, 7), "vit.layers.1.attention": (1,)}, 3)
    small = surgery.prune(model, plan, first(x))
    data = x.numpy(), np.arange(6) % 3
    exported = expunge.export_model(
        small, data, tmp_path / "out", constructor=vit, plan=plan, onnx=True
    )
    assert exported.manifest.onnx.agreement == 1.0
    again = expunge.load_exported_model(tmp_path / "out")
    with torch.no_grad():
        assert_close(again(x), logits_of(small, x))


class Auxiliary(nn.Module):
    """In training mode another output reads the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return (self.head(h), self.aux(h)) if self.training else self.head(h)


def test_layers_that_no_auxiliary_output_reads_are_cut():
    class Deep(Auxiliary):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 8)
            self.third = nn.Linear(8, 8)

        def forward(self, x):
            shared = torch.relu(self.second(torch.relu(self.first(x))))
            logits = self.head(torch.relu(self.third(shared)))
            return (logits, self.aux(shared)) if self.training else logits

    model = Deep()
    assert surgery.prunable(model, torch.zeros(1, 6)) == ["first", "third"]
    small = surgery.prune(model, PrunePlan({"first": (0,), "third": (1, 2)}, 3), torch.zeros(1, 6))
    assert small.train()(torch.zeros(2, 6))[1].shape == (2, 3)


def test_units_that_an_auxiliary_output_reads_are_not_cut():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6)).astype(np.float32)
    data = x, np.arange(60) % 3
    overrides = {
        "score": {"detectors": ("augmented_margin", "lda_margin")},
        "tune": {"epochs": 1},
        "prune": {"fraction": 0.25},
        "min_flagged_fraction": 0.0,
        "partition": {"threshold": 0.9},
    }
    with pytest.raises(expunge.PruneError, match=r"cannot be trained: .*\n  fix: set prune"):
        expunge.repair(Auxiliary(), data, baselines=(), overrides=overrides)


@pytest.mark.parametrize("name", ["Bert", "Llama", "ViT"])
def test_in_a_block_a_model_is_examined_once_and_cut_as_ever(name, monkeypatch):
    model, example, examined = hugging_face(name), batch(name), []
    alone = trace(model, example)
    find = hidden_pairs.find_heads
    monkeypatch.setattr(
        hidden_pairs, "find_heads", lambda *args: examined.append(args[0]) or find(*args)
    )
    with hidden_pairs.found_once():
        layers = surgery.prunable(model, example)
        again = trace(model, example)
        plan = PrunePlan(dict.fromkeys(layers, (0,)), len(layers))
        inside = surgery.apply_plan(model, plan, example, mode="remove")
    assert len(examined) < 4  # the model, and networks that were cut
    assert again.heads == alone.heads
    assert layers == surgery.prunable(model, example)
    outside = surgery.apply_plan(model, plan, example, mode="remove")
    assert_close(inside.state_dict(), outside.state_dict(), rtol=0, atol=0)
