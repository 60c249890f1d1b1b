"""Named plug-ins: a detector, partitioner, ranker, pruner or recipe is one decorated function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from expunge.errors import ConfigError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions by name. A second function of the same name is an error.

    Third parties add theirs with an entry point in the group ``expunge.<kind>``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, F] = {}
        self._external_loaded = False

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator: ``@detectors.register("loss")``."""

        def add(function: F) -> F:
            if name in self._items:
                raise ConfigError(f"a {self.kind} named '{name}' is registered already")
            self._items[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load_external()
        return sorted(self._items)

    def get(self, name: str) -> F:
        """The function of that name; an unknown name is an error with the closest match."""
        self._load_external()
        if name not in self._items:
            raise ConfigError(
                f"no {self.kind} is called '{name}'", fix=did_you_mean(name, self._items)
            )
        return self._items[name]

    def summary(self, name: str) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """Keyword-only parameters of the function: they are its configuration."""
        parameters = inspect.signature(self.get(name)).parameters
        return {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    def check_options(self, name: str, given: dict[str, Any]) -> None:
        """Refuse options that the function does not have."""
        known = self.options(name)
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"{self.kind} '{name}' has no option '{key}'", fix=did_you_mean(key, known)
                )

    def _load_external(self) -> None:
        if self._external_loaded:
            return
        found: dict[str, F] = {}
        for point in entry_points(group=f"expunge.{self.kind}"):
            function = point.load()
            # Loading may have run our decorator, which brought in this very function.
            if {**self._items, **found}.get(point.name, function) is not function:
                package = point.dist.name if point.dist else "?"
                raise ConfigError(
                    f"package '{package}' brings a {self.kind} named '{point.name}', "
                    "which exists already"
                )
            found[point.name] = function
        self._items |= found
        self._external_loaded = True
