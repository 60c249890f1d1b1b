"""Tensors and columns from what users have: arrays, lists, data frames, images and dictionaries."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.data.inputs import DictInputs, Inputs, TensorInputs
from expunge.data.labels import FIX_SEVERAL, as_column, is_missing
from expunge.errors import DataError, format_ids, type_with_article

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class LabelColumn(NamedTuple):
    """Labels as they were given, and the class names that they state, if any."""

    values: np.ndarray
    class_names: tuple[str, ...] = ()


def to_inputs(x: object, where: str) -> Inputs:
    """Convert the inputs of all samples; DataError if they do not fit.

    A dictionary of arrays becomes dict batches. Data frames become ``float32[n, columns]``. Lists
    hold arrays, lists of numbers or Pillow images of one shape.
    """
    if not isinstance(x, Mapping):
        return TensorInputs(_check_inputs(_to_tensor(x, where), where))
    if not x:
        raise DataError("x is a dictionary without arrays", where=where)
    parts = {str(k): _to_tensor(v, f"{where}, '{k}'") for k, v in x.items()}
    lengths = {k: len(v) if v.dim() else 0 for k, v in parts.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the arrays of x have different lengths: {lengths}", where=where)
    if not all(v.numel() for v in parts.values()):
        raise DataError("no samples", where=where, fix="check the selection")
    return DictInputs(parts)


def to_cpu_tensor(x: np.ndarray | Tensor) -> Tensor:
    """Convert to a CPU tensor of the same values, without a copy if possible.

    TypeError for a type that torch does not fully support.
    """
    if isinstance(x, Tensor):
        if x.is_meta:
            raise TypeError("a meta tensor, which has no values")
        tensor = x.detach().cpu()
    elif isinstance(x, np.ma.MaskedArray):
        raise TypeError("masked array: its mask would be lost")
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
    is_known = tensor.dtype in _INTEGERS or tensor.dtype == torch.bool
    if not tensor.is_floating_point() and not is_known:
        raise TypeError(str(tensor.dtype))
    return tensor


def _to_tensor(x: Any, where: str) -> Tensor:
    if is_frame(x):
        return _from_frame(x, where)
    if hasattr(x, "to_numpy") or is_foreign_array(x):  # also a column of pandas, polars or Arrow
        x = np.asarray(x)
    if isinstance(x, np.ndarray) and x.dtype == object:
        x = x.tolist()
    if isinstance(x, list | tuple):
        return _stack(x, where)
    if not isinstance(x, np.ndarray | Tensor):
        raise DataError(
            f"x must be an array, a tensor, a list or a data frame, not {type(x).__name__}",
            where=where,
            fix=fix_array(x, "x"),
        )
    if isinstance(x, np.ma.MaskedArray):
        raise DataError(
            "x is a masked array, whose mask would be lost",
            where=where,
            fix="fill the masked values: x.filled(…)",
        )
    if isinstance(x, Tensor) and x.is_nested:
        raise DataError("x is a nested tensor", where=where, fix="x.to_padded_tensor(0)")
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise DataError(f"x has the layout {x.layout}", where=where, fix="x.to_dense()")
    try:
        return to_cpu_tensor(x)
    except TypeError as error:
        raise DataError(
            f"x has dtype {x.dtype}, expected floats, uint8 or signed integers ({error})",
            where=where,
            fix="convert it, e.g. x.astype('float32')",
        ) from error


def is_foreign_array(x: object) -> bool:
    """Whether x is an array of another library that NumPy can read: h5py, Zarr, xarray, JAX."""
    return not isinstance(x, np.ndarray | Tensor) and all(
        hasattr(x, name) for name in ("__array__", "shape", "dtype", "ndim")
    )


def arrays_of(x: Any) -> list[str]:
    """The names of the arrays in a dictionary, a group of h5py or Zarr, or a data set of xarray."""
    if hasattr(x, "array_keys"):  # of Zarr
        return sorted(map(str, x.array_keys()))
    return [
        str(name)
        for name, value in (x.items() if isinstance(x, Mapping) else ())
        if getattr(value, "ndim", 0)
        and (isinstance(value, np.ndarray | Tensor) or is_foreign_array(value))
    ]


def fix_array(x: object, name: str) -> str:
    """What to do about an object that is no array and no table."""
    if isinstance(x, str | Path):
        return "read the file first, as pandas.read_csv(path) or numpy.load(path) do"
    if names := arrays_of(x):
        return f"choose one of its arrays ({format_ids(names)}): {name}[{names[0]!r}]"
    for method in ("toarray", "collect", "to_pandas"):  # of SciPy, Polars and Hugging Face
        if hasattr(x, method):
            return f"{name}.{method}()"
    if hasattr(x, "__iter__") and not hasattr(x, "__array__"):
        return f"list({name})"
    return "convert it with numpy.asarray(…)"


def is_frame(x: object) -> bool:
    """Whether x is a data frame of pandas or polars, or a table of Arrow."""
    is_arrow = type(x).__module__.startswith("pyarrow") and hasattr(x, "column_names")
    return is_arrow or (hasattr(x, "to_numpy") and hasattr(x, "columns"))


def names_of(frame: Any, where: str) -> list[str]:
    """The names of the columns of a frame; DataError if two have the same name."""
    names = list(getattr(frame, "column_names", frame.columns))
    check_names(names, where)
    return names


def column_names(x: Any, inputs: Inputs) -> tuple[str, ...]:
    """The names of the columns of a frame that became the columns of the inputs; else none."""
    names = tuple(map(str, getattr(x, "column_names", x.columns))) if is_frame(x) else ()
    is_table = isinstance(inputs, TensorInputs) and inputs.shape == (len(names),)
    return names if is_table else ()


def check_names(names: Sequence[str], where: str) -> None:
    """Raise DataError if two columns have the same name."""
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise DataError(
            f"columns of the same name: {format_ids(repeated)}",
            where=where,
            fix="rename them, or leave all but one out",
        )


def to_numpy(x: Tensor) -> np.ndarray:
    """The values of a tensor; bfloat16, which NumPy does not know, becomes float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def categories_of(column: Any) -> Any:
    """The categories of a categorical column of pandas; None for others."""
    return getattr(getattr(column, "cat", column), "categories", None)


