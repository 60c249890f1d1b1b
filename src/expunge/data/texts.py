"""Texts as token ids of different lengths; a batch is padded to its longest text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.inputs import Positions, hash_array
from expunge.errors import ConfigError, DataError, check_range, extra_required, format_ids

# What a tokenizer returns: lists of integers by name, one list a text.
Tokens = Mapping[str, Sequence[Any]]
# A Hugging Face tokenizer, or any function from texts to tokens.
Tokenizer = Callable[..., Tokens]
MASK = "attention_mask"
# Half of a character outside the basic plane, as a text that was cut within an emoji has it.
_HALF = re.compile("[\ud800-\udfff]")
# The number of texts that are tokenized at once.
_CHUNK = 1024


class Texts:
    """Texts that are not yet tokenized, and, for pairs of texts, the second of each."""

    def __init__(self, first: Sequence[str], second: Sequence[str] | None = None) -> None:
        self.first, self.second = list(first), None if second is None else list(second)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> Texts:
        return Texts(self.first[rows], None if self.second is None else self.second[rows])

    def shown(self) -> list[str]:
        """The texts as a report shows them."""
        if self.second is None:
            return self.first
        return [f"{a}\n{b}" for a, b in zip(self.first, self.second, strict=True)]


class TextInputs:
    """Token ids in memory, by the names of the model's arguments.

    Parameters
    ----------
    tokens
        Integers by name, a sequence for each text; all names have the same lengths.
    padding
        What is appended to shorter texts, by name; 0 for names that are left out. It is
        ``attention_mask`` 0 always.
    side
        Where texts are padded: ``"right"`` or ``"left"``.
    texts
        The texts, for the report; empty if they are not known.

    Examples
    --------
    >>> inputs = TextInputs({"input_ids": [[5, 6, 7], [8]]}, texts=["a b c", "d"])
    >>> inputs.batch(np.array([0, 1]))["input_ids"]
    tensor([[5, 6, 7],
            [8, 0, 0]])
    >>> inputs.batch(np.array([1]))["input_ids"]
    tensor([[8]])
    """

    is_ragged = True

    def __init__(
        self,
        tokens: Tokens,
        *,
        padding: Mapping[str, int] | None = None,
        side: str = "right",
        texts: Sequence[str] = (),
    ) -> None:
        rows = next(iter(tokens.values()))
        self._starts = np.cumsum([0, *(len(row) for row in rows)])
        self._flat = {
            name: np.fromiter((int(t) for row in v for t in row), np.int64, self._starts[-1])
            for name, v in tokens.items()
        }
        self._padding, self._side, self._texts = dict(padding or {}), side, tuple(texts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """``int64[n]``, the number of tokens of each text."""
        return np.diff(self._starts)

    def batch(self, positions: Positions) -> dict[str, Tensor]:
        starts, stops = self._starts[positions], self._starts[np.asarray(positions) + 1]
        longest = int((stops - starts).max(initial=0))
        return {name: self._padded(name, starts, stops, longest) for name in self._flat}

    def _padded(self, name: str, starts: Positions, stops: Positions, longest: int) -> Tensor:
        fill = 0 if name == MASK else self._padding.get(name, 0)
        table = np.full((len(starts), longest), fill, dtype=np.int64)
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            where = slice(longest - (stop - start), None)
            where = slice(stop - start) if self._side == "right" else where
            table[row, where] = self._flat[name][start:stop]
        return torch.from_numpy(table)

    def text(self, position: int) -> str:
        """The text at a position; empty if it is not known."""
        return self._texts[position] if self._texts else ""

    def fingerprint(self) -> str:
        names = sorted(self._flat)
        described = f"{names}{sorted(self._padding.items())}{self._side}"
        parts = [hash_array(self._starts), *(hash_array(self._flat[name]) for name in names)]
        return hashlib.sha256((described + "".join(parts)).encode()).hexdigest()


def tokenize(
    texts: Texts, tokenizer: Tokenizer, *, length: int | None, ids: np.ndarray, where: str
) -> TextInputs:
    """Tokenize texts once.

    Parameters
    ----------
    texts
        One or more.
    tokenizer
        A Hugging Face tokenizer; or a function from a list of texts to ``{name: lists of
        integers}``, which is called without settings.
    length
        The largest number of tokens of a text, special tokens included; longer ones are cut. None:
        the limit that the tokenizer states, if it states one.
    ids, where
        For messages.

    Raises
    ------
    DataError
        If a text is empty or no Unicode, or the tokenizer returns anything else or no token for it.
    ConfigError
        If ``length`` is below 1, or the tokenizer has no padding token.
    """
    check_range(ConfigError, {"length": (length, "[1, inf)")}, where=where)
    if not callable(tokenizer):
        raise ConfigError(
            f"the tokenizer is {type(tokenizer).__name__}, expected a tokenizer or a function",
            where=where,
            fix="transformers.AutoTokenizer.from_pretrained(name or folder)",
        )
    shown = texts.shown()
    _check_texts(texts.first, shown, ids, where)
    is_hugging_face = hasattr(tokenizer, "pad_token_id")
    settings: dict[str, Any] = {}
    if is_hugging_face:
        limit = length or getattr(tokenizer, "model_max_length", None)
        # Tokenizers without a limit state a huge number.
        limit = limit if limit is not None and limit < 1e6 else None
        settings = {"truncation": limit is not None, "max_length": limit, "padding": False}
    found: dict[str, list[Any]] = {}
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        given = (part.first,) if part.second is None else (part.first, part.second)
        tokens = _call(tokenizer, given, settings, where)
        if not is_hugging_face and length is not None:
            tokens = {name: [row[:length] for row in v] for name, v in dict(tokens).items()}
        for name, rows in _checked_tokens(tokens, len(part), where).items():
            found.setdefault(name, []).extend(rows)
    return text_inputs(found, tokenizer, ids=ids, where=where, texts=shown)


def _check_texts(first: list[str], shown: list[str], ids: np.ndarray, where: str) -> None:
    """Raise DataError for empty texts, and for halves of characters, which no file can hold."""
    empty = np.array([not text.strip() for text in first])
    if empty.any():
        raise DataError(
            f"texts that are empty: ids {format_ids(ids[empty])}",
            where=where,
            fix="fill in or remove these rows",
        )
    halved = np.array([_HALF.search(text) is not None for text in shown])
    if halved.any():
        raise DataError(
            f"texts with half a character (a lone surrogate): ids {format_ids(ids[halved])}",
            where=where,
            fix="replace it: text.encode('utf-8', 'replace').decode()",
        )


def _call(
    tokenizer: Tokenizer, texts: tuple[list[str], ...], settings: Mapping[str, Any], where: str
) -> Tokens:
    try:
        return tokenizer(*texts, **settings)
    except Exception as error:  # the tokenizer is not ours
        raise DataError(
            f"the tokenizer fails on a list of texts: {type(error).__name__}: {error}",
            where=where,
            fix='a function takes a list of texts and returns {"input_ids": [[…], …]}',
        ) from error


def text_inputs(
    tokens: Tokens,
    tokenizer: Tokenizer | None,
    *,
    ids: np.ndarray,
    where: str,
    texts: Sequence[str] = (),
) -> TextInputs:
    """Make inputs of tokens, padded as the tokenizer pads, or with 0 on the right.

    Raises
    ------
    DataError
        If a text has no token, or its parts differ in length.
    ConfigError
        If the tokenizer has no padding token.
    """
    lengths = {name: np.array([len(row) for row in rows]) for name, rows in tokens.items()}
    first = next(iter(lengths.values()))
    if (first == 0).any():
        raise DataError(
            f"texts without a token: ids {format_ids(ids[first == 0])}",
            where=where,
            fix="remove these rows",
        )
    for name, other in lengths.items():
        if not np.array_equal(first, other):
            odd, one = format_ids(ids[first != other]), next(iter(lengths))
            raise DataError(f"'{name}' and '{one}' differ in length: ids {odd}", where=where)
    tokens = dict(tokens)
    if MASK not in tokens and "input_ids" in tokens and hasattr(tokenizer, "pad_token_id"):
        tokens[MASK] = [[1] * int(n) for n in first]
    return TextInputs(
        tokens,
        padding=_padding(tokenizer, where),
        side=getattr(tokenizer, "padding_side", "right"),
        texts=texts,
    )


def _padding(tokenizer: Tokenizer | None, where: str) -> dict[str, int]:
    """The padding of each part, as a Hugging Face tokenizer states it."""
    if tokenizer is None or not hasattr(tokenizer, "pad_token_id"):
        return {}
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            "the tokenizer has no padding token",
            where=where,
            fix="tokenizer.pad_token = tokenizer.eos_token; "
            "model.config.pad_token_id = tokenizer.pad_token_id",
        )
    return {
        "input_ids": int(tokenizer.pad_token_id),
        "token_type_ids": int(getattr(tokenizer, "pad_token_type_id", 0)),
    }


def _checked_tokens(tokens: object, n: int, where: str) -> dict[str, list[Any]]:
    """Rows of integers by name, one a text."""
    if isinstance(tokens, Mapping) or hasattr(tokens, "keys"):
        parts = {str(k): [_row(r) for r in v] for k, v in dict(tokens).items()}  # type: ignore[call-overload]
        if parts and all(len(rows) == n for rows in parts.values()):
            return parts
    raise DataError(
        f"the tokenizer returned {type(tokens).__name__}, expected lists of integers by name, one "
        f"a text",
        where=where,
        fix='return {"input_ids": [[…], …]}',
    )


def _row(row: Any) -> list[int]:
    return row.tolist() if isinstance(row, np.ndarray | Tensor) else list(row)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a Hugging Face tokenizer from a folder; nothing is downloaded, no code is run.

    Raises
    ------
    ConfigError
        If transformers is not installed.
    DataError
        If the folder holds no tokenizer.
    """
    if not folder.is_dir():
        raise DataError(
            "there is no such tokenizer folder",
            where=str(folder),
            fix="write it with tokenizer.save_pretrained(folder)",
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise extra_required("transformers", "text") from error
    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the package tokenizers raises plain exceptions for broken files
        raise DataError(
            f"holds no tokenizer that can be read ({type(error).__name__}: {error})",
            where=str(folder),
            fix="write it with tokenizer.save_pretrained(folder)",
        ) from error
    return loaded
