"""Speech Commands with injected noise, and the networks that benchmarks train on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from expunge._core.rng import derive, generator, temp_seed
from expunge.data import DataConfig, Samples, TensorInputs, read
from expunge.data.audio import is_silence_class
from expunge.data.labels import join_by_id
from expunge.data.parquet import read_column
from expunge.demo.noise import GroundTruth, NoisyDataset, wrong_labels
from expunge.errors import ConfigError, DataError
from expunge.models.audio import MFCC
from expunge.models.zoo import kws
from expunge.training.loop import TuneConfig
from expunge_bench.audio_noise import Fault, audio_faults, confusable_labels, feature_noise
from expunge_bench.datasets import Setting, check_sample_count
from expunge_bench.original_files import WORDS, speaker_of, speech_folder, speech_manifest

FAULTS: tuple[Fault, ...] = get_args(Fault)
# Kinds of noise and their default rates; () for noise whose rate is fixed. Two words in three have
# a confusable word: at 0.25, more than half of every word's labels stay right.
NOISES: Mapping[str, tuple[float, ...]] = {
    "none": (),
    "symmetric": (0.4,),
    "confusable": (0.25,),
    **dict.fromkeys(FAULTS, (0.5,)),
    "faults": (0.5,),
    "both": (0.4,),
}
TRAINING: Mapping[str, TuneConfig] = {
    "regularised": TuneConfig(targets="all", epochs=30, lr=0.1, batch_size=64),
    "overfit": TuneConfig(targets="all", epochs=60, lr=0.1, batch_size=64, augment=False),
}
SAMPLE_RATE = 16_000  # Hz
# Frames of the published network's input, most of which pad a clip.
FRAMES = 130


@dataclass(frozen=True)
class Speech:
    """Speech Commands as a user has it.

    Parameters
    ----------
    path
        A folder with ``train.parquet`` and ``test.parquet`` in the Hub's layout: the columns id,
        audio, label and speaker, one-second clips. Or the original folder, with
        ``testing_list.txt``: ten words and ``_unknown_``, without ``_silence_``.
    """

    path: Path

    name = "speech"
    default_n = 3_200
    noises = NOISES

    @property
    def training(self) -> Mapping[str, TuneConfig]:
        """How networks are trained, by state."""
        return TRAINING

    def network(self, seed: int) -> nn.Module:
        """An untrained DS-CNN for keyword spotting, without masks, so that it can memorise."""
        with temp_seed(seed, "network"):
            return kws(classes=len(self.train.classes), sample_rate=SAMPLE_RATE, n_masks=0)

    @cached_property
    def train(self) -> Samples:
        """All training clips, decoded once, grouped by speaker; the speakers are shuffled."""
        samples = self._read("train")
        order = np.argsort(_random_ranks(self._speakers(samples)), kind="stable")
        clips = torch.as_tensor(samples.inputs.batch(order))
        return replace(
            samples,
            ids=samples.ids[order],
            labels=samples.labels[order],
            inputs=TensorInputs(clips),
        )

    @cached_property
    def speakers(self) -> np.ndarray:
        """``str[n]``: the speaker of each training clip."""
        return self._speakers(self.train)

    @cached_property
    def test(self) -> Samples:
        """All test clips, of other speakers. No stage decides anything by them."""
        return self._read("test")

    def noisy_dataset(self, setting: Setting) -> NoisyDataset:
        """The first n training clips with the setting's noise, and all test clips.

        The clips of all other speakers are held out, with noise of the same kind and rate. If n
        splits a speaker's clips, the rest of that speaker is not used.

        Raises
        ------
        DataError
            If n is larger than the training set.
        """
        rows, others = self._split(np.arange(len(self.train)), setting.n)
        train, truth = self._corrupted(setting, rows)
        other = replace(setting, seed=derive(setting.seed, "held out"))
        held_out = self._corrupted(other, others)[0] if len(others) > 1 else None
        return NoisyDataset(train, self.test, truth, held_out)

    def published_dataset(self, *, n: int, seed: int) -> NoisyDataset:
        """The data of arXiv 2506.11615: MFCC of ten words, Gaussian noise (σ = 15) on half of them.

        Inputs are ``float32[n, 1, 40, 130]``: the 32 frames of a clip, then zeros. Deviations from
        the paper: test and training clips have different speakers, and the noise is drawn once.
        """
        rows, _ = self._split(np.flatnonzero(_of_words(self.train)), n)
        clean = _cepstra(self.train, rows)
        features, fault = feature_noise(_values(clean), rate=0.5, sigma=15.0, seed=seed)
        train = replace(clean, inputs=TensorInputs(torch.from_numpy(features)))
        test = _cepstra(self.test, np.flatnonzero(_of_words(self.test)))
        return NoisyDataset(
            train, test, GroundTruth(train.labels, np.zeros(len(train), dtype=bool), fault)
        )

    def _split(self, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first n of these rows, and the rows of all other speakers."""
        check_sample_count(n, len(rows), where=str(self.path))
        same_speaker = np.isin(self.speakers[rows], self.speakers[rows[:n]])
        return rows[:n], rows[~same_speaker]

    def _corrupted(self, setting: Setting, rows: np.ndarray) -> tuple[Samples, GroundTruth]:
        """The training clips of these rows with the setting's noise."""
        clean = self.train.subset(rows)
        labels, (clips, fault) = _labels(clean, setting), _clips(clean, setting)
        samples = replace(
            self.train,
            ids=clean.ids,
            labels=labels,
            inputs=TensorInputs(torch.from_numpy(clips)),
        )
        return samples, GroundTruth(clean.labels, labels != clean.labels, fault)

    def _speakers(self, samples: Samples) -> np.ndarray:
        if speech_folder(self.path):
            return np.array([speaker_of(str(clip)) for clip in samples.ids])
        file = self.path / "train.parquet"
        ids, names = read_column(file, "id"), read_column(file, "speaker")
        return join_by_id(samples.ids, ids, names.astype(str), where=str(file))

    def _read(self, split: Literal["train", "test"]) -> Samples:
        config = DataConfig(
            path=str((self.path / f"{split}.parquet").absolute()),
            input="audio",
            id="id",
            sample_rate=SAMPLE_RATE,
            seconds=1.0,
            view="speech",
        )
        classes = self.train.classes if split == "test" else None
        folder = speech_folder(self.path)
        if folder is None:
            return read(config, folder=Path.cwd(), classes=classes, name=split)
        with speech_manifest(folder, split) as manifest:
            original = replace(
                config, path=str(manifest), input="path", id="path", root=str(folder.absolute())
            )
            return read(original, folder=Path.cwd(), classes=classes, name=split)


