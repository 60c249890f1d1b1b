"""Inputs by position: one tensor in memory or several by name; `lazy_inputs` reads on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from expunge.errors import DataError

# What a model is called with: one tensor [b, …], or several by the name of their argument.
Batch: TypeAlias = Tensor | dict[str, Tensor]
Positions: TypeAlias = np.ndarray  # int64[b]


def require_tensor(batch: Batch, where: str) -> Tensor:
    """The batch if it is one tensor; DataError if it is a dictionary."""
    if not isinstance(batch, Tensor):
        raise DataError("expected inputs of one tensor, got a dictionary of tensors", where=where)
    return batch


def hash_array(array: np.ndarray) -> str:
    """SHA-256 of dtype, shape and values."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@runtime_checkable
class Inputs(Protocol):
    """Stored inputs by position. `Samples.prepare` turns what `batch` returns into model inputs."""

    def __len__(self) -> int: ...

    def batch(self, positions: Positions) -> Batch:
        """The inputs at these positions, in their order."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content; equal content gives an equal hash."""
        ...


class TensorInputs:
    """Inputs in memory, as one tensor of shape ``[n, …]``."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.contiguous()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.tensor.shape[1:])

    def __len__(self) -> int:
        return len(self.tensor)

    def batch(self, positions: Positions) -> Tensor:
        rows = torch.from_numpy(np.asarray(positions, dtype=np.int64))
        return self.tensor[rows.to(self.tensor.device, non_blocking=True)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.tensor.dtype}{tuple(self.tensor.shape)}".encode())
        for part in torch.split(self.tensor, 4096):
            digest.update(part.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()


class DictInputs:
    """Inputs in memory, as several tensors ``[n, …]`` by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._parts = {name: TensorInputs(tensor) for name, tensor in tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one input of each name."""
        return {name: part.shape for name, part in self._parts.items()}

    def __len__(self) -> int:
        return min(len(part) for part in self._parts.values())

    def batch(self, positions: Positions) -> dict[str, Tensor]:
        return {name: part.batch(positions) for name, part in self._parts.items()}

    def fingerprint(self) -> str:
        text = "".join(f"{name}{self._parts[name].fingerprint()}" for name in sorted(self._parts))
        return hashlib.sha256(text.encode()).hexdigest()


class SubsetInputs:
    """The inputs at some positions of others."""

    def __init__(self, inputs: Inputs, positions: Positions) -> None:
        self.inputs, self._positions = inputs, positions

    def __len__(self) -> int:
        return len(self._positions)

    def batch(self, positions: Positions) -> Batch:
        return self.inputs.batch(self._positions[positions])

    def fingerprint(self) -> str:
        text = self.inputs.fingerprint() + hash_array(self._positions)
        return hashlib.sha256(text.encode()).hexdigest()

    def text(self, position: int) -> str:
        """The text at a position, if the inputs are texts; else empty."""
        shown = getattr(self.inputs, "text", None)
        return "" if shown is None else str(shown(int(self._positions[position])))

    @property
    def is_ragged(self) -> bool:
        """Whether batches are padded to their longest input."""
        return is_ragged(self.inputs)

    @property
    def lengths(self) -> np.ndarray | None:
        """``int64[n]``, the lengths of inputs that differ in length; None for others."""
        lengths: np.ndarray | None = getattr(self.inputs, "lengths", None)
        return None if lengths is None else lengths[self._positions]

    def announce(self, positions: Positions) -> None:
        """See `announce`."""
        announce(self.inputs, self._positions[positions])

    def read_groups(self, positions: Positions) -> ReadGroups | None:
        """See `read_groups`."""
        return read_groups(self.inputs, self._positions[positions])


def describe_inputs(inputs: Inputs) -> str:
    """The shape of one input if all are in memory, else how they are read; nothing is read."""
    if isinstance(inputs, SubsetInputs):
        return describe_inputs(inputs.inputs)
    if isinstance(inputs, DictInputs):
        return ", ".join(f"{name} {shape}" for name, shape in inputs.shapes.items())
    if (lengths := getattr(inputs, "lengths", None)) is not None:
        return f"of up to {lengths.max(initial=0)} tokens"
    return f"{inputs.shape}" if isinstance(inputs, TensorInputs) else type(inputs).__name__


def is_ragged(inputs: Inputs) -> bool:
    """Whether inputs have different lengths, so that batches are padded to their longest."""
    return bool(getattr(inputs, "is_ragged", False))


def longest_position(inputs: Inputs) -> int:
    """The position of the longest of inputs that differ in length; 0 for others."""
    lengths = getattr(inputs, "lengths", None)
    return 0 if lengths is None else int(np.argmax(lengths))


def announce(inputs: Inputs, positions: Positions) -> None:
    """Say which batch will be read soon; inputs that worker processes decode begin with it."""
    begin = getattr(inputs, "announce", None)
    if begin is not None:
        begin(positions)


class ReadGroups(NamedTuple):
    """Which samples are read from disk together.

    Parameters
    ----------
    groups
        ``int64[n]``: the group of each sample.
    n_in_memory
        How many groups stay in memory.
    """

    groups: np.ndarray
    n_in_memory: int


def read_groups(inputs: Inputs, positions: Positions) -> ReadGroups | None:
    """The groups of these samples; None if any order of reading is as quick as another."""
    found = getattr(inputs, "read_groups", None)
    return None if found is None else found(np.asarray(positions))
