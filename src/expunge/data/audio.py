"""Encoded audio to tensors. A clip that cannot be used is skipped and named."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.data.encoded import (
    MAX_BYTES_IN_MEMORY,
    Encoded,
    InvalidFile,
    encoded_groups,
    stored_bytes,
)
from expunge.data.inputs import Inputs, TensorInputs
from expunge.data.lazy_inputs import LazyInputs
from expunge.data.waveforms import MAX_CHANNELS
from expunge.data.workers import choose_workers
from expunge.errors import DataError, extra_required, group_by_reason

if TYPE_CHECKING:
    from soundfile import SoundFile

# No format whose decoder is old, or that reads other files.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
# Hz. The filter between rates outside of these would not fit into memory.
SAMPLE_RATES = (1_000, 384_000)
# Floats beyond full scale are clipped up to this level; larger ones are in other units.
MAX_LEVEL = 16.0
# Values that are decoded of one clip: an hour at 16 kHz.
MAX_VALUES = 1 << 26
# A stream of unknown length states more samples than this.
UNKNOWN_LENGTH = 1 << 40
# Words in the names of silent classes.
SILENCE_WORDS = {"silence", "silent", "background", "noise"}
CHUNK_SIZE = 64


class Clips(NamedTuple):
    """The clips that can be used.

    Parameters
    ----------
    inputs
        ``int16[m, samples]``.
    kept
        ``int64[m]``: their positions in the source.
    sample_rate
        Hz.
    skipped
        The reason why each of the others cannot be used, by id.
    """

    inputs: Inputs
    kept: np.ndarray
    sample_rate: int
    skipped: Mapping[int | str, str]


class _Source(NamedTuple):
    """Encoded clips, their ids, and what messages call them."""

    encoded: Encoded
    ids: np.ndarray
    where: str


def decode_clips(
    encoded: Encoded,
    ids: np.ndarray,
    *,
    silent: np.ndarray,
    groups: np.ndarray,
    sample_rate: int | None = None,
    seconds: float | None = None,
    where: str,
    workers: int | None = None,
) -> Clips:
    """Decode the clips of these ids to ``int16[samples]``, mixed to one channel.

    Parameters
    ----------
    encoded
        The clips: WAV, FLAC or OGG.
    ids
        Their ids, for messages.
    silent
        ``bool[n]``: clips that may be silent.
    groups
        ``int64[n]``: the class of each clip. A class of which most clips are silent may be silent.
    sample_rate
        Resample the clips to this rate in Hz, with a polyphase filter. Without it the clips that
        have another rate than most are skipped.
    seconds
        Cut or pad (with silence) every clip at its end to this length. Without it all clips must
        have one length.
    where
        What messages call the source.
    workers
        The number of worker processes that decode what does not fit, see `choose_workers`.

    Returns
    -------
    Clips
        The clips that can be used: one tensor in memory if it takes less than
        ``MAX_BYTES_IN_MEMORY``; otherwise inputs that are decoded on demand, and once now to find
        out which can be used.

    Raises
    ------
    DataError
        If more than half of the clips are skipped, or their lengths differ and ``seconds`` is None.
    ConfigError
        If soundfile is not installed.

    Notes
    -----
    A clip is skipped if it is missing, empty, truncated, not decodable, no WAV, FLAC or OGG, not of
    1 to 384 kHz, of more than 32 channels, longer than 2²⁶ values, not finite, of floats beyond
    ±16, or digitally silent: all its samples are equal. The recording of a silent room is not
    digitally silent: it has noise.
    Cost: 0.2 ms for each second of FLAC.
    """
    _require_soundfile()
    source = _Source(encoded, ids, where)
    reasons: dict[int, str] = {}
    rate, length = _common_format(source, sample_rate, seconds, reasons)
    n_bytes = len(ids) * length * 2
    in_memory = n_bytes < MAX_BYTES_IN_MEMORY
    out = np.zeros((len(ids) if in_memory else 0, length), dtype=np.int16)
    constant = np.zeros(len(ids), dtype=bool)

    def decode(i: int) -> None:
        if i in reasons:
            return
        x = _decode_one(encoded, i, rate, length)
        constant[i] = x.min() == x.max()
        if in_memory:
            out[i, : len(x)] = x

    _for_each(decode, len(ids), reasons)
    bad = constant & ~(silent | _in_constant_group(constant, groups))
    reasons |= dict.fromkeys(np.flatnonzero(bad).tolist(), "are silent: all samples are equal")
    _check_half_usable(reasons, source)
    kept = np.setdiff1d(np.arange(len(ids)), list(reasons))
    inputs: Inputs
    if in_memory:
        inputs = TensorInputs(torch.from_numpy(out if len(kept) == len(ids) else out[kept]))
    else:
        inputs = _lazy(source, kept, rate, length, workers=choose_workers(workers, n_bytes))
    return Clips(inputs, kept, rate, {ids[i].item(): reasons[i] for i in sorted(reasons)})


def is_silence_class(name: str) -> bool:
    """Whether a class has a word for silence in its name.

    Examples
    --------

    >>> is_silence_class("_silence_"), is_silence_class("stop")
    (True, False)
    """
    return not SILENCE_WORDS.isdisjoint(re.split(r"[\W\d_]+", name.casefold()))


def _require_soundfile() -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError as error:
        raise extra_required("soundfile", "audio") from error


def _open(data: bytes) -> SoundFile:
    """Open a file and check its header."""
    import soundfile

    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise InvalidFile("cannot be decoded (damaged, or no audio)") from error
    problem = ""
    if file.format not in FORMATS:
        problem = f"are {file.format} files, expected WAV, FLAC or OGG"
    elif not SAMPLE_RATES[0] <= file.samplerate <= SAMPLE_RATES[1]:
        low, high = SAMPLE_RATES
        problem = f"have a sample rate of {file.samplerate} Hz, expected {low} to {high}"
    elif file.channels > MAX_CHANNELS:
        problem = f"have {file.channels} channels, expected at most {MAX_CHANNELS}"
    elif file.frames == 0:
        problem = "hold no audio: the recording is empty"
    if problem:
        file.close()
        raise InvalidFile(problem)
    return file


def _decode_one(encoded: Encoded, i: int, rate: int, length: int) -> np.ndarray:
    """One clip at a sample rate, ``int16`` of at most this length."""
    import soundfile

    with _open(stored_bytes(encoded, i)) as file:
        own = file.samplerate
        up, down = (k // math.gcd(rate, own) for k in (rate, own))
        # The filter reaches 10 samples of the lower rate to either side.
        wanted = min(file.frames, -(-length * down // up) + 10 * max(1, -(-down // up)))
        if wanted * file.channels > MAX_VALUES:
            raise InvalidFile(f"are longer than {MAX_VALUES} values")
        # Integers are read as they are; libsndfile does not scale floats to integers.
        exact = file.subtype == "PCM_16" and file.channels == 1
        try:
            x = file.read(wanted, dtype="int16" if exact else "float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise InvalidFile("cannot be decoded (truncated or damaged)") from error
    if len(x) < wanted and (file.frames < UNKNOWN_LENGTH or len(x) == 0):
        raise InvalidFile(f"end after {len(x)} of {wanted} samples (truncated or damaged)")
    if exact and own == rate:
        return np.asarray(x[:length, 0])
    mono = x[:, 0].astype(np.float32) / 32768 if exact else x.mean(axis=1)
    if not np.isfinite(mono).all():
        raise InvalidFile("hold NaN or infinity")
    if np.abs(mono).max(initial=0) > MAX_LEVEL:
        raise InvalidFile("hold floats far beyond [-1, 1]: divide them by their full scale")
    mono = mono.clip(-1, 1)
    if own != rate:
        from scipy.signal import resample_poly

        mono = resample_poly(mono, up, down)
    return np.asarray(np.round(32768 * mono[:length].clip(-1, 32767 / 32768)), dtype=np.int16)


def _common_format(
    source: _Source, rate: int | None, seconds: float | None, reasons: dict[int, str]
) -> tuple[int, int]:
    """The sample rate and the length, in samples, of all clips.

    What is not given is read from the files' headers. Adds the clips that differ to the reasons.
    """
    if rate is not None and seconds is not None:
        return rate, max(1, round(seconds * rate))
    n = len(source.ids)
    heads = np.zeros((n, 2), dtype=np.int64)

    def read_header(i: int) -> None:
        with _open(stored_bytes(source.encoded, i)) as file:
            if seconds is None and file.frames >= UNKNOWN_LENGTH:
                raise InvalidFile("have a header without their length: set seconds")
            heads[i] = file.samplerate, file.frames

    _for_each(read_header, n, reasons)
    _check_half_usable(reasons, source)
    usable = np.setdiff1d(np.arange(n), list(reasons))
    counts = Counter(heads[usable, 0].tolist())
    common = rate or min(counts, key=lambda r: (-counts[r], r))
    if rate is None:
        for i in usable[heads[usable, 0] != common].tolist():
            reasons[i] = (
                f"have a sample rate of {heads[i, 0]} Hz where most have {common}: set sample_rate"
            )
        usable = usable[heads[usable, 0] == common]
    if seconds is not None:
        return common, max(1, round(seconds * common))
    lengths = -(-heads[usable, 1] * common // heads[usable, 0])
    if (lengths != lengths[0]).any():
        low, high = lengths.min() / common, lengths.max() / common
        raise DataError(
            f"the clips are {low:.3g} to {high:.3g} seconds long",
            where=source.where,
            fix="set seconds: longer clips are cut at their end, shorter ones padded",
        )
    return common, int(lengths[0])


def _for_each(work: Callable[[int], None], n: int, reasons: dict[int, str]) -> None:
    """Do the work for every position, in threads; add the invalid files to the reasons."""

    def do_chunk(start: int) -> dict[int, str]:
        found = {}
        for i in range(start, min(start + CHUNK_SIZE, n)):
            try:
                work(i)
            except InvalidFile as reason:
                found[i] = str(reason)
        return found

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for found in pool.map(do_chunk, range(0, n, CHUNK_SIZE)):
            reasons |= found


def _in_constant_group(constant: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``bool[n]``: whether more than half of a clip's group is constant."""
    _, inverse = np.unique(groups, return_inverse=True)
    share = np.bincount(inverse, constant) / np.bincount(inverse)
    return np.asarray(share[inverse] > 0.5)


