"""The laws of records."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import (
    DataError,
    ExpungeError,
    PruneError,
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


def test_parts_that_no_detector_needs_are_empty():
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
        ({"fraction": 10}, r"fraction must lie in \[0, 1\], not 10"),
        ({"fraction": float("nan")}, r"fraction must lie in \[0, 1\]"),
        ({"count": -1}, "count must be 0 or more, not -1"),
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


def test_a_plan_that_grants_nothing_of_what_was_requested_raises():
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


@pytest.mark.parametrize(
    ("memorised", "wrong", "expected"),
    [(True, 2, True), (True, 1, False), (False, 50, False), (True, 0, False)],
)
def test_wrong_labels_are_memorised_if_there_are_enough_of_them(memorised, wrong, expected):
    p, y = np.where(np.arange(100) < wrong, 0.9, 0.1), np.zeros(100, dtype=int)
    made = Partition(
        np.arange(100), y, p, p, 0 * p, y, 1 - p, 0.5, (0.1, 0.0, 0.2), memorised=memorised
    )
    assert made.memorised_wrong_labels == expected