def to_list(column: Any) -> list[Any]:
    """The values of a column of Arrow, pandas or polars, or of another iterable."""
    for name in ("to_pylist", "to_list"):
        if hasattr(column, name):
            return list(getattr(column, name)())
    return list(column)


def _from_frame(frame: Any, where: str) -> Tensor:
    """``float32[n, columns]``; a missing number is NaN. One column of vectors is ``[n, d]``."""
    names = names_of(frame, where)
    columns, unfit = [], []
    for name in names:
        values = np.asarray(frame[name])
        if len(names) == 1 and len(values) and isinstance(values[0], list | np.ndarray | Tensor):
            return _stack(values.tolist(), where)
        try:
            if values.dtype.kind in "mMc":  # dates become huge numbers without an error
                raise TypeError
            columns.append(np.asarray(values, dtype=np.float32))
        except (TypeError, ValueError):
            unfit.append(name)
    if unfit:
        raise DataError(
            f"columns that hold no numbers: {format_ids(unfit)}",
            where=where,
            fix="leave them out or encode them as numbers, e.g. with pandas.get_dummies",
        )
    if not columns or not len(columns[0]):
        raise DataError("no samples", where=where, fix="check the selection")
    return torch.from_numpy(np.stack(columns, axis=1))


def _stack(items: Sequence[Any], where: str) -> Tensor:
    """One tensor ``[n, …]`` of arrays, lists of numbers or Pillow images."""
    if not len(items):
        raise DataError("no samples", where=where, fix="check the selection")
    tensors = []
    for i, item in enumerate(items):
        try:
            tensors.append(item_tensor(item))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{error}", where=f"{where}, item {i}", fix=fix_item(item)) from error
    first = tensors[0]
    different = [
        i for i, t in enumerate(tensors) if (t.shape, t.dtype) != (first.shape, first.dtype)
    ]
    if different and {t.shape for t in tensors} == {first.shape}:  # 1 and 1.5 in two lists
        return torch.stack([t.float() for t in tensors])
    if different:
        raise DataError(
            f"inputs that differ from the first ({tuple(first.shape)} {first.dtype}) in shape or "
            f"dtype: items {format_ids(different)}",
            where=where,
            fix="resize, crop or pad all inputs to one shape; convert images to one mode",
        )
    return torch.stack(tensors)


