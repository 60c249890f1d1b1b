"""Noise of CIFAR-10 and its ground truth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from expunge.errors import ConfigError, DataError
from expunge_bench import cifar
from expunge_bench.datasets import Setting, grid
from expunge_bench.digits import Digits

N = 120  # training images in the fixture


@pytest.mark.parametrize("noise", [n for n in cifar.NOISES if n not in ("idn_20", "labels")])
def test_the_ground_truth_matches_the_noise(data, noise):
    if noise == "human_aggregate":
        with pytest.raises(DataError, match="human_aggregate"):
            data.noisy_dataset(Setting(noise, n=100))
        return
    rate = (cifar.NOISES[noise] or (0.0,))[0]
    dataset = data.noisy_dataset(Setting(noise, rate, n=100))
    clean = data.noisy_dataset(Setting("none", n=100))
    assert_array_equal(dataset.truth.labels, clean.train.labels)
    assert_array_equal(dataset.truth.label_fault, dataset.train.labels != clean.train.labels)
    rows = np.arange(100)
    changed = (dataset.train.inputs.batch(rows) != clean.train.inputs.batch(rows)).flatten(1).any(1)
    assert_array_equal(dataset.truth.input_fault, changed.numpy())
    wanted = {"none": 0.0, "human_random1": 1 / 6, "both": 0.36}.get(noise, rate)
    assert abs(dataset.truth.noisy.mean() - wanted) < (0.15 if noise == "instance" else 0.05)
    assert len(dataset.test) == 40


def test_published_noise_is_clipped_to_the_unit_interval_of_standardised_images(data):
    dataset = data.noisy_dataset(Setting("gaussian", 0.5, n=100))
    bad = np.flatnonzero(dataset.truth.input_fault)
    x = dataset.train.batch(bad)
    assert (x.min(), x.max()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))


def test_labels_from_other_files_are_joined_by_id(data, cifar_folder, tmp_path):
    ids = np.arange(N)[::-1] + 1000
    given = np.full(N, 3)
    pq.write_table(pa.table({"id": ids, "said": given}), tmp_path / "l.parquet")
    extra = cifar.LabelColumns(
        f"{tmp_path / 'l.parquet'}:said", f"{cifar_folder / 'train.parquet'}:label"
    )
    dataset = cifar.Cifar(cifar_folder, extra).noisy_dataset(Setting("human_random1", n=100))
    assert dataset.truth.noisy.any()
    pq.write_table(pa.table({"id": ids, "said": (ids - 999) % 10}), tmp_path / "l.parquet")
    dataset = cifar.Cifar(cifar_folder, extra).noisy_dataset(Setting("labels", n=100))
    assert_array_equal(dataset.train.labels, (np.arange(100) + 1) % 10)
    assert dataset.truth.label_fault.all()
    with pytest.raises(ConfigError, match="FILE:COLUMN"):
        cifar.Cifar(cifar_folder, cifar.LabelColumns("no-colon", "x:y")).noisy_dataset(
            Setting("labels", n=100)
        )
    with pytest.raises(ConfigError, match="FILE:COLUMN"):
        data.noisy_dataset(Setting("labels", n=100))


def test_more_samples_than_the_data_set_has_are_refused(data):
    with pytest.raises(DataError, match=f"n = {N + 1} samples requested, the data set has {N}"):
        data.noisy_dataset(Setting("none", n=N + 1))
    with pytest.raises(DataError, match="n = 1,199 samples requested, the data set has 1,198"):
        Digits().noisy_dataset(Setting("none", n=1199))


@pytest.mark.parametrize(("noise", "rate"), [("symmetric", 0.4), ("human_random1", 0.0)])
def test_held_out_samples_are_noisy_and_not_trained_on(data, noise, rate):
    dataset = data.noisy_dataset(Setting(noise, rate, n=100))
    assert len(dataset.held_out) == 20
    assert not set(dataset.held_out.ids) & set(dataset.train.ids)
    truth = data.train.subset(np.arange(100, 120)).labels
    wrong = (dataset.held_out.labels != truth).mean()
    assert wrong == pytest.approx(rate or 1 / 6, abs=0.05)
    assert data.noisy_dataset(Setting("none", n=N)).held_out is None


@pytest.mark.parametrize("noise", Digits.noises)
def test_digits_are_split_in_three_with_their_ground_truth(noise):
    rate = (Digits.noises[noise] or (0.0,))[0]
    dataset = Digits().noisy_dataset(Setting(noise, rate, n=1000))
    sets = (dataset.train, dataset.held_out, dataset.test)
    assert [len(s) for s in sets] == [1000, 198, 599]
    assert len(set(np.concatenate([s.ids for s in sets]))) == 1797
    clean = Digits().noisy_dataset(Setting("none", n=1000))
    assert_array_equal(dataset.truth.labels, clean.train.labels)
    assert_array_equal(dataset.truth.label_fault, dataset.train.labels != clean.train.labels)
    assert dataset.truth.noisy.mean() == pytest.approx({"both": 0.36}.get(noise, rate), abs=0.01)
    assert_array_equal(dataset.test.labels, clean.test.labels)


def test_a_grid_refuses_an_unknown_noise(data):
    with pytest.raises(ConfigError, match=r"a noise among none, symmetric.*got 'loud'"):
        grid(data, noises=["loud"])
    assert len(grid(Digits(), seeds=[0, 1])) == 5 * 2 * 2
