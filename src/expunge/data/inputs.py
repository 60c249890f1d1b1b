"""Inputs by position: one tensor in memory, several by name, or files that are read on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

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

    def __len__(self) -> int:
        return min(len(part) for part in self._parts.values())

    def batch(self, positions: Positions) -> dict[str, Tensor]:
        return {name: part.batch(positions) for name, part in self._parts.items()}

    def fingerprint(self) -> str:
        text = "".join(f"{name}{self._parts[name].fingerprint()}" for name in sorted(self._parts))
        return hashlib.sha256(text.encode()).hexdigest()


class LazyInputs:
    """Inputs that are read on demand, with one call of ``read(position)`` a sample.

    Parameters
    ----------
    n
        The number of samples.
    read
        Returns the input of one sample: a tensor, or several by name.
    content
        A hash of the content, of the files' bytes for example.
    """

    def __init__(self, n: int, read: Callable[[int], Batch], content: str) -> None:
        self._n, self._read, self._content = n, read, content

    def __len__(self) -> int:
        return self._n

    def batch(self, positions: Positions) -> Batch:
        items = [self._read(int(i)) for i in positions]
        if isinstance(items[0], Tensor):
            return torch.stack([x for x in items if isinstance(x, Tensor)])
        tables = [x for x in items if isinstance(x, dict)]
        return {k: torch.stack([x[k] for x in tables]) for k in tables[0]}

    def fingerprint(self) -> str:
        return self._content


class SubsetInputs:
    """The inputs at some positions of others."""

    def __init__(self, inputs: Inputs, positions: Positions) -> None:
        self._inputs, self._positions = inputs, positions

    def __len__(self) -> int:
        return len(self._positions)

    def batch(self, positions: Positions) -> Batch:
        return self._inputs.batch(self._positions[positions])

    def fingerprint(self) -> str:
        text = self._inputs.fingerprint() + hash_array(self._positions)
        return hashlib.sha256(text.encode()).hexdigest()

    def text(self, position: int) -> str:
        """The text at a position, if the inputs are texts; else empty."""
        shown = getattr(self._inputs, "text", None)
        return "" if shown is None else str(shown(int(self._positions[position])))

    @property
    def is_ragged(self) -> bool:
        """Whether batches are padded to their longest input."""
        return is_ragged(self._inputs)


def is_ragged(inputs: Inputs) -> bool:
    """Whether inputs have different lengths, so that batches are padded to their longest."""
    return bool(getattr(inputs, "is_ragged", False))
