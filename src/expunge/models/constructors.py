"""Models from the names of their constructors. The named code is imported: name what you trust."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from expunge._core.rng import temp_seed
from expunge.errors import ConfigError, ModelError, did_you_mean
from expunge.models.inspection import FORWARD_ERRORS


def construct(name: str, arguments: Mapping[str, Any], *, folder: Path, seed: int) -> nn.Module:
    """Call a constructor by its name.

    Parameters
    ----------
    name
        ``"package.module:function"``.
    arguments
        Its keyword arguments.
    folder
        Modules in this folder can be imported too.
    seed
        Seed of the initial weights.

    Raises
    ------
    ConfigError
        If the name is not of that form.
    ModelError
        If the module cannot be imported, has no such function, or the function fails or makes
        something other than a module.
    """
    constructor = import_constructor(name, folder)
    try:
        with temp_seed(seed, "network"):
            model = constructor(**arguments)
    except (*FORWARD_ERRORS, ArithmeticError, ImportError, NameError, OSError) as error:
        raise ModelError(
            _describe(error), where=name, fix="correct model.arguments, or the constructor"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"made a {type(model).__name__}, not a module", where=name)
    return model


def import_constructor(name: str, folder: Path) -> Callable[..., Any]:
    """Import a function by the name ``"package.module:function"``."""
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ConfigError(f"'{name}' names no constructor", fix='write "package.module:function"')
    with importable_from(folder):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ModelError(
                f"cannot be imported: {error}",
                where=module_name,
                fix="install it, or correct the name",
            ) from error
        except (*FORWARD_ERRORS, ArithmeticError, NameError, OSError, SyntaxError) as error:
            raise ModelError(
                f"cannot be imported: {_describe(error)}",
                where=module_name,
                fix="correct the error above in that module",
            ) from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if found is None or not callable(found):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ModelError(
            f"has no function '{function}'", where=module_name, fix=did_you_mean(function, public)
        )
    return found


def name_of(constructor: str | Callable[..., Any]) -> str:
    """The name by which `import_constructor` finds a function or class; a name stays as it is.

    Raises
    ------
    ConfigError
        For what cannot be imported by a name: a lambda, a function in a function, a notebook's.

    Examples
    --------
    >>> name_of(nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    if isinstance(constructor, str):
        return constructor
    module, function = getattr(constructor, "__module__", ""), getattr(constructor, "__name__", "")
    found = getattr(sys.modules.get(module), function, None)
    if module == "__main__" or found is not constructor or not callable(constructor):
        raise ConfigError(
            f"{function or type(constructor).__name__} cannot be imported by its name",
            where="constructor",
            fix="put a function that makes the network into a file beside your script: "
            'constructor="file:function"',
        )
    return f"{module}:{function}"


def _describe(error: Exception) -> str:
    """What was raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


@contextmanager
def importable_from(folder: Path) -> Iterator[None]:
    """Let modules beside the spec file be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
