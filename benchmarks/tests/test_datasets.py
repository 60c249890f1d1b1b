"""Settings of a benchmark."""

from __future__ import annotations

import pytest

from expunge.errors import ConfigError, DataError
from expunge_bench.datasets import Setting, check_sample_count


@pytest.mark.parametrize(("old", "new"), [("fresh", "regularised"), ("memorised", "overfit")])
def test_a_renamed_state_is_an_error_that_names_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"got '{old}'\n.*write '{new}'"):
        Setting("none", state=old)


def test_an_unknown_state_is_refused_with_the_closest_match():
    with pytest.raises(ConfigError, match="did you mean 'overfit'"):
        Setting("none", state="overfitted")


def test_the_columns_of_a_setting_are_its_fields():
    setting = Setting("pair", 0.4, "overfit", seed=3, n=100)
    keys = {"n": 100, "noise": "pair", "rate": 0.4, "state": "overfit", "seed": 3}
    assert setting.row_keys() == keys
    assert setting.name == "pair-0.4-overfit-100-3"


def test_sample_counts_up_to_the_size_of_the_data_set_are_possible():
    check_sample_count(5, 5)
    with pytest.raises(DataError, match="here: n = 6 samples requested, the data set has 5"):
        check_sample_count(6, 5, where="here")
