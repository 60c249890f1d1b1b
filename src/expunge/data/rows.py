"""What a source returns, not yet decoded, and its conversion to `Samples`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from expunge.data import audio
from expunge.data.checks import require_two_labels
from expunge.data.classes import encode_labels
from expunge.data.decoding import Decoding, transform_inputs
from expunge.data.encoded import Encoded, EncodedSlice
from expunge.data.inputs import Batch, Inputs, SubsetInputs, TensorInputs
from expunge.data.preparation import Preparation
from expunge.data.samples import Samples, View
from expunge.data.texts import Texts, Tokenizer, tokenize
from expunge.data.transforms import Transform
from expunge.data.views import view as named_view
from expunge.data.waveforms import has_channel_axis
from expunge.errors import USER_ERRORS, ConfigError, DataError, check_range, group_by_reason

if TYPE_CHECKING:
    from expunge.data.image_decoding import Mode


# Inputs whose mean and standard deviation are compared with those given.
N_MEASURED = 256
# Standardised inputs beyond this factor are in other units than their mean and std.
MAX_UNIT_RATIO = 50.0
# The range of stored integers after scaling, and their scale.
SCALED_RANGES = {torch.uint8: ("[0, 1]", 255), torch.int16: ("[-1, 1)", 32768)}


@dataclass(frozen=True)
class Rows:
    """The rows of a source, in its order.

    Parameters
    ----------
    ids
        ``int64[n]`` or ``str[n]``.
    labels
        ``int[n]`` (class indices), ``str[n]`` (class names) or float.
    inputs
        Encoded images or clips, texts, or decoded inputs.
    class_names
        The class names that the source states; empty if it states none.
    has_explicit_ids
        Whether the ids came with the data.
    is_audio
        Whether the encoded inputs are audio.
    id_root
        The folder, resolved, that the ids are paths in; empty if they are no paths.
    skipped
        Why a file of the source is no sample, by its id.
    columns
        The names of the columns of a table, in the order of the inputs; empty for other inputs.
    """

    ids: np.ndarray
    labels: np.ndarray
    inputs: Encoded | Inputs | Texts
    class_names: tuple[str, ...] = ()
    has_explicit_ids: bool = False
    is_audio: bool = False
    id_root: str = ""
    skipped: Mapping[int | str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def slice_rows(rows: Rows, start: int, n: int | None) -> Rows:
    """Take ``n`` rows from a position on, or all remaining ones if n is None or larger."""
    stop = len(rows) if n is None else min(start + n, len(rows))
    if start >= len(rows):
        raise DataError(f"skip_rows is {start}, but there are {len(rows)} rows: none is left")
    if (start, stop) == (0, len(rows)):
        return rows
    inputs: Encoded | Inputs | Texts
    if isinstance(rows.inputs, TensorInputs):
        inputs = TensorInputs(rows.inputs.tensor[start:stop])
    elif isinstance(rows.inputs, Texts):
        inputs = rows.inputs[start:stop]
    elif isinstance(rows.inputs, Inputs):
        inputs = SubsetInputs(rows.inputs, np.arange(start, stop))
    else:
        inputs = EncodedSlice(rows.inputs, start, stop - start)
    return replace(rows, ids=rows.ids[start:stop], labels=rows.labels[start:stop], inputs=inputs)


def to_samples(
    rows: Rows,
    *,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    mode: Mode | None = None,
    size: int | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
    transform: Transform | None = None,
    tokenizer: Tokenizer | None = None,
    length: int | None = None,
    workers: int | None = None,
    view: str | View = "none",
    name: str = "data",
    where: str = "",
) -> Samples:
    """Map the labels to class indices, decode the inputs, and check everything.

    Images and clips that cannot be used are skipped, see `decode_images` and `decode_clips`.
    ``where`` is what messages call the source: its path, for example. For the other
    settings see `DataConfig`.
    """
    where = where or name
    mean, std = _per_channel(mean), _per_channel(std)
    if len(rows) == 0:
        raise DataError("no samples", where=where, fix="check the path and the selection")
    labels, names = encode_labels(
        rows.labels, rows.ids, names=rows.class_names, classes=classes, where=where
    )
    kept = np.arange(len(rows))
    inputs: Inputs
    skipped: Mapping[int | str, str] = {}
    decoding = None
    if isinstance(rows.inputs, Texts):
        given = {"mode": mode, "size": size, "transform": transform}
        _check_unset(where, "the inputs are texts", given)
        inputs = tokenize(
            rows.inputs, _require(tokenizer, where), length=length, ids=rows.ids, where=where
        )
        _check_audio_settings(inputs, sample_rate, seconds, where)
    elif isinstance(rows.inputs, Inputs):
        inputs = rows.inputs
        _check_image_settings(inputs, mode, size, where)
        _check_audio_settings(inputs, sample_rate, seconds, where)
    elif rows.is_audio:
        _check_unset(where, "the inputs are audio", {"mode": mode, "size": size})
        clips = audio.decode_clips(
            rows.inputs,
            rows.ids,
            **_silence(labels, names),
            sample_rate=sample_rate,
            seconds=seconds,
            where=where,
            workers=workers,
        )
        inputs, kept, sample_rate, skipped = clips
        decoding = Decoding("audio", sample_rate=sample_rate, seconds=seconds, transform=transform)
    else:
        from expunge.data.image_decoding import ImageFormat
        from expunge.data.images import decode_images

        target = ImageFormat(mode, size, transform)
        inputs, kept, skipped = decode_images(
            rows.inputs, rows.ids, target, where=where, workers=workers
        )
        _check_audio_settings(inputs, sample_rate, seconds, where)
        decoding = Decoding("image", mode=mode, size=size, transform=transform)
    if transform is not None and (decoding is None or decoding.kind == "audio"):
        inputs = transform_inputs(inputs, transform, rows.ids[kept], where)
    _check_classes_left(labels, kept, skipped, where)
    samples = Samples(
        ids=rows.ids[kept],
        labels=labels[kept],
        classes=names,
        inputs=inputs,
        prepare=Preparation(mean, std),
        view=_view(view, name),
        has_explicit_ids=rows.has_explicit_ids,
        name=name,
        sample_rate=sample_rate,
        skipped={**rows.skipped, **skipped},
        id_root=rows.id_root,
        decoding=decoding,
        columns=rows.columns,
    )
    if not classes:  # with the classes of another set, samples of one class can be measured
        require_two_labels(samples.labels, where=where)
    if mean or std or samples.view is not None:
        _check_preparation(samples, where)
    return samples


def _per_channel(values: Sequence[float] | float) -> tuple[float, ...]:
    """Means or deviations of an array, a tensor, a list, or one number for all channels."""
    return tuple(np.asarray(values, dtype=np.float64).ravel().tolist())


def _check_classes_left(
    labels: np.ndarray, kept: np.ndarray, skipped: Mapping[int | str, str], where: str
) -> None:
    """Raise DataError if all samples but those of one class cannot be used."""
    if skipped and len(np.unique(labels[kept])) < 2 <= len(np.unique(labels)):
        lines = group_by_reason("samples", skipped)
        raise DataError(
            "\n  ".join(["one class is left without the samples that cannot be used", *lines]),
            where=where,
            fix="repair or replace these files",
        )


def _require(tokenizer: Tokenizer | None, where: str) -> Tokenizer:
    if tokenizer is None:
        raise DataError(
            "the inputs are texts, and there is no tokenizer",
            where=where,
            fix="set tokenizer to the folder of the model's tokenizer",
        )
    return tokenizer


def _view(view: str | View, name: str) -> View | None:
    try:
        return named_view(view)
    except ConfigError as error:
        raise DataError(error.what, where=name, fix=error.fix) from error


def _silence(labels: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Which clips may be silent, and the class of every clip; -1 for a label that is no index."""
    silent = [i for i, name in enumerate(names) if audio.is_silence_class(name)]
    # A label that is no class index is an error that Samples raises.
    known = np.isin(labels, np.arange(len(names)))
    return {
        "silent": np.isin(labels, silent),
        "groups": np.where(known, labels, -1).astype(np.int64),
    }


