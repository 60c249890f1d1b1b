"""One encoded image to an array: converted, resized and transformed as a set asks for."""

from __future__ import annotations

import io
import struct
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from expunge.data.encoded import Encoded, InvalidFile, stored_bytes
from expunge.data.pixels import DEEP_MODES, channels_first
from expunge.data.transforms import Transform, TransformFailed

Mode = Literal["RGB", "L"]

# No format that runs a program (EPS) or reads other files.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_UNFIT = (
    "have mode {}, which is not read: write them as grey or RGB with 8 or 16 bits, or read them in "
    "a data set of your own"
)
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


class UnlikeOthers(InvalidFile):
    """An image that is sound, and only of a mode that does not fit."""


class ImageForm(NamedTuple):
    """Shape ``(C, H, W)`` and number type of an image."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, pixels: np.ndarray) -> ImageForm:
        """The form of an image."""
        return cls(pixels.shape, pixels.dtype)

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def empty(self, n: int) -> np.ndarray:
        """Memory for n images of this form."""
        return np.empty((n, *self.shape), dtype=self.dtype)

    def __str__(self) -> str:
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            return f"{list(self.shape)} {self.dtype}"
        channels, height, width = self.shape
        depth = {"u": "", "f": " of 16 bits"}.get(self.dtype.kind, f" {self.dtype}")
        return f"{width}×{height} {'L' if channels == 1 else 'RGB'}{depth}"


class ImageFormat(NamedTuple):
    """What images are converted to; None leaves them as they are.

    Parameters
    ----------
    mode
        RGB or L. With a transform, images of 8 bits are RGB by default.
    size
        Side in pixels.
    transform
        Applied to the converted Pillow image.
    """

    mode: Mode | None = None
    size: int | None = None
    transform: Transform | None = None


def image_pixels(image: Image.Image, target: ImageFormat) -> np.ndarray:
    """A Pillow image as it is stored: converted, and transformed if there is a transform.

    InvalidFile if it does not fit.
    """
    transform = target.transform
    if transform is None:
        return channels_first(np.asarray(_convert(image, target)))
    if target.mode is None and image.mode not in DEEP_MODES:
        target = target._replace(mode="RGB")
    try:
        return transform(_convert(image, target))
    except TransformFailed as error:
        raise UnlikeOthers(str(error)) from error


def decode_one(encoded: Encoded, i: int, target: ImageFormat) -> np.ndarray:
    """One image as it is stored."""
    data = stored_bytes(encoded, i)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise InvalidFile(f"have more than {limit} pixels (Pillow's limit)")
            image.load()
            return image_pixels(image, target)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidFile(
            f"have more than {Image.MAX_IMAGE_PIXELS} pixels (Pillow's limit)"
        ) from error
    except _DAMAGE as error:
        raise InvalidFile(
            "cannot be decoded (truncated, damaged, or no PNG, JPEG, GIF, BMP, PPM, TIFF or WebP)"
        ) from error


def _convert(image: Image.Image, target: ImageFormat) -> Image.Image:
    """Convert the mode and resize; UnlikeOthers for a mode that does not fit."""
    mode, size = target.mode, target.size
    is_deep = image.mode in DEEP_MODES
    if mode is None and image.mode not in ("L", "RGB") and not is_deep:
        if image.mode not in CONVERTIBLE:
            raise UnlikeOthers(_UNFIT.format(image.mode))
        raise UnlikeOthers(f"have mode {image.mode}, expected RGB or L: set mode to convert them")
    if mode is not None and image.mode != mode:
        if is_deep:  # Pillow would clip them to white without a warning
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode not in CONVERTIBLE:
            raise UnlikeOthers(_UNFIT.format(image.mode))
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        if image.mode in DEEP_MODES:
            deep = Image.fromarray(np.asarray(image).astype(np.float32))
            deep = deep.resize((size, size), Image.Resampling.BILINEAR)
            return Image.fromarray(np.asarray(deep).round().astype(np.uint16))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image
