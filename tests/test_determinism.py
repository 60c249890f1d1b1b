"""What the documentation promises: equal bits with equal threads, equal to rounding otherwise."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import expunge
from expunge.records import Partition, Scores
from oracles_digits import FAST, memorised, noisy

pytestmark = pytest.mark.usefixtures("few_trees")


def score(threads: int) -> Scores:
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            return expunge.score(memorised(), noisy(200), **FAST["score"])
    finally:
        torch.set_num_threads(1)


def partition(scores: Scores, threads: int) -> Partition:
    with threadpool_limits(threads):
        return expunge.partition(scores)


def test_scores_have_equal_bits_with_equal_threads_and_are_equal_to_rounding_otherwise():
    first, again, other = score(1), score(1), score(2)
    for name in first.values:
        assert_array_equal(first.values[name], again.values[name])
        assert_allclose(first.values[name], other.values[name], rtol=1e-4, atol=1e-4)
    assert_array_equal(first.class_probs, again.class_probs)


def test_the_partition_of_the_same_scores_does_not_depend_on_threads():
    scores = score(1)
    one, two = partition(scores, 1), partition(scores, 2)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray) and a.dtype.kind != "f":
            assert_array_equal(a, b, err_msg=field.name)
    assert_array_equal(one.flagged, two.flagged)
    assert_allclose(one.p_noisy, two.p_noisy, atol=1e-6)
