"""Pillow images as tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Grey images of 16 bits.
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image to ``uint8[C, H, W]``, one of 16 bits to ``float32`` in [0, 1].

    ValueError for other modes than L, RGB and grey of 16 bits.
    """
    if image.mode not in ("L", "RGB", *DEEP_MODES):
        raise ValueError(f"an image of mode {image.mode}: expected L or RGB")
    return torch.from_numpy(channels_first(np.array(image)))


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """The pixels ``[C, H, W]`` of ``[H, W]`` or ``[H, W, C]``; 16 bits become ``float32``."""
    if pixels.dtype == np.uint16:
        pixels = (pixels / np.float32(65535)).astype(np.float32)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
