"""Settings: frozen dataclasses, read from TOML or the command line, written as canonical JSON."""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from expunge.errors import ConfigError, did_you_mean, raise_all

T = TypeVar("T")


def build(kind: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make a dataclass from a dictionary; unknown keys and wrong types are errors, all at once.

    Messages call a field by the ``path`` in its metadata where it has one, else by its name.
    """
    problems: list[str] = []
    result = _dataclass(kind, values, "", problems)
    raise_all(ConfigError, problems, where=where)
    return result


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same settings give the same text."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), default=list)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _dataclass(kind: type, values: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"'{path.rstrip('.')}' must be a table, not {_shown(values)}")
        return None
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.init}
    shown = {name: f.metadata.get("path", name) for name, f in known.items()}
    found = len(problems)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            problems.append(f"unknown key '{path}{key}': {did_you_mean(key, shown.values())}")
        else:
            made[key] = _value(hints[key], value, f"{path}{shown[key]}", problems)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"'{path}{shown[name]}' is missing")
    if len(problems) > found:
        return None
    try:
        return kind(**made)
    except ConfigError as error:
        problems.append(f"{path.rstrip('.')}: {error.what}" if path else error.what)
        return None


def _value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _dataclass(hint, value, f"{path}.", problems)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _union(args, value, path, problems)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        problems.append(f"'{path}' is {_shown(value)}: {did_you_mean(str(value), map(str, args))}")
        return None
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_value(args[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value))
        problems.append(f"'{path}' must be a list, not {_shown(value)}")
        return None
    if origin is dict:
        if isinstance(value, dict):
            return {k: _value(args[1], v, f"{path}.{k}", problems) for k, v in value.items()}
        problems.append(f"'{path}' must be a table, not {_shown(value)}")
        return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"'{path}' must be {hint.__name__}, not {_shown(value)}")
    return None


def _union(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    tries: list[list[str]] = []
    for arg in args:
        if arg is type(None):
            continue
        found: list[str] = []
        made = _value(arg, value, path, found)
        if not found:
            return made
        tries.append(found)
    # The alternative that a table was written for says most about what is wrong in it.
    says_most = sorted(tries, key=lambda t: ("unknown key" in t[0], len(t)))[-1]
    problems.extend(says_most)
    return None


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
