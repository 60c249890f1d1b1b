"""What can be wrong with the arrays of `Samples`, in words; all problems go into one error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.errors import DataError, format_ids


def label_problems(labels: np.ndarray, ids: np.ndarray, n_classes: int) -> list[str]:
    """Labels must be finite integers in ``[0, n_classes)``."""
    if labels.ndim != 1:
        return [f"labels must be one value a sample, not an array of shape {labels.shape}"]
    if labels.dtype.kind == "f":
        bad = ~np.isfinite(labels)
        if bad.any():
            return [
                f"labels are NaN or infinite: ids {format_ids(ids[: len(bad)][bad[: len(ids)]])}"
                "; leave out samples without a label"
            ]
        if (labels != np.round(labels)).any():
            return ["labels must be integers; got fractions; divide numbers into classes"]
    elif labels.dtype.kind not in "iu":
        return [f"labels must be integers, not {labels.dtype}; names are text: y.astype(str)"]
    problems = []
    if n_classes < 2:
        problems.append(
            f"{n_classes} class: a classifier needs two or more; if others have no samples here, "
            "name them all: classes=…"
        )
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        problems.append(
            f"labels outside 0…{n_classes - 1}: {format_ids(np.unique(labels[outside]))} "
            f"(ids {format_ids(ids[: len(outside)][outside[: len(ids)]])})"
            + _fix_outside(labels, outside)
        )
    return problems


def id_problems(ids: np.ndarray) -> list[str]:
    """Ids must be integers or texts, and differ."""
    problems = []
    if ids.dtype.kind not in "iuU":
        problems.append(
            f"ids must be integers or strings, not {ids.dtype}; ids.astype(str) makes texts"
        )
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        problems.append(
            f"duplicate ids: {format_ids(unique[counts > 1])}; give each sample an id of its own, "
            "or leave the ids out: the rows are then numbered"
        )
    return problems


def _fix_outside(labels: np.ndarray, outside: np.ndarray) -> str:
    """What to do about labels that are no class index."""
    if np.unique(labels).tolist() == [-1, 1]:
        return "; name the classes: classes=['-1', '1']"
    if (labels[outside] < 0).all():
        return "; leave out samples without a label"
    return "; name all classes, in the order of their indices"


def require_two_labels(labels: np.ndarray, *, where: str) -> None:
    """Raise DataError if all samples have the same label: nothing can be learned from them."""
    if len(labels) and (labels == labels[0]).all():
        raise DataError(
            "all samples have the same label: a classifier needs two or more",
            where=where,
            fix="name the right label column, or add samples of other classes",
        )


def text_problems(texts: np.ndarray | Sequence[str], what: str) -> list[str]:
    """Texts must be Unicode: without lone surrogates, which no file can hold."""
    values = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
    if not values or not isinstance(values[0], str):
        return []
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        bad = [ascii(text) for text in values if not text.isprintable() and not _is_text(text)]
        return [f"{what} hold characters that are not text: {format_ids(bad)}"]
    return []


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def probability_problems(
    p: np.ndarray, name: str, ids: np.ndarray, shape: tuple[int, int]
) -> list[str]:
    """Rows must be distributions over the classes."""
    if p.shape != shape:
        return [f"probabilities '{name}' have shape {p.shape}, expected {shape}"]
    bad = ~((p >= 0).all(axis=1) & np.isclose(p.sum(axis=1), 1.0, atol=1e-3))
    if bad.any():
        return [
            f"probabilities '{name}' are negative or do not sum to 1: ids {format_ids(ids[bad])}; "
            "of logits, give the softmax"
        ]
    return []


def feature_problems(values: np.ndarray, name: str, ids: np.ndarray) -> list[str]:
    """Features must be finite, ``[n, d]``."""
    if values.ndim != 2 or len(values) != len(ids) or not values.shape[1]:
        return [f"features '{name}' have shape {values.shape}, expected ({len(ids)}, d)"]
    bad = ~np.isfinite(values).all(axis=1)
    return (
        [f"features '{name}' are NaN or infinite: ids {format_ids(ids[bad])}"] if bad.any() else []
    )


def trusted_problems(trusted: np.ndarray | None, n: int) -> list[str]:
    """Trusted must be ``bool[n]``, if it is given."""
    if trusted is None or (trusted.shape == (n,) and trusted.dtype == np.bool_):
        return []
    return [f"trusted must be {n} truth values, not {trusted.dtype}{trusted.shape}"]