def _check_audio_settings(
    inputs: Inputs, sample_rate: int | None, seconds: float | None, where: str
) -> None:
    """Only encoded audio can be cut or resampled; decoded audio ``[n, samples]`` has a rate."""
    _check_unset(where, "the inputs are not encoded audio", {"seconds": seconds})
    if sample_rate is None:
        return
    example = inputs.batch(np.arange(1))
    if has_channel_axis(example):
        shape = tuple(example.shape[1:])
        raise DataError(
            f"a clip has shape {shape}, expected [samples] without channels",
            where=where,
            fix="x[:, 0] is the first channel, x.mean(1) the mean of all; the model's forward adds "
            "the channel, x[:, None]",
        )
    if not isinstance(example, torch.Tensor) or example.dim() != 2:
        _check_unset(where, "the inputs are not audio", {"sample_rate": sample_rate})
    low, high = audio.SAMPLE_RATES
    check_range(DataError, {"sample_rate": (sample_rate, f"[{low}, {high}]")}, where=where)


def _check_unset(where: str, why: str, settings: Mapping[str, object]) -> None:
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise DataError(
            f"{why}, and there is {' and '.join(given)}", where=where, fix="leave it out"
        )


def _check_image_settings(inputs: Inputs, mode: Mode | None, size: int | None, where: str) -> None:
    """Decoded inputs must already have the requested mode and size."""
    if mode is None and size is None:
        return
    example = inputs.batch(np.arange(1))
    shape = tuple(example.shape[1:]) if isinstance(example, torch.Tensor) else ()
    fits = len(shape) == 3 and (mode is None or shape[0] == (1 if mode == "L" else 3))
    if not fits or (size is not None and shape[1:] != (size, size)):
        raise DataError(
            f"the inputs are arrays of shape {shape}; size and mode convert encoded images only",
            where=where,
            fix="leave out size and mode, or convert the arrays",
        )


