"""Batches by bytes."""

from __future__ import annotations

import torch
from torch import nn

from expunge.models import batches
from expunge.models.batches import samples_per_pass

CPU = torch.device("cpu")


def test_the_largest_input_and_output_of_a_layer_count(monkeypatch) -> None:
    monkeypatch.setitem(batches.MAX_BYTES, "cpu", 10_000)
    model = nn.Sequential(nn.Linear(10, 400), nn.ReLU(), nn.Linear(400, 2))
    # 400 numbers in and 400 out of the ReLU, of 4 bytes.
    assert samples_per_pass(model, torch.zeros(2, 10), CPU) == 10_000 // 3200
    # Inputs, and the outputs of all three layers.
    kept = samples_per_pass(model, torch.zeros(2, 10), CPU, keeps_outputs=True)
    assert kept == 10_000 // (4 * (10 + 400 + 400 + 2))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_one_sample_is_the_least(monkeypatch) -> None:
    monkeypatch.setitem(batches.MAX_BYTES, "cpu", 1000)
    assert samples_per_pass(nn.Conv2d(3, 64, 1), torch.zeros(1, 3, 20, 20), CPU) == 1


def test_dictionaries_of_inputs_are_passed_by_name() -> None:
    class Named(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": a + b}

    example = {"a": torch.zeros(2, 8), "b": torch.zeros(2, 8)}
    assert samples_per_pass(Named(), example, CPU) == batches.MAX_BYTES["cpu"] // 96
