"""Encoded sound to tensors. A clip that cannot be used is left out and named; the rest is kept."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

from expunge.data.images import RESIDENT_BYTES, Encoded, InvalidImage, stored_bytes
from expunge.data.samples import Inputs, LazyInputs, TensorInputs
from expunge.errors import DataError, extra_required, group_by_reason

if TYPE_CHECKING:
    from soundfile import SoundFile

SUFFIXES = (".wav", ".flac", ".ogg", ".oga")
# No format whose decoder is old, or that reaches out of its own bytes.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
RATES = (1_000, 384_000)  # Hz; a filter between stranger ones would not fit into memory
CHANNELS = 32
MOST = 1 << 26  # numbers that are decoded of one clip: an hour at 16 kHz
UNKNOWN = 1 << 40  # a stream that does not say how long it is says that it has more samples
SILENCE = {"silence", "silent", "background", "noise"}  # words in the names of silent classes
CHUNK = 64


class Clips(NamedTuple):
    """The clips that can be used.

    inputs: ``int16[m, samples]``. kept: their positions, ``int64[m]``. rate: Hz.
    skipped: why each of the others was left out, by id.
    """

    inputs: Inputs
    kept: np.ndarray
    rate: int
    skipped: Mapping[Any, str]


def decode(
    encoded: Encoded,
    ids: np.ndarray,
    *,
    silent: np.ndarray,
    groups: np.ndarray,
    rate: int | None = None,
    seconds: float | None = None,
    where: str,
) -> Clips:
    """Decode the clips of these ids to ``int16[samples]``, mixed to one channel.

    rate: what they are resampled to, in Hz (polyphase filter); without it a clip of another rate
    than most is left out. seconds: every clip is cut at its end, or padded there with silence, to
    that length; without it all must be equally long. silent: ``bool[n]``, where silence is right.
    groups: ``int[n]``, classes; one in which most clips are silent is silence, too.

    Left out, with the reason, is a clip that is missing, empty, truncated, not decodable, no WAV,
    FLAC or OGG, of a stranger rate than 1 to 384 kHz, of more than 32 channels, longer than 2²⁶
    numbers, not finite, or digitally silent: all its samples are equal. A recording of a silent
    room is not: it has noise.

    One resident tensor if it takes less than RESIDENT_BYTES, else decoded when it is asked for
    (and once now, to see what can be used). Raises DataError if more than half of the clips are
    left out, or their lengths differ and there is no ``seconds``. 0.2 ms a second of FLAC.
    """
    _require_soundfile()
    reasons: dict[int, str] = {}
    rate, length = _form(encoded, len(ids), rate, seconds, reasons, ids, where)
    resident = len(ids) * length * 2 < RESIDENT_BYTES
    out = np.zeros((len(ids) if resident else 0, length), dtype=np.int16)
    constant = np.zeros(len(ids), dtype=bool)

    def work(i: int) -> None:
        if i in reasons:
            return
        x = _sound(encoded, i, rate, length)
        constant[i] = x.min() == x.max()
        if resident:
            out[i, : len(x)] = x

    _for_each(work, len(ids), reasons)
    bad = constant & ~(silent | _mostly(constant, groups))
    reasons |= dict.fromkeys(np.flatnonzero(bad).tolist(), "are silent: all samples are equal")
    _require_half(reasons, ids, where)
    kept = np.setdiff1d(np.arange(len(ids)), list(reasons))
    inputs: Inputs
    if resident:
        inputs = TensorInputs(torch.from_numpy(out if len(kept) == len(ids) else out[kept]))
    else:
        inputs = _lazy(encoded, ids, kept, rate, length, where)
    return Clips(inputs, kept, rate, {ids[i].item(): reasons[i] for i in sorted(reasons)})


def is_sound(encoded: Encoded, n: int) -> bool:
    """Whether the first bytes that there are begin like a WAV, FLAC or OGG file."""
    for i in range(min(n, CHUNK)):
        try:
            head = (encoded.read(i) or b"")[:12]
        except OSError:
            continue
        if head:
            return head[:4] in (b"fLaC", b"OggS") or head[:4] + head[8:] == b"RIFFWAVE"
    return False


def means_silence(name: str) -> bool:
    """Whether a class of this name is silence: a word of it says so.

    >>> means_silence("_silence_"), means_silence("stop")
    (True, False)
    """
    return not SILENCE.isdisjoint(re.split(r"[\W\d_]+", name.casefold()))


def _require_soundfile() -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError as error:
        raise extra_required("soundfile", "audio") from error


def _opened(data: bytes) -> SoundFile:
    """The file, if its head is in order."""
    import soundfile

    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise InvalidImage("cannot be decoded (damaged, or no sound)") from error
    problem = ""
    if file.format not in FORMATS:
        problem = f"are {file.format} files, expected WAV, FLAC or OGG"
    elif not RATES[0] <= file.samplerate <= RATES[1]:
        problem = f"have a rate of {file.samplerate} Hz, expected {RATES[0]} to {RATES[1]}"
    elif file.channels > CHANNELS:
        problem = f"have {file.channels} channels, expected at most {CHANNELS}"
    elif file.frames == 0:
        problem = "hold no sound: the recording is empty"
    if problem:
        file.close()
        raise InvalidImage(problem)
    return file


def _sound(encoded: Encoded, i: int, rate: int, length: int) -> np.ndarray:
    """One clip, ``int16`` of at most that length, at that rate."""
    import soundfile

    with _opened(stored_bytes(encoded, i)) as file:
        own = file.samplerate
        up, down = (k // math.gcd(rate, own) for k in (rate, own))
        # A filter is 10 samples of the lower rate wide, to either side.
        wanted = min(file.frames, -(-length * down // up) + 10 * max(1, -(-down // up)))
        if wanted * file.channels > MOST:
            raise InvalidImage(f"are longer than {MOST} numbers")
        # Integers are read as they are; libsndfile does not scale floats to integers.
        exact = file.subtype == "PCM_16" and file.channels == 1
        try:
            x = file.read(wanted, dtype="int16" if exact else "float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise InvalidImage("cannot be decoded (truncated or damaged)") from error
    if len(x) < wanted and (file.frames < UNKNOWN or len(x) == 0):
        raise InvalidImage(f"end after {len(x)} of {wanted} samples (truncated or damaged)")
    if exact and own == rate:
        return x[:length, 0]
    mono = x[:, 0].astype(np.float32) / 32768 if exact else x.mean(axis=1)
    if not np.isfinite(mono).all():
        raise InvalidImage("hold NaN or infinity")
    mono = mono.clip(-1, 1)
    if own != rate:
        mono = resample_poly(mono, up, down)
    return np.round(32768 * mono[:length].clip(-1, 32767 / 32768)).astype(np.int16)


def _form(
    encoded: Encoded,
    n: int,
    rate: int | None,
    seconds: float | None,
    reasons: dict[int, str],
    ids: np.ndarray,
    where: str,
) -> tuple[int, int]:
    """The rate and the length of all clips, in samples; heads are read for what is not given."""
    if rate is not None and seconds is not None:
        return rate, max(1, round(seconds * rate))
    heads = np.zeros((n, 2), dtype=np.int64)

    def look(i: int) -> None:
        with _opened(stored_bytes(encoded, i)) as file:
            if seconds is None and file.frames >= UNKNOWN:
                raise InvalidImage("do not say how long they are: set seconds")
            heads[i] = file.samplerate, file.frames

    _for_each(look, n, reasons)
    _require_half(reasons, ids, where)
    sound = np.setdiff1d(np.arange(n), list(reasons))
    rates = Counter(heads[sound, 0].tolist())
    usual = rate or min(rates, key=lambda r: (-rates[r], r))
    if rate is None:
        for i in sound[heads[sound, 0] != usual].tolist():
            reasons[i] = f"have a rate of {heads[i, 0]} Hz where most have {usual}: set rate"
        sound = sound[heads[sound, 0] == usual]
    if seconds is not None:
        return usual, max(1, round(seconds * usual))
    lengths = -(-heads[sound, 1] * usual // heads[sound, 0])
    if (lengths != lengths[0]).any():
        low, high = lengths.min() / usual, lengths.max() / usual
        raise DataError(
            f"the clips are {low:.3g} to {high:.3g} seconds long",
            where=where,
            fix="set seconds: longer clips are cut at their end, shorter ones padded",
        )
    return usual, int(lengths[0])


def _for_each(work: Callable[[int], None], n: int, reasons: dict[int, str]) -> None:
    """Do the work for every position, in threads; what is unfit is noted."""

    def part(start: int) -> dict[int, str]:
        found = {}
        for i in range(start, min(start + CHUNK, n)):
            try:
                work(i)
            except InvalidImage as reason:
                found[i] = str(reason)
        return found

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for found in pool.map(part, range(0, n, CHUNK)):
            reasons |= found


def _mostly(constant: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``bool[n]``: in groups of which more than half is so."""
    _, inverse = np.unique(groups, return_inverse=True)
    share = np.bincount(inverse, constant) / np.bincount(inverse)
    return share[inverse] > 0.5


def _require_half(reasons: Mapping[int, str], ids: np.ndarray, where: str) -> None:
    if 2 * len(reasons) <= len(ids):
        return
    lines = group_by_reason("clips", {ids[i]: reasons[i] for i in sorted(reasons)})
    raise DataError(
        "\n  ".join([f"{len(reasons)} of {len(ids)} clips cannot be used", *lines]),
        where=where,
        fix="repair or replace these clips; up to half of a set may be left out",
    )


def _lazy(
    encoded: Encoded, ids: np.ndarray, kept: np.ndarray, rate: int, length: int, where: str
) -> LazyInputs:
    def read(row: int) -> Tensor:
        i = int(kept[row])
        out = np.zeros(length, dtype=np.int16)
        try:
            x = _sound(encoded, i, rate, length)
        except InvalidImage as reason:
            raise DataError(f"clips that {reason}: ids {ids[i]}", where=where) from reason
        out[: len(x)] = x
        return torch.from_numpy(out)

    text = f"{encoded.content()}{kept.tolist()}{rate}{length}"
    return LazyInputs(len(kept), read, hashlib.sha256(text.encode()).hexdigest())
