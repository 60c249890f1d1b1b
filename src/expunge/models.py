"""The small networks that the demo, the examples and the benchmarks train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(*, inputs: int, classes: int, hidden: int = 256, depth: int = 2) -> nn.Module:
    """A multilayer perceptron with ReLU: ``inputs → hidden × depth → classes``."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for _ in range(depth):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, classes))


def convnet(
    *,
    classes: int,
    channels: int = 3,
    widths: tuple[int, ...] = (32, 64, 128),
    hidden: int = 256,
    convolutions: int = 2,
) -> nn.Module:
    """A plain network of 3×3 convolutions with batch norm, and one hidden linear layer.

    Every stage has ``convolutions`` of its width and halves the resolution; the last is averaged.
    """
    layers: list[nn.Module] = []
    for width in widths:
        for _ in range(convolutions):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers[-1] = nn.AdaptiveAvgPool2d(1)
    head = [nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut (arXiv 1512.03385, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images; see `resnet`."""

    def __init__(
        self,
        classes: int,
        channels: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        hidden: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        inputs = widths[0]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = []
            for block in range(count):
                stage.append(Residual(inputs, width, 2 if level and not block else 1))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.head: nn.Module = nn.Linear(inputs, classes)
        if hidden:
            first = nn.Linear(inputs, hidden)
            self.head = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(2, 3)))


def resnet(
    *,
    classes: int,
    channels: int = 3,
    widths: tuple[int, ...] = (32, 64, 128),
    blocks: tuple[int, ...] = (1, 1, 1),
    hidden: int = 0,
) -> nn.Module:
    """A residual network for small images: a 3×3 stem, stages that halve the resolution, a head.

    ``widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)`` is the ResNet-18 for 32×32 images.
    hidden: units of a hidden layer before the classes; none if 0.
    """
    return ResNet(classes, channels, tuple(widths), tuple(blocks), hidden)
