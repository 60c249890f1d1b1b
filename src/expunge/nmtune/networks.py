"""The network of a head: a residual MLP and a linear layer (arXiv 2309.17002)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.nmtune.objectives import NMTuneConfig
from expunge.nmtune.training import ViewOutputs


class Head(nn.Module):
    """A residual MLP and a linear layer on features.

    ``z = c f + g ⊙ MLP(c f)``, logits ``= W z + b``; without an MLP ``z = c f``. The MLP is
    Linear(d, r d) – BatchNorm – ReLU – Linear(r d, d); the gate g is learned and starts at 1. This
    is the published code. Whether the paper's MLP has the residual path and the batch norm is not
    stated.

    Parameters
    ----------
    width
        d, the number of features.
    classes
        The number of classes.
    config
        Whether there is an MLP, and its width.
    scale
        The number c. Published: 1. Ours makes the mean square of the features 1, so that a learning
        rate has the same effect for embeddings of any length.

    Examples
    --------
    >>> from expunge.nmtune.objectives import NMTuneConfig
    >>> Head(8, 3, NMTuneConfig()).eval()(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, width: int, classes: int, config: NMTuneConfig, *, scale: float = 1.0):
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.mlp: nn.Module | None = None
        if config.hidden:
            inside = config.ratio * width
            self.mlp = nn.Sequential(
                nn.Linear(width, inside),
                nn.BatchNorm1d(inside),
                nn.ReLU(),
                nn.Linear(inside, width),
            )
            self.gate = nn.Parameter(torch.ones(width))
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.bias)

    def transform(self, f: Tensor) -> Tensor:
        """Transform features ``float[b, d]`` to those that the linear layer reads, ``[b, d]``."""
        f = f * self.scale
        return f if self.mlp is None else f + self.gate * self.mlp(f)

    def forward(self, f: Tensor) -> Tensor:
        """From features ``float[b, d]`` to logits ``[b, c]``."""
        logits: Tensor = self.linear(self.transform(f))
        return logits


class ViewHead(nn.Module):
    """A head that takes the features of several views at once."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, f: Tensor) -> ViewOutputs:
        """From features ``[v, b, d]`` to these, transformed features and logits."""
        z = self.head.transform(f.flatten(0, 1))
        return f, z.view_as(f), self.head.linear(z).unflatten(0, f.shape[:2])


def input_scale(features: Tensor) -> float:
    """The factor that makes the mean square of features 1; 1 if they are all zero."""
    size = float(features.double().square().mean().sqrt())
    return 1 / size if size > 0 else 1.0
