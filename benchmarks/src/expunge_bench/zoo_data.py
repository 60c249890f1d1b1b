"""Small data sets with noise, and small networks trained on them: what `expunge bench zoo` runs on.

Every set is small enough for seconds on one core. Truth about the noise stays in this package.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn import datasets
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn

from expunge._core.arrays import Array, Bools, Floats, Ints
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import generator, temp_seed
from expunge.data import Samples
from expunge.data.arrays import from_arrays
from expunge.demo.noise import GroundTruth, gaussian_inputs, mild_inputs, wrong_labels
from expunge.errors import ConfigError, DataError
from expunge.models.zoo import convnet, mlp
from expunge.storage.reading import reading
from expunge_bench.instance_noise import ambiguous

Fit = Literal["early", "half", "late"]
Part = Literal["development", "reported"]
# Epochs of a network that is stopped early, and the most that any gets.
EARLY_EPOCHS, MAX_EPOCHS = 10, 300
# Share of the given labels that a network fits before its training ends.
LATE_FIT = 0.97
HELD_OUT = 500


@dataclass(frozen=True)
class ZooSetting:
    """One data set with one kind of noise, and how its network is trained.

    fit: stopped after a few epochs, half-way to fitting every label, or when 97 % are fitted.
    views: whether the samples have random views (images only). held_out: samples of the same
    source, with the same noise, that no network is trained on.
    """

    data: str
    noise: str = "none"
    rate: float = 0.0
    fit: Fit = "early"
    views: bool = False
    held_out: int = 0
    seed: int = 0
    part: Part = "development"

    @property
    def name(self) -> str:
        """A file name."""
        rate = f"-{self.rate:g}" if self.rate else ""
        more = f"{'-views' if self.views else ''}{f'-held{self.held_out}' if self.held_out else ''}"
        return f"{self.data}-{self.noise}{rate}-{self.fit}{more}-{self.seed}"


@dataclass(frozen=True)
class ZooData:
    """Inputs ``float32 or int64[n, …]``, true labels ``int64[n]``, and the number of classes."""

    x: Array
    labels: Ints
    classes: int
    network: Literal["mlp", "convolution", "transformer"] = "mlp"
    given: Mapping[str, Ints] = field(default_factory=dict)


zoo_sets: Registry[Callable[[int], ZooData], NoMetadata] = Registry("zoo data set", NoMetadata)


def _columns(x: Array, y: Ints, seed: int, n: int | None = None) -> ZooData:
    """Shuffled rows, standardised columns."""
    order = generator(seed, "zoo rows").permutation(len(y))[:n]
    scale = np.maximum(x.std(axis=0), 1e-9)
    x = ((x - x.mean(axis=0)) / scale).astype(np.float32)
    return ZooData(x[order], y[order].astype(np.int64), int(y.max()) + 1)


def _made(seed: int, n: int, classes: int, **settings: float) -> ZooData:
    x, y = datasets.make_classification(n, n_classes=classes, random_state=seed, **settings)
    return _columns(x, y, seed)


@zoo_sets.register("iris")
def iris(seed: int) -> ZooData:
    """150 flowers, 4 columns, 3 classes."""
    x, y = datasets.load_iris(return_X_y=True)
    return _columns(x, y, seed)


@zoo_sets.register("wine")
def wine(seed: int) -> ZooData:
    """178 wines, 13 columns, 3 classes."""
    x, y = datasets.load_wine(return_X_y=True)
    return _columns(x, y, seed)


@zoo_sets.register("cancer")
def cancer(seed: int) -> ZooData:
    """569 tumours, 30 columns, 2 classes."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return _columns(x, y, seed)


@zoo_sets.register("digits")
def digits(seed: int) -> ZooData:
    """Digits as 64 columns."""
    x, y = datasets.load_digits(return_X_y=True)
    order = generator(seed, "zoo rows").permutation(len(y))
    return ZooData((x[order] / 16).astype(np.float32), y[order].astype(np.int64), 10)


@zoo_sets.register("digit-images")
def digit_images(seed: int) -> ZooData:
    """Digits as images of 8 × 8, for a convolutional network."""
    flat = digits(seed)
    return replace(flat, x=flat.x.reshape(-1, 1, 8, 8), network="convolution")


@zoo_sets.register("digit-rows")
def digit_rows(seed: int) -> ZooData:
    """Digits as sequences of eight rows, for a transformer."""
    flat = digits(seed)
    return replace(flat, x=flat.x.reshape(-1, 8, 8), network="transformer")


