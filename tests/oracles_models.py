"""Small networks for tests, one for each way in which layers depend on each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 3


class Mlp(nn.Module):
    """Linear layers only; input ``[n, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(6, 10)
        self.hidden2 = nn.Linear(10, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden2(torch.relu(self.hidden1(x)))))


class ConvNet(nn.Module):
    """Convolutions with batch norm, flattened into a linear layer; input ``[n, 2, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(5)
        self.pool = nn.MaxPool2d(4)
        self.hidden = nn.Linear(20, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.sigmoid(self.bn2(self.conv2(x)))
        x = self.pool(x).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class ResidualNet(nn.Module):
    """Two residual blocks: stem, conv2 and conv4 share their units; input ``[n, 2, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 5, 3, padding=1)
        self.conv4 = nn.Conv2d(5, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (6, 4, 6, 5, 6)])
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        y = torch.relu(self.norms[1](self.conv1(x)))
        x = torch.relu(x + self.norms[2](self.conv2(y)))
        y = torch.relu(self.norms[3](self.conv3(x)))
        x = torch.relu(x + self.norms[4](self.conv4(y)))
        return self.head(x.mean((2, 3)))


class ConcatNet(nn.Module):
    """Two branches concatenated, the input of the second among them; input ``[n, 2, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.joint = nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.left(x))
        b = torch.sigmoid(self.right(a))
        x = torch.relu(self.joint(self.norm(torch.cat([b, a], dim=1))))
        return self.head(x.mean((2, 3)))


class DepthwiseNet(nn.Module):
    """Depthwise-separable convolutions with a gate; input ``[n, 2, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 8, 1)
        self.squeeze = nn.Linear(8, 4)
        self.gate = nn.Linear(4, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(torch.relu(self.stem(x)))))
        x = self.pointwise(x)
        gate = torch.sigmoid(self.gate(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


class InstanceNet(nn.Module):
    """Instance norms in front of a flattening; input ``[n, 2, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.norm1 = nn.InstanceNorm2d(6, affine=True)
        self.conv2 = nn.Conv2d(6, 5, 3)
        self.norm2 = nn.InstanceNorm2d(5)
        self.head = nn.Linear(5 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm2(self.conv2(x))).flatten(1))


class SignalNet(nn.Module):
    """One-dimensional convolutions with PReLU and a parameter of its own; input ``[n, 2, 12]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 6, 3)
        self.act = nn.PReLU(6)
        self.scale = nn.Parameter(torch.rand(6, 1) + 0.5)
        self.conv2 = nn.Conv1d(6, 5, 3)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x)) * self.scale
        return self.head(torch.relu(self.conv2(x)).mean(-1))


class ConvGru(nn.Module):
    """A convolution read by a recurrent layer; input ``[n, 2, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, padding=1)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).transpose(1, 2)
        return self.head(self.gru(x)[0][:, -1])


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Mlp: (6,),
    ConvNet: (2, 8, 8),
    ResidualNet: (2, 8, 8),
    ConcatNet: (2, 8, 8),
    DepthwiseNet: (2, 8, 8),
    InstanceNet: (2, 8, 8),
    SignalNet: (2, 12),
    ConvGru: (2, 8),
}


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose batch norms shift and scale, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def inputs(kind: type[nn.Module], n: int = 4, seed: int = 1) -> Tensor:
    """A batch that the network takes."""
    return torch.randn(n, *SHAPES[kind], generator=torch.Generator().manual_seed(seed))