def item_tensor(item: object) -> Tensor:
    """The tensor of one input; TypeError or ValueError if it is none."""
    if isinstance(item, np.ndarray | Tensor):
        return to_cpu_tensor(item)
    if isinstance(item, list | tuple | int | float) and not isinstance(item, bool):
        return to_cpu_tensor(np.asarray(item))
    if isinstance(item, Mapping) and "array" in item and "sampling_rate" in item:
        return to_cpu_tensor(np.asarray(item["array"], dtype=np.float32))  # the Hub's decoded sound
    from PIL import Image

    if isinstance(item, Image.Image):
        from expunge.data.pixels import to_tensor

        return to_tensor(item)
    raise TypeError(
        f"the input is {type_with_article(item)}, expected an array, a tensor, numbers or a Pillow "
        "image"
    )


def fix_item(item: object) -> str:
    """What to do about an input that `item_tensor` refuses."""
    if isinstance(item, str | bytes | Path):
        return "open files, e.g. with PIL.Image.open; expunge.from_texts reads texts"
    if isinstance(item, Mapping) and "bytes" in item:
        return (
            "decode it: dataset.cast_column(name of the column, datasets.Image()), of sound "
            "datasets.Audio(); or read it from a file: dataset.to_parquet, and a spec"
        )
    # Pillow clips images of floats and of large integers.
    if hasattr(item, "convert") and getattr(item, "mode", "F") not in ("F", "I"):
        return 'image.convert("RGB") or image.convert("L"), as in training'
    return "convert it to a tensor, as in training"


def _check_inputs(tensor: Tensor, where: str) -> Tensor:
    shape = tuple(tensor.shape)
    require_numbers(tensor, where)
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
    if has_channels_last(tensor[0]):
        raise DataError(
            f"x has shape {shape}, which looks like [n, H, W, C]; expected [n, C, H, W]",
            where=where,
            fix="x.transpose(0, 3, 1, 2) in NumPy, x.permute(0, 3, 1, 2) in torch",
        )
    return tensor


def require_numbers(tensor: Tensor, where: str) -> None:
    """Raise DataError for truth values, which only masks beside other inputs can be."""
    if tensor.dtype == torch.bool:
        raise DataError(
            "x has dtype bool, expected floats, uint8 or signed integers",
            where=where,
            fix="convert it, e.g. x.astype('float32')",
        )


def has_channels_last(x: Tensor) -> bool:
    """Whether one input looks like the pixels of an image ``[H, W, C]``."""
    shape = tuple(x.shape)
    is_pixels = len(shape) == 3 and x.dtype == torch.uint8
    return is_pixels and shape[2] in (1, 3) and shape[0] not in (1, 3)


def to_labels(y: Any, where: str) -> LabelColumn:
    """Labels ``[n]`` of arrays, lists, tensors and columns of data frames; ``[n, 1]`` is as good.

    A categorical column states its categories as class names.
    """
    names: tuple[str, ...] = ()
    if is_frame(y) and len(y.columns) == 1:
        y = y[y.columns[0]]
    categories = categories_of(y)
    if categories is not None:
        column = getattr(y, "cat", y)
        names, y = tuple(map(str, categories)), np.asarray(column.codes, dtype=np.int64)
        if (y < 0).any():
            raise DataError(
                f"missing values (null) in labels: ids {format_ids(np.flatnonzero(y < 0))}",
                where=where,
                fix="fill in or remove these rows",
            )
    values = to_column(y, "labels", where)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(
            f"labels are masked: ids {format_ids(np.flatnonzero(np.ma.getmaskarray(values)))}",
            where=where,
            fix="remove these rows",
        )
    return LabelColumn(one_each(values, "labels", where), names)


