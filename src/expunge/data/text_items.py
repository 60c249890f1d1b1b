"""Data sets whose items are texts, or token ids of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from expunge.data.items import (
    BY_FORM,
    Item,
    ItemKeys,
    label_key,
    parse_item,
    part_of,
    to_scalar,
)
from expunge.data.labels import as_column
from expunge.data.rows import Rows
from expunge.data.texts import MASK, TextInputs, Texts, Tokenizer, text_inputs
from expunge.errors import DataError, format_ids, type_with_article

# The columns of a data set of texts, the first that there is.
TEXT_KEYS = ("text", "sentence", "document", "content")
TOKENS = "input_ids"


class _TextItem(NamedTuple):
    """An item: its text (empty if it is not known), its token ids (none for raw texts), and more.

    is_index: as in `Item`. second: the second text of a pair; empty if there is none.
    """

    text: str
    tokens: Mapping[str, Tensor]
    label: object
    id: object = None
    is_index: bool = False
    second: str = ""


def is_tokenized(inputs: Mapping[str, Tensor]) -> bool:
    """Whether the inputs of an item are token ids, with an integer of each part for each token."""
    tokens = inputs.get(TOKENS)
    return tokens is not None and all(
        x.dim() == 1 and not x.is_floating_point() and len(x) == len(tokens)
        for x in inputs.values()
    )


def text_rows(
    read: Callable[[int], object],
    n: int,
    *,
    tokenizer: Tokenizer | None,
    keys: ItemKeys = BY_FORM,
    class_names: tuple[str, ...] = (),
    where: str,
) -> Rows:
    """Read all items of a data set of texts or token ids, in one pass.

    Parameters
    ----------
    read
        Returns the item at a position.
    n
        The number of items.
    tokenizer
        None for items that hold token ids.
    keys
        Where text, label and id are in an item.
    class_names
        Those that the data set states.
    where
        What messages call the data set.
    """
    items = [_parse(read(i), keys, f"{where}, item {i}") for i in range(n)]
    ids = as_column(
        [i if item.id is None else item.id for i, item in enumerate(items)],
        np.arange(n),
        what="ids",
        where=where,
    )
    texts = [item.text for item in items]
    inputs: TextInputs | Texts
    if items[0].tokens:
        inputs = token_inputs([i.tokens for i in items], tokenizer, ids, where, texts=texts)
    else:
        _check_texts(texts, ids, keys, where)
        second = [item.second for item in items]
        inputs = Texts(texts, second if any(second) else None)
    return Rows(
        ids=ids,
        labels=as_column([item.label for item in items], ids, what="labels", where=where),
        inputs=inputs,
        class_names=class_names,
        has_explicit_ids=items[0].id is not None and not items[0].is_index,
    )


def _parse(item: object, keys: ItemKeys, where: str) -> _TextItem:
    if isinstance(item, Mapping) and TOKENS in item:
        found: Item = parse_item(item, keys, where)
        return _TextItem(_text_of(item), found.inputs, found.label, found.id, found.is_index)
    is_tuple = isinstance(item, tuple | list)
    if isinstance(item, Mapping) or (is_tuple and keys != BY_FORM):
        return _by_keys(item, keys, where)
    if isinstance(item, tuple | list) and len(item) in (2, 3):
        is_last = len(item) == 3 and not isinstance(item[1], str)
        text, label = item[:2] if len(item) == 2 or is_last else item[1:]
        item_id = None if len(item) == 2 else item[2 if is_last else 0]
        return _TextItem(
            text if isinstance(text, str) else "",
            {},
            to_scalar(label, "label", where),
            to_scalar(item_id, "id", where),
            is_last,
        )
    raise DataError(
        f"{type_with_article(item)}: expected (text, label), (id, text, label) or a dict",
        where=where,
    )


def _by_keys(item: Any, keys: ItemKeys, where: str) -> _TextItem:
    """The parts under the keys that the caller named; the others by their usual names."""
    is_named = isinstance(item, Mapping)
    label = keys.label
    if label is None:
        label = label_key(item, where) if is_named else len(item) - 1
    id_key = "id" if keys.id is None and is_named and "id" in item else keys.id
    if keys.input is None and is_named:
        parts: dict[str, Any] = {TEXT_KEYS[0]: _text_of(item)}
    else:
        named = int(label == 0) if keys.input is None else keys.input
        several = named if isinstance(named, tuple) else (named,)
        parts = {str(key): part_of(item, key, where) for key in several}
    first = next(iter(parts))
    if parts[first] is None:
        parts[first] = ""  # `_check_texts` names all rows without a text
    odd = {key: value for key, value in parts.items() if not isinstance(value, str)}
    if odd or len(parts) > 2:
        found = format_ids(f"{type_with_article(v)} under '{k}'" for k, v in odd.items())
        raise DataError(
            f"{found or f'{len(parts)} texts'}: expected a text, or two of a pair",
            where=where,
            fix="name columns of texts: input=…",
        )
    texts = list(parts.values())
    return _TextItem(
        texts[0],
        {},
        to_scalar(part_of(item, label, where), "label", where),
        None if id_key is None else to_scalar(part_of(item, id_key, where), "id", where),
        second=texts[1] if len(texts) == 2 else "",
    )


def _text_of(item: Mapping[Any, Any]) -> str:
    """The text of an item; empty if it has none under a usual name."""
    return next((item[k] for k in TEXT_KEYS if isinstance(item.get(k), str)), "")


def _check_texts(texts: Sequence[str], ids: np.ndarray, keys: ItemKeys, where: str) -> None:
    missing = np.array([not text for text in texts])
    if missing.any():
        named = keys.input[0] if isinstance(keys.input, tuple) else keys.input
        found = ", ".join(TEXT_KEYS) if named is None else f"'{named}'"
        raise DataError(
            f"items without a text under {found}: ids {format_ids(ids[missing])}",
            where=where,
            fix="fill in or remove these rows, or name the key: from_dataset(data, input=…)",
        )


def token_inputs(
    rows: Sequence[Mapping[str, Tensor]],
    tokenizer: Tokenizer | None,
    ids: np.ndarray,
    where: str,
    *,
    texts: Sequence[str] = (),
) -> TextInputs:
    """Make inputs of texts that were tokenized before; padding that the mask hides is cut off.

    Raises
    ------
    DataError
        If an item has no token ids, or parts of different lengths.
    """
    odd = np.array([not is_tokenized(row) for row in rows])
    if odd.any():
        raise DataError(
            f"items without token ids, or with parts of other lengths: ids {format_ids(ids[odd])}",
            where=where,
        )
    names = sorted(set.intersection(*(set(row) for row in rows)))
    tokens = {name: [row[name].tolist() for row in rows] for name in names}
    return text_inputs(
        _without_padding(tokens), tokenizer, ids=ids, where=where, texts=texts if all(texts) else ()
    )


def _without_padding(tokens: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Cut off what the attention mask hides at both ends."""
    if MASK not in tokens:
        return tokens
    spans = []
    for mask in tokens[MASK]:
        at = np.flatnonzero(mask)
        spans.append(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0))
    return {
        name: [row[span] for row, span in zip(rows, spans, strict=True)]
        for name, rows in tokens.items()
    }
