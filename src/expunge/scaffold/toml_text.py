"""Values and tables as TOML text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def toml_value(value: object) -> str:
    """A value as TOML.

    Examples
    --------
    >>> toml_value({"classes": 10, "widths": (16, 32), "norm": "batch", "bias": False})
    '{ classes = 10, widths = [16, 32], norm = "batch", bias = false }'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's strings are TOML's, but that TOML escapes one more character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(toml_value(v) for v in value)}]"
    return repr(value)


def toml_key(key: str) -> str:
    """A key, quoted where it must be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_lines(settings: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> list[str]:
    """One line a setting, with its comment if it has one."""
    notes = comments or {}
    return [
        f"{toml_key(key)} = {toml_value(value)}" + (f"  # {notes[key]}" if key in notes else "")
        for key, value in settings.items()
    ]
