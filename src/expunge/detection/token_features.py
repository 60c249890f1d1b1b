"""Texts as tables: which tokens they hold, before any network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from expunge._core.arrays import Array
from expunge.data import Batch, Samples

# The most latent dimensions, one for this many texts, and the least.
MAX_TOPICS, TEXTS_PER_TOPIC, MIN_TOPICS = 60, 20, 10
_CHUNK = 1024


def token_mask(batch: Batch, padding_id: int = 0) -> Tensor | None:
    """Return which positions of a batch hold tokens, ``bool[b, t]``; None if it holds none.

    By ``attention_mask`` (1 = token) or a key padding mask (true = padding) of a dictionary, as
    Hugging Face models and torch name them; else the runs of the padding id at the ends of integer
    rows are padding.

    Parameters
    ----------
    batch
        As the model takes it.
    padding_id
        The index that fills shorter texts.

    Examples
    --------
    >>> token_mask(torch.tensor([[7, 0, 9, 0]]))
    tensor([[ True,  True,  True, False]])
    """
    parts = batch if isinstance(batch, dict) else {"": batch}
    for name, part in parts.items():
        if part.dim() == 2 and name.endswith("attention_mask"):
            return part != 0
        if part.dim() == 2 and name.endswith("key_padding_mask"):
            return part == 0
    ids = token_ids(batch)
    if ids is None:
        return None
    is_token = ids != padding_id
    from_left, from_right = is_token.cumsum(dim=1), is_token.flip(1).cumsum(dim=1).flip(1)
    mask = (from_left > 0) & (from_right > 0)
    return mask | ~is_token.any(dim=1, keepdim=True)  # a text of this token alone


def token_ids(batch: Batch) -> Tensor | None:
    """Return the token ids of a batch, ``int[b, t]``; None if its inputs are no indices."""
    if isinstance(batch, dict):
        named = batch.get("input_ids")
        integer = [x for k, x in batch.items() if _are_indices(x) and not k.endswith("mask")]
        found = named if named is not None and _are_indices(named) else next(iter(integer), None)
        # Beside a part of floats, indices are one feature among others.
        return found if not any(x.is_floating_point() for x in batch.values()) else None
    return batch if _are_indices(batch) else None


def _are_indices(x: Tensor) -> bool:
    return x.dim() == 2 and not x.is_floating_point() and x.dtype != torch.bool


def token_features(samples: Samples, padding_id: int = 0) -> Array:
    """Return latent topics of texts: TF-IDF of their tokens, reduced by a singular decomposition.

    ``(1 + log tf) · idf`` with rows of length one, of tokens in two texts or more; then its first
    ``n / 20`` singular dimensions, 10 to 60 of them. The order of the words plays no part.

    Parameters
    ----------
    samples
        Samples of token ids.
    padding_id
        See `token_mask`.

    Returns
    -------
    ndarray
        ``float32[n, d]``. It does not depend on the order of the samples, on padding or batches.

    Notes
    -----
    Cost: ``n · t`` for texts of t tokens, and some ``15 · d`` products with their sparse table.

    References
    ----------
    Latent semantic analysis: doi 10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    order = np.argsort(samples.ids, kind="stable")
    rows, tokens = [], []
    for start in range(0, len(order), _CHUNK):
        batch = samples.inputs.batch(order[start : start + _CHUNK])
        ids, mask = token_ids(batch), token_mask(batch, padding_id)
        assert ids is not None
        assert mask is not None
        at, _ = torch.nonzero(mask, as_tuple=True)
        rows.append(at.cpu().numpy() + start)
        tokens.append(ids[mask].cpu().numpy())
    vocabulary, columns = np.unique(np.concatenate(tokens), return_inverse=True)
    n, ones = len(order), np.ones(len(columns))
    counts = csr_matrix((ones, (np.concatenate(rows), columns)), shape=(n, len(vocabulary)))
    counts.sum_duplicates()
    shared = np.bincount(counts.indices, minlength=len(vocabulary)) >= 2
    table = TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, shared])
    d = min(int(np.clip(n // TEXTS_PER_TOPIC, MIN_TOPICS, MAX_TOPICS)), min(table.shape) - 1)
    features = np.zeros((n, 1), dtype=np.float32)
    if d >= 1:
        features = TruncatedSVD(d, random_state=0).fit_transform(table).astype(np.float32)
    back = np.empty_like(features)
    back[order] = features
    return back
