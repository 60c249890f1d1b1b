"""Map-style data sets, and whatever else a user may hand to a stage, as `Samples`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from expunge.data.arrays import Labels, from_arrays, to_cpu_tensor
from expunge.data.inputs import Batch, DictInputs, Inputs, LazyInputs, TensorInputs
from expunge.data.labels import as_column
from expunge.data.rows import Rows, to_samples
from expunge.data.samples import Samples
from expunge.errors import DataError, format_ids

# Inputs of up to this size are kept in memory by default.
MAX_BYTES_IN_MEMORY = 2 << 30
INPUT_KEYS = ("x", "input", "image", "pixel_values")
LABEL_KEYS = ("y", "label", "labels")
# Items that are read twice, to find out whether the data set is random.
N_REREAD = 8


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set: ``len(dataset)`` and ``dataset[i]``; see `from_dataset` for its items.

    Lists of items and the data sets of torch, torchvision and the Hugging Face Hub are such.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, position: Any, /) -> Any: ...


# What a user may hand to every stage: samples, a pair of arrays (x, y), or a map-style data set.
DataLike: TypeAlias = Samples | tuple[np.ndarray | Tensor, Labels] | MapDataset


def from_dataset(
    dataset: MapDataset,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    sample_rate: int | None = None,
    view: str = "none",
    name: str = "data",
    max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
) -> Samples:
    """Make samples from a map-style data set.

    Parameters
    ----------
    dataset
        Its items are ``(x, y)``, ``(id, x, y)`` or dicts. A dict has the input under ``x``,
        ``input``, ``image`` or ``pixel_values``, or several tensors under other names (they become
        dict batches); the label under ``y``, ``label`` or ``labels``; and optionally an ``id``.
        Strings and single numbers under other names are ignored. Inputs are tensors, arrays or
        Pillow images (converted to ``uint8[C, H, W]``), all of one shape and type.
    classes
        The class names, in the order of the indices. Without them those of ``dataset.classes`` or
        of the Hub's ``ClassLabel`` (a `Subset` has those of its data set), else the labels.
    mean, std, sample_rate, view, name
        See `from_arrays`.
    max_bytes_in_memory
        Inputs of fewer bytes in all are kept in memory. Others are read again for every batch.

    Returns
    -------
    Samples
        One for every item, in order.

    Raises
    ------
    DataError
        If the data set has no length or no items, an item has another form, shapes differ, or two
        readings of one item differ.

    Notes
    -----
    Cost: one pass over the data set; the first 8 items are read twice. An item must be the same at
    every reading: give random transforms as a ``view``.

    Examples
    --------
    >>> items = [(np.full(2, i, dtype=np.float32), i % 2) for i in range(4)]
    >>> samples = from_dataset(items, classes=["even", "odd"])
    >>> samples.labels.tolist(), samples.batch(np.array([3]))
    ([0, 1, 0, 1], tensor([[3., 3.]]))
    """
    rows = _read_all(dataset, _check_length(dataset, name), max_bytes_in_memory, name)
    return to_samples(
        rows,
        classes=tuple(classes or ()),
        mean=mean,
        std=std,
        sample_rate=sample_rate,
        view=view,
        name=name,
    )


def _read_all(dataset: MapDataset, n: int, max_bytes_in_memory: int, name: str) -> Rows:
    """All ids and labels, and the inputs or a hash of them, in one pass."""
    first_id, first, _ = _read_item(dataset, 0, name)
    keep = n * _n_bytes(first) < max_bytes_in_memory
    kept = {k: torch.empty((n, *v.shape), dtype=v.dtype) for k, v in first.items()} if keep else {}
    digest = hashlib.sha256(_describe_inputs(first).encode())
    ids: list[object] = []
    labels: list[object] = []
    different: list[object] = []
    for i in range(n):
        item_id, x, label = _read_item(dataset, i, name)
        ids.append(i if item_id is None else item_id)
        labels.append(label)
        if _describe_inputs(x) != _describe_inputs(first):
            different.append(ids[-1])
            continue
        if i < N_REREAD:
            _check_repeatable(x, dataset, i, name)
        for k, v in sorted(x.items()):
            if keep:
                kept[k][i] = v
            else:
                digest.update(v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if different:
        raise DataError(
            f"inputs that differ from the first ({_describe_inputs(first)}) in shape, dtype or "
            f"names: ids {format_ids(different)}",
            where=name,
            fix="resize, crop or pad all inputs to one shape",
        )

    def read(i: int) -> Batch:
        return _unwrap_single(_read_item(dataset, i, name)[1])

    return Rows(
        ids=as_column(ids, np.arange(n), what="id", where=name),
        labels=as_column(labels, np.array(ids, dtype=object), what="label", where=name),
        inputs=_in_memory(kept) if keep else LazyInputs(n, read, digest.hexdigest()),
        class_names=_class_names(dataset),
        has_explicit_ids=first_id is not None,
    )


def as_samples(data: DataLike, *, name: str = "data") -> Samples:
    """Samples from what a user has: Samples, a pair of arrays (x, y), or a map-style data set.

    Parameters
    ----------
    data
        Samples are returned as they are; for the others see `from_arrays` and `from_dataset`.
    name
        How messages call the data.

    Raises
    ------
    DataError
        For anything else, and for data that do not fit.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray | Tensor):
        return from_arrays(*data, name=name)
    plain = isinstance(data, str | bytes | dict | tuple | np.ndarray | Tensor)
    if not plain and isinstance(data, MapDataset):
        return from_dataset(data, name=name)
    raise DataError(
        f"got {type(data).__name__}, expected Samples, a pair of arrays (x, y) or a data set with "
        "a length and items",
        where=name,
        fix="expunge.data.read reads files; list(…) makes items of an iterable",
    )


