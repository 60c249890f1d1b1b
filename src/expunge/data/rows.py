"""What a source yields, not yet decoded, and how it becomes Samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from expunge.data import audio
from expunge.data.images import Encoded, Mode, decode
from expunge.data.labels import encode
from expunge.data.samples import Inputs, Prepare, Samples, TensorInputs
from expunge.data.views import view as view_named
from expunge.errors import ConfigError, DataError


@dataclass(frozen=True)
class Rows:
    """The rows of a source, in its order.

    labels: ``int[n]`` (class indices), ``str[n]`` (class names) or float. names: the class names
    that the source states, () if it states none. inputs: encoded images or clips, or ready inputs.
    has_explicit_ids: whether the ids came with the data. sound: whether what is encoded is sound.
    root: the folder that the ids are paths in, resolved; "" if they are none.
    """

    ids: np.ndarray
    labels: np.ndarray
    inputs: Encoded | Inputs
    names: tuple[str, ...] = ()
    has_explicit_ids: bool = False
    sound: bool = False
    root: str = ""

    def __len__(self) -> int:
        return len(self.ids)


class SomeRows:
    """The encoded images or clips from one position on, ``n`` of them."""

    def __init__(self, encoded: Encoded, start: int, n: int) -> None:
        self._encoded, self._start, self._n = encoded, start, n

    def __len__(self) -> int:
        return self._n

    def read(self, position: int) -> bytes | None:
        return self._encoded.read(self._start + position)

    def content(self) -> str:
        return self._encoded.content() + (f" from {self._start}" if self._start else "")


def some_rows(rows: Rows, start: int, n: int | None) -> Rows:
    """``n`` rows from a position on; all that are left if there are no more, or n is None."""
    stop = len(rows) if n is None else min(start + n, len(rows))
    if start >= len(rows):
        raise DataError(f"{start} of {len(rows)} rows are skipped: none is left")
    if (start, stop) == (0, len(rows)):
        return rows
    inputs: Encoded | Inputs
    if isinstance(rows.inputs, TensorInputs):
        inputs = TensorInputs(rows.inputs.tensor[start:stop])
    elif isinstance(rows.inputs, Inputs):
        raise DataError("some rows of inputs that are not resident cannot be taken")
    else:
        inputs = SomeRows(rows.inputs, start, stop - start)
    return replace(rows, ids=rows.ids[start:stop], labels=rows.labels[start:stop], inputs=inputs)


def to_samples(
    rows: Rows,
    *,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    mode: Mode | None = None,
    size: int | None = None,
    rate: int | None = None,
    seconds: float | None = None,
    view: str = "none",
    name: str = "data",
    where: str = "",
) -> Samples:
    """Map the labels to class indices, decode the inputs, and check everything.

    Clips that cannot be used are left out, see `audio.decode`; images that cannot are an error.
    ``where`` names the source in messages (the path, say).
    """
    where = where or name
    if len(rows) == 0:
        raise DataError("no samples", where=where, fix="check the path and the selection")
    labels, names = encode(rows.labels, rows.ids, names=rows.names, classes=classes, where=where)
    if rows.sound and not isinstance(rows.inputs, Inputs):
        _refuse(where, "the inputs are sound", mode=mode, size=size)
        ready = _clips(rows.inputs, rows.ids, labels, names, rate, seconds, where)
        inputs, kept, rate, skipped = ready
    else:
        inputs, kept, skipped = _ready(rows, mode, size, where), np.arange(len(rows)), {}
        _check_sound(inputs, rate, seconds, where)
    try:
        augment = view_named(view)
    except ConfigError as error:
        raise DataError(error.what, where=name, fix=error.fix) from error
    samples = Samples(
        ids=rows.ids[kept],
        labels=labels[kept],
        classes=names,
        inputs=inputs,
        prepare=Prepare(tuple(map(float, mean)), tuple(map(float, std))),
        view=augment,
        has_explicit_ids=rows.has_explicit_ids,
        name=name,
        sample_rate=rate,
        skipped=skipped,
        id_root=rows.root,
    )
    if mean or std or augment is not None:
        _check_preparation(samples, where)
    return samples


def require_inside(folder: Path, text: str) -> Path:
    """The file of this relative path; ValueError if it lies outside the folder.

    An absolute path, a path that climbs out by ``..`` and a link that leads out are outside.
    """
    if not text or Path(text).is_absolute() or "\0" in text:
        raise ValueError(text)
    path = Path(os.path.realpath(folder / text))
    if not path.is_relative_to(os.path.realpath(folder)):
        raise ValueError(text)
    return path


def require_file(path: Path) -> Path:
    """The path, if a file is there."""
    if path.is_dir():
        raise DataError("expected a file, found a directory", where=str(path))
    return _existing(path)


def require_folder(path: Path) -> Path:
    """The path, if a folder is there."""
    if path.is_file():
        raise DataError("expected a folder, found a file", where=str(path))
    return _existing(path)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            "no such file or folder",
            where=str(path),
            fix="check the spelling; in a spec, relative paths start at the spec file's folder",
        )
    return path


def _clips(
    encoded: Encoded,
    ids: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    rate: int | None,
    seconds: float | None,
    where: str,
) -> audio.Clips:
    # A label that is no class index is an error that Samples raises.
    known = np.isin(labels, np.arange(len(names)))
    quiet = [i for i, name in enumerate(names) if audio.means_silence(name)]
    return audio.decode(
        encoded,
        ids,
        silent=np.isin(labels, quiet),
        groups=np.where(known, labels, -1).astype(np.int64),
        rate=rate,
        seconds=seconds,
        where=where,
    )


def _check_sound(inputs: Inputs, rate: int | None, seconds: float | None, where: str) -> None:
    """What is not encoded cannot be cut or resampled; it has a rate if it is ``[n, samples]``."""
    _refuse(where, "the inputs are not encoded sound", seconds=seconds)
    if rate is None:
        return
    example = inputs.batch(np.arange(1))
    if not isinstance(example, torch.Tensor) or example.dim() != 2:
        _refuse(where, "the inputs are not sound", rate=rate)
    low, high = audio.RATES
    if not low <= rate <= high:
        raise DataError(f"rate must lie in {low}…{high} Hz, not {rate}", where=where)


def _refuse(where: str, why: str, **settings: object) -> None:
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise DataError(
            f"{why}, and there is {' and '.join(given)}", where=where, fix="leave it out"
        )


def _ready(rows: Rows, mode: Mode | None, size: int | None, where: str) -> Inputs:
    if not isinstance(rows.inputs, Inputs):
        return decode(rows.inputs, rows.ids, mode=mode, size=size, where=where)
    if mode is None and size is None:
        return rows.inputs
    example = rows.inputs.batch(np.arange(1))
    shape = tuple(example.shape[1:]) if isinstance(example, torch.Tensor) else ()
    fits = len(shape) == 3 and (mode is None or shape[0] == (1 if mode == "L" else 3))
    if not fits or (size is not None and shape[1:] != (size, size)):
        raise DataError(
            f"the inputs are arrays of shape {shape}; size and mode convert encoded images only",
            where=where,
            fix="leave out size and mode, or convert the arrays",
        )
    return rows.inputs


def _check_preparation(samples: Samples, where: str) -> None:
    mean, std = samples.prepare.mean, samples.prepare.std
    example = samples.inputs.batch(np.arange(1))
    if not isinstance(example, torch.Tensor):
        raise DataError("mean, std and views are for inputs of one tensor, not dicts", where=where)
    channels = example.shape[1]
    if len(mean) != len(std) or len(mean) not in (0, 1, channels):
        raise DataError(
            f"mean has {len(mean)} and std {len(std)} numbers; the inputs have {channels} channels",
            where=where,
            fix="give both, one number a channel",
        )
    if not all(np.isfinite(mean)) or not all(np.isfinite(s) and s > 0 for s in std):
        raise DataError("mean must be finite, std finite and above 0", where=where)
    if samples.view is not None:
        try:
            samples.view(samples.prepare(example), torch.Generator().manual_seed(0))
        except DataError as error:
            raise DataError(error.what, where=where, fix=error.fix) from error
