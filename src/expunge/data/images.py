"""Encoded images to tensors. An image that cannot be used is skipped and named."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.data.encoded import MAX_BYTES_IN_MEMORY, Encoded, InvalidFile, stored_bytes
from expunge.data.inputs import Inputs, LazyInputs, TensorInputs
from expunge.data.pixels import DEEP_MODES, channels_first
from expunge.data.transforms import Transform, TransformFailed
from expunge.errors import DataError, group_by_reason

Mode = Literal["RGB", "L"]

# No format that runs a program (EPS) or reads other files.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
CHUNK_SIZE = 256
# Bytes of an image below which one thread is faster than several.
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


class Images(NamedTuple):
    """The images that can be used.

    Parameters
    ----------
    inputs
        ``[m, C, H, W]``: ``uint8``, or ``float32`` in [0, 1] if the images have 16 bits.
    kept
        ``int64[m]``: their positions in the source.
    skipped
        The reason why each of the others cannot be used, by id.
    """

    inputs: Inputs
    kept: np.ndarray
    skipped: Mapping[int | str, str]


UNCHANGED = ImageFormat()
# Images that are decoded again, to find out whether a transform is random.
N_REREAD = 4


def decode_images(
    encoded: Encoded,
    ids: np.ndarray,
    target: ImageFormat = UNCHANGED,
    *,
    where: str,
) -> Images:
    """Decode the images of these ids to ``uint8[C, H, W]``, or to what a transform makes of them.

    An alpha channel is dropped; an EXIF orientation is not applied. Grey images of 16 bits become
    ``float32`` in [0, 1], unless a mode is given, which has 8 bits.

    Parameters
    ----------
    encoded
        The images.
    ids
        Their ids, for messages.
    target
        What to convert them to: without a mode all must have one of RGB and L (grey), without a
        size all must have one; images are resized bilinearly.
    where
        What messages call the source.

    Returns
    -------
    Images
        Those that can be used: one tensor in memory if it takes less than ``MAX_BYTES_IN_MEMORY``.
        Otherwise inputs that are decoded on demand, and once now to find out which can be used.

    Raises
    ------
    DataError
        If more than half of the images are skipped, or any is unlike the others: in size, mode or
        depth.

    Notes
    -----
    An image is skipped if it is missing, truncated, not decodable, or larger than Pillow's limit
    against decompression bombs.
    """
    with warnings.catch_warnings():
        # Pillow warns of harmless oddities (EXIF, palettes); of bombs we raise an error ourselves.
        warnings.simplefilter("ignore")
        form = _first_form(encoded, len(ids), target)
        in_memory = form is None or len(ids) * form.n_bytes < MAX_BYTES_IN_MEMORY
        out = form.empty(len(ids)) if form is not None and in_memory else None
        forms: list[ImageForm | None] = [None] * len(ids)
        invalid: dict[int, InvalidFile] = {}

        def decode_chunk(start: int) -> list[tuple[int, InvalidFile]]:
            found = []
            for i in range(start, min(start + CHUNK_SIZE, len(ids))):
                try:
                    pixels = decode_one(encoded, i, target)
                except InvalidFile as reason:
                    found.append((i, reason))
                    continue
                forms[i] = ImageForm.of(pixels)
                if out is not None and forms[i] == form:
                    out[i] = pixels
            return found

        # Small images take longer to hand over between threads than to decode.
        is_small = target[1:] == (None, None) and (form is None or form.n_bytes < SMALL_IMAGE)
        with ThreadPoolExecutor(1 if is_small else min(32, os.cpu_count() or 1)) as pool:
            for found in pool.map(decode_chunk, range(0, len(ids), CHUNK_SIZE)):
                invalid.update(found)
    skipped = _skipped(invalid, forms, ids, where)
    if target.transform is not None:
        _check_repeatable(encoded, target, forms, where)
    kept = np.setdiff1d(np.arange(len(ids)), list(invalid))
    if out is None:
        return Images(_lazy(encoded, ids, kept, target, where=where), kept, skipped)
    return Images(TensorInputs(torch.from_numpy(out[kept] if skipped else out)), kept, skipped)


def _check_repeatable(
    encoded: Encoded, target: ImageFormat, forms: list[ImageForm | None], where: str
) -> None:
    """Raise DataError if the transform is random: the first images are decoded twice more."""
    for i in [i for i, form in enumerate(forms) if form is not None][:N_REREAD]:
        first, again = decode_one(encoded, i, target), decode_one(encoded, i, target)
        if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
            raise DataError(
                "the transform is random: it makes two different inputs of one image",
                where=where,
                fix="name the transform of the evaluation; random ones are views",
            )


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
        raise InvalidFile("cannot be decoded (truncated, damaged or no image)") from error


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


def _first_form(encoded: Encoded, n: int, target: ImageFormat) -> ImageForm | None:
    """The form of the first image that can be decoded; None if there is none."""
    for i in range(n):
        try:
            return ImageForm.of(decode_one(encoded, i, target))
        except InvalidFile:
            continue
    return None


def _lazy(
    encoded: Encoded, ids: np.ndarray, kept: np.ndarray, target: ImageFormat, *, where: str
) -> LazyInputs:
    def read(row: int) -> Tensor:
        i = int(kept[row])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = decode_one(encoded, i, target)
            except InvalidFile as reason:
                raise DataError(f"images that {reason}: ids {ids[i]}", where=where) from reason
        return torch.from_numpy(np.array(pixels))

    transform = target.transform.content() if target.transform else ""
    text = f"{encoded.content()}{kept.tolist()}{target.mode}{target.size}{transform}"
    return LazyInputs(len(kept), read, hashlib.sha256(text.encode()).hexdigest())


_FIX = "repair or remove these images; size and mode convert those that only differ"
_UNFIT = (
    "have mode {}, which does not fit into 16 bits: write them with 8 or 16 bits, or read them in "
    "a data set of your own"
)


def _skipped(
    invalid: Mapping[int, InvalidFile],
    forms: list[ImageForm | None],
    ids: np.ndarray,
    where: str,
) -> dict[int | str, str]:
    """The broken images, by id; DataError for those that are only unlike the others."""
    unlike = {i: str(r) for i, r in invalid.items() if isinstance(r, UnlikeOthers)}
    counts = Counter(form for form in forms if form is not None)
    if len(counts) > 1:
        majority = counts.most_common(1)[0][0]
        unlike |= {
            i: f"are {form} where most are {majority}"
            for i, form in enumerate(forms)
            if form not in (None, majority)
        }
    broken = {i: str(r) for i, r in invalid.items() if i not in unlike}
    if not unlike and 2 * len(broken) <= len(ids):
        return {ids[i].item(): broken[i] for i in sorted(broken)}
    found = unlike | broken
    lines = group_by_reason("images", {ids[i].item(): found[i] for i in sorted(found)})
    raise DataError(
        "\n  ".join([f"{len(found)} of {len(ids)} images cannot be used", *lines]),
        where=where,
        fix=_FIX if unlike else "repair or replace these images; up to half of a set is skipped",
    )
