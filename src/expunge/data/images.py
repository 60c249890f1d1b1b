"""Encoded images to tensors: every image that does not fit is named, all of them in one error."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.data.samples import Inputs, LazyInputs, TensorInputs
from expunge.errors import DataError, group_by_reason

Mode = Literal["RGB", "L"]

RESIDENT_BYTES = 4 << 30  # decoded images of up to this size are kept in memory
# No format that runs a program (EPS) or reaches out of its own bytes.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
CHUNK = 256
SMALL = 3 * 128 * 128

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


class Encoded(Protocol):
    """Encoded images, or clips of sound, by position."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes | None:
        """The bytes of one file; None where none are stored."""
        ...

    def content(self) -> str:
        """A hash of all that could be read."""
        ...


class EncodedFiles:
    """Images or clips that lie in files of their own."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, position: int) -> bytes | None:
        return self._paths[position].read_bytes()

    def content(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


class InvalidImage(Exception):
    """One image or clip that cannot be used; its message completes "images that …"."""


def stored_bytes(encoded: Encoded, position: int) -> bytes:
    """The bytes of one file. Raises Unfit if there are none, or they cannot be read."""
    try:
        data = encoded.read(position)
    except OSError as error:
        raise InvalidImage(f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise InvalidImage("hold no bytes")
    return data


def decode(
    encoded: Encoded,
    ids: np.ndarray,
    *,
    mode: Mode | None = None,
    size: int | None = None,
    where: str,
) -> Inputs:
    """Decode the images of these ids to ``uint8[C, H, W]``.

    Without ``mode`` (``size``) all images must agree in mode (size); with it they are converted
    (resized, bilinear). An alpha channel is dropped, an EXIF orientation is not applied.

    Returns one resident tensor if it takes less than RESIDENT_BYTES, else inputs that are decoded
    when they are asked for. Raises DataError with all images that are missing, truncated, not
    decodable, larger than Pillow's limit against decompression bombs, or unlike the others.
    """
    with warnings.catch_warnings():
        # Pillow warns of harmless oddities (EXIF, palettes); of bombs we raise an error ourselves.
        warnings.simplefilter("ignore")
        shape = _first_shape(encoded, len(ids), mode, size)
        if shape is not None and len(ids) * int(np.prod(shape)) >= RESIDENT_BYTES:
            return _lazy(encoded, ids, shape, mode, size, where)
        out = np.empty((len(ids), *(shape or ())), dtype=np.uint8)
        shapes: list[tuple[int, ...] | None] = [None] * len(ids)
        unfit: dict[str, list[int]] = defaultdict(list)

        def work(start: int) -> list[tuple[int, str]]:
            found = []
            for i in range(start, min(start + CHUNK, len(ids))):
                try:
                    pixels = _pixels(encoded, i, mode, size)
                except InvalidImage as reason:
                    found.append((i, str(reason)))
                    continue
                shapes[i] = pixels.shape
                if pixels.shape == shape:
                    out[i] = pixels
            return found

        # Small images take longer to hand over between threads than to decode.
        small = size is None and int(np.prod(shape or ())) < SMALL
        with ThreadPoolExecutor(1 if small else min(32, os.cpu_count() or 1)) as pool:
            for found in pool.map(work, range(0, len(ids), CHUNK)):
                for i, reason in found:
                    unfit[reason].append(i)
    _raise_unfit(unfit, shapes, ids, where)
    return TensorInputs(torch.from_numpy(out))


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image of mode L or RGB as ``uint8[C, H, W]``; another mode is a ValueError."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"an image of mode {image.mode}: expected L or RGB (use .convert)")
    return torch.from_numpy(_channels_first(np.array(image)))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _pixels(encoded: Encoded, i: int, mode: Mode | None, size: int | None) -> np.ndarray:
    """One image, ``uint8[C, H, W]``."""
    data = stored_bytes(encoded, i)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise InvalidImage(f"have more than {limit} pixels (Pillow's limit)")
            image.load()
            return _channels_first(np.asarray(_fitted(image, mode, size)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImage(
            f"have more than {Image.MAX_IMAGE_PIXELS} pixels (Pillow's limit)"
        ) from error
    except _DAMAGE as error:
        raise InvalidImage("cannot be decoded (truncated, damaged or no image)") from error


def _fitted(image: Image.Image, mode: Mode | None, size: int | None) -> Image.Image:
    if mode is None and image.mode not in ("L", "RGB"):
        raise InvalidImage(f"have mode {image.mode}, expected RGB or L: set mode to convert them")
    if mode is not None and image.mode != mode:
        # 16-bit and float images would be clipped to white without a word.
        if image.mode not in CONVERTIBLE:
            raise InvalidImage(f"have mode {image.mode}, which does not fit into 8 bits")
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image


def _first_shape(
    encoded: Encoded, n: int, mode: Mode | None, size: int | None
) -> tuple[int, ...] | None:
    """The shape of the first image that can be decoded."""
    for i in range(n):
        try:
            return _pixels(encoded, i, mode, size).shape
        except InvalidImage:
            continue
    return None


def _lazy(
    encoded: Encoded,
    ids: np.ndarray,
    shape: tuple[int, ...],
    mode: Mode | None,
    size: int | None,
    where: str,
) -> LazyInputs:
    def read(i: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = _pixels(encoded, i, mode, size)
            except InvalidImage as reason:
                raise DataError(f"images that {reason}: ids {ids[i]}", where=where) from reason
        if pixels.shape != shape:
            raise DataError(
                f"images that are {_shown(pixels.shape)} where the first is {_shown(shape)}: "
                f"ids {ids[i]}",
                where=where,
                fix=_FIX,
            )
        return torch.from_numpy(np.array(pixels))

    content = hashlib.sha256(f"{encoded.content()}{len(ids)}{mode}{size}".encode()).hexdigest()
    return LazyInputs(len(ids), read, content)


_FIX = "repair or remove these images; size and mode convert those that only differ"


def _raise_unfit(
    unfit: dict[str, list[int]],
    shapes: list[tuple[int, ...] | None],
    ids: np.ndarray,
    where: str,
) -> None:
    groups = dict(unfit)
    counts = Counter(s for s in shapes if s is not None)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        for shape in counts:
            if shape != usual:
                reason = f"are {_shown(shape)} where most are {_shown(usual)}"
                groups[reason] = [i for i, s in enumerate(shapes) if s == shape]
    ordered = sorted(groups.items(), key=lambda g: g[1][0])
    lines = group_by_reason(
        "images", {ids[i]: why for why, positions in ordered for i in positions}
    )
    if lines:
        raise DataError("\n  ".join(lines), where=where, fix=_FIX)


def _shown(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}×{height} {'L' if channels == 1 else 'RGB'}"
