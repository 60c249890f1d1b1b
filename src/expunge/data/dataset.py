"""Map-style data sets, and whatever else a user may hand to a stage, as `Samples`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from expunge.data.arrays import ArrayInputs, Labels, array_rows
from expunge.data.classes import as_class_names
from expunge.data.conversion import arrays_of, is_foreign_array
from expunge.data.inputs import Batch, DictInputs, Inputs, TensorInputs
from expunge.data.items import BY_FORM, LABEL_KEYS, Item, ItemKeys, parse_item
from expunge.data.labels import as_column
from expunge.data.lazy_inputs import LazyInputs
from expunge.data.loaders import Collate, CollatedDataset, unwrap_loader
from expunge.data.rows import Rows, to_samples
from expunge.data.samples import Samples, View
from expunge.data.text_items import is_tokenized, text_rows
from expunge.data.texts import Tokenizer
from expunge.data.workers import choose_workers
from expunge.errors import DataError, format_ids

# Inputs of up to this size are kept in memory by default.
MAX_BYTES_IN_MEMORY = 2 << 30
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
DataLike: TypeAlias = Samples | tuple[ArrayInputs, Labels] | MapDataset | DataLoader[Any]


def from_dataset(
    dataset: MapDataset | DataLoader[Any],
    *,
    input: str | int | Sequence[str | int] | None = None,
    label: str | int | None = None,
    id: str | int | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    sample_rate: int | None = None,
    tokenizer: Tokenizer | None = None,
    length: int | None = None,
    collate_fn: Collate | None = None,
    view: str | View = "none",
    name: str = "data",
    max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
    workers: int | None = None,
) -> Samples:
    """Make samples from a map-style data set.

    Parameters
    ----------
    dataset
        Its items are ``(x, y)``, ``(id, x, y)``, ``(x, y, index)`` or dicts. A dict has one input
        (``image``, ``img``, ``pixel_values``, …), or several tensors, which become dict batches of
        these names; the label under ``y``, ``label``, ``labels`` or ``target``; and optionally an
        ``id``. Strings and single numbers under other names are ignored. The ``x`` of a pair may be
        a dict. Inputs are tensors, arrays, lists of numbers or Pillow images (converted to
        ``uint8[C, H, W]``), all of one shape and type. Token ids (``input_ids``) may differ in
        length. With a tokenizer an item has its text under ``text``, ``sentence``, ``document`` or
        ``content``, or is ``(text, label)``. A DataLoader counts as its data set with its
        ``collate_fn``; the items of a data frame or an Arrow table are its rows.
    input, label, id
        Where these are in an item: keys of a dict or positions in a tuple. Several inputs become a
        dict batch; several numbers, as the columns of a table hold them, one vector; two texts,
        with a tokenizer, a pair. Without them the usual names, or the form of the item.
    classes
        The class names, in the order of the indices. Without them those of ``dataset.classes`` or
        of the Hub's ``ClassLabel`` (a `Subset` has those of its data set), else the labels.
    mean, std, sample_rate, view, name
        See `from_arrays`.
    tokenizer, length
        See `from_texts`. The tokenizer also says how token ids are padded.
    collate_fn
        Makes a batch of a list of items, as that of a DataLoader. It is called for each item by
        itself; what it pads to the longest must be token ids.
    max_bytes_in_memory
        Inputs of fewer bytes in all are kept in memory. Others are read again for every batch.
    workers
        The number of processes that read the items of such batches; the data set is sent to each of
        them. By default one a core for a large `datasets.Dataset` in files, else 0.

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
    if isinstance(dataset, str | Path):
        raise DataError(f"expected a data set, got '{dataset}'", where=name, fix=_fix_data(dataset))
    if collate_fn is not None:
        dataset = CollatedDataset(unwrap_loader(dataset, name), collate_fn)
    several = input is not None and not isinstance(input, str | int)
    keys = ItemKeys(tuple(input) if several else input, label, id)  # type: ignore[arg-type]
    if label is not None and label in (keys.input if isinstance(keys.input, tuple) else [input]):
        raise DataError(
            f"'{label}' is both input and label", where=name, fix="name the input without the label"
        )
    if tokenizer is not None:
        rows = _text_rows(dataset, tokenizer, keys, name)
    else:
        rows = dataset_rows(
            dataset,
            keys=keys,
            max_bytes_in_memory=max_bytes_in_memory,
            workers=workers,
            name=name,
        )
    return to_samples(
        rows,
        classes=as_class_names(classes, name),
        mean=mean,
        std=std,
        sample_rate=sample_rate,
        tokenizer=tokenizer,
        length=length,
        view=view,
        name=name,
    )


