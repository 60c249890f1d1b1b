"""Random views (augmentations) of batches of token ids, for the training.

Scores of texts do not use them: a network that has memorised a text knows it without many of its
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.data.texts import MASK
from expunge.errors import DataError

# The fraction of tokens that a view hides.
TOKEN_RATE, SPAN_RATE = 0.15, 0.3

Tokens = dict[str, Tensor]


def token_dropout(x: Tokens, generator: torch.Generator) -> Tokens:
    """Hide each token from the model with probability 0.15, by the attention mask.

    The first and the last token of a text are kept: models read their prediction there.

    Parameters
    ----------
    x
        Token ids by name, with ``attention_mask``, ``int64[b, t]``. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    dict
        The same tensors and a new attention mask.

    Raises
    ------
    DataError
        If there is no attention mask.

    Examples
    --------
    >>> x = {"input_ids": torch.arange(40)[None], "attention_mask": torch.ones(1, 40).long()}
    >>> view = token_dropout(x, torch.Generator().manual_seed(0))
    >>> int(view["attention_mask"].sum()) < 40, int(view["attention_mask"][0, 0])
    (True, 1)
    """
    mask = _mask(x)
    hidden = torch.rand(mask.shape, generator=generator).to(mask.device) < TOKEN_RATE
    return _hide(x, mask, hidden)


def span_mask(x: Tokens, generator: torch.Generator) -> Tokens:
    """Hide one run of 30 % of the tokens of each text from the model, by the attention mask.

    Parameters
    ----------
    x
        Token ids by name, with ``attention_mask``, ``int64[b, t]``. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    dict
        The same tensors and a new attention mask.

    Raises
    ------
    DataError
        If there is no attention mask.

    Examples
    --------
    >>> x = {"input_ids": torch.arange(40)[None], "attention_mask": torch.ones(1, 40).long()}
    >>> int(span_mask(x, torch.Generator().manual_seed(0))["attention_mask"].sum())
    28
    """
    mask = _mask(x)
    inner = (mask.sum(dim=1) - 2).clamp(min=0)  # without the first and the last token
    width = (SPAN_RATE * mask.sum(dim=1)).round().long().minimum(inner)
    draw = torch.rand(len(mask), generator=generator).to(mask.device)
    start = 1 + (draw * (inner - width + 1)).floor().long()
    place = mask.cumsum(dim=1) - 1  # of each token in its text, wherever the padding is
    hidden = (place >= start[:, None]) & (place < (start + width)[:, None])
    return _hide(x, mask, hidden)


def _mask(x: object) -> Tensor:
    if not isinstance(x, dict) or not isinstance(x.get(MASK), Tensor) or x[MASK].dim() != 2:
        raise DataError(
            "this view is for token ids with an attention mask",
            fix="set view to 'none', or let the tokenizer return attention_mask",
        )
    mask: Tensor = x[MASK]
    return mask


def _hide(x: Tokens, mask: Tensor, hidden: Tensor) -> Tokens:
    place = mask.cumsum(dim=1)
    is_end = (place == 1) | (place == place[:, -1:])
    return {**x, MASK: mask * (~hidden | is_end)}
