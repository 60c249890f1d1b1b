"""What a label is: the name of a class or its index, by one rule for every source.

- Text is the name of a class. ``"3"`` and ``"3.0"`` are the number 3 if no class has that name.
  Space around a name does not count.
- A number is an index into the class names that its own source states.
- Where the source states none, a number is an index too, and its name is its digits: the class
  ``"3"`` has the index 3.
- Where the requested classes have numbers as names, other than their indices, numbers are names or
  indices, whichever fits all of them. If both fit, that is an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set

import numpy as np

from expunge.data.labels import FIX_SEVERAL, clean_names
from expunge.errors import DataError, did_you_mean, format_ids

# A larger index without class names is no class index.
MAX_CLASSES = 100_000
# Characters of a label that a message shows: a text in the wrong column may be long.
_MAX_SHOWN = 40
_NUMBER = re.compile(r"-?\d{1,18}(\.0*)?")
_PADDED = re.compile(r"-?0\d")  # 01 … 12 are names
_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_SEPARATORS = re.compile(r"\s*[,;|]\s*")
_MISSING = {"nan", "na", "n/a", "null", "none", "<na>"}
BOOLEANS = ("False", "True")


def encode_labels(
    values: np.ndarray,
    ids: np.ndarray,
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert labels to class indices, and find the names of the classes.

    Parameters
    ----------
    values
        ``[n]``: text, integers, whole floats or truth values.
    ids
        ``[n]``, for messages.
    names
        The class names of the source: ``names[i]`` is the name of the index i.
    classes
        The classes of the result, in order. Labels are translated by name if the source states
        other names. With neither ``names`` nor ``classes``, text is sorted, numbers are named
        ``"0" … "c-1"`` and truth values ``"False"``, ``"True"``.
    where
        What messages call the source.

    Returns
    -------
    indices, names
        ``int64[n]``, and the names of the ``c`` classes.

    Raises
    ------
    DataError
        If class names repeat, a label is no class, an index is out of range, or a number may be a
        name as well as an index.

    Examples
    --------
    >>> encode_labels(np.array(["b", "a", "b"]), np.arange(3), where="x")
    (array([1, 0, 1]), ('a', 'b'))
    >>> encode_labels(np.array(["2", "10"]), np.arange(2), classes=["0", "1", "10", "2"], where="x")
    (array([3, 2]), ('0', '1', '10', '2'))
    """
    names, classes = (
        tuple(clean_names(np.array([*map(str, given)], dtype=str)).tolist())
        for given in (names, classes)
    )
    for given in (names, classes):
        repeated = [name for name, n in Counter(given).items() if n > 1]
        if repeated:
            raise DataError(f"class names are not unique: {format_ids(repeated)}", where=where)
    known = classes or names
    if values.dtype.kind == "b":
        values, known = _from_booleans(values, known), known or BOOLEANS
    is_text = values.dtype.kind == "U"
    if is_text:
        values = clean_names(values)
        if (values == "").any():
            raise DataError(
                f"missing values (empty) in labels: ids {format_ids(ids[values == ''])}",
                where=where,
                fix="fill in or remove these rows",
            )
        found = np.unique(values)
        if (known and np.isin(found, known).all()) or not _are_numbers(values, ids, where):
            known = known or tuple(found.tolist())
            return _by_name(values, ids, known, where), known
        values = np.array([int(v.partition(".")[0]) for v in values.tolist()], dtype=np.int64)
    values = _whole(values)
    if values.dtype.kind not in "iu":
        # Samples says what is wrong with fractions, NaN and other types.
        return values, known or _number_classes(values, where)
    if names and classes and names != classes:
        return _translate(values, ids, names, classes, where=where), classes
    if not names and classes and not is_numbered(classes):
        if is_text and any(map(_NUMBER.fullmatch, classes)):
            return _by_name(values.astype(str), ids, classes, where), classes
        return _by_name_or_index(values, classes, where), classes
    return values, known or _number_classes(values, where)


def as_class_names(
    classes: Sequence[str] | Mapping[int, str] | Mapping[str, int] | None, where: str
) -> tuple[str, ...]:
    """Class names in the order of the indices; empty for None.

    Raises
    ------
    DataError
        For one text, a number, a set, and a mapping that does not number the names from 0 on.

    Examples
    --------
    >>> as_class_names({1: "dog", 0: "cat"}, "x"), as_class_names(["cat", "dog"], "x")
    (('cat', 'dog'), ('cat', 'dog'))
    """
    if classes is None:
        return ()
    if isinstance(classes, Mapping):
        pairs = [*classes.items()] if 0 in classes else [(k, n) for n, k in classes.items()]
        named = {k: str(name) for k, name in pairs if isinstance(k, int)}
        if {*named} == {*range(len(classes))}:
            return tuple(named[k] for k in range(len(classes)))
    if isinstance(classes, str | bytes | Mapping | Set) or not hasattr(classes, "__iter__"):
        raise DataError(
            f"classes are {classes!r:.80}, expected a list of names",
            where=where,
            fix="give the names in the order of the indices: ['cat', 'dog']",
        )
    return tuple(str(name) for name in classes)


