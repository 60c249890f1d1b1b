"""Which arrays of an ``.npz`` file are inputs, labels and ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expunge.errors import DataError
from expunge.scaffold.columns import LABEL_NAMES
from expunge.storage.array_files import npz_names, read_npz

_INPUT_NAMES = (
    *("x", "input", "inputs", "feature", "features", "embedding", "embeddings", "vectors"),
    *("image", "images", "data"),
)
_ID_NAMES = ("ids", "id")


@dataclass(frozen=True)
class ArrayRoles:
    """Names of arrays. test: inputs and labels of a test set in the same file, or None."""

    input: str
    label: str
    id: str | None = None
    test: tuple[str, str] | None = None


def choose_arrays(
    path: Path, *, label: str | None = None, input: str | None = None, id: str | None = None
) -> ArrayRoles:
    """Choose the arrays of inputs and labels; those that are given are taken.

    A usual name decides, as ``embeddings`` or ``y_train``; without one, the only array of two axes
    or more holds the inputs and the only one of one axis the labels.

    Raises
    ------
    DataError
        If the file cannot be read, or which array holds what is not clear.
    """
    names = npz_names(path)
    id = id or next((name for name in names if name.lower() in _ID_NAMES), None)
    usual_input, usual_label = _usual(names, _INPUT_NAMES), _usual(names, LABEL_NAMES)
    input, label = input or usual_input, label or usual_label
    if input is None or label is None:
        free = [name for name in names if name not in (input, label, id)]
        axes = {name: array.ndim for name, array in read_npz(path, free).items()}
        input = input or _only(name for name in free if axes[name] >= 2)
        label = label or _only(name for name in free if axes[name] == 1)
    if input is None or label is None:
        role, option = ("inputs", "--input") if input is None else ("labels", "--label")
        raise DataError(
            f"which array holds the {role} is not clear; arrays: {', '.join(names)}",
            where=str(path),
            fix=f"name it: {option} ARRAY",
        )
    test = tuple(name.replace("train", "test") for name in (input, label))
    has_test = "train" in input and "train" in label and {*test} <= {*names}
    return ArrayRoles(input, label, id, (test[0], test[1]) if has_test else None)


def _usual(names: list[str], usual: tuple[str, ...]) -> str | None:
    """The array with a usual name, alone or as that of a training set: ``x_train``."""
    for wanted in usual:
        for name in names:
            parts = {wanted, f"{wanted}_train", f"train_{wanted}"}
            if name.lower() in parts:
                return name
    return None


def _only(names: Iterator[str]) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None
