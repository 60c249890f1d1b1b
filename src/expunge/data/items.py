"""One item of a map-style data set: its id, its inputs and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from expunge.data.conversion import (
    fix_item,
    has_channels_last,
    is_frame,
    item_tensor,
    require_numbers,
)
from expunge.data.labels import FIX_SEVERAL
from expunge.errors import DataError, did_you_mean, format_ids, type_with_article

INPUT_KEYS = ("x", "input", "inputs", "image", "img", "pixel_values", "input_values", "audio")
LABEL_KEYS = ("y", "label", "labels", "target", "targets")
# Arguments of transformers that are not the first of their model, or come with a mask.
NAMED_INPUTS = ("input_ids", "inputs_embeds")


class ItemKeys(NamedTuple):
    """Where inputs, label and id are in an item: keys of a dictionary or positions in a tuple.

    None: by the names or the form of the item.
    """

    input: str | int | tuple[str | int, ...] | None = None
    label: str | int | None = None
    id: str | int | None = None


# Neither key is named: the usual names, or the form of the item.
BY_FORM = ItemKeys()


class Item(NamedTuple):
    """An item: inputs by name (``""`` for a single one), label, and id (None if there is none).

    is_index: whether the id is the position in the data set that DivideMix, ELR and others add, and
    so identifies the sample in this data set alone.
    """

    inputs: dict[str, Tensor]
    label: object
    id: object = None
    is_index: bool = False


def parse_item(item: object, keys: ItemKeys, where: str) -> Item:
    """Find inputs, label and id in an item; DataError if it has another form."""
    if keys != BY_FORM:
        return _by_keys(item, keys, where)
    if isinstance(item, Mapping):
        return _parse_dict(item, where)
    if isinstance(item, tuple | list) and len(item) == 2:
        if _is_input(item[1]) and not _is_input(item[0]):
            raise DataError(
                f"{_describe(item[0])} before {_describe(item[1])}: expected (x, y)",
                where=where,
                fix="name input=1 and label=0 of expunge.from_dataset",
            )
        return Item(_to_inputs(item[0], where), to_scalar(item[1], "label", where))
    if isinstance(item, tuple | list) and len(item) == 3:
        return _parse_triple(item, where)
    raise DataError(
        f"{_describe(item)}: expected (x, y), (id, x, y), (x, y, index) or a dict",
        where=where,
        fix=_fix_form(item),
    )


def _fix_form(item: object) -> str:
    """What to do about an item of another form."""
    if is_frame(item):
        return "dataset.with_format(None) gives rows as dicts"
    wrap = "wrap the data set so that its items have one of these forms"
    if isinstance(item, tuple | list):
        return f"{wrap}, or name input=… and label=… of expunge.from_dataset"
    return wrap


def _parse_triple(item: Sequence[Any], where: str) -> Item:
    """``(id, x, y)`` or ``(x, y, index)``: the input is the element that is no single value."""
    first, second, third = item
    if _is_input(first) and not _is_input(second):
        index = third if _is_input(third) else to_scalar(third, "index", where)
        if not isinstance(index, int | str) or isinstance(index, bool):
            raise DataError(
                f"the third element is {_describe(third)}: expected an index or an id",
                where=where,
                fix="name input=0 and label=1 of expunge.from_dataset",
            )
        return Item(_to_inputs(first, where), to_scalar(second, "label", where), index, True)
    return Item(
        _to_inputs(second, where),
        to_scalar(third, "label", where),
        to_scalar(first, "id", where),
    )


def _is_input(value: object) -> bool:
    """Whether a value is more than a label or an id."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.ndim > 1 or int(np.prod(value.shape)) != 1
    return value is not None and not isinstance(value, str | bytes | int | float)


def _by_keys(item: object, keys: ItemKeys, where: str) -> Item:
    """The parts under the keys that the caller named; the others by their usual names."""
    if not isinstance(item, Mapping | tuple | list):
        raise DataError(
            f"{_describe(item)}: expected a dict or a tuple, as input and label are named",
            where=where,
            fix="wrap the data set so that its items are dicts or tuples",
        )
    label = keys.label
    if label is None:
        label = label_key(item, where) if isinstance(item, Mapping) else len(item) - 1
    named = keys.input
    if named is None and isinstance(item, Mapping):
        rest = {k: v for k, v in item.items() if k != label}
        return _parse_dict({**rest, LABEL_KEYS[0]: part_of(item, label, where)}, where, keys.id)
    if named is None:
        named = int(label == 0)
    if isinstance(named, tuple):
        inputs = _several_inputs({str(k): part_of(item, k, where) for k in named}, where)
    else:
        inputs = _to_inputs(part_of(item, named, where), where)
    item_id = None if keys.id is None else to_scalar(part_of(item, keys.id, where), "id", where)
    return Item(inputs, to_scalar(part_of(item, label, where), "label", where), item_id)