@zoo_sets.register("made4")
def made4(seed: int) -> ZooData:
    """Four classes that overlap, two clusters each, 12 columns of which 6 are informative."""
    return _made(seed, 1700, 4, n_features=12, n_informative=6, n_redundant=2, class_sep=1.2)


@zoo_sets.register("made8")
def made8(seed: int) -> ZooData:
    """Eight classes, 40 columns of which 28 are irrelevant."""
    more = {"n_features": 40, "n_informative": 10, "n_redundant": 2, "n_clusters_per_class": 1}
    return _made(seed, 2000, 8, class_sep=1.5, **more)


@zoo_sets.register("made20")
def made20(seed: int) -> ZooData:
    """Twenty classes, 20 columns."""
    more = {"n_features": 20, "n_informative": 12, "n_clusters_per_class": 1}
    return _made(seed, 2500, 20, class_sep=2.0, **more)


@zoo_sets.register("clusters")
def clusters(seed: int) -> ZooData:
    """Three classes of three clusters each."""
    more = {"n_features": 10, "n_informative": 6, "n_clusters_per_class": 3, "n_redundant": 0}
    return _made(seed, 1700, 3, class_sep=1.8, **more)


@zoo_sets.register("imbalance")
def imbalance(seed: int) -> ZooData:
    """Three classes, the rarest 1:50."""
    more = {"n_features": 10, "n_informative": 6, "n_clusters_per_class": 1, "flip_y": 0.0}
    return _made(seed, 2000, 3, class_sep=1.8, weights=[0.7, 0.286, 0.014], **more)  # type: ignore[arg-type]


@zoo_sets.register("overlap")
def overlap(seed: int) -> ZooData:
    """Five normal distributions that overlap."""
    rng = generator(seed, "zoo overlap")
    centres, y = 1.6 * rng.standard_normal((5, 6)), rng.integers(0, 5, 1700)
    return _columns(centres[y] + rng.standard_normal((1700, 6)), y, seed)


@zoo_sets.register("table")
def table(seed: int) -> ZooData:
    """A table whose size, classes, columns and overlap are drawn from the seed."""
    rng = generator(seed, "zoo table")
    classes, informative = int(rng.integers(2, 11)), int(rng.integers(4, 9))
    settings = {
        "n_informative": informative,
        "n_redundant": 0,
        "n_clusters_per_class": 1,
        "n_features": informative + int(rng.integers(0, 20)),
        "class_sep": float(rng.uniform(0.5, 1.4)),
        "flip_y": 0.0,
    }
    return _made(seed, int(rng.integers(600, 2000)), classes, **settings)


@zoo_sets.register("moons")
def moons(seed: int) -> ZooData:
    """Two interleaved half circles."""
    x, y = datasets.make_moons(1500, noise=0.2, random_state=seed)
    return _columns(x, y, seed)


@zoo_sets.register("rings")
def rings(seed: int) -> ZooData:
    """Three concentric rings among four irrelevant columns."""
    rng = generator(seed, "zoo rings")
    y, angle = rng.integers(0, 3, 1600), rng.uniform(0, 2 * np.pi, 1600)
    radius = 1.0 + y + 0.15 * rng.standard_normal(1600)
    x = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    return _columns(np.hstack([x, 0.5 * rng.standard_normal((1600, 4))]), y, seed)


@zoo_sets.register("words")
def words(seed: int) -> ZooData:
    """Six topics; documents of 24 words, half of them of the topic, as indices."""
    rng = generator(seed, "zoo words")
    y = rng.integers(0, 6, 1700)
    common = rng.integers(0, 120, (1700, 24))
    topic = 120 + 30 * y[:, None] + rng.integers(0, 45, (1700, 24))  # a third is a neighbour's
    x = np.where(rng.random((1700, 24)) < 0.35, (topic - 120) % 180 + 120, common)
    return ZooData(x.astype(np.int64), y.astype(np.int64), 6, "transformer")


def news(seed: int, folder: Path) -> ZooData:
    """BBC articles as 100 latent semantic columns, five categories."""
    table = pq.read_table(folder / _FILES["news"])
    text, names = table["document"].to_pylist(), table["category"].to_pylist()
    counts = TfidfVectorizer(sublinear_tf=True, min_df=3, stop_words="english").fit_transform(text)
    x = TruncatedSVD(100, random_state=0).fit_transform(counts)
    return _columns(x, np.unique(names, return_inverse=True)[1], seed)


