"""Models and data that do not fit each other get a way out; odd models are taken as they are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import expunge
from expunge import stages
from expunge._core.rng import temp_seed
from expunge.errors import ExpungeError, ModelError
from expunge.models.adaptation import stability_notes
from expunge.models.calls import logits_of
from expunge.models.checks import check_model
from oracles_models import ConvNet, build

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
QUICK = {"tune": {"epochs": 1}, "min_flagged_fraction": 0.0}


class Named(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)

    def forward(self, *, vectors):
        return super().forward(vectors)


class Lenient(Named):
    """Takes any other arguments too, as the models of Transformers do."""

    def forward(self, vectors=None, **others):
        return super().forward(vectors=vectors)


class Labelled(Named):
    def forward(self, vectors, labels):
        return super().forward(vectors=vectors)


class OfBatch(Named):
    def forward(self, batch):
        return super().forward(vectors=batch["x"])


class Shifting(Named):
    """It changes its input in place."""

    def forward(self, x):
        return super().forward(vectors=x.sub_(0.5))


class Noisy(Named):
    def forward(self, x):
        return super().forward(vectors=x) + torch.randn(3)


class Centred(Named):
    def forward(self, x):
        return super().forward(vectors=x - x.mean(dim=0))


class Masked(Named):
    def forward(self, x):
        z = super().forward(vectors=x)
        return z.masked_fill(z < z.amax(dim=1, keepdim=True) - 1, -torch.inf)


class Centres(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.randn(3, 6))

    def forward(self, x):
        return -torch.cdist(x, self.centres)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        z = torch.sigmoid(self.layer(x)) * 1
        p = z.exp()
        p += z
        return p


class Counting(nn.Module):
    """Its buffers and its embedding change in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.embedding, self.head = nn.Embedding(6, 6, max_norm=0.1), nn.Linear(6, 3)

    def forward(self, x):
        self.calls += 1
        return self.head(x + self.embedding(torch.zeros(len(x), dtype=torch.int64)))


class Checkpointed(nn.Module):
    """The old form of checkpoints gives no gradient unless an input asks for one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.head, x, use_reentrant=True)


class Spectral(nn.Module):
    """A layer with complex weights, as in Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


def configured(**settings: str) -> nn.Module:
    """A model with a configuration, as those of Transformers have."""
    model = nn.Linear(6, 3)
    model.config = SimpleNamespace(**settings)
    return model


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))


@pytest.mark.parametrize(
    ("model", "x", "fix"),
    [
        (nn.Linear(6, 3), (9 * X).astype(np.int64), r"x\.astype\('float32'\)"),
        (Named(), {"vectors": X.astype("uint8")}, r"vectors\.astype\('float32'\), pixels divided"),
        (
            convolution(),
            RNG.random((40, 4, 8, 8)),
            r"data are prepared: inputs are x \(4, 8",
        ),
        (Named(), {"x": X}, r"the arrays x are passed as keyword arguments: .* \(vectors\)"),
        (Lenient(), {"x": X}, r"arguments of the model's forward \(vectors\)"),
        (Named(), X, r"by name, \({'vectors': …}, y\)"),
        (Labelled(), X, r"by name, \({'vectors': …, 'labels': …}, y\), and what is no data"),
        (Masked(), X, "mask classes by a large negative number"),
        (convolution(), RNG.random((40, 8, 8), dtype=np.float32), r"x\[:, None\] adds the channel"),
        (
            convolution(),
            RNG.random((40, 3, 8, 8), dtype=np.float32),
            'have 3 channels, the model takes 1: make them grey as in training, mode = "L"',
        ),
        (
            nn.Conv2d(3, 2, 3),
            RNG.random((40, 1, 8, 8), dtype=np.float32),
            r'have 1 channel, the model takes 3: x\.repeat\(3, axis=1\) .*mode = "RGB"',
        ),
        (
            convolution(),
            RNG.random((40, 8, 8, 1), dtype=np.float32),
            r"looks like \[H, W, C\]: x\.transpose\(0, 3, 1, 2\)",
        ),
        (
            nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)),
            X,
            r"batch norm without averages .*: keep averages, or use GroupNorm",
        ),
        (InPlace(), X, "take the operation in place out of the model's forward"),
        (Checkpointed(), X, r"torch\.utils\.checkpoint needs use_reentrant=False"),
        (Centres(), X, "register what may change as torch.nn.Parameter"),
        (nn.Linear(6, 1), X, "use a classifier with 3 outputs; a regression model is not repaired"),
        (
            configured(problem_type="multi_label_classification"),
            X,
            "'single_label_classification'; several labels are not supported",
        ),
        (configured(problem_type="regression"), X, "if each sample has one class: set problem_"),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_model_that_does_not_take_the_data_gets_a_way_out(model, x, fix: str) -> None:
    with pytest.raises(ModelError, match=f"fix: .*{fix}"):
        expunge.repair(model, (x, Y))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(
    ("model", "fix"),
    [(nn.Linear(6, 3).half(), "torch.float16, not float32"), (Checkpointed(), "use_reentrant")],
)
def test_a_stage_says_the_same_as_a_repair(model, fix: str) -> None:
    with pytest.raises(ModelError, match=f"fix: .*{fix}"):
        expunge.tune(model, (X, Y), epochs=1)