def _check_half_usable(reasons: Mapping[int, str], source: _Source) -> None:
    ids = source.ids
    if 2 * len(reasons) <= len(ids):
        return
    lines = group_by_reason("clips", {ids[i]: reasons[i] for i in sorted(reasons)})
    raise DataError(
        "\n  ".join([f"{len(reasons)} of {len(ids)} clips cannot be used", *lines]),
        where=source.where,
        fix="repair or replace these clips; up to half of a set may be skipped",
    )


def _lazy(source: _Source, kept: np.ndarray, rate: int, length: int, *, workers: int) -> LazyInputs:
    encoded, ids, where = source

    def locate(row: int) -> tuple[str, Encoded]:
        i = int(kept[row])
        return str(ids[i]), encoded.locate(i)

    text = f"{encoded.content()}{kept.tolist()}{rate}{length}"
    return LazyInputs(
        len(kept),
        partial(_read_clip, rate, length, where),
        hashlib.sha256(text.encode()).hexdigest(),
        locate=locate,
        groups=lambda rows: encoded_groups(encoded, kept[rows]),
        workers=workers,
    )


def _read_clip(rate: int, length: int, where: str, located: tuple[str, Encoded]) -> Tensor:
    name, file = located
    out = np.zeros(length, dtype=np.int16)
    try:
        x = _decode_one(file, 0, rate, length)
    except InvalidFile as reason:
        raise DataError(f"clips that {reason}: ids {name}", where=where) from reason
    out[: len(x)] = x
    return torch.from_numpy(out)