def cifar(seed: int, folder: Path) -> ZooData:
    """2,000 CIFAR-10 images, with labels by people and by a published instance-dependent noise."""
    names = ["human_random1", "human_aggregate", "idn_20"]
    table = pq.read_table(folder / _FILES["cifar"])
    table = table.slice(2000 * (seed % 25), 2000)
    pictures = [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"].to_pylist()]
    x = np.stack([np.asarray(p, dtype=np.float32).transpose(2, 0, 1) / 255 for p in pictures])
    given = {name: table[name].to_numpy().astype(np.int64) for name in names}
    return ZooData(x, table["label"].to_numpy().astype(np.int64), 10, "convolution", given)


# Sets that are read from a folder with ``bbc_news_summary`` and ``cifar10`` (Parquet).
FROM_FILES: dict[str, Callable[[int, Path], ZooData]] = {"news": news, "cifar": cifar}
_FILES = {"news": "bbc_news_summary/train.parquet", "cifar": "cifar10/train.parquet"}


def load_zoo_set(name: str, seed: int, folder: Path | None = None) -> ZooData:
    """A data set by name; folder: where those that are read from files are."""
    if name not in FROM_FILES:
        return zoo_sets.get(name)(seed)
    if folder is None:
        raise ConfigError(f"zoo data set '{name}' needs a folder of data", fix="name it: --data")
    require_zoo_files([name], folder)
    with reading(folder / _FILES[name]):
        return FROM_FILES[name](seed, folder)


def require_zoo_files(names: Iterable[str], folder: Path) -> None:
    """Raise DataError unless a folder holds the files of these data sets, if they have any."""
    files = [_FILES[name] for name in dict.fromkeys(names) if name in _FILES]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"there is no {' and no '.join(missing)}",
            where=str(folder),
            fix="name the folder that holds them with --data, or leave these data sets out: "
            "no --data",
        )


