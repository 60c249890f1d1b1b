"""NumPy arrays and torch tensors, in memory or in an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from expunge.data.classes import as_class_names
from expunge.data.conversion import column_names, to_ids, to_inputs, to_labels
from expunge.data.paths import require_file
from expunge.data.rows import Rows, to_samples
from expunge.data.samples import Samples, View
from expunge.errors import DataError
from expunge.storage.array_files import npz_names, read_npz

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig

# Class indices or class names, one a sample; columns of data frames are arrays too.
Labels: TypeAlias = np.ndarray | Tensor | Sequence[int] | Sequence[str]
# The inputs of all samples: an array, a data frame, a list of inputs, or arrays by name.
ArrayInputs: TypeAlias = np.ndarray | Tensor | Sequence[Any] | Mapping[str, Any]


def from_arrays(
    x: ArrayInputs,
    y: Labels,
    *,
    ids: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    sample_rate: int | None = None,
    view: str | View = "none",
    name: str = "data",
) -> Samples:
    """Make samples from arrays of inputs and labels.

    Model inputs are ``(scale · x − mean) / std`` by channel, in float32; see `Preparation`.

    Parameters
    ----------
    x
        ``[n, …]``: floats, ``uint8`` (pixels, scaled by 1/255), ``int16`` (audio, by 1/32768) or
        other signed integers (indices, as they are). Images are ``[n, C, H, W]``, clips of audio
        ``[n, samples]``. The memory is shared unless layout, byte order or device require a copy:
        do not write to it while the samples are in use. A data frame of numbers becomes
        ``float32[n, columns]``; a list holds arrays, lists of numbers or Pillow images of one
        shape; a dictionary of arrays makes dict batches.
    y
        ``[n]`` or ``[n, 1]``: class indices in ``[0, c)``, class names or truth values. A
        categorical column states its class names.
    ids
        ``[n]`` unique integers or strings. Without them the ids are positions.
    classes
        The class names, in the order of the indices. Without them ``"0" … "c-1"``, or the sorted
        names in ``y``. See `encode_labels`.
    mean, std
        One number a channel, or one for all, in units of the scaled input. ``std`` above 0.
    sample_rate
        Hz, 1,000 to 384,000; for audio only.
    view
        A random view (augmentation): its name, a function ``(batch, generator) → batch``, or a
        random transform of one input; see `expunge.data.view`.
    name
        How messages call the data.

    Returns
    -------
    Samples
        ``n`` samples of ``c`` classes.

    Raises
    ------
    DataError
        If shapes, types or lengths do not match, there are no samples, ids repeat, or a setting
        does not fit the inputs. NaN in ``x`` raises when the batch is read.

    Notes
    -----
    Cost: O(n) for ``y`` and ``ids``; no pass over ``x``.

    Examples
    --------
    >>> samples = from_arrays(np.eye(4, dtype=np.float32), [0, 1, 0, 1], classes=["cat", "dog"])
    >>> len(samples), samples.classes
    (4, ('cat', 'dog'))
    """
    rows = array_rows(x, y, ids, where=name)
    return to_samples(
        rows,
        classes=as_class_names(classes, name),
        mean=mean,
        std=std,
        sample_rate=sample_rate,
        view=view,
        name=name,
    )


def npz_rows(path: Path, config: DataConfig) -> Rows:
    """Read an ``.npz`` file with the arrays ``x``, ``y`` and, optionally, ``ids``.

    If it has arrays of the names ``config.input``, ``config.label`` or ``config.id``, these are
    read instead.
    """
    known = npz_names(require_file(path))
    named = {"x": config.input, "y": config.label, "ids": config.id}
    x, y, ids = (name if name in known else key for key, name in named.items())
    arrays = read_npz(path, (x, y), (ids,))
    return array_rows(arrays[x], arrays[y], arrays.get(ids), where=str(path))


def array_rows(x: object, y: object, ids: object = None, *, where: str) -> Rows:
    """The rows of a pair of inputs and labels; without ids these are positions."""
    _check_same_index(x, y, where)
    inputs, column = to_inputs(x, where), to_labels(y, where)
    rows = Rows(
        ids=np.arange(len(inputs)) if ids is None else to_ids(ids, where),
        labels=column.values,
        inputs=inputs,
        class_names=column.class_names,
        has_explicit_ids=ids is not None,
        columns=column_names(x, inputs),
    )
    _check_lengths(rows, where)
    return rows


def _check_same_index(x: object, y: object, where: str) -> None:
    """A data frame and a column of another order are no pairs."""
    first: Any = getattr(x, "index", None)
    second: Any = getattr(y, "index", None)
    if not hasattr(first, "equals") or not hasattr(second, "equals"):
        return
    if len(first) == len(second) and not first.equals(second):
        raise DataError(
            "x and y are data frames with different indices: their rows do not belong together",
            where=where,
            fix="y = y.loc[x.index], or y.to_numpy() if the order is right",
        )


def _check_lengths(rows: Rows, where: str) -> None:
    lengths = len(rows.inputs), len(rows.labels), len(rows.ids)
    if len(set(lengths)) > 1:
        raise DataError(
            f"{lengths[0]} inputs, {lengths[1]} labels and {lengths[2]} ids do not match",
            where=where,
            fix="give one label, and one id if there are ids, for each input",
        )