def _check_preparation(samples: Samples, where: str) -> None:
    """Mean and standard deviation must fit the channels, and the view the inputs."""
    mean, std = samples.prepare.mean, samples.prepare.std
    example = samples.inputs.batch(np.arange(1))
    if not isinstance(example, torch.Tensor):
        if mean or std:
            raise DataError("mean and std are for inputs of one tensor, not dicts", where=where)
        check_view(samples, example, where)
        return
    channels = example.shape[1]
    if len(mean) != len(std) or len(mean) not in (0, 1, channels):
        raise DataError(
            f"mean has {len(mean)} and std {len(std)} numbers; the inputs have {channels} channels",
            where=where,
            fix="give both, one number a channel",
        )
    if not all(np.isfinite(mean)) or not all(np.isfinite(s) and s > 0 for s in std):
        raise DataError("mean must be finite, std finite and above 0", where=where)
    _check_units(samples, where)
    check_view(samples, samples.prepare(example), where)


def _check_units(samples: Samples, where: str) -> None:
    """Mean and standard deviation must be in units of the scaled input, not in 0 … 255."""
    mean, std = (np.array(v, dtype=np.float64) for v in (samples.prepare.mean, samples.prepare.std))
    rows = np.linspace(0, len(samples) - 1, min(len(samples), N_MEASURED)).astype(np.int64)
    stored = samples.inputs.batch(np.unique(rows))
    if not isinstance(stored, torch.Tensor) or not len(mean):
        return
    limit = SCALED_RANGES.get(stored.dtype)
    if limit is not None and (np.abs(mean).max() > 1 or std.max() > 1):
        raise DataError(
            f"mean {_numbers(mean)} and std {_numbers(std)} are not in units of the scaled input, "
            f"which lies in {limit[0]}",
            where=where,
            fix=f"divide both by {limit[1]}: mean {_numbers(mean / limit[1])}, "
            f"std {_numbers(std / limit[1])}",
        )
    if limit is not None or not torch.isfinite(stored).all() or ((mean == 0) & (std == 1)).all():
        return
    by_channel = samples.prepare(stored).transpose(0, 1).flatten(1)
    centre, spread = by_channel.mean(1).abs().median(), by_channel.std(1).median()
    if centre > MAX_UNIT_RATIO or not 1 / MAX_UNIT_RATIO < spread < MAX_UNIT_RATIO:
        raise DataError(
            f"mean {_numbers(mean)} and std {_numbers(std)} do not fit the inputs: these have mean "
            f"{float(stored.float().mean()):.3g} and std {float(stored.float().std()):.3g}",
            where=where,
            fix="give mean and std of the inputs as they are stored; floats are not scaled",
        )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def check_view(samples: Samples, x: Batch, where: str) -> None:
    """Raise DataError unless the view, if there is one, gives inputs of the same form."""
    if samples.view is None:
        return
    try:
        seen = samples.view(x, torch.Generator().manual_seed(0))
    except DataError as error:
        raise DataError(error.what, where=where, fix=error.fix) from error
    except USER_ERRORS as error:
        raise DataError(
            f"the view fails: {type(error).__name__}: {error}",
            where=where,
            fix="a view is a function (batch, generator) → batch, or a transform of one input",
        ) from error
    if _form_of(seen) != _form_of(x):
        raise DataError(
            f"the view makes {_form_of(seen)} of {_form_of(x)}",
            where=where,
            fix="a view must keep shape and dtype",
        )


def _form_of(x: object) -> str:
    """Shape and type of a tensor, or of each part of a dictionary."""
    if isinstance(x, dict):
        return ", ".join(f"{name} {_form_of(part)}" for name, part in sorted(x.items()))
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
