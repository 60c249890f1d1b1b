"""What models return is read as logits."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from expunge.errors import ModelError
from expunge.models.outputs import find_output_key, find_output_kind, output_tensor, to_logits

Z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


class Main(NamedTuple):
    """As torchvision's GoogLeNet returns it in training mode."""

    logits: torch.Tensor
    aux: torch.Tensor


@dataclass
class Scored:
    """An output of a class that names its logits otherwise."""

    scores: torch.Tensor
    maps: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        Z,
        (Z, Z + 1),
        [Z, None],
        (torch.tensor(0.7), Z),
        Main(Z, Z + 1),
        {"logits": Z, "loss": torch.tensor(1.0)},
        {"out": Z, "aux": Z + 1},
        {"scores": Z},
        SimpleNamespace(logits=Z, hidden_states=(Z + 1,)),
        Scored(Z, Z[:, :1, None, None].expand(-1, 2, 2, 2)),
        ((Z, Z[0]), Z),
        {"heads": {"main": Z}},
    ],
)
def test_the_logits_are_found_beside_losses_and_auxiliary_outputs(output):
    assert output_tensor(output) is Z


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ({"a": Z, "b": Z}, "dict with a, b"),
        (Z.numpy(), "ndarray"),
        ((Z[None], "text"), "tuple of Tensor, str"),
        (Z[None], r"shape \(1, 7, 3\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        (None, "NoneType"),
    ],
)
def test_anything_else_is_described(output, got):
    with pytest.raises(ModelError, match=rf"\[batch, classes\], got {got}"):
        output_tensor(output)


def test_predicted_classes_are_no_logits():
    with pytest.raises(ModelError, match=r"got torch\.int64\n.*without argmax"):
        output_tensor(Z.argmax(1))


@pytest.mark.parametrize("shape", [(7, 1, 3), (7, 3, 1), (7, 3, 1, 1), (7, 1, 1, 3)])
def test_dimensions_of_size_one_do_not_count(shape):
    assert torch.equal(output_tensor(Z.view(shape)), Z)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (Z, (None, 1)),
        ((Z, Z.repeat(1, 2)), (None, 1)),
        ((Z.repeat(1, 2), Z), ("1", 1)),
        (((Z.repeat(1, 2), Z), Z[0]), ("0.1", 1)),
        ({"heads": {"a": Z, "b": Z[:, :2]}}, ("heads.a", 1)),
        ((Z, Z + 1), (None, 2)),
        (Main(Z, Z + 1), (None, 1)),
        ({"features": Z.repeat(1, 2), "scores": Z}, ("scores", 1)),
        ({"out": Z, "aux": Z + 1}, (None, 1)),
        ({"output": Z.repeat(1, 2), "scores": Z}, ("scores", 1)),
        ({"a": Z, "b": Z}, (None, 0)),  # no part is taken: an error follows
    ],
)
def test_the_part_with_a_column_for_each_class_is_found(output, found):
    assert find_output_key(output, 3) == found
    if found[0] is not None:
        assert output_tensor(output, found[0]) is Z


def test_a_single_logit_is_that_of_the_second_class():
    z = torch.tensor([-2.0, 0.0, 3.0])
    for output in (z, z[:, None]):
        p = to_logits(output_tensor(output), "logits").softmax(dim=1)
        assert_close(p[:, 1], z.sigmoid())


def test_probabilities_have_the_logits_that_made_them():
    p = to_logits(Z.softmax(dim=1), "probabilities").softmax(dim=1)
    assert_close(p, Z.softmax(dim=1))
    assert_close(to_logits(Z.sigmoid(), "sigmoid"), Z)


def test_saturated_probabilities_have_finite_logits():
    p = torch.tensor([[1.0, 0.0]])
    for kind in ("probabilities", "sigmoid"):
        assert torch.isfinite(to_logits(p, kind)).all()


W = torch.ones(3, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        (Z.softmax(dim=1), "probabilities"),
        (0.5 * Z.softmax(dim=1) + 0.5 * Z.flip(1).softmax(dim=1), "probabilities"),
        (Z.softmax(dim=1).bfloat16(), "probabilities"),
        ((Z @ W).sigmoid(), "sigmoid"),
        ((Z @ W)[:, :1].sigmoid(), "sigmoid"),
        ((Z @ W)[:, 0].sigmoid()[:, None], "sigmoid"),
        (nn.functional.hardtanh((Z @ W), 0.0, 1.0), "sigmoid"),
        ((Z @ W).sigmoid().clamp(1e-4, 0.99), "sigmoid"),
        ((Z @ W.cumsum(0).cumsum(1)).softmax(dim=1).clamp(1e-2, 0.9), "probabilities"),
        (Z, "logits"),
        (Z.log_softmax(dim=1), "logits"),
        (torch.rand(7, 3), "logits"),
        ((Z @ W).relu() / 100, "logits"),
        (Z.softmax(dim=1) * 2, "logits"),
    ],
)
def test_probabilities_are_told_from_logits(scores, kind):
    assert find_output_kind(scores) == kind