def dataset_rows(
    dataset: MapDataset | DataLoader[Any],
    *,
    keys: ItemKeys = BY_FORM,
    max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
    workers: int | None = None,
    name: str,
) -> Rows:
    """All ids and labels, and the inputs or a hash of them, in one pass."""
    dataset = cast(MapDataset, unwrap_loader(dataset, name))
    n = _check_length(dataset, name)
    first = _read_item(dataset, 0, keys, name)
    if is_tokenized(first.inputs):
        return _text_rows(dataset, None, keys, name)
    form = _describe_inputs(first.inputs)
    n_bytes = n * _n_bytes(first.inputs)
    keep = n_bytes < max_bytes_in_memory
    kept = {k: torch.empty((n, *v.shape), dtype=v.dtype) for k, v in first.inputs.items() if keep}
    digest = hashlib.sha256(form.encode())
    ids: list[object] = []
    labels: list[object] = []
    different: list[object] = []
    for i in range(n):
        item = _read_item(dataset, i, keys, name)
        ids.append(i if item.id is None else item.id)
        labels.append(item.label)
        if _describe_inputs(item.inputs) != form:
            different.append(ids[-1])
            continue
        if i < N_REREAD:
            _check_repeatable(item, _read_item(dataset, i, keys, name), i, name)
        for k, v in sorted(item.inputs.items()):
            if keep:
                kept[k][i] = v
            else:
                digest.update(v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if different:
        raise DataError(
            f"inputs that differ from the first ({form}) in shape, dtype or "
            f"names: ids {format_ids(different)}",
            where=name,
            fix="resize, crop or pad all inputs to one shape; convert images to one mode",
        )

    lazy = partial(_read_inputs, dataset, keys, name)
    # A data set in memory would be copied into every worker.
    n_bytes = n_bytes if getattr(dataset, "cache_files", None) else 0
    return Rows(
        ids=as_column(ids, np.arange(n), what="ids", where=name),
        labels=as_column(labels, np.array(ids, dtype=object), what="labels", where=name),
        inputs=_in_memory(kept)
        if keep
        else LazyInputs(n, lazy, digest.hexdigest(), workers=choose_workers(workers, n_bytes)),
        class_names=_class_names(dataset, keys.label),
        has_explicit_ids=first.id is not None and not first.is_index,
        columns=_column_names(keys, first),
    )


def _column_names(keys: ItemKeys, first: Item) -> tuple[str, ...]:
    """The names of several numbers that became one vector."""
    if not isinstance(keys.input, tuple) or [*first.inputs] != [""]:
        return ()
    return tuple(map(str, keys.input))


def _text_rows(
    dataset: MapDataset | DataLoader[Any], tokenizer: Tokenizer | None, keys: ItemKeys, name: str
) -> Rows:
    """All ids, labels, and texts or token ids, in one pass; the first items are read twice."""
    dataset = cast(MapDataset, unwrap_loader(dataset, name))
    n = _check_length(dataset, name)
    for i in range(min(n, N_REREAD)):
        if str(_raw_item(dataset, i, name)) != str(_raw_item(dataset, i, name)):
            raise _differs(i, name)
    return text_rows(
        lambda i: _raw_item(dataset, i, name),
        n,
        tokenizer=tokenizer,
        keys=keys,
        class_names=_class_names(dataset, keys.label),
        where=name,
    )


def as_samples(
    data: DataLike, *, name: str = "data", classes: Sequence[str] | None = None
) -> Samples:
    """Samples from what a user has: Samples, a pair of arrays (x, y), or a map-style data set.

    Parameters
    ----------
    data
        Samples are returned as they are; for the others see `from_arrays` and `from_dataset`.
    name
        How messages call the data.
    classes
        The classes of the result, in order: those of the training set for a validation set.

    Raises
    ------
    DataError
        For anything else, and for data that do not fit.
    """
    if isinstance(data, Samples):
        return data if classes is None else data.with_classes(classes)
    classes = as_class_names(classes, name)
    if isinstance(data, tuple) and len(data) == 2 and _are_arrays(*data):
        return to_samples(array_rows(*data, where=name), classes=classes, name=name)
    plain = isinstance(data, str | bytes | Mapping | tuple | np.ndarray | Tensor | nn.Module)
    plain = plain or hasattr(data, "array_keys") or hasattr(data, "columns")  # Zarr; data frames
    if isinstance(data, MapDataset | DataLoader) and not plain:
        return to_samples(
            dataset_rows(cast(MapDataset, data), name=name), classes=classes, name=name
        )
    raise DataError(
        f"got {_describe_data(data)}, expected Samples, a pair of arrays (x, y) or a data set with "
        "a length and items",
        where=name,
        fix=_fix_data(data),
    )


def _are_arrays(x: object, y: object) -> bool:
    """Whether a pair is one of inputs and labels, and not two items."""
    if isinstance(x, np.ndarray | Tensor) or is_foreign_array(x):
        return is_foreign_array(y) or (hasattr(y, "__iter__") and not isinstance(y, str))
    is_column = isinstance(y, np.ndarray | Tensor | list | tuple | range) or hasattr(y, "to_numpy")
    return is_column and not isinstance(x, str | bytes | int | float)


def _describe_data(data: object) -> str:
    if isinstance(data, tuple):
        return f"a tuple of {format_ids(type(part).__name__ for part in data)}"
    return type(data).__name__


def _fix_data(data: object) -> str:
    if isinstance(data, Mapping) and all(isinstance(k, int) for k in data):
        return "list(data.values()) makes a list of the items"
    if isinstance(data, tuple) and all(isinstance(v, tuple | Mapping) for v in data):
        return "list(…) makes a list of the items"
    names = arrays_of(data)
    if label := next((name for name in names if name in LABEL_KEYS), ""):
        first = next((name for name in names if name != label), label)
        return (
            f"give a pair of its arrays ({format_ids(names)}): (data[{first!r}], data[{label!r}])"
        )
    if names and not isinstance(data, dict):
        return f"give a pair of its arrays ({format_ids(names)}): (data[inputs], data[labels])"
    if isinstance(data, Mapping) and all(isinstance(v, MapDataset) for v in data.values()):
        named = [k for k, v in data.items() if not isinstance(v, np.ndarray | Tensor | list)]
        if named:
            return f"give one of its splits: data[{named[0]!r}]"
    if isinstance(data, nn.Module) and not hasattr(data, "train_dataloader"):
        return "this is a network: it comes first, and the data after it"
    if hasattr(data, "train_dataloader"):
        return "of a data module: data.setup('fit'), then give data.train_dataloader()"
    if isinstance(data, str | Path):
        return "expunge.data.read(expunge.data.DataConfig(path), folder=…) reads files"
    if hasattr(data, "columns"):
        return "give a pair: (data[columns of the inputs], data[column of the labels])"
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "columns"):
        return f"give the column itself: (x.drop(columns={data[1]!r}), x[{data[1]!r}])"
    if isinstance(data, Mapping) and any(
        hasattr(v, "__iter__") and not hasattr(v, "__len__") for v in data.values()
    ):
        return f"list(data[{next(iter(data))!r}]) makes items of a split that has no length"
    if isinstance(data, Mapping | tuple):
        return "give a pair of inputs and labels, (x, y); x may be a dictionary of arrays"
    if isinstance(data, np.ndarray | Tensor):
        return "give the labels too: (x, y)"
    if isinstance(data, IterableDataset) or hasattr(data, "__iter__"):
        return "list(…) makes items of an iterable"
    return "expunge.from_arrays and expunge.from_dataset make Samples"


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


