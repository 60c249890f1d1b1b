"""Noise in speech has the requested rate and size, and does not depend on other clips."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import ConfigError
from expunge_bench.audio_noise import N_BABBLE_CLIPS, audio_faults, confusable_labels, feature_noise
from oracles_audio import noise

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_")
KINDS = ["white", "clipping", "silence", "truncation", "babble"]


def clips(n: int = 20, samples: int = 4000) -> np.ndarray:
    return np.stack([noise(samples, seed=i, level=0.05) for i in range(n)])


def added(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Decibels of each clip above what was added to it."""
    gap = y.astype(np.float64) - x
    return 10 * np.log10(np.square(x, dtype=float).mean(1) / np.square(gap).mean(1))


def test_confusable_labels_have_the_exact_rate_and_are_those_of_the_partner():
    labels = np.random.default_rng(0).integers(0, len(WORDS), 1000)
    noisy = confusable_labels(labels, rate=0.3, classes=WORDS, seed=1)
    wrong = noisy != labels
    assert wrong.sum() == 300
    found = {(WORDS[a], WORDS[b]) for a, b in zip(labels[wrong], noisy[wrong], strict=True)}
    pairs = [("go", "no"), ("off", "up"), ("on", "down"), ("left", "yes")]
    assert found == {p for a, b in pairs for p in ((a, b), (b, a))}
    assert np.array_equal(noisy, confusable_labels(labels, rate=0.3, classes=WORDS, seed=1))
    assert not np.array_equal(noisy, confusable_labels(labels, rate=0.3, classes=WORDS, seed=2))


def test_words_without_a_confusable_word_keep_their_labels():
    labels = np.arange(9) % 3
    noisy = confusable_labels(labels, rate=0.3, classes=("go", "no", "up"), seed=0)
    assert (noisy != labels).sum() == 3
    assert (noisy[labels == 2] == 2).all()
    with pytest.raises(ConfigError, match=r"cannot make 8 of 9 labels wrong: only 6 have"):
        confusable_labels(labels, rate=0.89, classes=("go", "no", "up"), seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.95])
def test_exactly_the_requested_fraction_of_clips_is_corrupted(kind, rate):
    x = clips()
    before = x.copy()
    y, fault = audio_faults(x, kinds=[kind], rate=rate, seed=0)
    assert np.array_equal(x, before)
    assert y.dtype == np.int16
    assert fault.sum() == round(20 * rate)
    assert np.array_equal((y != x).any(axis=1), fault)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_the_same_fault_at_any_rate(kind):
    x = clips()
    few, fault = audio_faults(x, kinds=[kind], rate=0.2, seed=3)
    many, _ = audio_faults(x, kinds=[kind], rate=0.8, seed=3)
    assert np.array_equal(few[fault], many[fault])
    other, there = audio_faults(x, kinds=[kind], rate=0.2, seed=4)
    assert not (np.array_equal(there, fault) and np.array_equal(other, few))


@pytest.mark.parametrize("kind", ["white", "babble"])
@pytest.mark.parametrize("snr", [-6.0, 0.0, 10.0])
def test_noise_has_the_stated_ratio(kind, snr):
    x = clips(samples=16_000)
    y, fault = audio_faults(x, kinds=[kind], rate=0.5, snr=snr, seed=0)
    np.testing.assert_allclose(added(x[fault], y[fault]), snr, atol=0.25)


def test_noise_in_quiet_clips_has_the_ratio_to_the_median_power():
    x = clips(21)
    x[::5] //= 300
    y, fault = audio_faults(x, kinds=["white"], rate=0.9, snr=0.0, seed=0)
    quiet = fault & (np.arange(21) % 5 == 0)
    usual = np.median(np.square(x, dtype=float).mean(axis=1))
    got = np.square(y[quiet].astype(float) - x[quiet]).mean(axis=1)
    np.testing.assert_allclose(got, usual, rtol=0.1)


def test_babble_is_a_sum_of_other_clips():
    x = clips(6)
    y, fault = audio_faults(x, kinds=["babble"], rate=0.5, seed=0)
    for row in np.flatnonzero(fault):
        gap = y[row].astype(float) - x[row]
        likeness = np.array([np.corrcoef(gap, clip)[0, 1] for clip in x])
        assert abs(likeness[row]) < 0.2
        assert (likeness > 0.3).sum() == N_BABBLE_CLIPS


def test_clipped_clips_are_flat_at_their_ceiling_and_keep_their_peak():
    x = clips()
    y, fault = audio_faults(x, kinds=["clipping"], rate=0.5, seed=0)
    peak = np.abs(x.astype(int)).max(axis=1)
    assert (abs(np.abs(y[fault].astype(int)).max(axis=1) - peak[fault]) <= 1).all()
    flat = np.abs(y[fault].astype(int)) == np.abs(y[fault].astype(int)).max(axis=1, keepdims=True)
    assert flat.mean() > 0.5


def test_silent_clips_contain_rounding_noise_only():
    y, fault = audio_faults(clips(), kinds=["silence"], rate=0.5, seed=0)
    assert np.abs(y[fault]).max() == 1
    assert (y[fault].max(axis=1) > y[fault].min(axis=1)).all()


def test_truncated_clips_keep_their_beginning():
    x = clips(60)
    y, fault = audio_faults(x, kinds=["truncation"], rate=0.9, seed=0)
    same = [(a == b).argmin() / 4000 for a, b in zip(x[fault], y[fault], strict=True)]
    assert min(same) >= 0.2
    assert max(same) < 0.46
    assert np.ptp(same) > 0.15


def test_kinds_alternate_and_unknown_ones_are_refused():
    x = clips(40)
    y, fault = audio_faults(x, kinds=["silence", "white"], rate=0.5, seed=0)
    silent = np.abs(y).max(axis=1) <= 1
    assert silent.sum() == 10
    assert fault.sum() == 20
    with pytest.raises(ConfigError, match="expected kinds among white, clipping"):
        audio_faults(x, kinds=["hiss"], rate=0.5, seed=0)  # type: ignore[list-item]


def test_feature_noise_is_gaussian_and_not_clipped():
    x = np.random.default_rng(0).normal(size=(40, 1, 20, 30)).astype(np.float32)
    y, fault = feature_noise(x, seed=0)
    assert fault.sum() == 20
    assert np.array_equal(y[~fault], x[~fault])
    gap = y[fault] - x[fault]
    assert abs(gap.std() - 15) < 0.3
    assert abs(gap.mean()) < 0.5
    assert y.dtype == np.float32