def _weak_predictions(data: ZooData) -> Floats:
    """Cross-fitted predictions of a weak model of the true labels: ``float64[n, c]``."""
    flat = data.x.reshape(len(data.x), -1)
    if flat.dtype == np.int64:
        flat = np.stack([np.bincount(row, minlength=int(flat.max()) + 1) for row in flat])
    half = flat[:, : max(2, flat.shape[1] // 2)]  # sees half of the columns
    weak = LogisticRegression(C=0.05, max_iter=200)
    probs: Floats = cross_val_predict(weak, half, data.labels, cv=3, method="predict_proba")
    return probs


def with_noise(
    data: ZooData, noise: str, rate: float, seed: int
) -> tuple[Array, Ints, GroundTruth]:
    """Inputs and labels with faults put in, and the truth about them."""
    x, y, c = data.x, data.labels, data.classes
    rng, given, bad = generator(seed, "zoo", noise), data.labels.copy(), np.zeros(len(y), bool)
    if noise in data.given:
        given = data.given[noise]
    elif noise in ("symmetric", "pair"):
        given = wrong_labels(y, rate=rate, noise=noise, classes=c, seed=seed)  # type: ignore[arg-type]
    elif noise == "ambiguous":
        given = ambiguous(_weak_predictions(data), y, rate=rate)
    elif noise == "annotator":  # errs at random, more often where a weak model is uncertain
        probs = _weak_predictions(data)
        probs[np.arange(len(y)), y] = 0.0
        ambiguity = np.log(probs.sum(axis=1) + 1e-3) + rng.gumbel(size=len(y))
        rows = np.argsort(-ambiguity)[: round(rate * len(y))]
        given[rows] = [
            rng.choice(c, p=(d + 1e-6) / (d + 1e-6).sum()) if (d := probs[r]).sum() else y[r]
            for r in rows
        ]
    elif noise == "class":  # half of the classes lose labels to one other class
        losing = rng.permutation(c)[: max(1, c // 2)]
        share = min(0.45, rate / max(np.isin(y, losing).mean(), 1e-9))
        rows = np.flatnonzero(np.isin(y, losing) & (rng.random(len(y)) < share))
        given[rows] = (y[rows] + 1) % c
    elif noise == "one-class":  # of one class, this share has the label of one other
        of, to = rng.permutation(c)[:2]
        given[(y == of) & (rng.random(len(y)) < rate)] = to
    elif noise == "most-frequent":  # of the other classes, this share has that label
        most = int(np.bincount(y, minlength=c).argmax())
        given[rng.random(len(y)) < rate] = most
    elif noise == "duplicates":  # contradicting copies replace other samples
        rows = rng.permutation(len(y))[: 2 * round(rate * len(y))]
        first, copy = np.array_split(rows, 2)
        first = first[: len(copy)]
        x = x.copy()
        x[copy], truth = x[first], y.copy()
        truth[copy] = y[first]
        given = truth.copy()
        given[copy] = (truth[copy] + rng.integers(1, c, len(copy))) % c
        return x, given, GroundTruth(truth, given != truth, bad)
    elif noise == "inputs":
        x, bad = _bad_inputs(x, rate, seed)
    elif noise != "none":
        raise ConfigError(f"zoo noise '{noise}' is not known")
    return x, given, GroundTruth(y, given != y, bad)


def _bad_inputs(x: Array, rate: float, seed: int) -> tuple[Array, Bools]:
    """Images: noise on pixels, or mild faults; columns: uniform noise over twice the range."""
    if x.ndim == 4:
        if seed % 2:
            return mild_inputs(x, rate=rate, seed=seed)
        return gaussian_inputs(x, rate=rate, sigma=1.0, seed=seed)
    rng, rows = generator(seed, "zoo inputs"), generator(seed, "zoo bad").permutation(len(x))
    rows = rows[: round(rate * len(x))]
    low, high = x.min(axis=0), x.max(axis=0)
    x, bad = x.copy(), np.zeros(len(x), bool)
    x[rows] = rng.uniform(2 * low - high, 2 * high - low, (len(rows), *x.shape[1:]))
    bad[rows] = True
    return x, bad


@dataclass(frozen=True)
class ZooCase:
    """Training samples, held-out ones if any, the truth about the training set, a network."""

    setting: ZooSetting
    train: Samples
    held_out: Samples | None
    truth: GroundTruth
    model: nn.Module
    fit: float


def make_case(setting: ZooSetting, folder: Path | None = None) -> ZooCase:
    """The data of a setting and its trained network. Seconds on one core."""
    data = load_zoo_set(setting.data, setting.seed, folder)
    x, given, truth = with_noise(data, setting.noise, setting.rate, setting.seed)
    n = len(given) - (HELD_OUT if len(given) >= 1000 else 0)
    view = "none"
    if setting.views:
        view = "crop-flip" if setting.data == "cifar" else "crop"
    names = [str(k) for k in range(data.classes)]
    train = from_arrays(x[:n], given[:n], classes=names, view=view, name="train")
    held = None
    if setting.held_out and n < len(given):
        stop = n + setting.held_out
        held = from_arrays(x[n:stop], given[n:stop], classes=names, name="held_out")
    kept = GroundTruth(truth.labels[:n], truth.label_fault[:n], truth.input_fault[:n])
    with temp_seed(setting.seed):
        model = _network(data)
        fit = _train(model, x[:n], given[:n], setting.fit)
    return ZooCase(setting, train, held, kept, model, fit)


class SmallTransformer(nn.Module):
    """Words (indices) or rows of numbers → two transformer layers → mean → logits."""

    def __init__(self, classes: int, *, words: int = 0, inputs: int = 0, width: int = 32) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Embedding(words, width) if words else nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.zeros(64, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(h.mean(dim=1))
        return logits


def _network(data: ZooData) -> nn.Module:
    if data.network == "convolution":
        small = data.x.shape[-1] <= 8
        widths = (16, 32) if small else (16, 32, 64)
        channels = data.x.shape[1]
        more = {"hidden": 64, "convolutions": 1}
        return convnet(classes=data.classes, channels=channels, widths=widths, **more)
    if data.network == "transformer":
        if data.x.dtype == np.int64:
            return SmallTransformer(data.classes, words=int(data.x.max()) + 1)
        return SmallTransformer(data.classes, inputs=data.x.shape[-1])
    return mlp(inputs=data.x.shape[1], classes=data.classes, hidden=64, depth=3)


def _train(model: nn.Module, x: Array, y: Ints, fit: Fit) -> float:
    """Train with AdamW until this many labels are fitted; return the share that is."""
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    target, reached = 1.0, 0.0
    most = 40 if x.ndim == 4 and x.shape[-1] > 8 else MAX_EPOCHS
    for epoch in range(EARLY_EPOCHS if fit == "early" else most):
        model.train()
        right = 0
        for rows in torch.split(torch.randperm(len(inputs)), 64):
            if len(rows) < 2:
                continue
            optimiser.zero_grad()
            logits = model(inputs[rows])
            loss = nn.functional.cross_entropy(logits, labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            right += int((logits.argmax(1) == labels[rows]).sum())
        reached = right / len(labels)
        if epoch + 1 == EARLY_EPOCHS:
            target = LATE_FIT if fit == "late" else (reached + 1) / 2
        if epoch + 1 >= EARLY_EPOCHS and reached >= target:
            break
    model.eval()
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())
