"""Named plug-ins: a detector, partitioner, ranker, pruner or recipe is one decorated function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
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
    """

    def __init__(self, kind: str, metadata: type[M]) -> None:
        self.kind = kind
        self._metadata_type = metadata
        self._items: dict[str, F] = {}
        self._metadata: dict[str, M] = {}
        self._external_loaded = False

    def register(self, name: str, **metadata: Any) -> Callable[[F], F]:
        """Decorator: ``@detectors.register("loss", kind="label")``.

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
            if name in self._items:
                raise ConfigError(f"a {self.kind} named '{name}' is registered already")
            self._items[name] = function
            self._metadata[name] = described
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

    def metadata(self, name: str) -> M:
        """The metadata with which the function of that name was registered."""
        self.get(name)
        return self._metadata[name]

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