def _labels(clean: Samples, setting: Setting) -> np.ndarray:
    """The given labels."""
    noise, rate, seed = setting.noise, setting.rate, setting.seed
    if noise == "confusable":
        return confusable_labels(clean.labels, rate=rate, classes=clean.classes, seed=seed)
    if noise in ("symmetric", "both"):
        part, c = rate / 2 if noise == "both" else rate, len(clean.classes)
        return wrong_labels(clean.labels, rate=part, noise="symmetric", classes=c, seed=seed)
    return clean.labels


def _clips(clean: Samples, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The clips, and which of them are corrupted. Clips of silence are never corrupted."""
    noise, rate = setting.noise, setting.rate
    clips, fault = _values(clean), np.zeros(len(clean), dtype=bool)
    kinds = FAULTS if noise in ("faults", "both") else tuple(f for f in FAULTS if f == noise)
    if not kinds:
        return clips, fault
    part = rate / 2 if noise == "both" else rate
    silent = [c for c, name in enumerate(clean.classes) if is_silence_class(name)]
    words = np.flatnonzero(~np.isin(clean.labels, silent))
    if part * len(clean) > len(words):
        raise ConfigError(
            f"cannot corrupt {part:g} of {len(clean)} clips: only {len(words)} are of words",
            fix="lower the rate",
        )
    part *= len(clean) / len(words)
    clips[words], fault[words] = audio_faults(
        clips[words], kinds=kinds, rate=part, seed=setting.seed
    )
    return clips, fault


def _random_ranks(names: np.ndarray) -> np.ndarray:
    """``int[n]``: one number for each distinct name, in random order."""
    unique, number = np.unique(names, return_inverse=True)
    return generator(0, "speakers").permutation(len(unique))[number]


def _of_words(samples: Samples) -> np.ndarray:
    """``bool[n]``: whether the clip is of one of the ten words."""
    absent = [word for word in WORDS if word not in samples.classes]
    if absent:
        raise DataError(f"missing classes: {', '.join(absent)}", where=samples.name)
    return np.isin(samples.labels, [samples.classes.index(word) for word in WORDS])


def _cepstra(samples: Samples, rows: np.ndarray) -> Samples:
    """MFCC of the clips of these rows, padded or cut to `FRAMES`."""
    layer = MFCC()
    with torch.inference_mode():
        parts = [layer(samples.batch(at)) for at in samples.batches(256, positions=rows)]
    features = torch.cat(parts)
    features = nn.functional.pad(features, (0, FRAMES - features.shape[-1]))
    number = {samples.classes.index(word): i for i, word in enumerate(WORDS)}
    return Samples(
        ids=samples.ids[rows],
        labels=np.array([number[int(label)] for label in samples.labels[rows]]),
        classes=WORDS,
        inputs=TensorInputs(features.clone()),
        has_explicit_ids=True,
        name=samples.name,
    )


def _values(samples: Samples) -> np.ndarray:
    """A copy of all inputs as they are stored."""
    return np.asarray(samples.inputs.batch(np.arange(len(samples))))
