"""The laws of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from expunge.config import build
from expunge.errors import (
    ConfigError,
)
from expunge.storage.hashing import canonical, digest


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self):
        if self.rate < 0:
            raise ConfigError(f"rate is {self.rate}")


@dataclass(frozen=True)
class Outer:
    name: str
    epochs: int = 1
    augment: bool = True
    count: int | None = None
    layers: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    either: Inner | str = "x"


def test_settings_are_built_with_nested_tables_and_whole_numbers_as_floats():
    made = build(Outer, {"name": "a", "layers": ["b"], "inner": {"rate": 1}}, where="f")
    assert made == Outer("a", layers=("b",), inner=Inner(1.0))
    assert isinstance(made.inner.rate, float)
    assert build(Outer, {"name": "a", "either": {"mode": "slow"}}, where="f").either.mode == "slow"
    assert build(Outer, {"name": "a", "count": None}, where="f").count is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"unknown key 'epoch': did you mean 'epochs'\?"),
        ({"inner": {"rat": 3}}, r"unknown key 'inner.rat': did you mean 'rate'\?"),
        ({"epochs": "3"}, r"'epochs' must be int, not '3' \(str\)"),
        ({"epochs": 3.0}, r"'epochs' must be int, not 3.0 \(float\)"),
        ({"epochs": True}, r"'epochs' must be int, not True \(bool\)"),
        ({"count": True}, r"'count' must be int, not True \(bool\)"),
        ({"augment": 1}, r"'augment' must be bool, not 1 \(int\)"),
        ({"augment": "False"}, r"'augment' must be bool, not 'False' \(str\)"),
        ({"inner": {"rate": True}}, r"'inner.rate' must be float, not True \(bool\)"),
        ({"inner": {"mode": "fats"}}, r"'inner.mode' is 'fats' \(str\): did you mean 'fast'\?"),
        ({"inner": {"mode": ["fast"]}}, r"'inner.mode' is \['fast'\] \(list\)"),
        ({"inner": 3}, r"'inner' must be a table, not 3 \(int\)"),
        ({"inner": {"rate": -1.0}}, r"inner: rate is -1.0"),
        ({"layers": "abc"}, r"'layers' must be a list, not 'abc' \(str\)"),
        ({"layers": ["a", 1]}, r"'layers\[1\]' must be str, not 1 \(int\)"),
        ({"options": {"k": "v"}}, r"'options.k' must be int, not 'v' \(str\)"),
        ({"options": 1}, r"'options' must be a table, not 1 \(int\)"),
        ({"either": {"rat": 1}}, r"unknown key 'either.rat': did you mean 'rate'\?"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(values, message):
    with pytest.raises(ConfigError, match="^a.toml: " + message):
        build(Outer, {"name": "a", **values}, where="a.toml")


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        build(Outer, {"epoch": 1, "augment": 2, "inner": {"rate": "x", "mod": 1}}, where="a.toml")
    text = str(caught.value)
    assert text.startswith("a.toml: 5 problems\n  1. ")
    for part in ("'epoch'", "'augment'", "'inner.rate'", "'inner.mod'", "'name' is missing"):
        assert part in text


def test_building_leaves_the_given_tables_alone():
    values = {"name": "a", "options": {"k": 1}, "layers": ["a"]}
    made = build(Outer, values, where="f")
    made.options["more"] = 2
    assert values == {"name": "a", "options": {"k": 1}, "layers": ["a"]}


def test_canonical_text_does_not_depend_on_the_order_of_keys():
    assert (
        canonical({"b": 1, "a": (1, 2)}) == canonical({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    )
    assert canonical(Inner()) == '{"mode":"fast","rate":0.5}'


def test_a_digest_is_stable_and_tells_settings_apart():
    # SHA-256 of the text {"mode":"fast","rate":0.5}.
    assert digest(Inner()) == "73740a5ffb575f5671fe695c2c2e03c0ee9faa21f9bc3e4879f07a8cfb1023b3"
    assert digest(Inner()) != digest(Inner(0.25))
    assert digest({"x": 1}) != digest({"x": 1.5})
