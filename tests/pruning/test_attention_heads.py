"""Heads of attentions are found, ranked, masked and cut, wherever their weights stand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

import expunge
from expunge import stages
from expunge._core.rng import temp_seed
from expunge.detection.gradients import label_direction, runner_up
from expunge.models.calls import logits_of
from expunge.pruning import surgery
from expunge.pruning.multihead import HeadwiseAttention
from expunge.records import Partition, PrunePlan

# Of torch, for an encoder with padding in evaluation mode.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Attention(nn.Module):
    """Fused or separate queries, keys and values, with a bias for each head."""

    def __init__(self, layout: str, *, heads: int = 3, groups: int = 3, width: int = 4) -> None:
        super().__init__()
        self.layout, self.n_head, self.n_groups, self.head_width = layout, heads, groups, width
        self.total = heads * width
        sizes = {"separate": 0, "stripes": 3 * self.total, "interleaved": 3 * self.total}
        if sizes[layout]:
            self.qkv = nn.Linear(12, sizes[layout])
        else:
            self.q = nn.Linear(12, self.total)
            self.k = nn.Linear(12, groups * width)
            self.v = nn.Linear(12, groups * width)
        self.slopes = nn.Parameter(torch.randn(heads, 1, 1))
        self.out = nn.Linear(self.total, 12)

    def forward(self, x):
        if self.layout == "separate":
            q = self.q(x).unflatten(-1, (self.n_head, -1))
            k, v = (layer(x).unflatten(-1, (self.n_groups, -1)) for layer in (self.k, self.v))
            k, v = (t.repeat_interleave(self.n_head // self.n_groups, 2) for t in (k, v))
        elif self.layout == "stripes":
            q, k, v = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).unbind(2)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (self.n_head, 3, -1)).unbind(3)
        bias = self.slopes * torch.arange(x.shape[1])
        heads = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), bias[None])
        return self.out(heads.transpose(1, 2).reshape(*x.shape[:2], self.total))


class Blocks(nn.Module):
    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(attentions)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(self.norm(x))
        return self.head(self.norm(x).mean(dim=1))


def separate() -> Blocks:
    with temp_seed(0, "network"):
        return Blocks(Attention("separate"), Attention("separate")).eval()


def tokens(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 6, 12, generator=torch.Generator().manual_seed(1))


def cut(model: nn.Module, plan: PrunePlan, x: torch.Tensor) -> nn.Module:
    """The cut model, which gives what the masked one does, and another output than the whole."""
    small = surgery.prune(model, plan, x[:1])
    with torch.no_grad():
        whole = logits_of(model, x)
        with surgery.mask(model, plan, x[:1]):
            masked = logits_of(model, x)
        assert_close(logits_of(small, x), masked)
        assert (masked - whole).abs().max() > 1e-4
        assert_close(logits_of(model, x), whole)
    return small


@pytest.mark.parametrize("layout", ["separate", "stripes", "interleaved"])
def test_heads_are_cut_out_of_every_layout(layout):
    with temp_seed(0, "network"):
        model = Blocks(Attention(layout), Attention(layout)).eval()
    x = tokens()
    assert surgery.prunable(model, x[:1]) == ["blocks.0", "blocks.1"]
    small = cut(model, PrunePlan({"blocks.0": (1,), "blocks.1": (0, 2)}, 3), x)
    first, second = small.blocks
    assert (first.n_head, first.total, first.out.in_features) == (2, 8, 8)
    assert (second.n_head, second.slopes.shape) == (1, (1, 1, 1))
    torch.testing.assert_close(second.slopes[0], model.blocks[1].slopes[1])
    rows = small.blocks[0].q.weight if layout == "separate" else small.blocks[0].qkv.weight
    assert len(rows) == (8 if layout == "separate" else 24)


def test_heads_that_share_keys_and_values_go_together():
    with temp_seed(0, "network"):
        model = Blocks(Attention("separate", heads=6, groups=3, width=2)).eval()
    small = cut(model, PrunePlan({"blocks.0": (1,)}, 1), tokens())
    attention = small.blocks[0]
    assert (attention.n_head, attention.n_groups) == (4, 2)
    assert (attention.q.out_features, attention.k.out_features) == (8, 4)


def test_the_last_head_stays_and_unknown_heads_are_named():
    model, x = separate(), tokens(1)
    with pytest.raises(expunge.PruneError, match=r"no unit would be left in .*blocks\.0"):
        surgery.prune(model, PrunePlan({"blocks.0": (0, 1, 2)}, 3), x)
    with pytest.raises(expunge.PruneError, match=r"'blocks\.0' has heads 0 to 2, not 7"):
        surgery.prune(model, PrunePlan({"blocks.0": (7,)}, 1), x)


class FixedWidth(nn.Module):
    """An attention that takes its number of channels from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).unflatten(-1, (3, 3, 4)).unbind(2))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


def test_an_attention_that_takes_no_fewer_heads_is_left_whole():
    model, x = Blocks(FixedWidth()).eval(), tokens(1)
    assert surgery.prunable(model, x) == []
    with pytest.raises(expunge.PruneError, match="the pruned model does not run"):
        surgery.prune(model, PrunePlan({"blocks.0": (1,)}, 1), x)


