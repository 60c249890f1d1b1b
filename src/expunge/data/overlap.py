"""Whether the training and another set share samples, and are stored alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from expunge.data.samples import Samples
from expunge.errors import DataError, format_ids, raise_all

CHUNK = 1024


def check_disjoint(train: Samples, other: Samples) -> list[str]:
    """Raise DataError if both sets have named ids and share some; an empty list otherwise.

    The ids of two folders are paths in them: equal ones are shared only where it is one file.
    """
    if not (train.has_explicit_ids and other.has_explicit_ids):
        return []
    folders = bool(train.id_root and other.id_root)
    known, asked = (_paths(s) if folders else s.ids for s in (train, other))
    if known.dtype.kind != asked.dtype.kind and "U" in (known.dtype.kind, asked.dtype.kind):
        return []  # integers and strings are never equal
    shared = other.ids[np.isin(asked, known)]
    if len(shared):
        raise DataError(
            f"ids inside the training ids: {format_ids(shared)}",
            where=other.name,
            fix="name two folders, and keep each file in one of them"
            if folders
            else "leave out `id` for one of them if the two files number their rows independently",
        )
    return []


def _paths(samples: Samples) -> np.ndarray:
    """The files that the ids name, ``str[n]``."""
    return np.array([f"{samples.id_root}/{i}" for i in samples.ids], dtype=str)


def shared_inputs(train: Samples, validation: Samples) -> int:
    """Number of validation inputs whose stored content is byte-identical to a training input.

    One pass over both sets, in chunks; 16 bytes of memory a training sample.
    """
    known = set(_hashes(train))
    return sum(h in known for h in _hashes(validation))


def check_alike(train: Samples, other: Samples) -> None:
    """Refuse sets whose first inputs differ in shape, in kind of number or in preparation.

    A model would take many of these and say nothing that counts: pixels in 0 … 255 and in 0 … 1,
    images of another size, means that only one set subtracts.
    """
    told = [_form(samples) for samples in (train, other)]
    problems = [
        f"{what} {ours} in {train.name}, {theirs} here"
        for what, ours, theirs in zip(("inputs are", "prepared as"), *told, strict=True)
        if ours != theirs
    ]
    raise_all(DataError, problems, where=other.name)


def _form(samples: Samples) -> tuple[str, str]:
    """Shape and kind of the first input, and how it is prepared."""
    batch = samples.inputs.batch(np.arange(1))
    parts = batch if isinstance(batch, dict) else {"": batch}
    kinds = {k: "float" if x.is_floating_point() else str(x.dtype)[6:] for k, x in parts.items()}
    shown = [f"{k} {kinds[k]}{list(x.shape[1:])}".strip() for k, x in sorted(parts.items())]
    return ", ".join(shown), str(samples.prepare)


def _hashes(samples: Samples) -> Iterator[bytes]:
    for positions in samples.batches(CHUNK):
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
