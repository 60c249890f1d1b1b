"""The laws of errors and their messages."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import (
    DataError,
    ExpungeError,
    did_you_mean,
    format_ids,
    group_by_reason,
    raise_all,
    type_with_article,
)


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


def test_the_article_of_a_type_follows_its_sound():
    values = [3, "a", np.zeros(2), {}]
    assert [type_with_article(v) for v in values] == ["an int", "a str", "an ndarray", "a dict"]


def test_what_is_wrong_is_grouped_by_reason():
    found = {3: "are torn", 5: "are wet", 4: "are torn"}
    assert group_by_reason("pages", found) == [
        "pages that are torn: ids 3, 4",
        "pages that are wet: ids 5",
    ]
    assert group_by_reason("pages", found, limit=1)[1:] == ["… 1 more kinds of problem"]
    assert group_by_reason("pages", {}) == []
