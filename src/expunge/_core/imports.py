"""Objects by their name ``"package.module:object"``. The code is imported: name what you trust."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import USER_ERRORS, ConfigError, ModelError, did_you_mean


def import_named(name: str, folder: Path, *, what: str = "constructor") -> Any:
    """Import an object by the name ``"package.module:object"``.

    Parameters
    ----------
    name
        The module, a colon, and a name in it.
    folder
        Modules in this folder can be imported too.
    what
        What messages call the object.

    Raises
    ------
    ConfigError
        If the name is not of that form.
    ModelError
        If the module cannot be imported or has no such callable object.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"'{name}' names no {what}", fix='write "package.module:function"')
    with importable_from(folder):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ModelError(
                f"cannot be imported: {error}",
                where=module_name,
                fix="install it, or correct the name",
            ) from error
        except (*USER_ERRORS, SyntaxError, OSError) as error:
            raise ModelError(
                f"cannot be imported: {describe_error(error)}",
                where=module_name,
                fix="correct the error above in that module",
            ) from error
    found = attribute_at(module, attribute)
    if found is None or not callable(found):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ModelError(
            f"has no function '{attribute}'", where=module_name, fix=did_you_mean(attribute, public)
        )
    return found


def describe_error(error: Exception) -> str:
    """What was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"


@contextmanager
def importable_from(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def attribute_at(owner: object, path: str) -> Any:
    """What a dotted path names in a module or class; None if there is no such thing."""
    for part in path.split("."):
        owner = getattr(owner, part, None)
    return owner
