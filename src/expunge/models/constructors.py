"""Models from the names of their constructors. The named code is imported: name what you trust."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from expunge._core.imports import attribute_at, describe_error, import_named
from expunge._core.rng import temp_seed
from expunge.errors import USER_ERRORS, ConfigError, ModelError, type_with_article


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
    constructor = import_named(name, folder)
    try:
        with temp_seed(seed, "network"):
            model = constructor(**arguments)
    except (*USER_ERRORS, ImportError) as error:
        taken = ", ".join(parameters_of(constructor))
        fix = "correct model.arguments, or the constructor"
        fix += f"; it takes {taken}" if taken else ""
        raise ModelError(describe_error(error), where=name, fix=fix) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"made {type_with_article(model)}, not a module", where=name)
    return model


def parameters_of(constructor: Callable[..., Any]) -> dict[str, bool]:
    """The arguments that can be named, and whether each is required; none if they are not known.

    Examples
    --------
    >>> parameters_of(nn.Flatten)
    {'start_dim': False, 'end_dim': False}
    """
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except (TypeError, ValueError):
        return {}
    nameable = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default is p.empty for p in parameters if p.kind in nameable}


def name_of(constructor: str | Callable[..., Any]) -> str:
    """The name by which `import_named` finds a function or class; a name stays as it is.

    Raises
    ------
    ConfigError
        For what cannot be imported by a name: a lambda, a function in a function, a notebook's.

    Examples
    --------
    >>> name_of(nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    if isinstance(constructor, str) and not constructor.startswith("__main__:"):
        return constructor
    module = getattr(constructor, "__module__", "")
    function = str(getattr(constructor, "__qualname__", constructor))
    found = attribute_at(sys.modules.get(module), function)
    if module == "__main__" or found != constructor or not callable(constructor):
        raise ConfigError(
            f"{function} cannot be imported by its name",
            where="constructor",
            fix="put a function that makes the network into a file beside your script: "
            'constructor="file:function"',
        )
    return f"{module}:{function}"
