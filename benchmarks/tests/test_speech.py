"""The benchmarks on recorded words. Each word is a tone; clips belong to speakers."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from typer.testing import CliRunner

from expunge import stages
from expunge.errors import ConfigError, DataError
from expunge.models.audio import MFCC
from expunge.training.loop import TuneConfig
from expunge_bench import detect, folders, oracles, repair, rlap, speech
from expunge_bench.cifar import Cifar
from expunge_bench.cli import bench
from expunge_bench.datasets import Setting, grid
from oracles_audio import encoded

N, TEST = 180, 60
CLASSES = (*speech.WORDS, "_unknown_", "_silence_")
pytestmark = pytest.mark.usefixtures("few_trees")
SILENCE = CLASSES.index("_silence_")


def clips(n: int, *, first: int, seed: int) -> dict[str, list]:
    """Columns of clips: a tone of its own for each word, four clips a speaker; hush for silence."""
    rng, t = np.random.default_rng(seed), np.arange(16_000) / 16_000
    columns: dict[str, list] = {"id": [], "audio": [], "label": [], "speaker": []}
    for i in range(n):
        label = (i + i // 12) % 12
        level = 0.001 if label == SILENCE else 0.2
        sound = level * np.sin(2 * np.pi * 220 * 1.25**label * t) + 1e-3 * rng.standard_normal(
            16_000
        )
        data = encoded((32767 * sound).astype(np.int16), kind="FLAC" if i % 2 else "WAV")
        columns["id"].append(first + i)
        columns["audio"].append({"bytes": data, "path": None})
        columns["label"].append(label)
        columns["speaker"].append(f"{seed}-{i % (n // 4)}")
    return columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("speech")
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, n, first, seed in (("train", N, 0, 1), ("test", TEST, N, 2)):
        table = pa.table(clips(n, first=first, seed=seed)).replace_schema_metadata(note)
        pq.write_table(table, path / f"{split}.parquet")
    return path


@pytest.fixture(scope="module")
def data(folder):
    return speech.Speech(folder)


@pytest.fixture
def quick(monkeypatch):
    """Short schedules."""
    short = TuneConfig(targets="all", epochs=2, lr=0.05, batch_size=20, augment=False)
    monkeypatch.setattr(speech, "TRAINING", {"regularised": short, "overfit": short})


def stored(samples):
    return np.asarray(samples.inputs.batch(np.arange(len(samples))))


@pytest.mark.parametrize("noise", speech.NOISES)
def test_the_ground_truth_matches_the_noise(data, noise):
    rate = (speech.NOISES[noise] or (0.0,))[0]
    dataset, clean = (
        data.noisy_dataset(Setting(*what, n=120)) for what in ((noise, rate), ("none", 0.0))
    )
    assert_array_equal(dataset.train.ids, clean.train.ids)
    assert_array_equal(dataset.truth.labels, clean.train.labels)
    assert_array_equal(dataset.truth.label_fault, dataset.train.labels != clean.train.labels)
    changed = (stored(dataset.train) != stored(clean.train)).any(axis=1)
    assert_array_equal(dataset.truth.input_fault, changed)
    assert dataset.truth.noisy.mean() == pytest.approx({"both": 0.36}.get(noise, rate), abs=0.03)
    assert not dataset.truth.input_fault[dataset.truth.labels == SILENCE].any()
    assert len(dataset.test) == TEST
    assert dataset.test.classes == dataset.train.classes == CLASSES


def test_kinds_of_noise_alternate(data):
    dataset, clean = (
        data.noisy_dataset(Setting(*w, n=120)) for w in (("faults", 0.5), ("none", 0.0))
    )
    bad = np.flatnonzero(dataset.truth.input_fault)
    before, after = stored(clean.train)[bad].astype(float), stored(dataset.train)[bad].astype(float)
    silent = (np.abs(after) <= 1).all(axis=1)
    truncated = (np.abs(after[:, 9_000:]) <= 1).all(axis=1) & ~silent
    louder = after.std(axis=1) > 1.2 * before.std(axis=1)
    assert [silent.sum(), truncated.sum()] == [12, 12]  # of 60
    assert louder.sum() == 36


@pytest.mark.parametrize("noise", ["symmetric", "white"])
def test_held_out_clips_are_noisy_and_of_other_speakers(data, noise):
    dataset = data.noisy_dataset(Setting(noise, 0.5, n=122))
    rows = {i: row for row, i in enumerate(data.train.ids.tolist())}
    trained, held_out = (
        {data.speakers[rows[i]] for i in samples.ids.tolist()}
        for samples in (dataset.train, dataset.held_out)
    )
    assert trained.isdisjoint(held_out)
    # The rest of the speaker that 122 cuts in two is left out: 180 clips, four a speaker.
    assert len(dataset.held_out) == N - 124
    again = np.array([rows[i] for i in dataset.held_out.ids.tolist()])
    wrong = dataset.held_out.labels != data.train.labels[again]
    changed = (stored(dataset.held_out) != stored(data.train)[again]).any(axis=1)
    assert (wrong | changed).mean() == pytest.approx(0.5)
    assert data.noisy_dataset(Setting("none", n=N)).held_out is None


def test_impossible_rates_and_sizes_are_refused(data):
    with pytest.raises(DataError, match=f"n = {N + 1} samples requested, the data set has {N}"):
        data.noisy_dataset(Setting("none", n=N + 1))
    with pytest.raises(ConfigError, match="only 165 are of words"):
        data.noisy_dataset(Setting("white", 0.95, n=N))
    with pytest.raises(ConfigError, match=r"a noise among none, symmetric.*got 'gaussian'"):
        grid(data, noises=["gaussian"])


def test_the_columns_of_a_folder_identify_its_data(folder, tmp_path):
    assert isinstance(folders.dataset_in_folder(folder), speech.Speech)
    assert isinstance(folders.dataset_in_folder(tmp_path), Cifar)
    pq.write_table(pa.table({"image": [b""], "label": [0]}), tmp_path / "train.parquet")
    assert isinstance(folders.dataset_in_folder(tmp_path), Cifar)
    pq.write_table(pa.table({"audio": [b""], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="got audio, label"):
        folders.dataset_in_folder(tmp_path)


def test_the_published_data_are_mfcc_of_ten_words_with_noise_on_half(data):
    dataset = data.published_dataset(n=100, seed=0)
    assert dataset.train.classes == speech.WORDS
    assert dataset.train.inputs.tensor.shape == (100, 1, 40, 130)
    rows = {i: row for row, i in enumerate(data.train.ids.tolist())}
    at = np.array([rows[i] for i in dataset.train.ids.tolist()])
    features = np.pad(MFCC()(data.train.batch(at)).numpy(), [(0, 0)] * 3 + [(0, 98)])
    difference = stored(dataset.train) - features
    assert_array_equal(dataset.truth.input_fault, np.abs(difference).max(axis=(1, 2, 3)) > 1)
    assert dataset.truth.input_fault.sum() == 50
    assert difference[dataset.truth.input_fault].std() == pytest.approx(15, rel=0.01)
    assert_allclose(difference[~dataset.truth.input_fault], 0, atol=1e-4)
    names = np.array(CLASSES)[data.train.labels[at]]
    assert_array_equal(np.array(speech.WORDS)[dataset.train.labels], names)
    assert len(dataset.test) == 50
    assert (stored(dataset.test)[..., 32:] == 0).all()


def test_detection_and_repair_have_rows_for_speech(data, tmp_path, monkeypatch, quick):
    settings = grid(data, noises=["both"], states=["overfit"], n=120)
    rows = detect.bench(data, settings=settings, names=("loss",), out=tmp_path / "detect")
    assert [(r["data"], r["noise"], r["n"]) for r in rows] == [("speech", "both", 120)]
    # What so few clips would let one find is not asked here.
    split = oracles.true_partition(data.noisy_dataset(settings[0]))
    partition = stages.partition

    def of_training_samples(scores, *config, **options):
        same = len(scores.ids) == len(split.ids)
        return split if same else partition(scores, *config, **options)

    monkeypatch.setattr(stages, "partition", of_training_samples)
    rows = repair.bench(data, settings=settings, names=("no-op",), out=tmp_path / "repair")
    assert {r["recipe"] for r in rows} == {"no-op", "default"}


def test_the_published_protocol_runs_on_speech(folder, data, tmp_path, monkeypatch):
    split = oracles.true_partition(data.published_dataset(n=100, seed=0))
    monkeypatch.setattr(stages, "partition", lambda *_, **__: split)
    said = CliRunner().invoke(
        bench,
        [
            *("rlap", "--data", str(folder), "--n", "100", "--epochs", "2"),
            *("--out", str(tmp_path / "run"), "--json"),
        ],
    )
    assert said.exit_code == 0, said.output
    rows = {r["model"]: r for r in json.loads(said.stdout)}
    names = ["L-FT", "F-FT", "F-FT, unpruned", "retrain"]
    assert rows.keys() == {
        "noisy",
        *(f"{who} {name}" for who in ("rlap", "expunge") for name in names),
    }
    assert rows["noisy"]["parameters"] == 34_954
    # 15.6 % of the 128 units of the hidden layer, with their incoming and outgoing weights.
    assert rows["noisy"]["parameters"] - rows["rlap F-FT"]["parameters"] == 19 * (256 + 1 + 10)
    assert {"macro_precision", "macro_f1", "top_3"} <= rows["noisy"].keys()
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| 100 | 2 | rlap F-FT | 1 |" in table
    assert "macro precision" in table


def test_the_protocol_on_speech_is_that_of_the_paper(data):
    protocol = rlap.speech_protocol(data)
    training, tuning = protocol.training, protocol.published_tuning
    assert (training.epochs, training.lr, training.batch_size) == (300, 5e-4, 64)
    assert (tuning.epochs, tuning.lr) == (150, 1e-3)
    assert {training.optimizer, tuning.optimizer} == {"adamw"}
    assert training.weight_decay == tuning.weight_decay == 0
    assert protocol.our_epochs == 120
    assert rlap.PRINTED.get(protocol.name) is None
