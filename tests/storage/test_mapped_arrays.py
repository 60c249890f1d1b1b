"""Large arrays in files, and scores from features that are kept in them."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from expunge import stages
from expunge.config import ScoreConfig
from expunge.data import from_arrays
from expunge.detection import signals
from expunge.errors import RunError
from expunge.storage import mapped_arrays
from expunge.storage.mapped_arrays import new_array
from oracles_digits import network, noisy


@pytest.fixture
def few_bytes(monkeypatch):
    monkeypatch.setattr(mapped_arrays, "MIN_MAPPED_BYTES", 1000)


def test_large_arrays_are_in_a_file_that_leaves_nothing_behind(few_bytes, tmp_path):
    assert not isinstance(new_array((9, 9), np.float32, tmp_path), np.memmap)
    assert not isinstance(new_array((99, 9), np.float32, None), np.memmap)
    large = new_array((99, 9), np.float32, tmp_path)
    assert isinstance(large, np.memmap)
    large[98] = 7
    assert large.sum() == 63
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_our_error(few_bytes, tmp_path, monkeypatch, reserves):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(RunError, match="No space left on device\n  fix: free some space"):
        new_array((99, 9), np.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize("is_sorted", [True, False])
def test_scores_from_mapped_features_are_equal_to_the_last_bit(
    few_bytes, tmp_path, monkeypatch, is_sorted
):
    digits = noisy(150, view="crop")
    ids = np.arange(150) if is_sorted else np.random.default_rng(0).permutation(150)
    samples = from_arrays(digits.batch(np.arange(150)).numpy(), digits.labels, ids=ids)
    config = ScoreConfig(views=1)
    kept, mapped = signals.new_array, []

    def watched(*arguments):
        mapped.append(isinstance(found := kept(*arguments), np.memmap))
        return found

    monkeypatch.setattr(signals, "new_array", watched)
    plain = stages.score(network(), samples, config)
    assert not any(mapped)
    from_file = stages.score(network(), samples, config, scratch=tmp_path)
    assert any(mapped)
    for name, values in plain.values.items():
        np.testing.assert_array_equal(from_file.values[name], values)
    np.testing.assert_array_equal(from_file.class_probs, plain.class_probs)
