"""The laws of registries."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from expunge._core import registry as registry_module
from expunge._core.registry import NoMetadata, Registry
from expunge.errors import (
    ConfigError,
)


@pytest.fixture
def shelf():
    made = Registry("toy", NoMetadata)

    @made.register("margin")
    def margin(x, *, k: int = 3, sign: float = 1.0):
        """Distance to the border.

        More words.
        """
        return x * k

    @made.register("loss")
    def loss(x):
        return x

    return made


def test_names_are_sorted_and_get_gives_the_function(shelf):
    assert shelf.names() == ["loss", "margin"]
    assert shelf.get("margin")(2) == 6


def test_a_second_function_of_the_same_name_is_refused(shelf):
    with pytest.raises(ConfigError, match="a toy named 'loss' is registered already"):
        shelf.register("loss")(lambda x: x)
    assert shelf.get("loss")(2) == 2


def test_an_unknown_name_is_an_error_with_the_closest_one(shelf):
    with pytest.raises(ConfigError, match=r"no toy is called 'margn'\n.*did you mean 'margin'"):
        shelf.get("margn")


def test_options_are_the_keyword_only_parameters(shelf):
    assert {k: p.default for k, p in shelf.options("margin").items()} == {"k": 3, "sign": 1.0}
    assert shelf.options("loss") == {}
    assert shelf.check_options("margin", {"k": 1}) is None
    with pytest.raises(ConfigError, match=r"toy 'margin' has no option 'sgn'\n.*'sign'"):
        shelf.check_options("margin", {"sgn": 1})
    with pytest.raises(ConfigError, match="no option 'x'"):
        shelf.check_options("margin", {"x": 1})


def test_a_summary_is_the_first_line_of_the_docstring(shelf):
    assert shelf.summary("margin") == "Distance to the border."
    assert shelf.summary("loss") == ""


def point(name, function, package="other"):
    return SimpleNamespace(name=name, dist=SimpleNamespace(name=package), load=lambda: function)


def serve(monkeypatch, *points):
    groups = []
    monkeypatch.setattr(
        registry_module, "entry_points", lambda group: groups.append(group) or list(points)
    )
    return groups


def test_entry_points_bring_functions_of_third_parties(shelf, monkeypatch):
    groups = serve(monkeypatch, point("theirs", len))
    assert shelf.names() == ["loss", "margin", "theirs"]
    assert shelf.get("theirs") is len
    assert groups == ["expunge.toy"]


def test_an_entry_point_never_replaces_a_function(shelf, monkeypatch):
    serve(monkeypatch, point("theirs", len), point("loss", len, "thief"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="package 'thief' brings a toy named 'loss'"):
            shelf.names()


def test_a_third_party_module_may_be_imported_before_its_entry_point(shelf, monkeypatch):
    shelf.register("theirs")(len)
    serve(monkeypatch, point("theirs", len))
    assert shelf.get("theirs") is len


# ------------------------------------------------------------------------------- built-in modules


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A registry whose built-in functions are in modules that nobody has imported."""
    (tmp_path / "toy_registry.py").write_text(
        "from expunge._core.registry import NoMetadata, Registry\n"
        "toys = Registry('toy', NoMetadata, modules=('toy_first', 'toy_second'))\n"
    )
    for name in ("first", "second"):
        (tmp_path / f"toy_{name}.py").write_text(
            "from toy_registry import toys\n"
            f"@toys.register('{name}')\n"
            f"def {name}(x): return '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("toy_registry", "toy_first", "toy_second"):
        sys.modules.pop(name, None)


def toys():
    return importlib.import_module("toy_registry").toys


def test_built_in_modules_are_imported_when_the_registry_is_first_used(package):
    registry = toys()
    assert "toy_first" not in sys.modules
    assert registry.names() == ["first", "second"]
    assert registry.get("first")(0) == "first"


def test_a_built_in_module_may_be_imported_before_its_registry(package):
    importlib.import_module("toy_second")
    assert toys().names() == ["first", "second"]


def test_the_name_of_a_built_in_function_is_taken_before_its_module_is_imported(package):
    with pytest.raises(ConfigError, match="a toy named 'first' is registered already"):
        toys().register("first")(lambda x: x)
    assert toys().get("first")(0) == "first"


def test_a_built_in_module_that_fails_is_an_error_every_time(package, tmp_path):
    (tmp_path / "toy_second.py").write_text("raise ImportError('no such package')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="no such package"):
            toys().names()


@pytest.mark.parametrize(
    ("module", "registry"),
    [
        ("expunge.detection.detectors", "detectors"),
        ("expunge.detection.partitioners", "partitioners"),
    ],
)
def test_all_built_in_functions_are_known_to_who_imports_the_registry_alone(module, registry):
    code = f"from {module} import {registry}; print(*{registry}.names())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = getattr(importlib.import_module(module), registry).names()
    assert fresh.stdout.split() == expected