def _check_length(dataset: MapDataset, name: str) -> int:
    try:
        n = len(dataset)
    except TypeError as error:
        raise DataError(
            f"{type(dataset).__name__} has no length: expected a map-style data set",
            where=name,
            fix="list(…) makes a data set of an iterable",
        ) from error
    if n == 0:
        raise DataError("no samples", where=name, fix="check the path and the selection")
    return n


def _read_item(dataset: MapDataset, i: int, name: str) -> tuple[object, dict[str, Tensor], object]:
    """Id (None if there is none), inputs by name ("" for a single input), and label."""
    where = f"{name}, item {i}"
    try:
        item = dataset[i]
    except Exception as error:  # the data set is not ours: say which item it failed at
        raise DataError(f"{type(error).__name__}: {error}", where=where) from error
    if isinstance(item, dict):
        return _parse_dict(item, where)
    if isinstance(item, tuple | list) and len(item) in (2, 3):
        *item_id, x, y = item
        return (
            _to_scalar(item_id[0], "id", where) if item_id else None,
            {"": _to_tensor(x, where)},
            _to_scalar(y, "label", where),
        )
    raise DataError(
        f"{_describe(item)}: expected (x, y), (id, x, y) or a dict",
        where=where,
        fix="wrap the data set so that its items have one of these forms",
    )


def _parse_dict(item: dict[Any, Any], where: str) -> tuple[object, dict[str, Tensor], object]:
    label_keys = [k for k in LABEL_KEYS if k in item]
    if len(label_keys) != 1:
        found = format_ids(label_keys) or f"none among {format_ids(item)}"
        raise DataError(
            f"expected one label, under {format_ids(LABEL_KEYS)}; found {found}", where=where
        )
    inputs = {}
    for key, value in item.items():
        single = value is None or isinstance(value, str | bytes | bool | int | float | np.generic)
        if key in ("id", *label_keys) or (single and key not in INPUT_KEYS):
            continue
        if isinstance(value, Tensor) and value.dim() == 0:
            continue
        inputs[str(key)] = _to_tensor(value, f"{where}, '{key}'")
    if not inputs:
        raise DataError(
            f"no input among {format_ids(item)}: expected {format_ids(INPUT_KEYS)}, "
            "or tensors of other names",
            where=where,
        )
    if len(inputs) == 1 and next(iter(inputs)) in INPUT_KEYS:
        inputs = {"": next(iter(inputs.values()))}
    item_id = item.get("id")
    return (
        None if item_id is None else _to_scalar(item_id, "id", where),
        inputs,
        _to_scalar(item[label_keys[0]], "label", where),
    )


def _to_tensor(x: object, where: str) -> Tensor:
    try:
        if isinstance(x, np.ndarray | Tensor):
            tensor = to_cpu_tensor(x)
            if tensor.dim() and tensor.numel():
                return tensor
            raise ValueError(f"an input of shape {tuple(tensor.shape)}: expected some numbers")
        from PIL import Image

        if isinstance(x, Image.Image):
            from expunge.data.images import to_tensor

            return to_tensor(x)
    except (TypeError, ValueError, OSError) as error:
        raise DataError(str(error), where=where, fix="convert it to a tensor") from error
    raise DataError(
        f"the input is {_describe(x)}: expected a tensor, an array or a Pillow image",
        where=where,
        fix="convert it; for a Hugging Face data set: .with_format('torch')",
    )


def _to_scalar(value: object, what: str, where: str) -> object:
    """A plain number, string or None."""
    if isinstance(value, np.ndarray | np.generic | Tensor) and np.prod(value.shape) == 1:
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(
        f"the {what} is {_describe(value)}: expected one integer or string", where=where
    )


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _unwrap_single(x: dict[str, Tensor]) -> Batch:
    return x.get("", x)


def _in_memory(kept: dict[str, Tensor]) -> Inputs:
    return TensorInputs(kept[""]) if "" in kept else DictInputs(kept)


def _n_bytes(x: dict[str, Tensor]) -> int:
    return sum(v.numel() * v.element_size() for v in x.values())


def _describe_inputs(x: dict[str, Tensor]) -> str:
    return ", ".join(f"{k} {tuple(v.shape)} {v.dtype}".strip() for k, v in sorted(x.items()))


def _check_repeatable(x: dict[str, Tensor], dataset: MapDataset, i: int, name: str) -> None:
    again = _read_item(dataset, i, name)[1]
    same = _describe_inputs(x) == _describe_inputs(again) and all(
        torch.equal(v.nan_to_num(), again[k].nan_to_num()) for k, v in x.items()
    )
    if not same:
        raise DataError(
            f"item {i} differs between two readings",
            where=name,
            fix="take random transforms out of the data set; view='crop-flip' augments",
        )


def _class_names(dataset: object) -> tuple[str, ...]:
    """Class names as torchvision (``classes``) or the Hub (``features``) state them.

    A `Subset` has those of its data set.
    """
    while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, dict):
        key = next((k for k in LABEL_KEYS if k in features), "")
        names = getattr(features.get(key), "names", None)
    if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
        return tuple(names)
    return ()
