"""Networks: their inspection, a zoo of small ones, and spectrograms of audio as layers."""

from expunge.models.zoo import ResNet, convnet, kws, mlp, resnet, rlap_speech, separable

__all__ = ["ResNet", "convnet", "kws", "mlp", "resnet", "rlap_speech", "separable"]
