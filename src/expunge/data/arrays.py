"""NumPy arrays and torch tensors, in memory or in an ``.npz`` file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from expunge.data.inputs import TensorInputs
from expunge.data.labels import as_column
from expunge.data.paths import require_file
from expunge.data.rows import Rows, to_samples
from expunge.data.samples import Samples
from expunge.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from expunge.data.sources import DataConfig

# Class indices or class names, one a sample.
Labels: TypeAlias = np.ndarray | Tensor | Sequence[int] | Sequence[str]


def from_arrays(
    x: np.ndarray | Tensor,
    y: Labels,
    *,
    ids: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    sample_rate: int | None = None,
    view: str = "none",
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
        do not write to it while the samples are in use.
    y
        ``[n]``: class indices in ``[0, c)``, or class names.
    ids
        ``[n]`` unique integers or strings. Without them the ids are positions.
    classes
        The class names, in the order of the indices. Without them ``"0" … "c-1"``, or the sorted
        names in ``y``.
    mean, std
        One number a channel, or one for all, in units of the scaled input. ``std`` above 0.
    sample_rate
        Hz, 1,000 to 384,000; for audio only.
    view
        The name of a random view (augmentation), see `expunge.data.view`.
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
    inputs = _check_inputs(x, name)
    given = None if ids is None else _flat_array(ids, "ids", name)
    rows = Rows(
        ids=np.arange(len(inputs)) if given is None else given,
        labels=_flat_array(y, "labels", name),
        inputs=TensorInputs(inputs),
        has_explicit_ids=ids is not None,
    )
    _check_lengths(rows, name)
    return to_samples(
        rows,
        classes=tuple(classes or ()),
        mean=mean,
        std=std,
        sample_rate=sample_rate,
        view=view,
        name=name,
    )


def npz_rows(path: Path, config: DataConfig) -> Rows:
    """Read an ``.npz`` file with the arrays ``x``, ``y`` and, optionally, ``ids``."""
    require_file(path)
    where = str(path)
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("one array, expected an .npz file with x and y", where=where)
            for key in ("x", "y"):
                if key not in file.files:
                    raise DataError(
                        f"no array is called '{key}'",
                        where=where,
                        fix=did_you_mean(key, file.files),
                    )
            arrays = {key: file[key] for key in ("x", "y", "ids") if key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"not an .npz file of plain arrays ({error})",
            where=where,
            fix="write it with numpy.savez(path, x=…, y=…), without objects",
        ) from error
    x = _check_inputs(arrays["x"], where)
    rows = Rows(
        ids=_flat_array(arrays["ids"], "ids", where) if "ids" in arrays else np.arange(len(x)),
        labels=_flat_array(arrays["y"], "labels", where),
        inputs=TensorInputs(x),
        has_explicit_ids="ids" in arrays,
    )
    _check_lengths(rows, where)
    return rows


def to_cpu_tensor(x: np.ndarray | Tensor) -> Tensor:
    """Convert to a CPU tensor of the same values, without a copy if possible.

    TypeError for a type that torch does not fully support.
    """
    if isinstance(x, Tensor):
        tensor = x.detach().cpu()
    else:
        array = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
        if array.shape != x.shape:  # NumPy makes at least one dimension
            array = array.reshape(x.shape)
        with warnings.catch_warnings():
            # Torch warns of read-only arrays (memory maps, say); nothing here writes to them.
            warnings.simplefilter("ignore")
            tensor = torch.from_numpy(array)
    if tensor.layout != torch.strided or tensor.is_complex():
        raise TypeError(f"{tensor.dtype} of layout {tensor.layout}")
    if not tensor.is_floating_point() and tensor.dtype not in _INTEGERS:
        raise TypeError(str(tensor.dtype))
    return tensor


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check_inputs(x: object, where: str) -> Tensor:
    if not isinstance(x, np.ndarray | Tensor):
        raise DataError(
            f"x must be a NumPy array or a torch tensor, not {type(x).__name__}", where=where
        )
    try:
        tensor = to_cpu_tensor(x)
    except TypeError as error:
        raise DataError(
            f"x has dtype {x.dtype}, expected floats, uint8 or signed integers ({error})",
            where=where,
            fix="convert it, e.g. x.astype('float32')",
        ) from error
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise DataError(
            f"x has shape {shape}, expected [n, …] with one or more dimensions a sample",
            where=where,
            fix="x[:, None] makes one feature",
        )
    if shape[0] == 0:
        raise DataError("no samples", where=where, fix="check the selection")
    if tensor.numel() == 0:
        raise DataError(f"x has shape {shape}: its samples are empty", where=where)
    if (
        len(shape) == 4
        and tensor.dtype == torch.uint8
        and shape[3] in (1, 3)
        and shape[1] not in (1, 3)
    ):
        raise DataError(
            f"x has shape {shape}, which looks like [n, H, W, C]; expected [n, C, H, W]",
            where=where,
            fix="x.transpose(0, 3, 1, 2) in NumPy, x.permute(0, 3, 1, 2) in torch",
        )
    return tensor


def _flat_array(values: object, what: str, where: str) -> np.ndarray:
    """One array of ids or labels; Samples checks the values."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        if not isinstance(values, list | tuple | range):
            raise DataError(
                f"{what} must be an array or a list, not {type(values).__name__}", where=where
            )
        values = _from_list(list(values), what, where)
    if values.dtype.kind in "OT" and values.ndim == 1:
        return as_column(values.tolist(), np.arange(len(values)), what=what, where=where)
    return values


def _from_list(values: list[object], what: str, where: str) -> np.ndarray:
    if not values:
        return np.array([], dtype=np.int64)
    scalars = [
        v.item() if isinstance(v, np.generic | Tensor) and v.ndim == 0 else v for v in values
    ]
    return as_column(scalars, np.arange(len(scalars)), what=what, where=where)


def _check_lengths(rows: Rows, where: str) -> None:
    lengths = len(rows.inputs), len(rows.labels) if rows.labels.ndim else 0, len(rows.ids)
    if len(set(lengths)) > 1:
        raise DataError(
            f"{lengths[0]} inputs, {lengths[1]} labels and {lengths[2]} ids do not match",
            where=where,
        )
    if rows.labels.ndim != 1:
        raise DataError(
            f"labels must be one number a sample, not an array of shape {rows.labels.shape}",
            where=where,
            fix="for one-hot labels: y.argmax(1)",
        )
