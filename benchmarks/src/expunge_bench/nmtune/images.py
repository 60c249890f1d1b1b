"""Features of images, by encoders that are pre-trained here with wrong labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from expunge import pipeline, stages
from expunge._core.arrays import Array
from expunge._core.progress import Progress
from expunge._core.rng import generator, temp_seed
from expunge.data import Samples, TensorInputs
from expunge.demo.noise import wrong_labels
from expunge.models.zoo import resnet
from expunge.nmtune.encoders import adapt, embed, without_head
from expunge.nmtune.objectives import PRESETS
from expunge.storage.hashing import digest
from expunge.training.loop import TuneConfig
from expunge_bench.cifar import Cifar
from expunge_bench.datasets import check_sample_count
from expunge_bench.nmtune.corruptions import IMAGE_CORRUPTIONS, corrupt_images
from expunge_bench.nmtune.features import ADAPTED, IN_DOMAIN, Embedded, Sizes, cached_arrays

# Noise rates in pre-training.
DEFAULT_RATES = (0.0, 0.05, 0.1, 0.2, 0.3)
# The encoder is pre-trained on the first five classes of CIFAR-10; heads are tuned on the others.
PRETRAINING_CLASSES, TUNING_CLASSES = range(5), range(5, 10)
# Random views of every image on which a head is tuned.
N_VIEWS = 4
ADAPTATION = replace(PRESETS["code"], epochs=5)


@dataclass(frozen=True)
class ImageSource:
    """CIFAR-10: an encoder pre-trained on five classes with wrong labels, used for the other five.

    Parameters
    ----------
    dataset
        The images.
    sizes
        Numbers of samples.
    out
        Where encoders and features are stored.
    rates
        Noise rates of the pre-training.
    device
        Where the encoders run.
    """

    dataset: Cifar
    sizes: Sizes
    out: Path
    rates: tuple[float, ...] = DEFAULT_RATES
    device: str = "cpu"

    name = "cifar10"
    methods = (*PRESETS, ADAPTED)

    def encoder(self, rate: float, *, seed: int, progress: Progress) -> nn.Module:
        """Pre-train the encoder at that noise rate, or load it."""
        samples = _draw_samples(
            self.dataset.train, PRETRAINING_CLASSES, self.sizes.pretrain, seed=seed, what="pretrain"
        )
        n_classes = len(PRETRAINING_CLASSES)
        labels = wrong_labels(
            samples.labels, rate=rate, noise="symmetric", classes=n_classes, seed=seed
        )
        with temp_seed(seed, "network"):
            network = resnet(classes=n_classes, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))
        model = pipeline.train(
            network,
            replace(samples, labels=labels),
            TuneConfig(targets="all", epochs=self.sizes.epochs, lr=0.2),
            seed=seed,
            out=self.out / "encoders" / digest([asdict(self.sizes), rate, seed])[:16],
            progress=progress,
        ).model
        return without_head(model, samples).to(self.device)

    def embed(self, rate: float, *, seed: int, progress: Progress) -> Embedded:
        """Four random views of each image to tune on, plain images to test on."""
        tune, test = self.tuning_samples(seed)

        def compute() -> dict[str, Array]:
            encoder = self.encoder(rate, seed=seed, progress=progress)
            views = {"views": embed(encoder, tune, views=N_VIEWS, seed=seed, progress=progress)}
            tests = _with_corruptions(test, seed)
            return views | {k: embed(encoder, v, progress=progress)[0] for k, v in tests}

        arrays = cached_arrays(self.out, [asdict(self.sizes), rate, seed], compute)
        tests = {k: arrays[k] for k in (IN_DOMAIN, *IMAGE_CORRUPTIONS)}
        return Embedded(arrays["views"], tune.labels, tests, test.labels)

    def adapt(self, rate: float, *, seed: int, progress: Progress) -> dict[str, float]:
        """Accuracies by corruption after the encoder was adapted."""
        encoder = self.encoder(rate, seed=seed, progress=progress)
        tune, test = self.tuning_samples(seed)
        model = adapt(encoder, tune, config=ADAPTATION, seed=seed, progress=progress)
        return {
            kind: float((stages.predict(model, samples) == test.labels).mean())
            for kind, samples in _with_corruptions(test, seed)
        }

    def tuning_samples(self, seed: int) -> tuple[Samples, Samples]:
        """The samples on which heads are tuned, and those that test them."""
        parts = ((self.dataset.train, self.sizes.tune), (self.dataset.test, self.sizes.test))
        tune, test = (
            _draw_samples(samples, TUNING_CLASSES, n, seed=seed, what=samples.name)
            for samples, n in parts
        )
        return tune, test


def _with_corruptions(test: Samples, seed: int) -> Iterable[tuple[str, Samples]]:
    yield IN_DOMAIN, test
    pixels = np.asarray(test.inputs.batch(np.arange(len(test))))
    for kind in IMAGE_CORRUPTIONS:
        corrupted = TensorInputs(torch.from_numpy(corrupt_images(pixels, kind, seed=seed)))
        yield kind, replace(test, inputs=corrupted)


def _draw_samples(samples: Samples, classes: range, n: int, *, seed: int, what: str) -> Samples:
    """Draw n samples of these classes; labels start at 0."""
    rows = np.flatnonzero(np.isin(samples.labels, classes))
    check_sample_count(n, len(rows), where=f"{samples.name}, classes {classes[0]} to {classes[-1]}")
    rows = np.sort(generator(seed, "nmtune", what).permutation(rows)[:n])
    return replace(
        samples,
        ids=samples.ids[rows],
        labels=samples.labels[rows] - classes.start,
        inputs=TensorInputs(torch.as_tensor(samples.inputs.batch(rows))),
        classes=tuple(samples.classes[c] for c in classes),
    )