@pytest.mark.usefixtures("few_trees")
def test_complex_weights_are_tuned() -> None:
    model = Spectral()
    result = expunge.repair(model, (X, Y), baselines=(), overrides=QUICK)
    assert not torch.equal(result.model.weight, model.weight)


def test_a_forward_may_take_a_dictionary_or_change_its_input() -> None:
    x = torch.from_numpy(X)
    for model, batch in ((OfBatch(), {"x": x + 0.5}), (Shifting(), x + 0.5)):
        torch.testing.assert_close(logits_of(model, batch), model(batch))
    shifting, batch = Shifting(), x.clone()
    torch.testing.assert_close(logits_of(shifting, batch), logits_of(shifting, batch))
    assert torch.equal(batch, x)


@pytest.mark.parametrize(
    ("make", "notes"),
    [
        (Noisy, ("the model's output is random in evaluation mode",)),
        (Centred, ("the model's output for a sample depends on the other samples of its batch",)),
        (Shifting, ()),
    ],
)
def test_an_output_that_depends_on_more_than_the_sample_is_noted(make, notes) -> None:
    found = stability_notes(make(), expunge.from_arrays(X, Y))
    assert len(found) == len(notes)
    assert all(a.startswith(b) for a, b in zip(found, notes, strict=True))


@pytest.mark.usefixtures("few_trees")
def test_a_forward_pass_that_changes_buffers_leaves_the_model_as_it_was() -> None:
    model = Counting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expunge.repair(model, (X, Y), overrides=QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_that_are_not_finite_are_found_before_any_work() -> None:
    x = X.copy()
    x[33, 2] = np.nan
    with pytest.raises(ExpungeError, match=r"training data: inputs are NaN or infinite: ids 33"):
        expunge.repair(nn.Linear(6, 3), (x, Y))
    with pytest.raises(ExpungeError, match=r"held_out data: inputs are NaN or infinite: ids 33"):
        expunge.repair(nn.Linear(6, 3), (X + 1, Y), held_out=(x, Y))


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("make", [made_in_inference_mode, lambda: nn.Linear(6, 3)])
def test_a_single_layer_and_inference_tensors_are_repaired(make) -> None:
    result = expunge.repair(make(), (X, Y), baselines=(), overrides=QUICK)
    assert result.decision.kept
    assert stages.predict(result.model, (X, Y)).shape == (40,)


def test_a_model_whose_hooks_change_its_output_is_not_pruned() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    overrides = {**QUICK, "prune": {"fraction": 0.25}}
    with pytest.raises(expunge.PruneError, match="hooks of the model change its output"):
        expunge.repair(model, (X, Y), baselines=(), overrides=overrides)
    seen: list[int] = []
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    result = expunge.repair(model, (X, Y), baselines=(), overrides=overrides)
    assert result.plan is not None


class Encoder(nn.Module):
    """torch's encoder leaves out padding by nested tensors in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_of_torch_with_padding_is_scored_and_cut() -> None:
    tokens = RNG.integers(1, 20, (40, 5))
    tokens[::2, 3:] = 0
    with temp_seed(0, "encoder"):
        model = Encoder()
    result = expunge.repair(
        model,
        (tokens, tokens[:, 0] % 3),
        baselines=(),
        overrides={**QUICK, "prune": {"fraction": 0.5}},
    )
    assert {"encoder.layers.0.self_attn", "encoder.layers.1.linear1"} <= set(result.plan.units)
    data = tokens, tokens[:, 0] % 3
    edited = expunge.edit(model, data, result.partition, method="ridge-head").model
    with torch.no_grad():
        assert edited.eval()(torch.tensor(tokens)).shape == (40, 3)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_sound_model_passes():
    assert check_model(build(ConvNet)) is None


def test_broken_weights_are_named_all_at_once_and_tied_ones_are_none():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[3].bias[1] = torch.nan
    model[2].running_var[0] = torch.inf
    with pytest.raises(ModelError) as caught:
        check_model(model)
    text = str(caught.value)
    assert "tied" not in text
    assert "NaN or infinite: 3.bias, 2.running_var" in text
