"""Networks whose passes can be captured as CUDA graphs."""

import copy

import pytest
import torch
from torch import nn

from expunge.training.cuda_graphs import GraphedNetwork


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model, device, *, steps=12):
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4, generator=draw), torch.randint(0, 3, (16,), generator=draw)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_graphed_network_trains_as_the_network_itself(device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = network().to(device).train()
    graphed = GraphedNetwork(copy.deepcopy(plain)).train()
    train(plain, device)
    train(graphed, device)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(graphed.module.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert bool(graphed._graphs) == (device == "cuda")
    assert graphed.is_captured


def test_a_pass_that_cannot_be_captured_runs_as_it_is(monkeypatch):
    graphed = GraphedNetwork(network().train())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed, "_capture", fail)
    x = torch.randn(4, 4)
    for _ in range(8):
        assert graphed(x).shape == (4, 3)
    assert not graphed.is_captured
