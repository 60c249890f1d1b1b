"""Small parts of the campaigns in `campaigns`; ``make campaign`` runs all of them."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaigns import actions
from campaigns.readers import READERS, Prepared

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, name):
    prepared = Prepared(name, tmp_path_factory.mktemp("reader"))

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**31))
    def check(seed: int) -> None:
        assert prepared.try_mutated(seed) in ("read", "refused")

    check()


@pytest.mark.parametrize("seed", [1092, 2499])
def test_a_row_group_with_fewer_rows_than_the_file_says_is_refused(tmp_path, seed):
    assert Prepared("hub", tmp_path / "hub").try_mutated(seed) == "refused"


@pytest.mark.parametrize(("name", "seed"), [("parquet", 12143), ("hub", 10195)])
def test_a_column_with_fewer_rows_than_the_file_says_is_refused(tmp_path, name, seed):
    assert Prepared(name, tmp_path / "file").try_mutated(seed) == "refused"


def test_a_file_on_which_pyarrow_aborts_ends_no_process(tmp_path):
    prepared = Prepared("hub", tmp_path / "hub")
    assert actions.in_child(lambda: prepared.try_mutated(11065)) == "refused"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of an undisturbed action, by its name."""
    made = {}

    def make(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("campaign") / "reference"
            actions.seconds_of(name, made[name])
        return made[name]

    return make


@pytest.mark.parametrize(
    ("name", "access"),
    [("repair", 30), ("repair", 95), ("export", 5), ("apply head", 3)]
    + [("save head", access) for access in range(1, 5)],
)
def test_an_action_that_is_killed_can_be_run_again(tmp_path, reference, name, access):
    assert actions.check_kill(name, tmp_path / "tried", reference(name), access=access) == ""


@pytest.mark.parametrize("size", [4096, 40_000])
@pytest.mark.parametrize("name", ["repair", "export", "save head"])
def test_a_full_disk_is_our_error_and_loses_nothing(tmp_path, reference, name, size):
    assert actions.check_small_disk(name, tmp_path / "tried", reference(name), size) == ""


@pytest.mark.parametrize("name", ["repair", "export", "save head"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, reference, name):
    for seed in range(4):
        assert actions.check_flip(name, tmp_path / "tried", reference(name), seed) == ""
