"""Images, clips and rows of samples for the report, and their embedding in a page."""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge._core.arrays import Array
from expunge.data import Samples
from expunge.data.inputs import is_ragged
from expunge.errors import DataError, format_ids

MAX_SIDE = 160  # of an embedded image, in pixels
MIN_SIDE = 4  # a smaller "image" is a table of features
# The most columns that are shown of a table; one with more holds embeddings.
MAX_COLUMNS, MAX_TABLE_COLUMNS = 8, 64
MAX_SECONDS, MAX_SAMPLE_RATE = 4, 16_000  # of an embedded clip
MAX_CHARACTERS = 400  # of a shown text

# From quiet to loud, for people of all colour vision.
HEAT = np.array([(8, 12, 38), (42, 58, 120), (32, 126, 140), (122, 190, 110), (248, 228, 96)])


class Clip(NamedTuple):
    """Audio to be played: ``int16[n]``, and its sample rate in Hz."""

    audio: Array
    sample_rate: int


@dataclass(frozen=True)
class SuspectRows:
    """Values of samples, as text: the names of some columns, and the cells by sample id."""

    names: tuple[str, ...] = ()
    values: Mapping[Hashable, tuple[str, ...]] = field(default_factory=dict)


def rows_for(samples: Samples, ids: Iterable[Hashable]) -> SuspectRows:
    """The first columns of these samples if they are rows of a table: at most 64 numbers.

    Of texts the beginning, `MAX_CHARACTERS` of it. Raises DataError for unknown ids.
    """
    if is_ragged(samples.inputs):
        return _texts_for(samples, ids)
    stored = {name: x for name, x in _stored(samples, ids).items() if x.dim() == 1}
    width = max((len(x) for x in stored.values()), default=0)
    if samples.sample_rate is not None or not 0 < width <= MAX_TABLE_COLUMNS:
        return SuspectRows()
    names = samples.columns or tuple(f"column {k}" for k in range(width))
    cells = {
        name: tuple(f"{v:.4g}" for v in x[:MAX_COLUMNS].tolist()) for name, x in stored.items()
    }
    return SuspectRows(names[:MAX_COLUMNS], cells)


def _texts_for(samples: Samples, ids: Iterable[Hashable]) -> SuspectRows:
    text: Callable[[int], str] = samples.inputs.text  # type: ignore[attr-defined]
    cells = {name: (_cut(text(at)),) for name, at in _positions(samples, ids).items()}
    return SuspectRows(("text",), cells) if any(t for (t,) in cells.values()) else SuspectRows()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS].rstrip()} …"


def images_for(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, Array]:
    """``uint8`` images (H×W or H×W×3) of these samples, by id; empty if they are not images.

    Images are stored inputs of shape ``[C, H, W]`` with C = 1 or 3, ``uint8`` or floating (each
    scaled from its smallest to its largest value). Raises DataError for unknown ids.
    """
    drawn = {name: pixels(x) for name, x in _stored(samples, ids).items()}
    return {name: image for name, image in drawn.items() if image is not None}


def clips_for(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, Clip]:
    """The audio of these samples, by id; empty if they are not audio ``[samples]``.

    The sample rate must be known. To keep the page small, clips have at most the first
    `MAX_SECONDS` and are resampled to at most `MAX_SAMPLE_RATE`. Floating audio is clipped to
    [−1, 1). Raises DataError for unknown ids.
    """
    if samples.sample_rate is None:
        return {}
    found = _stored(samples, ids)
    if not all(_is_audio(x) for x in found.values()):
        return {}
    return {
        name: _shorten(x[: MAX_SECONDS * samples.sample_rate], samples.sample_rate)
        for name, x in found.items()
    }


def _is_audio(x: Tensor) -> bool:
    return x.dim() == 1 and (x.dtype == torch.int16 or x.is_floating_point())


def _shorten(x: Tensor, sample_rate: int) -> Clip:
    scale = 1.0 if x.dtype == torch.int16 else 32768.0
    audio = x.cpu().double().mul(scale).numpy()
    if sample_rate > MAX_SAMPLE_RATE:
        common = math.gcd(sample_rate, MAX_SAMPLE_RATE)
        from scipy.signal import resample_poly

        audio = resample_poly(audio, MAX_SAMPLE_RATE // common, sample_rate // common)
        sample_rate = MAX_SAMPLE_RATE
    return Clip(np.round(audio).clip(-32768, 32767).astype(np.int16), sample_rate)


def _positions(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, int]:
    """The positions of samples by id; DataError for unknown ids."""
    position = {name: i for i, name in enumerate(samples.ids.tolist())}
    wanted = list(ids)
    unknown = [name for name in wanted if name not in position]
    if unknown:
        raise DataError(
            f"no samples with the ids {format_ids(unknown)}",
            where=samples.name,
            fix="give the data set that was partitioned",
        )
    return {name: position[name] for name in wanted}


def _stored(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, Tensor]:
    """The stored inputs of these samples, by id; empty if each is more than one tensor."""
    position = _positions(samples, ids)
    wanted = list(position)
    if not wanted:
        return {}
    stored = samples.inputs.batch(np.array([position[name] for name in wanted]))
    if isinstance(stored, dict):
        return {}
    return dict(zip(wanted, stored, strict=True))


def pixels(image: Tensor | Array) -> Array | None:
    """``uint8`` H×W or H×W×3 of a value in the shape of an image, else None.

    A tensor is ``[C, H, W]`` with C = 1 or 3, ``uint8`` or floating (then scaled from its smallest
    to its largest value); an array is H×W or H×W×3 and ``uint8``.
    """
    if isinstance(image, np.ndarray):
        right_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        return image if image.dtype == np.uint8 and right_shape else None
    if image.dim() != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < MIN_SIDE:
        return None
    array = image.detach().cpu()
    if array.is_floating_point():
        array = array.float()
        low, high = float(array.min()), float(array.max())
        array = (array - low).div_(max(high - low, 1e-12)).mul_(255).round_().byte()
    values = array.numpy()
    if values.dtype != np.uint8:
        return None
    return np.ascontiguousarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


def data_uri(image: Array, max_side: int = MAX_SIDE) -> str:
    """An image as PNG in a ``data:`` URI, at most ``max_side`` pixels on its longest side."""
    from PIL import Image

    picture = Image.fromarray(image)
    if max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def heat(values: Array) -> Array:
    """Numbers ``[H, W]`` as colours ``uint8[H, W, 3]``, dark if low; row 0 is at the bottom.

    The colours span the values from their 5th percentile to the largest.
    """
    low, high = float(np.quantile(values, 0.05)), float(values.max())
    share = ((values[::-1] - low) / max(high - low, 1e-12)).clip(0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(share, stops, HEAT[:, k]) for k in range(3)]
    return np.stack(colours, axis=2).round().astype(np.uint8)


def wav_uri(clip: Clip) -> str:
    """A clip as 16-bit WAV in a ``data:`` URI."""
    buffer = io.BytesIO()
    with wave.Wave_write(buffer) as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(clip.sample_rate)
        file.writeframes(clip.audio.astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
