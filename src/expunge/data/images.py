"""Encoded images to tensors. All images that cannot be used are named in one error."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.data.encoded import MAX_BYTES_IN_MEMORY, Encoded, InvalidFile, stored_bytes
from expunge.data.inputs import Inputs, LazyInputs, TensorInputs
from expunge.errors import DataError, group_by_reason

Mode = Literal["RGB", "L"]

# No format that runs a program (EPS) or reads other files.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
CHUNK_SIZE = 256
# Values of an image below which one thread is faster than several.
SMALL_IMAGE = 3 * 128 * 128

_DAMAGE = (
    OSError,  # Pillow's UnidentifiedImageError is one
    SyntaxError,  # what Pillow raises for a broken PNG
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Warning,  # the caller may have turned warnings into errors
)


class ImageFormat(NamedTuple):
    """What images are converted to: mode and side in pixels; None leaves them as they are."""

    mode: Mode | None = None
    size: int | None = None


def decode_images(
    encoded: Encoded,
    ids: np.ndarray,
    *,
    mode: Mode | None = None,
    size: int | None = None,
    where: str,
) -> Inputs:
    """Decode the images of these ids to ``uint8[C, H, W]``.

    An alpha channel is dropped; an EXIF orientation is not applied.

    Parameters
    ----------
    encoded
        The images.
    ids
        Their ids, for messages.
    mode
        Convert the images to RGB or L (grey). Without it all must have one of these modes.
    size
        Resize the images to ``size × size``, bilinearly. Without it all must have one size.
    where
        What messages call the source.

    Returns
    -------
    Inputs
        One tensor in memory if it takes less than ``MAX_BYTES_IN_MEMORY``. Otherwise inputs that
        are decoded on demand.

    Raises
    ------
    DataError
        With all images that are missing, truncated, not decodable, larger than Pillow's limit
        against decompression bombs, or unlike the others.
    """
    target = ImageFormat(mode, size)
    with warnings.catch_warnings():
        # Pillow warns of harmless oddities (EXIF, palettes); of bombs we raise an error ourselves.
        warnings.simplefilter("ignore")
        shape = _first_shape(encoded, len(ids), target)
        if shape is not None and len(ids) * int(np.prod(shape)) >= MAX_BYTES_IN_MEMORY:
            return _lazy(encoded, ids, shape, target, where=where)
        out = np.empty((len(ids), *(shape or ())), dtype=np.uint8)
        shapes: list[tuple[int, ...] | None] = [None] * len(ids)
        invalid: dict[str, list[int]] = defaultdict(list)

        def decode_chunk(start: int) -> list[tuple[int, str]]:
            found = []
            for i in range(start, min(start + CHUNK_SIZE, len(ids))):
                try:
                    pixels = _decode_one(encoded, i, target)
                except InvalidFile as reason:
                    found.append((i, str(reason)))
                    continue
                shapes[i] = pixels.shape
                if pixels.shape == shape:
                    out[i] = pixels
            return found

        # Small images take longer to hand over between threads than to decode.
        is_small = size is None and int(np.prod(shape or ())) < SMALL_IMAGE
        with ThreadPoolExecutor(1 if is_small else min(32, os.cpu_count() or 1)) as pool:
            for found in pool.map(decode_chunk, range(0, len(ids), CHUNK_SIZE)):
                for i, reason in found:
                    invalid[reason].append(i)
    _raise_invalid(invalid, shapes, ids, where)
    return TensorInputs(torch.from_numpy(out))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image of mode L or RGB to ``uint8[C, H, W]``; else ValueError."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"an image of mode {image.mode}: expected L or RGB (use .convert)")
    return torch.from_numpy(_channels_first(np.array(image)))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _decode_one(encoded: Encoded, i: int, target: ImageFormat) -> np.ndarray:
    """One image, ``uint8[C, H, W]``."""
    data = stored_bytes(encoded, i)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise InvalidFile(f"have more than {limit} pixels (Pillow's limit)")
            image.load()
            return _channels_first(np.asarray(_convert(image, target)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidFile(
            f"have more than {Image.MAX_IMAGE_PIXELS} pixels (Pillow's limit)"
        ) from error
    except _DAMAGE as error:
        raise InvalidFile("cannot be decoded (truncated, damaged or no image)") from error


def _convert(image: Image.Image, target: ImageFormat) -> Image.Image:
    """Convert the mode and resize; InvalidFile for a mode that does not fit."""
    mode, size = target
    if mode is None and image.mode not in ("L", "RGB"):
        raise InvalidFile(f"have mode {image.mode}, expected RGB or L: set mode to convert them")
    if mode is not None and image.mode != mode:
        # Pillow would clip 16-bit and float images to white without a warning.
        if image.mode not in CONVERTIBLE:
            raise InvalidFile(f"have mode {image.mode}, which does not fit into 8 bits")
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image


def _first_shape(encoded: Encoded, n: int, target: ImageFormat) -> tuple[int, ...] | None:
    """The shape of the first image that can be decoded; None if there is none."""
    for i in range(n):
        try:
            return _decode_one(encoded, i, target).shape
        except InvalidFile:
            continue
    return None


def _lazy(
    encoded: Encoded,
    ids: np.ndarray,
    shape: tuple[int, ...],
    target: ImageFormat,
    *,
    where: str,
) -> LazyInputs:
    def read(i: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = _decode_one(encoded, i, target)
            except InvalidFile as reason:
                raise DataError(f"images that {reason}: ids {ids[i]}", where=where) from reason
        if pixels.shape != shape:
            raise DataError(
                f"images that are {_describe_shape(pixels.shape)} where the first is "
                f"{_describe_shape(shape)}: ids {ids[i]}",
                where=where,
                fix=_FIX,
            )
        return torch.from_numpy(np.array(pixels))

    text = f"{encoded.content()}{len(ids)}{target.mode}{target.size}"
    return LazyInputs(len(ids), read, hashlib.sha256(text.encode()).hexdigest())


_FIX = "repair or remove these images; size and mode convert those that only differ"


def _raise_invalid(
    invalid: dict[str, list[int]],
    shapes: list[tuple[int, ...] | None],
    ids: np.ndarray,
    where: str,
) -> None:
    """Raise DataError if an image is invalid or has another shape than most."""
    groups = dict(invalid)
    counts = Counter(s for s in shapes if s is not None)
    if len(counts) > 1:
        majority = counts.most_common(1)[0][0]
        for shape in counts:
            if shape != majority:
                reason = f"are {_describe_shape(shape)} where most are {_describe_shape(majority)}"
                groups[reason] = [i for i, s in enumerate(shapes) if s == shape]
    ordered = sorted(groups.items(), key=lambda g: g[1][0])
    lines = group_by_reason(
        "images", {ids[i]: why for why, positions in ordered for i in positions}
    )
    if lines:
        raise DataError("\n  ".join(lines), where=where, fix=_FIX)


def _describe_shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}×{height} {'L' if channels == 1 else 'RGB'}"
