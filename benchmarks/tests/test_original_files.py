"""CIFAR-10, CIFAR-10N and Speech Commands in the files that their authors publish."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from expunge.errors import DataError
from expunge_bench import folders, original_files
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import Setting
from expunge_bench.speech import Speech
from oracles_audio import encoded


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """A folder with ``cifar-10-batches-py``, 100 training images, and CIFAR-10N's file."""
    path = tmp_path_factory.mktemp("original")
    batches = path / "cifar-10-batches-py"
    batches.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (120, 3072), dtype=np.uint8)
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(20 * k + i) % 10 for i in range(20)]
        content = {b"data": pixels[20 * k : 20 * (k + 1)], b"labels": labels}
        (batches / name).write_bytes(pickle.dumps(content))
    true = np.arange(100) % 10
    human = {"random_label1": (true + (true == 3)) % 10, "aggre_label": true.copy()}
    torch.save(human, path / original_files.HUMAN_FILE)
    return path


def test_images_and_human_labels_are_found(cifar10):
    for folder in (cifar10, cifar10 / "cifar-10-batches-py"):
        found = folders.dataset_in_folder(folder)
        assert isinstance(found, Cifar)
        dataset = found.noisy_dataset(Setting("human_random1", n=100))
        assert dataset.truth.labels.tolist() == [i % 10 for i in range(100)]
        assert np.flatnonzero(dataset.truth.label_fault).tolist() == list(range(3, 100, 10))
        assert len(dataset.test) == 20


def test_absent_files_are_named_with_where_to_get_them(cifar10, tmp_path):
    with pytest.raises(DataError, match=r"(?s)cifar-10-python\.tar\.gz there.*--data digits"):
        _ = Cifar(tmp_path).train
    with pytest.raises(DataError, match="published files hold no labels 'idn_20'"):
        Cifar(cifar10).noisy_dataset(Setting("idn_20", n=100))
    human = cifar10 / original_files.HUMAN_FILE
    human.rename(tmp_path / "elsewhere.pt")
    try:
        with pytest.raises(DataError, match=r"noisylabels\.com and put CIFAR-10_human\.pt there"):
            Cifar(cifar10).noisy_dataset(Setting("human_aggregate", n=100))
    finally:
        (tmp_path / "elsewhere.pt").rename(human)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Clips of yes, no and two other words, by four speakers; one speaker is tested."""
    path = tmp_path_factory.mktemp("words") / "speech_commands_v0.02"
    rng = np.random.default_rng(0)
    for word in ("yes", "no", "bed", "cat", "_background_noise_"):
        (path / word).mkdir(parents=True)
        for speaker in ("0a", "1b", "2c", "3d"):
            clip = (3000 * rng.standard_normal(16_000)).astype(np.int16)
            (path / word / f"{speaker}_nohash_0.wav").write_bytes(encoded(clip, kind="WAV"))
    (path / "testing_list.txt").write_text("yes/3d_nohash_0.wav\nno/3d_nohash_0.wav\n")
    (path / "LICENSE").write_text("CC BY")
    return path


def test_words_are_split_by_the_list_and_grouped_by_speaker(words):
    for folder in (words, words.parent):
        found = folders.dataset_in_folder(folder)
        assert isinstance(found, Speech)
        assert found.train.classes == ("_unknown_", "no", "yes")
        # Six clips of the words, and of all others as many as a tenth of these, at least one.
        assert len(found.train) == 7
        assert len(found.test) == 2
        assert set(found.test.ids) == {"yes/3d_nohash_0.wav", "no/3d_nohash_0.wav"}
        assert set(found.speakers) <= {"0a", "1b", "2c", "3d"}
        changes = (found.speakers[1:] != found.speakers[:-1]).sum()
        assert changes == len(set(found.speakers)) - 1
        assert found.train.batch(np.arange(2)).shape == (2, 16_000)


def test_a_folder_of_other_words_is_refused(tmp_path):
    (tmp_path / "bed").mkdir()
    (tmp_path / "testing_list.txt").write_text("")
    with pytest.raises(DataError, match=r"(?s)no train clips of yes, no.*unpack speech_commands"):
        _ = Speech(tmp_path).train


def test_the_choice_of_clips_has_a_limit_and_keeps_whole_speakers_first(words, monkeypatch):
    monkeypatch.setattr(original_files, "MAX_CLIPS", {"train": 4, "test": 1})
    with original_files.speech_manifest(words, "train") as manifest:
        lines = manifest.read_text().splitlines()
    assert not manifest.exists()
    assert lines[0] == "path,label"
    assert len(lines) == 5
    assert len({original_files.speaker_of(line.partition(",")[0]) for line in lines[1:]}) <= 3
