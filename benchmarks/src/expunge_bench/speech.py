"""Recorded words with faults of many kinds, and networks trained on them."""

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
from expunge_bench.fields import Setting

FAULTS: tuple[Fault, ...] = get_args(Fault)
# Kinds of noise, and the rates that a suite takes. Two words in three have one that is heard for
# them: of 12 classes, 0.25 leaves more than half of every word's labels right.
NOISES: Mapping[str, tuple[float, ...]] = {
    "none": (),
    "symmetric": (0.4,),
    "confusable": (0.25,),
    **dict.fromkeys(FAULTS, (0.5,)),
    "faults": (0.5,),
    "both": (0.4,),
}
TRAINING: Mapping[str, TuneConfig] = {
    "fresh": TuneConfig(targets="all", epochs=30, lr=0.1, batch_size=64),
    "memorised": TuneConfig(targets="all", epochs=60, lr=0.1, batch_size=64, augment=False),
}
RATE = 16_000  # Hz
# What the published network sees: 40 coefficients of so many frames, most of which pad a clip.
FRAMES = 130
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


@dataclass(frozen=True)
class Speech:
    """Speech Commands as a user has it: a folder with ``train.parquet`` and ``test.parquet`` in the
    Hub's layout: the columns id, audio, label and speaker, one-second clips.
    """

    path: Path

    name = "speech"
    most = 3_200
    noises = NOISES

    @property
    def training(self) -> Mapping[str, TuneConfig]:
        """How networks are trained, by state."""
        return TRAINING

    def network(self, seed: int) -> nn.Module:
        """An untrained DS-CNN for keyword spotting, without the masks that hinder memorising."""
        with temp_seed(seed, "network"):
            return kws(classes=len(self.train.classes), sample_rate=RATE, n_masks=0)

    @cached_property
    def train(self) -> Samples:
        """All training clips, decoded once: speaker by speaker, these in an order of their own."""
        samples = self._read("train")
        order = np.argsort(_shuffled(self._speakers(samples)), kind="stable")
        clips = torch.as_tensor(samples.inputs.batch(order))
        return replace(
            samples,
            ids=samples.ids[order],
            labels=samples.labels[order],
            inputs=TensorInputs(clips),
        )

    @cached_property
    def speakers(self) -> np.ndarray:
        """``str[n]``: whose voice each training clip is."""
        return self._speakers(self.train)

    @cached_property
    def test(self) -> Samples:
        """All test clips, of speakers of their own; no decision sees them."""
        return self._read("test")

    def scene(self, setting: Setting) -> NoisyDataset:
        """The first n training clips with the setting's faults, and all test clips.

        Held out are the clips of all speakers that are not among the n: faults of the same kind at
        the same rate. Where n cuts a speaker in two, the rest of that speaker is left out.
        """
        rows, others = self._split(np.arange(len(self.train)), setting.n)
        train, truth = self._faulty(setting, rows)
        again = replace(setting, seed=derive(setting.seed, "held out"))
        held_out = self._faulty(again, others)[0] if len(others) > 1 else None
        return NoisyDataset(train, self.test, truth, held_out)

    def published(self, *, n: int, seed: int) -> NoisyDataset:
        """The published set: MFCC of ten words, of which half of the n get noise of deviation 15.

        ``float32[n, 1, 40, 130]``: a clip's 32 frames, and zeros behind these. Unlike there, no
        speaker of the test clips is among the training clips, and the noise is drawn once.
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
        """The first n of these rows, and those whose speaker is not among them."""
        if n > len(rows):
            raise DataError(f"{n} clips of {len(rows)}", where=str(self.path), fix="lower n")
        heard = np.isin(self.speakers[rows], self.speakers[rows[:n]])
        return rows[:n], rows[~heard]

    def _faulty(self, setting: Setting, rows: np.ndarray) -> tuple[Samples, GroundTruth]:
        """Some training clips with the setting's faults."""
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
        file = self.path / "train.parquet"
        ids, names = read_column(file, "id"), read_column(file, "speaker")
        return join_by_id(samples.ids, ids, names.astype(str), where=str(file))

    def _read(self, split: Literal["train", "test"]) -> Samples:
        config = DataConfig(
            path=str((self.path / f"{split}.parquet").absolute()),
            input="audio",
            id="id",
            sample_rate=RATE,
            seconds=1.0,
            view="speech",
        )
        classes = self.train.classes if split == "test" else None
        return read(config, folder=Path.cwd(), classes=classes, name=split)


def _labels(clean: Samples, setting: Setting) -> np.ndarray:
    """The labels given."""
    noise, rate, seed = setting.noise, setting.rate, setting.seed
    if noise == "confusable":
        return confusable_labels(clean.labels, rate=rate, classes=clean.classes, seed=seed)
    if noise in ("symmetric", "both"):
        share, c = rate / 2 if noise == "both" else rate, len(clean.classes)
        return wrong_labels(clean.labels, rate=share, noise="symmetric", classes=c, seed=seed)
    return clean.labels


def _clips(clean: Samples, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The clips, and which of them have a fault: only clips of words, silence cannot be broken."""
    noise, rate = setting.noise, setting.rate
    clips, fault = _values(clean), np.zeros(len(clean), dtype=bool)
    kinds = FAULTS if noise in ("faults", "both") else tuple(f for f in FAULTS if f == noise)
    if not kinds:
        return clips, fault
    share = rate / 2 if noise == "both" else rate
    silent = [c for c, name in enumerate(clean.classes) if is_silence_class(name)]
    words = np.flatnonzero(~np.isin(clean.labels, silent))
    if share * len(clean) > len(words):
        raise ConfigError(
            f"{share:g} of {len(clean)} clips cannot have a fault: {len(words)} are of words",
            fix="lower the rate",
        )
    share *= len(clean) / len(words)
    clips[words], fault[words] = audio_faults(
        clips[words], kinds=kinds, rate=share, seed=setting.seed
    )
    return clips, fault


def _shuffled(names: np.ndarray) -> np.ndarray:
    """``int[n]``: for each name a number of its own, in an order that does not follow the names."""
    unique, number = np.unique(names, return_inverse=True)
    return generator(0, "speakers").permutation(len(unique))[number]


def _of_words(samples: Samples) -> np.ndarray:
    """``bool[n]``: whether the clip is of one of the ten words."""
    absent = [word for word in WORDS if word not in samples.classes]
    if absent:
        raise DataError(f"no class is called: {', '.join(absent)}", where=samples.name)
    return np.isin(samples.labels, [samples.classes.index(word) for word in WORDS])


def _cepstra(samples: Samples, rows: np.ndarray) -> Samples:
    """MFCC of some clips of the ten words, padded or cut to a length, as samples."""
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
    """All inputs as they are stored, a copy."""
    return np.asarray(samples.inputs.batch(np.arange(len(samples))))
