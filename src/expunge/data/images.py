"""Encoded images to tensors. An image that cannot be used is skipped and named."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.data.encoded import MAX_BYTES_IN_MEMORY, Encoded, InvalidFile, encoded_groups
from expunge.data.image_decoding import ImageForm, ImageFormat, UnlikeOthers, decode_one
from expunge.data.inputs import Inputs, TensorInputs
from expunge.data.lazy_inputs import LazyInputs
from expunge.data.workers import Workers, choose_workers
from expunge.errors import DataError, group_by_reason
from expunge.storage.digest_cache import MIN_FILES
from expunge.storage.user_cache import read_reasons, write_reasons

# Images that a thread, and a process, decode at a time.
CHUNK_SIZE, PROCESS_CHUNK_SIZE = 256, 32
# Bytes of an image below which one thread is faster than several.
SMALL_IMAGE = 3 * 128 * 128


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
    workers: int | None = None,
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
    workers
        The number of worker processes that decode, see `choose_workers`.

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
    n_bytes = 0 if form is None else len(ids) * form.n_bytes
    if form is not None and n_bytes >= MAX_BYTES_IN_MEMORY:
        n_workers = choose_workers(workers, n_bytes)
        return _decode_on_demand(_Source(encoded, ids, where), target, form, n_workers)
    found = _Decoded(len(ids), form, keep=form is not None)
    _decode_all(encoded, target, found, choose_workers(workers, 0))
    skipped = _skipped(found.invalid, found.forms, ids, where)
    _check_repeatable(encoded, target, found, where)
    kept = np.setdiff1d(np.arange(len(ids)), list(found.invalid))
    out = np.empty(0) if found.out is None else found.out
    return Images(TensorInputs(torch.from_numpy(out[kept] if skipped else out)), kept, skipped)


class _Source(NamedTuple):
    """Encoded images, their ids, and what messages call them."""

    encoded: Encoded
    ids: np.ndarray
    where: str


def _decode_on_demand(
    source: _Source, target: ImageFormat, form: ImageForm, n_workers: int
) -> Images:
    """Find out which images can be used; for many images that is remembered."""
    encoded, ids, where = source
    transform = target.transform.content() if target.transform else ""
    content = f"{encoded.content()}{target.mode}{target.size}{transform}"
    key = hashlib.sha256(f"{content}{len(ids)}{form}".encode()).hexdigest()
    found = _Decoded(len(ids), form, keep=False)
    reasons = read_reasons(key, len(ids)) if len(ids) >= MIN_FILES else None
    if reasons is None:
        _decode_all(encoded, target, found, n_workers)
        skipped = _skipped(found.invalid, found.forms, ids, where)
        _check_repeatable(encoded, target, found, where)
        if len(ids) >= MIN_FILES:
            write_reasons(key, {i: str(reason) for i, reason in found.invalid.items()})
    else:
        skipped = {ids[i].item(): reasons[i] for i in sorted(reasons)}
    kept = np.setdiff1d(np.arange(len(ids)), list(found.invalid if reasons is None else reasons))
    inputs = LazyInputs(
        len(kept),
        partial(_read_image, target, where),
        hashlib.sha256(f"{content}{kept.tolist()}".encode()).hexdigest(),
        locate=lambda row: (str(ids[kept[row]]), encoded.locate(int(kept[row]))),
        groups=lambda rows: encoded_groups(encoded, kept[rows]),
        workers=n_workers,
    )
    return Images(inputs, kept, skipped)


class _Decoded:
    """What decoding all images gave: the pixels if they are kept, and form or reason of each."""

    def __init__(self, n: int, form: ImageForm | None, *, keep: bool) -> None:
        self.form = form
        self.out = form.empty(n) if form is not None and keep else None
        self.forms: list[ImageForm | None] = [None] * n
        self.invalid: dict[int, InvalidFile] = {}

    def take(self, i: int, found: np.ndarray | ImageForm | InvalidFile) -> None:
        """Note the result of one image."""
        if isinstance(found, InvalidFile):
            self.invalid[i] = found
            return
        form = ImageForm.of(found) if isinstance(found, np.ndarray) else found
        self.forms[i] = self.form if form == self.form else form
        if self.out is not None and form == self.form:
            self.out[i] = found


def _decode_all(encoded: Encoded, target: ImageFormat, found: _Decoded, n_workers: int) -> None:
    if n_workers:
        _decode_in_processes(encoded, target, found, n_workers)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _decode_in_threads(encoded, target, found)


def _decode_in_threads(encoded: Encoded, target: ImageFormat, found: _Decoded) -> None:
    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + CHUNK_SIZE, len(found.forms))):
            found.take(i, _try_decode(encoded, i, target))

    # Small images take longer to hand over between threads than to decode.
    is_small = target[1:] == (None, None) and (
        found.form is None or found.form.n_bytes < SMALL_IMAGE
    )
    with ThreadPoolExecutor(1 if is_small else min(32, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, len(found.forms), CHUNK_SIZE)):
            pass


def _decode_in_processes(
    encoded: Encoded, target: ImageFormat, found: _Decoded, n_workers: int
) -> None:
    n, size = len(found.forms), PROCESS_CHUNK_SIZE
    chunks = [range(start, min(start + size, n)) for start in range(0, n, size)]
    workers = Workers(partial(_decode_chunk, target, found.out is not None), n_workers)
    parts = workers.map([encoded.locate(i) for i in chunk] for chunk in chunks)
    for chunk, part in zip(chunks, parts, strict=True):
        for i, one in zip(chunk, part, strict=True):
            found.take(i, one)


def _decode_chunk(
    target: ImageFormat, keep: bool, files: list[Encoded]
) -> list[np.ndarray | ImageForm | InvalidFile]:
    """In a worker process: the pixels of each file, or their form alone, or what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [_try_decode(file, 0, target) for file in files]
    return [ImageForm.of(x) if isinstance(x, np.ndarray) and not keep else x for x in found]


def _try_decode(encoded: Encoded, i: int, target: ImageFormat) -> np.ndarray | InvalidFile:
    try:
        return decode_one(encoded, i, target)
    except InvalidFile as reason:
        return reason


def _check_repeatable(encoded: Encoded, target: ImageFormat, found: _Decoded, where: str) -> None:
    """Raise DataError if the transform is random: the first images are decoded twice more."""
    if target.transform is None:
        return
    for i in [i for i, form in enumerate(found.forms) if form is not None][:N_REREAD]:
        first, again = decode_one(encoded, i, target), decode_one(encoded, i, target)
        if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
            raise DataError(
                "the transform is random: it makes two different inputs of one image",
                where=where,
                fix="name the transform of the evaluation; random ones are views",
            )


def _first_form(encoded: Encoded, n: int, target: ImageFormat) -> ImageForm | None:
    """The form of the first image that can be decoded; None if there is none."""
    for i in range(n):
        try:
            return ImageForm.of(decode_one(encoded, i, target))
        except InvalidFile:
            continue
    return None


def _read_image(target: ImageFormat, where: str, located: tuple[str, Encoded]) -> Tensor:
    name, file = located
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode_one(file, 0, target)
        except InvalidFile as reason:
            raise DataError(f"images that {reason}: ids {name}", where=where) from reason
    return torch.from_numpy(np.array(pixels))


_FIX = "repair or remove these images; size and mode convert those that only differ"


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
