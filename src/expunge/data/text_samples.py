"""Texts with a tokenizer, as `Samples`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from expunge.data.arrays import Labels, from_arrays
from expunge.data.conversion import to_list
from expunge.data.inputs import Inputs
from expunge.data.rows import check_view
from expunge.data.samples import Samples, View
from expunge.data.texts import Texts, Tokenizer, tokenize
from expunge.data.views import view as named_view
from expunge.errors import DataError, format_ids


def from_texts(
    texts: Iterable[str],
    labels: Labels,
    *,
    tokenizer: Tokenizer,
    length: int | None = None,
    pairs: Iterable[str] | None = None,
    ids: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    view: str | View = "none",
    name: str = "data",
) -> Samples:
    """Make samples from texts and labels.

    A model is called with a dictionary of token ids, ``model(**batch)``. Batches are padded to
    their longest text.

    Parameters
    ----------
    texts
        ``n`` strings.
    labels
        ``[n]``: class indices in ``[0, c)``, or class names.
    tokenizer
        A Hugging Face tokenizer; or a function from a list of texts to lists of integers by the
        names of the model's arguments, ``{"input_ids": [[5, 7], [9]], …}``.
    length
        The largest number of tokens of a text, special tokens included; longer texts are cut. By
        default the tokenizer's own limit.
    pairs
        The second text of each sample, for models of pairs.
    ids
        ``[n]`` unique integers or strings. Without them the ids are positions.
    classes
        The class names, in the order of the model's outputs: ``model.config.id2label`` of a
        Hugging Face model. Without them ``"0" … "c-1"``, or the sorted names in ``labels``.
    view
        ``"token-dropout"``, ``"span-mask"`` or ``"none"``; augments the training, see
        `expunge.data.view`.
    name
        How messages call the data.

    Returns
    -------
    Samples
        ``n`` samples of ``c`` classes.

    Raises
    ------
    DataError
        If something other than a string or an empty one is among the texts, lengths differ, or the
        tokenizer returns something else or no token for a text.
    ConfigError
        If the tokenizer has no padding token.

    Notes
    -----
    Cost: the texts are tokenized once. Their token ids are kept in memory.

    Examples
    --------
    >>> def words(texts):
    ...     return {"input_ids": [[len(word) for word in text.split()] for text in texts]}
    >>> samples = from_texts(["a bc", "def"], [0, 1], tokenizer=words)
    >>> samples.batch(np.array([0, 1]))
    {'input_ids': tensor([[1, 2],
            [3, 0]])}
    """
    found = Texts(_strings(texts, name), None if pairs is None else _strings(pairs, name))
    if found.second is not None and len(found.second) != len(found):
        raise DataError(
            f"{len(found)} texts and {len(found.second)} pairs",
            where=name,
            fix="give a second text for each text",
        )
    # Labels and ids are read as those of arrays.
    samples = from_arrays(
        np.zeros((len(found), 1), dtype=np.float32), labels, ids=ids, classes=classes, name=name
    )
    inputs = tokenize(found, tokenizer, length=length, ids=samples.ids, where=name)
    return with_inputs(samples, inputs, view)


def with_inputs(samples: Samples, inputs: Inputs, view: str | View) -> Samples:
    """Replace inputs and view; DataError if the view is not for these inputs."""
    samples = replace(samples, inputs=inputs, view=named_view(view))
    check_view(samples, samples.batch(np.arange(1)), samples.name)
    return samples


def _strings(texts: Iterable[str], where: str) -> list[str]:
    if isinstance(texts, str | Mapping) or not isinstance(texts, Iterable):
        raise DataError(
            f"expected a list of texts, got {type(texts).__name__}",
            where=where,
            fix="list(texts.values())" if isinstance(texts, Mapping) else "[text]",
        )
    rows = to_list(texts)
    odd = [i for i, text in enumerate(rows) if not isinstance(text, str)]
    if odd:
        raise DataError(
            f"expected texts, got {type(rows[odd[0]]).__name__}: rows {format_ids(odd)}",
            where=where,
            fix=_fix_text(rows[odd[0]]),
        )
    return [str(text) for text in rows]


def _fix_text(value: object) -> str:
    """What to do about a value that is no text."""
    if isinstance(value, bytes):
        return "decode them: text.decode()"
    if isinstance(value, tuple | list):
        return "give the second texts of pairs by themselves: pairs=…"
    if isinstance(value, int | float) and value == value:
        return "give texts: [str(v) for v in …]"
    return "fill in or remove these rows"