def _several_inputs(parts: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Numbers, as the columns of a table hold them, as one vector; arrays by their names."""
    numbers = [name for name, value in parts.items() if _is_number(value)]
    others = [f"{_describe(parts[k])} under '{k}'" for k in parts if k not in numbers]
    if not numbers:
        return {name: _to_tensor(value, f"{where}, '{name}'") for name, value in parts.items()}
    if others:
        raise DataError(
            f"numbers under {format_ids(map(repr, numbers))}, {format_ids(others)}: expected "
            "inputs of one kind, numbers or arrays",
            where=where,
            fix="name inputs of one kind: input=(…); expunge.detect takes tables with texts",
        )
    row = np.array([float(value) for value in parts.values()], dtype=np.float32)
    return {"": _to_tensor(row, where)}


def _is_number(value: object) -> bool:
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.ndim == 0
    return isinstance(value, int | float)


def part_of(item: Any, key: str | int, where: str) -> Any:
    """The part of an item under a key or at a position."""
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        names = [str(k) for k in item] if isinstance(item, Mapping) else []
        raise DataError(
            f"there is no '{key}' in {_describe(item)}",
            where=where,
            fix=did_you_mean(str(key), names)
            if names
            else f"name positions from 0 to {len(item) - 1}",
        ) from error


def label_key(item: Mapping[Any, Any], where: str) -> str:
    """The key of the label of a dictionary, by its usual names; DataError unless there is one."""
    found = [k for k in LABEL_KEYS if k in item]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"expected one label, under {format_ids(LABEL_KEYS)}; found "
        f"{format_ids(found) or f'none among {format_ids(item)}'}",
        where=where,
        fix="name it: expunge.from_dataset(data, label=…)",
    )


def _parse_dict(item: Mapping[Any, Any], where: str, id_key: str | int | None = None) -> Item:
    label = label_key(item, where)
    id_name = "id" if id_key is None else id_key
    inputs = {}
    for key, value in item.items():
        single = value is None or isinstance(value, str | bytes | bool | int | float | np.generic)
        if key in (id_name, label) or (single and key not in INPUT_KEYS):
            continue
        if isinstance(value, Tensor) and value.dim() == 0:
            continue
        inputs[str(key)] = _to_tensor(value, f"{where}, '{key}'")
    if not inputs:
        raise DataError(
            f"no input among {format_ids(item)}: expected {format_ids(INPUT_KEYS)}, "
            "or tensors of other names",
            where=where,
            fix="name it: expunge.from_dataset(data, input=…)",
        )
    if len(inputs) == 1 and next(iter(inputs)) not in NAMED_INPUTS:
        inputs = {"": next(iter(inputs.values()))}
        require_numbers(inputs[""], where)
    item_id = item.get(id_name)
    return Item(
        inputs,
        to_scalar(item[label], "label", where),
        None if item_id is None else to_scalar(item_id, "id", where),
    )


def _to_inputs(x: object, where: str) -> dict[str, Tensor]:
    """The input of a pair: one, or several by name."""
    if isinstance(x, tuple) and any(_is_input(part) for part in x):
        raise DataError(
            f"the input is a tuple of {len(x)} arrays",
            where=where,
            fix="name them as the arguments of the model's forward: ({'a': …, 'b': …}, y)",
        )
    if not isinstance(x, Mapping):
        tensor = _to_tensor(x, where)
        require_numbers(tensor, where)
        return {"": tensor}
    if not x:
        raise DataError("the input is an empty dictionary", where=where)
    return {str(k): _to_tensor(v, f"{where}, '{k}'") for k, v in x.items()}


def _to_tensor(x: object, where: str) -> Tensor:
    try:
        tensor = item_tensor(x)
        if not tensor.dim() or not tensor.numel():
            raise ValueError(f"an input of shape {tuple(tensor.shape)}: expected some numbers")
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise DataError(str(error), where=where, fix=fix_item(x)) from error
    if has_channels_last(tensor):
        raise DataError(
            f"the input has shape {tuple(tensor.shape)}, which looks like [H, W, C]; expected "
            "[C, H, W]",
            where=where,
            fix="x.transpose(2, 0, 1) in NumPy, x.permute(2, 0, 1) in torch",
        )
    return tensor


def to_scalar(value: object, what: str, where: str) -> object:
    """A plain number, string or None."""
    if isinstance(value, np.ndarray | np.generic | Tensor) and np.prod(value.shape) == 1:
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    shape = getattr(value, "shape", ())
    fix = "convert it to one integer or string"
    if isinstance(value, Mapping):
        fix = f"give one of its values: {format_ids(value)}"
    if what == "label" and isinstance(value, list | tuple | set | frozenset):
        fix = FIX_SEVERAL
    if what == "label" and len(shape) == 1:
        fix = (
            "of a one-hot vector y.argmax(); if these items are batches, give the data set itself; "
            f"{FIX_SEVERAL}"
        )
    if what == "id" and len(shape) > 0:
        fix = "several inputs have names: ({'a': …, 'b': …}, y); or name input=… and label=…"
    raise DataError(
        f"the {what} is {_describe(value)}: expected one integer or string", where=where, fix=fix
    )


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type_with_article(value) + (f" of shape {tuple(shape)}" if shape is not None else "")
