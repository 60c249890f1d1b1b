"""The small networks that the demo, the examples and the benchmarks train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.models.audio import MFCC, LogMel, SpecAugment


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


def separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A depthwise 3×3 and a pointwise convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def kws(
    *,
    classes: int = 12,
    rate: int = 16_000,
    mels: int = 40,
    widths: tuple[int, ...] = (32, 64, 64, 96, 96),
    strides: tuple[int, ...] = (2, 1, 1, 2),
    masks: int = 1,
) -> nn.Module:
    """Keyword spotting: sound ``[b, samples]`` at ``rate`` Hz in, logits out; 28,000 weights.

    A DS-CNN (arXiv 1711.07128): one 5×5 convolution of stride 2, then depthwise-separable ones of
    these widths and strides. Unlike there, the features are part of it (log-mel instead of MFCC),
    and a depthwise convolution over all frequencies comes before the average over time: it matters
    how high a sound is, and not when it comes.
    masks: of each sort and clip in training, see `SpecAugment`; 0 leaves them out.
    """
    layers: list[nn.Module] = [
        LogMel(rate=rate, mels=mels, floor=1e-6),
        SpecAugment(count=masks),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, widths[0], 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    height = -(-mels // 2)
    for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers.append(separable(inputs, outputs, stride))
        height = -(-height // stride)
    layers += [
        nn.Conv2d(widths[-1], widths[-1], (height, 1), groups=widths[-1], bias=False),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def rlap_speech(*, classes: int = 10, features: bool = True) -> nn.Module:
    """The published method's network for speech (arXiv 2506.11615): 34,954 weights for ten words.

    One 3×3 convolution of 64 channels with batch norm, ReLU and 2×2 max-pooling, the average by 2×2
    parts, a hidden layer of 128. It sees 40 MFCC (librosa's): of sound ``[b, samples]`` at 16 kHz,
    or, without ``features``, ready ones ``[b, 1, 40, frames]``, for noise that is put on these.
    """
    return nn.Sequential(
        MFCC() if features else nn.Identity(),
        nn.Conv2d(1, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
