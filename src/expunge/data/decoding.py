"""How files become stored inputs: kept with the samples, so that an export reads files too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.data.encoded import EncodedFiles, InvalidFile
from expunge.data.inputs import Inputs, TensorInputs, require_tensor
from expunge.data.lazy_inputs import LazyInputs
from expunge.data.transforms import Transform, TransformFailed
from expunge.errors import DataError

if TYPE_CHECKING:
    from expunge.data.image_decoding import Mode


@dataclass(frozen=True)
class Decoding:
    """From a file or a Pillow image to a stored input.

    Parameters
    ----------
    kind
        What the files hold.
    mode, size
        Of images, see `DataConfig`.
    sample_rate, seconds
        Of audio.
    transform
        Applied to what was decoded.
    """

    kind: Literal["image", "audio"]
    mode: Mode | None = None
    size: int | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    transform: Transform | None = None


def transform_inputs(inputs: Inputs, transform: Transform, ids: np.ndarray, where: str) -> Inputs:
    """Apply a transform to every stored input: at once if they are in memory, else when read.

    Audio is given to it as ``float32`` in [−1, 1).
    """

    def one(i: int) -> Tensor:
        stored = inputs.batch(np.array([i]))
        if not isinstance(stored, Tensor):
            raise DataError("a transform takes inputs of one tensor, not dicts", where=where)
        x: Any = stored[0]
        if x.dtype == torch.int16:
            x = x.float().div_(32768).numpy()
        try:
            return torch.from_numpy(transform(x))
        except TransformFailed as error:
            raise DataError(f"inputs that {error}: ids {ids[i]}", where=where) from error

    n = len(inputs)
    first = [one(i) for i in range(min(n, 4))]
    if any(not torch.equal(x.nan_to_num(), one(i).nan_to_num()) for i, x in enumerate(first)):
        raise DataError(
            "the transform is random: it makes two different results of one input",
            where=where,
            fix="name the transform of the evaluation; random ones are views",
        )
    if not isinstance(inputs, TensorInputs):
        return LazyInputs(n, one, inputs.fingerprint() + transform.content())
    out = torch.empty((n, *first[0].shape), dtype=first[0].dtype)
    for i in range(n):
        x = one(i)
        if x.shape != first[0].shape:
            raise DataError(
                f"the transform makes {tuple(x.shape)} of one input and {tuple(first[0].shape)} of "
                f"another: ids {ids[i]}",
                where=where,
                fix="a transform must give all inputs one shape",
            )
        out[i] = x
    return TensorInputs(out)


def decode_inputs(items: Sequence[Any], decoding: Decoding, where: str) -> Tensor:
    """Decode files and Pillow images to stored inputs ``[n, …]``.

    Raises
    ------
    DataError
        That names the first file that cannot be used.
    """
    arrays = []
    for i, item in enumerate(items):
        name = str(item) if isinstance(item, str | Path) else f"item {i}"
        try:
            one = _decode_audio if decoding.kind == "audio" else _decode_image
            arrays.append(one(item, decoding))
        except InvalidFile as error:
            raise DataError(f"{decoding.kind}s that {error}: {name}", where=where) from error
        except TransformFailed as error:
            raise DataError(f"inputs that {error}: {name}", where=where) from error
    different = [i for i, x in enumerate(arrays) if x.shape != arrays[0].shape]
    if different:
        raise DataError(
            f"items {different[:5]} have another shape than the first, {arrays[0].shape}",
            where=where,
            fix="give inputs of one size, as the model was trained with",
        )
    return torch.from_numpy(np.stack(arrays))


def _decode_image(item: Any, decoding: Decoding) -> np.ndarray:
    from expunge.data.image_decoding import ImageFormat, decode_one, image_pixels

    target = ImageFormat(decoding.mode, decoding.size, decoding.transform)
    if isinstance(item, str | Path):
        return decode_one(EncodedFiles([Path(item)]), 0, target)
    return image_pixels(item, target)


def _decode_audio(item: Any, decoding: Decoding) -> np.ndarray:
    from expunge.data.audio import decode_clips

    if not isinstance(item, str | Path):
        raise InvalidFile("are no files: give paths, or int16 arrays as they were stored")
    clips = decode_clips(
        EncodedFiles([Path(item)]),
        np.array([str(item)]),
        silent=np.ones(1, dtype=bool),
        groups=np.zeros(1, dtype=np.int64),
        sample_rate=decoding.sample_rate,
        seconds=decoding.seconds,
        where=str(item),
    )
    x: np.ndarray = require_tensor(clips.inputs.batch(np.arange(1)), str(item))[0].numpy()
    if decoding.transform is None:
        return x
    return decoding.transform(x.astype(np.float32) / 32768)