def to_ids(ids: Any, where: str) -> np.ndarray:
    """Ids ``[n]`` of arrays, lists, tensors and columns of data frames; ``[n, 1]`` is as good."""
    return one_each(to_column(ids, "ids", where), "ids", where)


def one_each(values: np.ndarray, what: str, where: str) -> np.ndarray:
    """Labels or ids ``[n]`` of ``[n]`` or ``[n, 1]``; DataError for any other shape."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"{what} must be one value a sample, not an array of shape {values.shape}",
            where=where,
            fix=_fix_shape(values, what),
        )
    return values


def _fix_shape(values: np.ndarray, what: str) -> str:
    """What to do about labels or ids of two dimensions."""
    if what == "ids":
        return "join the parts of an id to one text"
    if values.ndim == 2 and values.dtype.kind in "biuf" and np.allclose(values.sum(axis=1), 1):
        return "for one-hot labels and probabilities: y.argmax(1)"
    if values.ndim == 2 and values.shape[0] == 1:
        return "y[0]"
    return FIX_SEVERAL


def to_column(values: Any, what: str, where: str, *, ids: np.ndarray | None = None) -> np.ndarray:
    """One array of ids or labels; `Samples` checks the values. Bytes are text in UTF-8.

    Messages name the rows by ids, if there are some.
    """
    column = _as_array(values, what, where, ids)
    if column.dtype.kind != "S":
        return column
    try:
        return np.char.decode(column, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} are bytes that are no UTF-8 ({error})", where=where) from error


def _as_array(values: Any, what: str, where: str, ids: np.ndarray | None) -> np.ndarray:
    if isinstance(values, Tensor):
        return to_numpy(values)
    if not isinstance(values, np.ndarray | list | tuple | range):
        if not hasattr(values, "to_numpy") and not is_foreign_array(values):
            raise DataError(
                f"{what} must be an array or a list, not {type(values).__name__}",
                where=where,
                fix=fix_array(values, what)
                if arrays_of(values)
                else f"list({what}.values())"
                if isinstance(values, Mapping)
                else f"give one value for every sample, in order: list({what})",
            )
        values = np.asarray(values)
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "OT" or values.ndim != 1:
            return values
        values = values.tolist()
    return _from_list(list(values), what, where, ids)


def _from_list(values: list[Any], what: str, where: str, ids: np.ndarray | None) -> np.ndarray:
    if not values:
        return np.array([], dtype=np.int64)
    if isinstance(values[0], list | tuple | np.ndarray | Tensor) and np.ndim(values[0]):
        try:
            return np.stack([np.asarray(v) for v in values])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{what} must be one value a sample ({error})",
                where=where,
                fix=_fix_shape(np.empty(0), what),
            ) from error
    scalars = [
        v.item() if isinstance(v, np.generic | Tensor) and np.ndim(v) == 0 else v for v in values
    ]
    if all(isinstance(v, bytes) for v in scalars):
        return np.array(scalars)
    # pandas marks a gap among texts and truth values by NaN.
    is_text = any(isinstance(v, str | bool) for v in scalars)
    scalars = [
        None if is_missing(v) or (is_text and isinstance(v, float) and v != v) else v
        for v in scalars
    ]
    return as_column(scalars, named_rows(ids, len(scalars)), what=what, where=where)


def named_rows(ids: np.ndarray | None, n: int) -> np.ndarray:
    """The ids by which messages name n rows, whose number is checked later; else positions."""
    return np.arange(n) if ids is None or len(ids) != n else ids