def _read_item(dataset: MapDataset, i: int, keys: ItemKeys, name: str) -> Item:
    return parse_item(_raw_item(dataset, i, name), keys, f"{name}, item {i}")


def _raw_item(dataset: MapDataset, i: int, name: str) -> object:
    try:
        return dataset[i]
    except Exception as error:  # the data set is not ours: say which item it failed at
        raise DataError(
            f"{type(error).__name__}: {error}",
            where=f"{name}, item {i}",
            fix=_fix_data(dataset)
            if isinstance(dataset, Mapping) or hasattr(dataset, "array_keys")
            else "",
        ) from error


def _read_inputs(dataset: MapDataset, keys: ItemKeys, name: str, i: int) -> Batch:
    return _unwrap_single(_read_item(dataset, i, keys, name).inputs)


def _unwrap_single(x: dict[str, Tensor]) -> Batch:
    return x.get("", x)


def _in_memory(kept: dict[str, Tensor]) -> Inputs:
    return TensorInputs(kept[""]) if "" in kept else DictInputs(kept)


def _n_bytes(x: dict[str, Tensor]) -> int:
    return sum(v.numel() * v.element_size() for v in x.values())


def _describe_inputs(x: dict[str, Tensor]) -> str:
    return ", ".join(f"{k} {tuple(v.shape)} {v.dtype}".strip() for k, v in sorted(x.items()))


def _check_repeatable(item: Item, again: Item, i: int, name: str) -> None:
    x, other = item.inputs, again.inputs
    same = _describe_inputs(x) == _describe_inputs(other) and all(
        torch.equal(v.nan_to_num(), other[k].nan_to_num()) for k, v in x.items()
    )
    if not same:
        raise _differs(i, name)
    if str(item.label) != str(again.label):
        raise DataError(
            f"the label of item {i} differs between two readings: {item.label}, {again.label}",
            where=name,
            fix="draw labels once, before the data set is read",
        )


def _differs(i: int, name: str) -> DataError:
    return DataError(
        f"item {i} differs between two readings",
        where=name,
        fix="take random transforms out of the data set; view='crop-flip' augments",
    )


def _class_names(dataset: object, label: str | int | None = None) -> tuple[str, ...]:
    """Class names as torchvision (``classes``) or the Hub (``features``) state them.

    A `Subset` has those of its data set. Names of ``classes`` belong to the usual label only.
    """
    while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, dict):
        key = next((k for k in LABEL_KEYS if k in features), "") if label is None else label
        names = getattr(features.get(key), "names", None)
    if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
        return tuple(names)
    return ()
