"""Small networks for the demo, the examples and the benchmarks.

All return logits ``float[b, classes]``; their arguments are plain values, as a spec holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError
from expunge.models.audio import MFCC, LogMel, SpecAugment


def mlp(*, inputs: int, classes: int, hidden: int = 256, depth: int = 2) -> nn.Module:
    """A multilayer perceptron with ReLU: ``inputs → hidden × depth → classes``.

    Parameters
    ----------
    inputs
        Features of one sample; inputs of more dimensions are flattened.
    classes
        Number of classes.
    hidden
        Units of each hidden layer.
    depth
        Number of hidden layers.

    Examples
    --------
    >>> mlp(inputs=64, classes=10)(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """
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

    Each width has its convolutions and then halves the resolution; the last one is averaged.

    Parameters
    ----------
    classes
        Number of classes.
    channels
        Of the input ``[b, channels, h, w]``.
    widths
        Channels of the convolutions.
    hidden
        Units of the hidden linear layer.
    convolutions
        Number of convolutions of each width.

    Examples
    --------
    >>> convnet(classes=10, channels=1, widths=(4, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
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
        *,
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
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


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

    Parameters
    ----------
    classes
        Number of classes.
    channels
        Of the input ``[b, channels, h, w]``.
    widths, blocks
        Channels and number of residual blocks of each stage.
    hidden
        Units of a hidden layer before the classes; 0 for none.

    Raises
    ------
    ConfigError
        Unless ``widths`` and ``blocks`` have a number for each stage.

    References
    ----------
    He et al., arXiv 1512.03385.

    Examples
    --------
    >>> resnet(classes=10, widths=(4, 8), blocks=(1, 1))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    if len(widths) != len(blocks) or not widths:
        raise ConfigError(
            f"widths {tuple(widths)} and blocks {tuple(blocks)} must have a number for each stage",
            where="resnet",
        )
    return ResNet(
        classes=classes,
        channels=channels,
        widths=tuple(widths),
        blocks=tuple(blocks),
        hidden=hidden,
    )


def separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A depthwise 3×3 and a pointwise convolution, each with batch norm and ReLU.

    Examples
    --------
    >>> separable(4, 8, stride=2)(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """
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
    sample_rate: int = 16_000,
    n_mels: int = 40,
    widths: tuple[int, ...] = (32, 64, 64, 96, 96),
    strides: tuple[int, ...] = (2, 1, 1, 2),
    n_masks: int = 1,
) -> nn.Module:
    """A network for keyword spotting: audio ``[b, samples]`` to logits; 28,000 weights.

    A DS-CNN: one 5×5 convolution of stride 2, then depthwise-separable ones. Unlike in the paper,
    the features are part of it (log-mel instead of MFCC), and a depthwise convolution over all
    frequencies comes before the average over time, because frequency matters and time does not.

    Parameters
    ----------
    classes
        Number of classes.
    sample_rate
        Of the audio, in Hz.
    n_mels
        Mel bands.
    widths, strides
        Channels of all convolutions, and strides of those after the first.
    n_masks
        Masks of each sort and clip in training, see `SpecAugment`; 0 for none.

    References
    ----------
    Zhang et al., arXiv 1711.07128.

    Examples
    --------
    >>> kws(classes=3, sample_rate=8000)(torch.zeros(2, 8000)).shape
    torch.Size([2, 3])
    """
    layers: list[nn.Module] = [
        LogMel(sample_rate=sample_rate, n_mels=n_mels, floor=1e-6),
        SpecAugment(n_masks=n_masks),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, widths[0], 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    height = -(-n_mels // 2)
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
    """The speech network of the published method RLAP: 34,954 weights for ten words.

    One 3×3 convolution of 64 channels with batch norm, ReLU and 2×2 max-pooling, the average by 2×2
    parts, a hidden layer of 128.

    Parameters
    ----------
    classes
        Number of classes.
    features
        Whether the input is audio ``[b, samples]`` at 16 kHz, of which 40 MFCC (librosa's) are
        computed; otherwise it is ``[b, 1, 40, frames]``, for noise that is put on MFCC.

    References
    ----------
    arXiv 2506.11615.

    Examples
    --------
    >>> rlap_speech(features=False)(torch.zeros(2, 1, 40, 32)).shape
    torch.Size([2, 10])
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
