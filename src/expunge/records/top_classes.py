"""One number for each class, where classes are many: the best few of each sample, and a rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Up to this many classes, every class of a sample has its own number.
MAX_DENSE_CLASSES = 100
# With more, only the given class and the best others have: this number of classes in all.
N_TOP = 32


@dataclass(frozen=True, eq=False, repr=False)
class TopClasses:
    """Numbers of a few classes of each sample; every other class has the same one, the rest.

    Behaves as the array ``float32[..., n, c]`` that it stands for, as far as its shape, rows,
    ``max`` and ``argmax`` over classes and ``numpy.asarray`` go. Nothing of size n × c is made but
    by ``numpy.asarray``.

    Parameters
    ----------
    values
        ``float[..., n, k]``.
    classes
        ``int[..., n, k]``, the classes of the values; within a sample all different.
    rest
        ``float[..., n]``, the number of each of the other ``c − k`` classes.
    n_classes
        c.

    Notes
    -----
    The arrays become read-only.

    Examples
    --------
    >>> top = TopClasses(np.array([[0.7, 0.1]]), np.array([[2, 0]]), np.array([0.05]), 6)
    >>> top.shape, top.argmax(axis=1)
    ((1, 6), array([2]))
    >>> np.asarray(top)
    array([[0.1 , 0.05, 0.7 , 0.05, 0.05, 0.05]])
    """

    values: np.ndarray
    classes: np.ndarray
    rest: np.ndarray
    n_classes: int

    def __post_init__(self) -> None:
        for array in (self.values, self.classes, self.rest):
            array.setflags(write=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(..., n, c)``."""
        return (*self.rest.shape, self.n_classes)

    @property
    def ndim(self) -> int:
        """The number of dimensions of the array that it stands for."""
        return self.values.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""
        return self.values.dtype

    @property
    def n_rest(self) -> int:
        """The number of classes that have the rest."""
        return self.n_classes - int(self.values.shape[-1])

    def __len__(self) -> int:
        return len(self.rest)

    def __repr__(self) -> str:
        return f"TopClasses(shape {self.shape}, {self.values.shape[-1]} classes a sample)"

    def __getitem__(self, rows: Any) -> Any:
        """Select rows, or arrays of a stack; a single row is ``float[c]``."""
        rest = np.asarray(self.rest[rows])
        taken = TopClasses(self.values[rows], self.classes[rows], rest, self.n_classes)
        return taken if rest.ndim else np.asarray(taken)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("numbers of all classes are made by a copy only")
        full = np.repeat(self.rest[..., None], self.n_classes, axis=-1)
        np.put_along_axis(full, self.classes.astype(np.int64), self.values, axis=-1)
        return full if dtype is None else full.astype(dtype)

    def max(self, axis: int = -1) -> np.ndarray:
        """Return the largest number of each sample, ``float[..., n]``."""
        self._check_axis(axis)
        largest: np.ndarray = self.values.max(axis=-1)
        return largest

    def argmax(self, axis: int = -1) -> np.ndarray:
        """Return the class of the largest number, ``int64[..., n]``; of equal ones the first."""
        self._check_axis(axis)
        is_largest = self.values == self.values.max(axis=-1, keepdims=True)
        first: np.ndarray = np.where(is_largest, self.classes, self.n_classes).min(axis=-1)
        return first.astype(np.int64)

    def _check_axis(self, axis: int) -> None:
        if axis % self.ndim != self.ndim - 1:
            raise ValueError(f"axis {axis} is not that of the classes")

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> TopClasses:
        """Return a function of each number; it may change their dtype."""
        return replace(self, values=function(self.values), rest=function(self.rest))

    def at(self, labels: np.ndarray) -> np.ndarray:
        """Return the number of one class of each sample, ``float[n]``."""
        is_label = self.classes == labels[:, None]
        found: np.ndarray = np.where(is_label, self.values, 0.0).sum(axis=1)
        return np.where(is_label.any(axis=1), found, self.rest).astype(self.dtype)
