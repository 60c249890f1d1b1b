"""Check that two data sets share no samples and have inputs of the same form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Set

import numpy as np
import torch

from expunge.data.inputs import is_ragged
from expunge.data.samples import Samples
from expunge.errors import DataError, format_ids, raise_all

CHUNK_SIZE = 1024
# If a smaller share of the training inputs is distinct, equal inputs are no sign of a copy.
_MIN_DISTINCT = 0.9


def check_disjoint(train: Samples, other: Samples) -> list[str]:
    """Check that two sets with explicit ids share none; return an empty list.

    The ids of folders are paths: equal ids in two folders are two files.

    Raises
    ------
    DataError
        With the ids that both sets have.
    """
    if not (train.has_explicit_ids and other.has_explicit_ids):
        return []
    are_folders = bool(train.id_root and other.id_root)
    train_ids, other_ids = (_paths(s) if are_folders else s.ids for s in (train, other))
    kinds = train_ids.dtype.kind, other_ids.dtype.kind
    if kinds[0] != kinds[1] and "U" in kinds:
        return []  # integers and strings are never equal
    shared = other.ids[np.isin(other_ids, train_ids)]
    if len(shared):
        raise DataError(
            f"ids inside the training ids: {format_ids(shared)}",
            where=other.name,
            fix="name two folders, and keep each file in one of them"
            if are_folders
            else "leave out `id` for one of them if the two files number their rows independently",
        )
    return []


def _paths(samples: Samples) -> np.ndarray:
    """The paths of the files, ``str[n]``."""
    return np.array([f"{samples.id_root}/{i}" for i in samples.ids], dtype=str)


def shared_inputs(train: Samples, validation: Samples, digests: Set[bytes] | None = None) -> int:
    """Count the validation inputs of which the stored bytes equal those of a training input.

    Cost: one pass over both sets, in chunks; 16 bytes of memory for each training sample. With the
    digests of the training inputs, see `input_digests`, a pass over the validation set alone.
    """
    seen = set(input_digests(train)) if digests is None else digests
    return sum(digest in seen for digest in input_digests(validation))


def without_copies(
    train: Samples, held_out: Samples, digests: Set[bytes] | None = None
) -> tuple[Samples, int]:
    """Leave the inputs out of a held-out set that are training inputs too.

    Where training inputs repeat, as those of coarse tables do, an equal input is no copy.

    Parameters
    ----------
    train, held_out
        The two sets.
    digests
        Those of the training inputs, if they are known; see `input_digests`.

    Returns
    -------
    held_out, n_shared
        The set, the same if nothing was left out, and how many of its inputs were shared.

    Raises
    ------
    DataError
        If nothing would be left.

    Notes
    -----
    Cost: as `shared_inputs`.
    """
    seen = set(input_digests(train)) if digests is None else digests
    is_shared = np.array([digest in seen for digest in input_digests(held_out)])
    n_shared = int(is_shared.sum())
    if not n_shared or len(seen) < _MIN_DISTINCT * len(train):
        return held_out, n_shared
    if is_shared.all():
        raise DataError(
            f"all {n_shared:,} inputs are training inputs: their labels were learned, and cannot "
            "show whether a repair helps",
            where=held_out.name,
            fix="name samples that the model was not trained on, or leave the held-out set out",
        )
    return held_out.subset(np.flatnonzero(~is_shared)), n_shared


def check_alike(train: Samples, other: Samples) -> None:
    """Raise DataError if the first inputs differ in shape, number type or preparation.

    A model accepts many such inputs, but its outputs mean nothing: pixels in 0 … 255 and in 0 … 1,
    images of two sizes, means that only one set subtracts.
    """
    forms = [_describe_inputs(samples) for samples in (train, other)]
    problems = [
        f"{what} {ours} in {train.name}, {theirs} here; prepare both alike"
        for what, ours, theirs in zip(("inputs are", "prepared as"), *forms, strict=True)
        if ours != theirs
    ]
    if train.columns and other.columns and train.columns != other.columns:
        problems.append(
            f"columns are {format_ids(train.columns)} in {train.name}, "
            f"{format_ids(other.columns)} here; name them in one order"
        )
    raise_all(DataError, problems, where=other.name)


def _describe_inputs(samples: Samples) -> tuple[str, str]:
    """Shape and number type of the first input, and its preparation."""
    batch = samples.inputs.batch(np.arange(1))
    parts = batch if isinstance(batch, dict) else {"": batch}
    kinds = {k: "float" if x.is_floating_point() else str(x.dtype)[6:] for k, x in parts.items()}
    shapes = {k: list(x.shape[1:]) for k, x in parts.items()}
    if is_ragged(samples.inputs):
        shapes = {k: [] for k in parts}  # texts differ in length
    shown = [f"{k} {kinds[k]}{shapes[k]}".strip() for k in sorted(parts)]
    transform = samples.decoding.transform if samples.decoding else None
    prepared = f"{samples.prepare}" + (f" after {transform.name}" if transform else "")
    return ", ".join(shown), prepared


def input_digests(samples: Samples) -> Iterator[bytes]:
    """A digest of the stored bytes of every input, in order: 16 bytes each."""
    # The padding of a text depends on the others in its batch.
    for positions in samples.batches(1 if is_ragged(samples.inputs) else CHUNK_SIZE):
        batch = samples.inputs.batch(positions)
        parts = batch if isinstance(batch, dict) else {"": batch}
        columns = [
            (f"{name}{x.dtype}{tuple(x.shape[1:])}".encode(), _as_bytes(x))
            for name, x in sorted(parts.items())
        ]
        for i in range(len(positions)):
            digest = hashlib.blake2b(digest_size=16)
            for head, rows in columns:
                digest.update(head)
                digest.update(rows[i])
            yield digest.digest()


def _as_bytes(x: torch.Tensor) -> np.ndarray:
    """``uint8[n, bytes a sample]``."""
    return x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