class Encoder(nn.Module):
    """torch's own encoder, with padding."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 16, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head, self.batch_first = nn.Linear(12, 3), batch_first

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.encoder(x, src_key_padding_mask=padding)
        return self.head(h[:, 0] if self.batch_first else h[0])


def encoder() -> Encoder:
    with temp_seed(0, "network"):
        model = Encoder()
        for p in model.parameters():  # torch makes all layers of an encoder equal
            nn.init.normal_(p, std=0.3)
        return model.eval()


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_of_torchs_own_attention_are_cut(batch_first):
    model, x = Encoder(batch_first=batch_first).eval(), tokens()
    names = [f"encoder.layers.{k}.self_attn" for k in range(2)]
    found = surgery.prunable(model, x[:1])
    assert [n for n in found if n.endswith("self_attn")] == names
    small = cut(model, PrunePlan({names[0]: (0, 2), "encoder.layers.1.linear1": (3,)}, 3), x)
    first, second = (layer.self_attn for layer in small.encoder.layers)
    assert first.in_proj_weight.shape == (18, 12)
    assert first.out_proj.weight.shape == (12, 6)
    assert type(second) is nn.MultiheadAttention
    assert all(type(m.self_attn) is nn.MultiheadAttention for m in model.encoder.layers)
    sizes = [surgery.size(m, x[:1]).macs for m in (model, small)]
    # For each token: 3 · 12 · 6 of queries, keys and values, 6 · 12 of the output, 24 of the MLP.
    assert sizes[0] - sizes[1] == 6 * (3 * 12 * 6 + 6 * 12 + 24)
    small.train()
    small(x).sum().backward()
    assert first.in_proj_weight.grad is not None


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_headwise_attention_computes_what_torch_does(batch_first):
    draw = torch.Generator().manual_seed(0)
    own = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    other = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    other.load_state_dict(own.state_dict())
    other.__class__ = HeadwiseAttention
    q, k = (torch.randn(3, n, 8, generator=draw) for n in (4, 5))
    q, k = (x if batch_first else x.transpose(0, 1) for x in (q, k))
    per_head = torch.randn(6, 4, 5, generator=draw)
    padding = torch.tensor([[0, 0, 0, 0, 1]] * 3).bool()
    forbidden = torch.ones(4, 5).triu(2).bool()
    for settings in (
        {"key_padding_mask": padding},
        {"attn_mask": forbidden, "need_weights": False},
        {"attn_mask": per_head, "average_attn_weights": False},
    ):
        for a, b in zip(own(q, k, k, **settings), other(q, k, k, **settings), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert_close(a, b)
    assert_close(own(q, k, k, padding)[0], other(q, k, k, padding)[0])
    single = q[0] if batch_first else q[:, 0]
    assert_close(own(single, single, single)[0], other(single, single, single)[0])
    assert other(single, single, single)[1].shape == (4, 4)


def partition_by(noise: torch.Tensor, samples: expunge.Samples) -> Partition:
    p = ((noise - noise.min()) / (noise.max() - noise.min())).double().numpy()
    return Partition(
        samples.ids, samples.labels, p, p, 0 * p, samples.labels, p, 0.5, (0.5, 0.4, 0.6)
    )


def test_the_head_whose_attribution_is_the_noise_is_ranked_first():
    model, x = separate(), tokens(60)
    inputs = []
    handle = model.blocks[1].out.register_forward_pre_hook(lambda _, a: inputs.append(a[0]))
    logits = model(x)
    handle.remove()
    y = logits.argmax(dim=1)
    direction = label_direction(y, runner_up(logits.detach(), y), 3)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), inputs)
    noise = (gradient * inputs[0]).detach().reshape(60, 6, 3, 4).sum(dim=(1, 3))[:, 2]
    samples = expunge.from_arrays(x.numpy(), y.numpy(), classes=list("abc"))
    ranking = stages.rank(model, samples, partition_by(noise, samples))
    assert ranking.units_by_layer() == {"blocks.0": 3, "blocks.1": 3}
    assert (ranking.layer[0], ranking.unit[0]) == ("blocks.1", 2)


@pytest.mark.parametrize("method", ["attribution-ridge", "activation-ridge", "magnitude"])
def test_heads_of_torchs_own_attention_are_ranked(method):
    model, x = encoder(), tokens(40)
    samples = expunge.from_arrays(x.numpy(), np.arange(40) % 3, classes=list("abc"))
    split = partition_by(torch.randn(40), samples)
    name = "encoder.layers.1.self_attn"
    ranking = stages.rank(model, samples, split, layers=(name,), method=method)
    assert sorted(ranking.unit.tolist()) == [0, 1, 2, 3]
    assert type(model.get_submodule(name)) is nn.MultiheadAttention
    if method == "magnitude":
        weight = model.get_submodule(name).in_proj_weight.detach().double()
        norms = weight.view(3, 4, 3, 12).pow(2).sum(dim=(0, 2, 3)).sqrt()
        assert ranking.unit[0] == int(norms.argmin())
        assert_close(-ranking.effect[0], float(norms.min()))


def test_a_model_without_some_heads_is_exported_and_loaded(tmp_path):
    model, x = encoder(), tokens(6)
    plan = PrunePlan({"encoder.layers.0.self_attn": (1,), "encoder.layers.1.linear1": (0,)}, 2)
    small = surgery.prune(model, plan, x[:1])
    data = x.numpy(), np.arange(6) % 3
    expunge.export_model(small, data, tmp_path / "out", constructor=encoder, plan=plan)
    again = expunge.load_exported_model(tmp_path / "out")
    with torch.no_grad():
        assert_close(again(x), logits_of(small, x))


def test_a_model_with_masked_heads_is_exported_and_loaded(tmp_path):
    model, x = separate(), tokens(6)
    plan = PrunePlan({"blocks.1": (1,)}, 1)
    masked = surgery.apply_plan(model, plan, x[:1], mode="mask")
    data = x.numpy(), np.arange(6) % 3
    again = expunge.export_model(
        masked, data, tmp_path / "out", constructor=separate, plan=plan, mode="mask"
    )
    with torch.no_grad():
        assert_close(again(x), masked(x))
        assert not torch.allclose(again(x), model(x))
