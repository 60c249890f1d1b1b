"""Map-style data sets, and whatever else a user may hand to a stage, as `Samples`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from expunge.data.arrays import Labels, from_arrays, native
from expunge.data.images import to_tensor
from expunge.data.labels import column
from expunge.data.rows import Rows, to_samples
from expunge.data.samples import Batch, Inputs, LazyInputs, Samples, TensorInputs
from expunge.errors import DataError, format_ids

RESIDENT_BYTES = 2 << 30
INPUT_KEYS = ("x", "input", "image", "pixel_values")
LABEL_KEYS = ("y", "label", "labels")
REREAD = 8  # items that are read twice, to see whether the data set is random


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set: ``len(dataset)`` and ``dataset[i]``; see `from_dataset` for its items.

    Lists of items and the data sets of torch, torchvision and the Hugging Face Hub are such.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, position: Any, /) -> Any: ...


# What a user may hand to every stage: samples, a pair of arrays (x, y), or a map-style data set.
DataLike: TypeAlias = Samples | tuple[np.ndarray | Tensor, Labels] | MapDataset


class DictInputs:
    """Inputs of several tensors that are kept in memory, by name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._parts = {name: TensorInputs(tensor) for name, tensor in tensors.items()}

    def __len__(self) -> int:
        return min(len(part) for part in self._parts.values())

    def batch(self, positions: np.ndarray) -> dict[str, Tensor]:
        return {name: part.batch(positions) for name, part in self._parts.items()}

    def fingerprint(self) -> str:
        text = "".join(f"{name}{self._parts[name].fingerprint()}" for name in sorted(self._parts))
        return hashlib.sha256(text.encode()).hexdigest()


def from_dataset(
    dataset: MapDataset,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    rate: int | None = None,
    view: str = "none",
    name: str = "data",
    resident_bytes: int = RESIDENT_BYTES,
) -> Samples:
    """Samples from a map-style data set.

    Items are ``(x, y)``, ``(id, x, y)`` or dicts: an input under x, input, image or pixel_values,
    or several tensors under names of their own (they become dict batches); the label under y, label
    or labels; an ``id`` if there is one. Inputs are tensors, arrays or Pillow images (which become
    ``uint8[C, H, W]``), all of one shape. Strings and single numbers in a dict are left aside.

    classes: without them ``dataset.classes``, the Hub's ``ClassLabel`` names (a `Subset` has those
    of its data set), or the labels themselves. rate: of sound, in Hz. One pass is made now; inputs
    of fewer than ``resident_bytes`` in all are kept, others are read again whenever they are asked
    for. An item must be the same at every reading: random transforms belong in ``view``.

    Raises DataError for items of another form, unequal shapes, or a random data set.
    """
    rows = _collected(dataset, _length(dataset, name), resident_bytes, name)
    return to_samples(
        rows,
        classes=tuple(classes or ()),
        mean=mean,
        std=std,
        rate=rate,
        view=view,
        name=name,
    )


def _collected(dataset: MapDataset, n: int, resident_bytes: int, name: str) -> Rows:
    """All ids and labels, and the inputs or a hash of them, in one pass."""
    first_id, first, _ = _item(dataset, 0, name)
    keep = n * _bytes(first) < resident_bytes
    kept = {k: torch.empty((n, *v.shape), dtype=v.dtype) for k, v in first.items()} if keep else {}
    digest = hashlib.sha256(_form(first).encode())
    ids: list[object] = []
    labels: list[object] = []
    odd: list[object] = []
    for i in range(n):
        item_id, x, label = _item(dataset, i, name)
        ids.append(i if item_id is None else item_id)
        labels.append(label)
        if _form(x) != _form(first):
            odd.append(ids[-1])
            continue
        if i < REREAD:
            _require_repeatable(x, dataset, i, name)
        for k, v in sorted(x.items()):
            if keep:
                kept[k][i] = v
            else:
                digest.update(v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if odd:
        raise DataError(
            f"inputs that differ from the first ({_form(first)}) in shape, dtype or names: "
            f"ids {format_ids(odd)}",
            where=name,
            fix="resize, crop or pad all inputs to one shape",
        )

    def read(i: int) -> Batch:
        return _single(_item(dataset, i, name)[1])

    return Rows(
        ids=column(ids, np.arange(n), what="id", where=name),
        labels=column(labels, np.array(ids, dtype=object), what="label", where=name),
        inputs=_resident(kept) if keep else LazyInputs(n, read, digest.hexdigest()),
        names=_class_names(dataset),
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


def _length(dataset: MapDataset, name: str) -> int:
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


def _item(dataset: MapDataset, i: int, name: str) -> tuple[object, dict[str, Tensor], object]:
    """Id (None if there is none), inputs by name ("" for a single one), and label."""
    where = f"{name}, item {i}"
    try:
        item = dataset[i]
    except Exception as error:  # the data set is not ours: say which item it failed at
        raise DataError(f"{type(error).__name__}: {error}", where=where) from error
    if isinstance(item, dict):
        return _from_dict(item, where)
    if isinstance(item, tuple | list) and len(item) in (2, 3):
        *item_id, x, y = item
        return (
            _scalar(item_id[0], "id", where) if item_id else None,
            {"": _input(x, where)},
            _scalar(y, "label", where),
        )
    raise DataError(
        f"{_described(item)}: expected (x, y), (id, x, y) or a dict",
        where=where,
        fix="wrap the data set so that its items have one of these forms",
    )


def _from_dict(item: dict[Any, Any], where: str) -> tuple[object, dict[str, Tensor], object]:
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
        inputs[str(key)] = _input(value, f"{where}, '{key}'")
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
        None if item_id is None else _scalar(item_id, "id", where),
        inputs,
        _scalar(item[label_keys[0]], "label", where),
    )


def _input(x: object, where: str) -> Tensor:
    try:
        if isinstance(x, Image.Image):
            return to_tensor(x)
        if isinstance(x, np.ndarray | Tensor):
            tensor = native(x)
            if tensor.dim() and tensor.numel():
                return tensor
            raise ValueError(f"an input of shape {tuple(tensor.shape)}: expected some numbers")
    except (TypeError, ValueError, OSError) as error:
        raise DataError(str(error), where=where, fix="convert it to a tensor") from error
    raise DataError(
        f"the input is {_described(x)}: expected a tensor, an array or a Pillow image",
        where=where,
        fix="convert it; for a Hugging Face data set: .with_format('torch')",
    )


def _scalar(value: object, what: str, where: str) -> object:
    """A plain number, string or None."""
    if isinstance(value, np.ndarray | np.generic | Tensor) and np.prod(value.shape) == 1:
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(
        f"the {what} is {_described(value)}: expected one integer or string", where=where
    )


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _single(x: dict[str, Tensor]) -> Batch:
    return x.get("", x)


def _resident(kept: dict[str, Tensor]) -> Inputs:
    return TensorInputs(kept[""]) if "" in kept else DictInputs(kept)


def _bytes(x: dict[str, Tensor]) -> int:
    return sum(v.numel() * v.element_size() for v in x.values())


def _form(x: dict[str, Tensor]) -> str:
    return ", ".join(f"{k} {tuple(v.shape)} {v.dtype}".strip() for k, v in sorted(x.items()))


def _require_repeatable(x: dict[str, Tensor], dataset: MapDataset, i: int, name: str) -> None:
    again = _item(dataset, i, name)[1]
    same = _form(x) == _form(again) and all(
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

    Those of a `Subset` are the ones of the data set that it is a part of.
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