def is_numbered(names: Sequence[str]) -> bool:
    """Whether the class names are the indices themselves: ``"0"``, ``"1"``, …"""
    return all(name == str(i) for i, name in enumerate(names))


def label_numbers(values: np.ndarray) -> list[int]:
    """The different whole numbers that labels hold, sorted; none if some are names.

    Examples
    --------
    >>> label_numbers(np.array(["10", "9", "10.0"])), label_numbers(np.array(["01", "02"]))
    ([9, 10], [])
    """
    found = np.unique(_whole(values))
    if found.dtype.kind == "U":
        texts = clean_names(found).tolist()
        if not all(map(_NUMBER.fullmatch, texts)) or any(map(_PADDED.match, texts)):
            return []
        found = np.unique(np.array([int(text.partition(".")[0]) for text in texts], dtype=np.int64))
    return found.tolist() if found.dtype.kind in "iu" else []


def _from_booleans(values: np.ndarray, known: tuple[str, ...]) -> np.ndarray:
    """Truth values as text if the classes are called false and true, else as 0 and 1."""
    by_truth = {name.lower(): name for name in known}
    if set(by_truth) != {"false", "true"}:
        return values.astype(np.int64)
    return np.where(values, by_truth["true"], by_truth["false"])


def _are_numbers(values: np.ndarray, ids: np.ndarray, where: str) -> bool:
    """Whether every text is a whole number; fractions and gaps among numbers are a DataError."""
    found = np.unique(values).tolist()
    texts = [v for v in found if v.lower() not in _MISSING]
    if not texts or not all(map(_DECIMAL.fullmatch, texts)):
        return False
    fractions = [v for v in texts if not _NUMBER.fullmatch(v)]
    if fractions:
        raise DataError(
            f"labels must be integers or names; got fractions such as {format_ids(fractions)}",
            where=where,
            fix="give class indices or class names",
        )
    if any(map(_PADDED.match, texts)):
        return False
    if len(texts) < len(found):
        raise DataError(
            "missing values (NaN or null) in labels: ids "
            f"{format_ids(ids[~np.isin(values, texts)])}",
            where=where,
            fix="fill in or remove these rows",
        )
    return True


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole floats as integers; other values as they are."""
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return values
    values = values.astype(np.float64)
    is_whole = (values == np.round(values)).all() and (np.abs(values) < 2**53).all()
    return values.astype(np.int64) if is_whole else values


def _by_name(values: np.ndarray, ids: np.ndarray, known: tuple[str, ...], where: str) -> np.ndarray:
    index = {name: i for i, name in enumerate(known)}
    found, inverse = np.unique(values, return_inverse=True)
    unknown = [v for v in found.tolist() if v not in index]
    if unknown:
        rows = np.isin(values, unknown)
        raise DataError(
            f"labels that are no class: {format_ids(map(_shortened, unknown))} (ids "
            f"{format_ids(ids[rows])}); the classes are {format_ids(known)}",
            where=where,
            fix="name the column of the labels"
            if rows.all() and len(unknown) > max(len(known), len(values) / 2)
            else _fix_unknown(unknown[0], known),
        )
    return np.array([index[v] for v in found.tolist()], dtype=np.int64)[inverse]


def _shortened(name: str) -> str:
    """The beginning of a label, for a message."""
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"


def _fix_unknown(name: str, known: tuple[str, ...]) -> str:
    if is_numbered(known):
        return "name the classes of both sets: set classes to the names in the order of the indices"
    if len(known) > 20:
        return "correct these labels, or set classes to all class names"
    return did_you_mean(name, known)


def _translate(
    values: np.ndarray,
    ids: np.ndarray,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    where: str,
) -> np.ndarray:
    """Indices of the source's names as indices of the classes: by name.

    Where one of the two only numbers its classes and the other does not, the index stays.
    """
    _check_indices(values, ids, len(names), where)
    numbered = is_numbered(names), is_numbered(classes)
    has_numbers = [any(map(_NUMBER.fullmatch, n)) for n in (names, classes)]
    if (numbered[0] and not has_numbers[1]) or (numbered[1] and not has_numbers[0]):
        return values
    return _by_name(np.array(names)[values], ids, classes, where)


def _by_name_or_index(values: np.ndarray, classes: tuple[str, ...], where: str) -> np.ndarray:
    """Indices of numbers that are names of classes or indices, whichever fits all of them."""
    found = np.unique(values).tolist()
    are_indices = all(0 <= k < len(classes) for k in found)
    index = {name: i for i, name in enumerate(classes)}
    if not all(str(k) in index for k in found) or all(index[str(k)] == k for k in found):
        return values
    if not are_indices:
        at = np.array([index[str(k)] for k in found], dtype=np.int64)
        return at[np.searchsorted(found, values)]
    k = next(k for k in found if index[str(k)] != k)
    raise DataError(
        f"the label {k} is the class '{k}' or the class of index {k}, '{classes[k]}'",
        where=where,
        fix="give the labels as text: y.astype(str) if they are names, numpy.array(classes)[y] if "
        "they are indices",
    )


def _number_classes(values: np.ndarray, where: str) -> tuple[str, ...]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if values.dtype.kind not in "iuf" or len(finite) == 0:
        return ("0", "1")  # Samples refuses such labels
    top = int(finite.max())
    if top >= MAX_CLASSES:
        raise DataError(
            f"the largest label is {top}, which is no class index",
            where=where,
            fix="number the classes from 0, or name the right label column",
        )
    return tuple(str(i) for i in range(top + 1))


def _check_indices(values: np.ndarray, ids: np.ndarray, classes: int, where: str) -> None:
    outside = (values < 0) | (values >= classes)
    if outside.any():
        raise DataError(
            f"labels outside 0…{classes - 1}: {format_ids(np.unique(values[outside]))} "
            f"(ids {format_ids(ids[outside])})",
            where=where,
        )


def suspicious_classes(classes: Sequence[str]) -> list[str]:
    """Say which class names may be one class, stand for missing labels, or join several.

    Examples
    --------
    >>> suspicious_classes(["cat", "dog", "Cat", "nan"])
    ["the classes 'Cat' and 'cat' differ in case or invisible signs alone", \
"the class 'nan' may stand for missing labels"]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(c for c in plain if unicodedata.category(c) != "Cf")].append(name)
    found = [
        f"the classes {' and '.join(map(ascii, names))} differ in case or invisible signs alone"
        for names in groups.values()
        if len(names) > 1
    ]
    gaps = [name for name in classes if name.lower() in _MISSING]
    found += [f"the class '{name}' may stand for missing labels" for name in gaps]
    parts = {name: _SEPARATORS.split(name) for name in classes}
    if joined := [n for n, p in parts.items() if len(p) > 1 and parts.keys() >= {*p}]:
        found.append(
            f"classes that join others: {format_ids(joined)}; several labels for one sample are "
            "not supported"
        )
    return found


