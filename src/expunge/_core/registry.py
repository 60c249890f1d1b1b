"""Named plug-ins: a detector, partitioner, ranker, pruner or recipe is one decorated function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from expunge.errors import ConfigError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")


@dataclass(frozen=True)
class NoMetadata:
    """The metadata of a registry whose functions need none."""


class Registry(Generic[F, M]):
    """Functions by name, each with metadata. A second function of the same name is an error.

    Third parties add theirs with an entry point in the group ``expunge.<kind>``.

    Parameters
    ----------
    kind
        What the functions are, for messages and for the entry-point group: ``"detector"``.
    metadata
        A dataclass. The keywords of `register` are its fields.
    modules
        Modules that register the built-in functions. They are imported when the registry is first
        used, so that importing the registry stays cheap and the order of imports does not matter.

    Examples
    --------
    >>> shapes = Registry("shape", NoMetadata)
    >>> @shapes.register("line")
    ... def line(x, *, slope=1.0):
    ...     "A straight line."
    ...     return slope * x
    >>> shapes.names(), shapes.get("line")(2.0), list(shapes.options("line"))
    (['line'], 2.0, ['slope'])
    """

    def __init__(self, kind: str, metadata: type[M], modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.modules = modules
        self._metadata_type = metadata
        self._items: dict[str, F] = {}
        self._metadata: dict[str, M] = {}
        self._builtin_loaded = self._external_loaded = False

    def register(self, name: str, **metadata: Any) -> Callable[[F], F]:
        """Register the decorated function: ``@detectors.register("loss", kind="label")``.

        Raises
        ------
        ConfigError
            If the name is taken, or the metadata are not those of this registry.
        """
        try:
            described = self._metadata_type(**metadata)
        except TypeError as error:
            raise ConfigError(f"{self.kind} '{name}': {error}") from error

        def add(function: F) -> F:
            if getattr(function, "__module__", "") not in self.modules:
                self._load_builtin()
            if name in self._items:
                raise ConfigError(f"a {self.kind} named '{name}' is registered already")
            self._items[name] = function
            self._metadata[name] = described
            return function

        return add

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._load()
        return sorted(self._items)

    def get(self, name: str) -> F:
        """Return the function of that name.

        Raises
        ------
        ConfigError
            If there is none. The message names the closest match.
        """
        self._load()
        if name not in self._items:
            raise ConfigError(
                f"no {self.kind} is called '{name}'", fix=did_you_mean(name, self._items)
            )
        return self._items[name]

    def metadata(self, name: str) -> M:
        """Return the metadata with which the function of that name was registered."""
        self.get(name)
        return self._metadata[name]

    def summary(self, name: str) -> str:
        """Return the first line of the function's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of the function: they are its configuration."""
        parameters = inspect.signature(self.get(name)).parameters
        return {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    def check_options(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise ConfigError for an option that the function does not have."""
        known = self.options(name)
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"{self.kind} '{name}' has no option '{key}'", fix=did_you_mean(key, known)
                )

    def _load(self) -> None:
        self._load_builtin()
        self._load_external()

    def _load_builtin(self) -> None:
        if self._builtin_loaded:
            return
        self._builtin_loaded, done = True, False  # a module may use the registry at its import
        try:
            for module in self.modules:
                import_module(module)
            done = True
        finally:
            self._builtin_loaded = done

    def _load_external(self) -> None:
        if self._external_loaded:
            return
        for point in entry_points(group=f"expunge.{self.kind}"):
            function = point.load()
            # Loading may have run our decorator, which registered this very function.
            if self._items.get(point.name, function) is not function:
                package = point.dist.name if point.dist else "?"
                raise ConfigError(
                    f"package '{package}' brings a {self.kind} named '{point.name}', "
                    "which exists already"
                )
            if point.name not in self._items:
                self.register(point.name)(function)
        self._external_loaded = True
