"""The laws of errors, randomness, registries, settings and records."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge._core import registry as registry_module
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import derive, generator, temp_seed, torch_generator
from expunge.config import build, canonical, digest
from expunge.errors import (
    ConfigError,
    DataError,
    ExpungeError,
    PruneError,
    did_you_mean,
    format_ids,
    group_by_reason,
    raise_all,
)
from expunge.records import (
    Budget,
    Evaluation,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    Scores,
    Signals,
    align,
    frozen_array,
)

# ------------------------------------------------------------------------------- errors


def test_a_message_says_where_what_and_how_to_fix_it():
    error = ExpungeError("3 is too many", where="a.toml", fix="write 2")
    assert str(error) == "a.toml: 3 is too many\n  fix: write 2"
    assert (error.what, error.where, error.fix) == ("3 is too many", "a.toml", "write 2")
    assert str(ExpungeError("plain")) == "plain"


@pytest.mark.parametrize("n", [0, 1, 3])
def test_all_problems_come_in_one_error(n):
    problems = [f"problem {'abc'[i]}" for i in range(n)]
    if n == 0:
        assert raise_all(DataError, problems, where="here") is None
        return
    with pytest.raises(DataError) as caught:
        raise_all(DataError, problems, where="here")
    expected = (
        "problem a" if n == 1 else "3 problems\n  1. problem a\n  2. problem b\n  3. problem c"
    )
    assert str(caught.value) == f"here: {expected}"


def test_a_mistyped_name_gets_the_closest_match_or_the_whole_list():
    assert did_you_mean("margn", ["loss", "margin"]) == "did you mean 'margin'?"
    assert did_you_mean("zzz", ["loss", "el2n"]) == "choose one of: el2n, loss"
    assert did_you_mean("zzz", []) == "there are none"


def test_a_message_shows_the_first_few_values_and_their_number():
    assert format_ids([1, 2]) == "1, 2"
    assert format_ids(range(5)) == "0, 1, 2, 3, 4"
    assert format_ids(range(9), limit=2) == "0, 1 … (9 in all)"


def test_what_is_wrong_is_grouped_by_reason():
    found = {3: "are torn", 5: "are wet", 4: "are torn"}
    assert group_by_reason("pages", found) == [
        "pages that are torn: ids 3, 4",
        "pages that are wet: ids 5",
    ]
    assert group_by_reason("pages", found, limit=1)[1:] == ["… 1 more kinds of problem"]
    assert group_by_reason("pages", {}) == []


# ------------------------------------------------------------------------------- rng


def test_a_derived_seed_never_changes():
    # Run folders depend on it: another value here makes every old run unrepeatable.
    assert derive(0) == 3456079177858693020
    assert derive(7, "views", 64) == 1016091603229044635


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**70), 2**70), st.lists(st.text(max_size=5) | st.integers(), max_size=3))
def test_a_derived_seed_has_63_bits(seed, names):
    assert 0 <= derive(seed, *names) < 2**63


def test_seeds_differ_by_every_name_and_by_where_names_part():
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",), ("a", 1), ("a", 11), ("a", 1, 1)]
    seeds = {derive(s, *n) for s in (0, 1) for n in names}
    assert len(seeds) == 2 * len(names)


def test_generators_of_different_names_are_independent():
    a, b = generator(0, "a").standard_normal(4000), generator(0, "b").standard_normal(4000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert np.array_equal(a, generator(0, "a").standard_normal(4000))
    drawn = torch.randn(3, generator=torch_generator(0, "a"))
    assert torch.equal(drawn, torch.randn(3, generator=torch_generator(0, "a")))
    assert not torch.equal(drawn, torch.randn(3, generator=torch_generator(0, "b")))


def test_a_new_consumer_does_not_change_the_numbers_of_others():
    alone = generator(3, "b").random(5)
    generator(3, "a").random(1000)
    assert np.array_equal(alone, generator(3, "b").random(5))


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_gives_the_same_draws_and_restores_the_state(fails):
    before = torch.get_rng_state()
    with temp_seed(0, "dropout"):
        first = torch.rand(3)
    try:
        with temp_seed(0, "dropout"):
            second = torch.rand(3)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------- registry


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
    asked = []
    monkeypatch.setattr(
        registry_module, "entry_points", lambda group: asked.append(group) or list(points)
    )
    return asked


def test_entry_points_bring_functions_of_third_parties(shelf, monkeypatch):
    asked = serve(monkeypatch, point("theirs", len))
    assert shelf.names() == ["loss", "margin", "theirs"]
    assert shelf.get("theirs") is len
    assert asked == ["expunge.toy"]


def test_an_entry_point_cannot_replace_a_function_however_often_it_is_asked(shelf, monkeypatch):
    serve(monkeypatch, point("theirs", len), point("loss", len, "thief"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="package 'thief' brings a toy named 'loss'"):
            shelf.names()


def test_a_third_party_module_may_be_imported_before_its_entry_point(shelf, monkeypatch):
    shelf.register("theirs")(len)
    serve(monkeypatch, point("theirs", len))
    assert shelf.get("theirs") is len


# ------------------------------------------------------------------------------- config


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


# ------------------------------------------------------------------------------- records


def signals(n=4, **changes):
    fields = {
        "ids": np.arange(n),
        "labels": np.arange(n) % 2,
        "logits": np.eye(n, 2),
        "per_sample": {"mass": np.ones(n)},
        "features": {"conv": np.ones((n, 3))},
        "augmented_probs": np.full((n, 2), 0.5),
        "augmented_loss": np.ones(n),
        "attributions": np.ones((n, 5)),
    }
    return Signals(**{**fields, **changes})


def scores(n=4, **changes):
    fields = {
        "ids": np.arange(n),
        "labels": np.arange(n) % 2,
        "values": {"loss": np.arange(n)},
        "kinds": {"loss": "label"},
        "class_probs": np.full((n, 2), 0.5),
    }
    return Scores(**{**fields, **changes})


def partition(n=4, **changes):
    fields = {
        "ids": np.arange(n),
        "labels": np.arange(n) % 2,
        "p_noisy": np.linspace(0, 1, n),
        "p_label_fault": np.linspace(0, 1, n),
        "p_input_fault": np.zeros(n),
        "suggested_label": np.zeros(n),
        "suggested_probability": np.ones(n),
        "threshold": 0.5,
        "noise_rate": (0.5, 0.4, 0.6),
        "evidence": {"label_evidence": np.arange(n)},
    }
    return Partition(**{**fields, **changes})


def arrays_of(record):
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        parts = value if isinstance(value, dict) else {name: value}
        yield from ((f"{name}.{k}", v) for k, v in parts.items() if isinstance(v, np.ndarray))


@pytest.mark.parametrize("make", [signals, scores, partition])
def test_arrays_in_records_are_read_only(make):
    found = dict(arrays_of(make()))
    assert len(found) >= 4
    assert [name for name, array in found.items() if array.flags.writeable] == []
    with pytest.raises(FrozenInstanceError):
        make().ids = np.arange(4)


def test_arrays_in_records_are_copies():
    logits, feature, evidence = np.zeros((4, 2), np.float32), np.zeros((4, 3)), np.zeros(4)
    record = signals(logits=logits, features={"conv": feature})
    split = partition(evidence={"label_evidence": evidence})
    logits[:], feature[:], evidence[:] = 1, 1, 1
    assert not record.logits.any()
    assert not record.features["conv"].any()
    assert not split.evidence["label_evidence"].any()


def test_a_frozen_array_is_a_read_only_copy():
    source = np.zeros(3)
    copy = frozen_array(source, np.float32)
    source[0] = 1
    assert copy.dtype == np.float32
    assert not copy.any()
    with pytest.raises(ValueError, match="read-only"):
        copy[0] = 1


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (signals, {"labels": np.zeros(3)}, r"Signals.labels has 3 rows, expected 4"),
        (signals, {"ids": [1, 1, 2, 3]}, r"Signals.ids are not unique"),
        (signals, {"per_sample": {"mass": np.ones(3)}}, r"'mass' has 3 rows, expected 4"),
        (signals, {"features": {"conv": np.ones((3, 1))}}, r"'conv' has 3 rows, expected 4"),
        (signals, {"augmented_loss": np.ones(3)}, r"Signals.augmented_loss has 3 rows, expected 4"),
        (signals, {"logits": [[0, 1], [np.nan, 0], [0, np.inf], [0, 0]]}, r"output .* ids 1, 2"),
        (signals, {"per_sample": {"mass": [0, 0, 0, np.nan]}}, r"'mass' is NaN .* ids 3"),
        (
            signals,
            {"augmented_loss": [0, np.inf, 0, 0]},
            r"augmented_loss.* is NaN or infinite for ids 1",
        ),
        (scores, {"values": {}}, r"one detector or more"),
        (scores, {"values": {"loss": np.ones((4, 1))}}, r"'loss' has shape \(4, 1\), .* \(4,\)"),
        (scores, {"values": {"loss": [0, np.nan, 0, 0]}}, r"score 'loss' is NaN .* ids 1"),
        (scores, {"kinds": {"loss": "lable"}}, r"score 'loss' needs a kind: one of"),
        (scores, {"kinds": {}}, r"score 'loss' needs a kind"),
        (scores, {"class_probs": np.ones((2, 2))}, r"Scores.class_probs has 2 rows, expected 4"),
        (scores, {"class_probs": [[1, 0], [np.nan, 0], [1, 0], [1, 0]]}, r"class_probs.* ids 1"),
        (partition, {"p_noisy": [0, 0, 0, 1.01]}, r"Partition.p_noisy must lie in \[0, 1\]"),
        (partition, {"p_input_fault": [0, 0, 0, np.nan]}, r"p_input_fault must lie in \[0, 1\]"),
        (partition, {"suggested_label": [0]}, r"suggested_label has 1 rows, expected 4"),
    ],
)
def test_a_record_is_checked_when_it_is_made(make, changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_parts_that_no_detector_asked_for_are_empty():
    record = Signals(np.arange(2), np.zeros(2), np.zeros((2, 2)))
    assert (record.augmented_probs, record.augmented_loss, record.attributions) == (
        None,
        None,
        None,
    )
    assert record.per_sample == {}
    assert record.features == {}


@settings(max_examples=50, deadline=None)
@given(st.permutations(list(range(6))), st.booleans(), st.integers(0, 6))
def test_align_finds_each_row_whatever_the_order(order, text, few):
    ids = np.array(order) * 3
    ids = ids.astype(str) if text else ids
    wanted = np.sort(ids)[:few]
    assert np.array_equal(ids[align(ids, wanted)], wanted)


def test_align_names_the_ids_that_are_missing():
    with pytest.raises(DataError, match="there are no rows for ids 3, 9"):
        align(np.array([4, 2]), np.array([2, 3, 4, 9]))
    with pytest.raises(DataError, match="there are no rows for ids 2"):
        align(np.array([4, 2]), np.array(["2"]))


def test_flagged_is_above_the_threshold_and_kept_is_the_rest():
    split = partition(5, p_noisy=[0, 0.5, 0.51, 1, 0.2])
    assert split.flagged.tolist() == [False, False, True, True, False]
    assert (split.kept == ~split.flagged).all()
    assert not partition(threshold=1.0).flagged.any()


def test_tables_have_one_row_a_sample_and_all_evidence():
    table = partition().to_table()
    assert table.num_rows == 4
    assert table.column_names[:3] == ["id", "label", "p_noisy"]
    assert "label_evidence" in table.column_names
    assert scores().to_table().to_pydict() == {
        "id": [0, 1, 2, 3],
        "label": [0, 1, 0, 1],
        "trusted": [False] * 4,
        "loss": [0.0, 1.0, 2.0, 3.0],
    }


def ranking(effect, layer=None, unit=None, **changes):
    n = len(effect)
    fields = {
        "layer": layer if layer is not None else np.full(n, "a"),
        "unit": unit if unit is not None else np.arange(n),
        "effect": effect,
        "stderr": np.arange(n, dtype=float),
        "q_value": np.full(n, np.nan),
        "groups": {"a": "a"},
    }
    return NeuronRanking(**{**fields, **changes})


def test_units_are_sorted_by_effect_then_layer_then_unit():
    made = ranking(
        np.array([1.0, 2.0, 1.0, 1.0, -3.0]), np.array(["b", "b", "a", "b", "a"]), [2, 0, 5, 1, 0]
    )
    assert list(zip(made.effect, made.layer, made.unit, strict=True)) == [
        (2.0, "b", 0),
        (1.0, "a", 5),
        (1.0, "b", 1),
        (1.0, "b", 2),
        (-3.0, "a", 0),
    ]
    assert made.stderr.tolist() == [1.0, 2.0, 3.0, 0.0, 4.0]
    assert made.units_by_layer() == {"a": 2, "b": 3}
    assert made.to_table().num_rows == 5
    assert not made.effect.flags.writeable


def test_a_ranking_of_no_unit_and_of_one_unit_is_fine():
    assert ranking(np.array([])).units_by_layer() == {}
    assert ranking(np.array([1.0])).unit.tolist() == [0]


def test_an_effect_that_is_not_finite_is_refused():
    with pytest.raises(PruneError, match="effect is NaN or infinite"):
        ranking(np.array([1.0, np.nan]))


@pytest.mark.parametrize("n", [1, 3])
def test_columns_of_a_ranking_have_the_same_length(n):
    with pytest.raises(DataError, match=f"NeuronRanking.stderr has {n} rows, expected 2"):
        ranking(np.array([1.0, 2.0]), stderr=np.ones(n))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "either a fraction or a count"),
        ({"fraction": 0.1, "count": 3}, "give exactly one"),
        ({"fraction": 10}, r"fraction must lie in \[0, 1\], not 10\n.*0.1 means ten percent"),
        ({"fraction": float("nan")}, r"fraction must lie in \[0, 1\]"),
        ({"count": -1}, "count must not be negative: -1"),
        (
            {"count": 1, "max_layer_fraction": 1.0},
            r"max_layer_fraction must lie in \[0, 1\), not 1.0",
        ),
        ({"count": 1, "scope": "model"}, "scope must be 'layer' or 'global', not 'model'"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(settings_, message):
    with pytest.raises(PruneError, match=message):
        Budget(**settings_)


@pytest.mark.parametrize("settings_", [{"fraction": 0.0}, {"fraction": 1.0}, {"count": 0}])
def test_a_budget_may_ask_for_nothing_or_for_everything(settings_):
    assert Budget(**settings_).scope == "layer"


def test_a_plan_that_grants_nothing_of_what_was_asked_raises():
    with pytest.raises(PruneError, match="2 units were to be cut and none can be: too small"):
        PrunePlan({"a": ()}, requested=2, reasons=("too small",))
    assert PrunePlan({"a": ()}, requested=0).granted == 0
    assert PrunePlan({"a": (1, 2), "b": (0,)}, requested=9).granted == 3


def test_an_interval_contains_its_value():
    assert str(Metric(0.5, 0.25, 1.0, 9)) == "0.500 [0.250, 1.000]"
    assert Metric(0.5, 0.5, 0.5, 1).n == 1
    for low, high in [(0.6, 0.7), (0.1, 0.4), (0.7, 0.3), (float("nan"), 1.0)]:
        with pytest.raises(ExpungeError, match=r"interval \[.*\] misses value 0.5"):
            Metric(0.5, low, high, 9)


def test_an_evaluation_has_one_outcome_a_sample():
    metrics = {"accuracy": Metric(0.5, 0.0, 1.0, 2)}
    made = Evaluation(np.arange(2), np.array([True, False]), metrics, {})
    assert made.accuracy.value == 0.5
    with pytest.raises(DataError, match=r"Evaluation\.correct has 3 rows, expected 2"):
        Evaluation(np.arange(2), np.ones(3), metrics, {})