def marks_unlabelled(classes: Sequence[str]) -> bool:
    """Whether -1 stands for a missing label: beside two or more other numbers, none negative.

    Examples
    --------
    >>> marks_unlabelled(["-1", "0", "1"]), marks_unlabelled(["-1", "1"])
    (True, False)
    """
    others = [name for name in classes if name != "-1"]
    return 1 < len(others) < len(classes) and all(map(str.isdecimal, others))


def smallest_classes(labels: np.ndarray, classes: Sequence[str]) -> str:
    """The classes with the fewest samples, and how many these are, for a message.

    Examples
    --------
    >>> smallest_classes(np.array([0, 0, 1]), ["cat", "dog", "emu"])
    "'emu' (0), 'dog' (1), 'cat' (2)"
    """
    counts = np.bincount(labels, minlength=len(classes))
    order = np.argsort(counts, kind="stable").tolist()
    return format_ids(f"'{classes[k]}' ({counts[k]:,})" for k in order)


def fix_class_count(labels: np.ndarray, classes: Sequence[str], n_outputs: int) -> str:
    """What to do about a model with another number of outputs than there are classes."""
    n = len(classes)
    if is_numbered(classes) and n == n_outputs + 1 and len(labels) and labels.min() == 1:
        return (
            f"the labels start at 1: number the classes from 0 (y - 1), or name them: classes "
            f"'1' … '{n - 1}'"
        )
    used = sorted({*labels.tolist()})
    unused = sorted({*range(n)} - {*used})
    if n > n_outputs and (suspicious := suspicious_classes([classes[k] for k in used])):
        return f"{'; '.join(suspicious)}: correct these labels"
    if n > n_outputs == len(used) and is_numbered(classes):
        return f"the labels are not 0 … {n_outputs - 1}: name them, classes={[*map(str, used)]}"
    if n > n_outputs and is_numbered(classes):
        return (
            f"the labels from {n_outputs} on are no class of the model: leave these samples out, "
            f"or use a model with {n} outputs"
        )
    if len(unused) == n - n_outputs > 0:
        names = format_ids(classes[k] for k in unused)
        return f"no sample has the class {names}: take it out of the class names"
    if n < n_outputs:
        fix = (
            f"name all {n_outputs} classes of the model, in the order of its outputs: classes=… of "
            "expunge.from_arrays and expunge.from_dataset, or classes of [data] in a spec"
        )
        return f"{fix}; {FIX_SEVERAL}" if n == 2 else fix
    return f"use a model with {n} outputs, or data with the {n_outputs} classes of the model"
