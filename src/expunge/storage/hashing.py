"""The content of functions and objects as text: equal for equal ones, in every process."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from expunge.storage.digests import canonical, digest

__all__ = ["canonical", "content_of", "digest"]

_PLAIN = (bool, int, float, complex, str, bytes, np.generic)


def content_of(value: object) -> str:
    """Describe numbers, text, arrays, containers, functions and callable objects by their content.

    Parameters
    ----------
    value
        A function is described by its code, its defaults and the variables in its closure, a
        callable object by its class and its attributes, anything else by the name of its class.

    Returns
    -------
    str
        Equal for equal content in every process; it holds no address in memory.

    Examples
    --------
    >>> content_of({"a": 1}) == content_of({"a": 1}), content_of(1) == content_of(2)
    (True, False)
    """
    return _describe(value, ())


def _describe(value: Any, outer: tuple[int, ...]) -> str:
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in outer:  # it holds itself
        return "…"
    inner = functools.partial(_describe, outer=(*outer, id(value)))
    match value:
        case Tensor():
            return inner(value.detach().float().cpu().numpy())
        case np.ndarray():
            data = np.ascontiguousarray(value).tobytes() if value.dtype != object else b""
            return f"{value.dtype}{value.shape}{hashlib.sha256(data).hexdigest()}"
        case Mapping():
            return str(sorted((inner(k), inner(v)) for k, v in value.items()))
        case list() | tuple():
            return str([inner(v) for v in value])
        case set() | frozenset():
            return str(sorted(inner(v) for v in value))
        case functools.partial():
            return inner(["partial", value.func, value.args, value.keywords])
        case types.MethodType():
            return inner([value.__func__, value.__self__])
        case types.CodeType():
            return inner([value.co_code, value.co_consts, value.co_names])
        case types.FunctionType():
            cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
            parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
            return f"{_name(value)} {inner(parts)}"
    if callable(value) and hasattr(value, "__dict__") and not hasattr(value, "__qualname__"):
        return f"{_name(type(value))} {inner(vars(value))}"
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
