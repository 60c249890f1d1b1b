"""`expunge bench nmtune`: encoders pre-trained on wrong labels, and heads tuned on right ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed
from expunge.data import Samples, TensorInputs
from expunge.demo.noise import wrong_labels
from expunge.errors import ConfigError, DataError, did_you_mean
from expunge.models.zoo import resnet
from expunge.nmtune.encoders import adapt, embed, without_head
from expunge.nmtune.heads import NMTune
from expunge.nmtune.objectives import PRESETS
from expunge.nmtune.pages import page
from expunge.nmtune.spectra import lsvr, singular_values, sve
from expunge.storage.hashing import digest
from expunge.text.encoders import Encoder, encode_texts
from expunge.training.loop import TuneConfig
from expunge_bench.cifar import Cifar
from expunge_bench.corruptions import IMAGES, TEXTS, corrupted
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean

KEYS = ("data", "pretrain", "epochs", "tune", "test", "noise", "method", "seed")
NOISES = (0.0, 0.05, 0.1, 0.2, 0.3)
# The encoder learns to tell the first five classes of CIFAR-10 apart, the head the other five.
KNOWN, NEW = range(5), range(5, 10)
# Random views of every image that a head is tuned on.
VIEWS = 4
# Words of an article that its embedding is made of.
WORDS = 50
# Beside the presets: the encoder adapted by low ranks, which costs a training of it.
ADAPTED = "adapted"
ADAPTING = replace(PRESETS["code"], epochs=5)
ID = "in-domain"
METHODS = tuple(PRESETS)
ARTICLES = (100, 1000)
# A sentence encoder, made when it is needed.
Lazy = Callable[[], Encoder]


@dataclass(frozen=True)
class Sizes:
    """pretrain: images that the encoder learns from, for so many epochs; 0 for one from elsewhere.

    tune, test: samples that heads are tuned and tested on; test 0 for all.
    """

    pretrain: int
    epochs: int
    tune: int
    test: int


@dataclass(frozen=True)
class Embedded:
    """Features of one encoder. views: ``float32[v, n, d]`` to tune on. tests: in-domain, and by
    kind of corruption, ``float32[n, d]`` each.
    """

    views: np.ndarray
    labels: np.ndarray
    tests: Mapping[str, np.ndarray]
    test_labels: np.ndarray


class Source(Protocol):
    """Where features come from, and the noise rates that there are encoders for."""

    @property
    def name(self) -> str: ...

    @property
    def sizes(self) -> Sizes: ...

    @property
    def noises(self) -> tuple[float, ...]: ...

    @property
    def methods(self) -> tuple[str, ...]: ...

    def embedded(self, noise: float, seed: int, progress: Progress) -> Embedded: ...

    def adapted(self, noise: float, seed: int, progress: Progress) -> dict[str, float]: ...


@dataclass(frozen=True)
class Images:
    """CIFAR-10: an encoder of five classes with wrong labels, used for the other five."""

    field: Cifar
    sizes: Sizes
    out: Path
    noises: tuple[float, ...] = NOISES
    device: str = "cpu"

    name = "cifar10"
    methods = (*PRESETS, ADAPTED)

    def encoder(self, noise: float, seed: int, progress: Progress) -> nn.Module:
        """Trained on the known classes, of whose labels a share is wrong; kept and used again."""
        samples = self._chosen(self.field.train, KNOWN, self.sizes.pretrain, seed, "pretrain")
        wrong = wrong_labels(
            samples.labels, rate=noise, noise="symmetric", classes=len(KNOWN), seed=seed
        )
        with temp_seed(seed, "network"):
            network = resnet(classes=len(KNOWN), widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))
        training = TuneConfig(targets="all", epochs=self.sizes.epochs, lr=0.2)
        folder = self.out / "encoders" / digest([asdict(self.sizes), noise, seed])[:16]
        given = replace(samples, labels=wrong)
        model = pipeline.train(
            network, given, training, seed=seed, out=folder, progress=progress
        ).model
        return without_head(model, samples).to(self.device)

    def embedded(self, noise: float, seed: int, progress: Progress) -> Embedded:
        """Four random views of each image to tune on, plain ones to test on."""
        tune, test = self._samples(seed)

        def make() -> dict[str, np.ndarray]:
            encoder = self.encoder(noise, seed, progress)
            views = {"views": embed(encoder, tune, views=VIEWS, seed=seed, progress=progress)}
            tests = self._tests(test, seed)
            return views | {k: embed(encoder, v, progress=progress)[0] for k, v in tests}

        found = kept(self.out, [asdict(self.sizes), noise, seed], make)
        return Embedded(
            found["views"], tune.labels, {k: found[k] for k in (ID, *IMAGES)}, test.labels
        )

    def adapted(self, noise: float, seed: int, progress: Progress) -> dict[str, float]:
        """Accuracies where the encoder learns too."""
        encoder, (tune, test) = self.encoder(noise, seed, progress), self._samples(seed)
        model = adapt(encoder, tune, config=ADAPTING, seed=seed, progress=progress)
        return {
            kind: float((stages.predict(model, samples) == test.labels).mean())
            for kind, samples in self._tests(test, seed)
        }

    def _samples(self, seed: int) -> tuple[Samples, Samples]:
        parts = ((self.field.train, self.sizes.tune), (self.field.test, self.sizes.test))
        tune, test = (self._chosen(s, NEW, n, seed, s.name) for s, n in parts)
        return tune, test

    @staticmethod
    def _tests(test: Samples, seed: int) -> Iterable[tuple[str, Samples]]:
        yield ID, test
        pixels = np.asarray(test.inputs.batch(np.arange(len(test))))
        for kind in IMAGES:
            changed = TensorInputs(torch.from_numpy(corrupted(pixels, kind, seed=seed)))
            yield kind, replace(test, inputs=changed)

    @staticmethod
    def _chosen(samples: Samples, classes: range, n: int, seed: int, what: str) -> Samples:
        """n samples of these classes, drawn by the seed; labels from 0."""
        rows = np.flatnonzero(np.isin(samples.labels, classes))
        if n > len(rows):
            raise DataError(f"{n} samples of {len(rows)} of the five classes", where=samples.name)
        rows = np.sort(generator(seed, "nmtune", what).permutation(rows)[:n])
        return replace(
            samples,
            ids=samples.ids[rows],
            labels=samples.labels[rows] - classes.start,
            inputs=TensorInputs(torch.as_tensor(samples.inputs.batch(rows))),
            classes=tuple(samples.classes[c] for c in classes),
        )


@dataclass(frozen=True)
class News:
    """BBC news by category, embedded by a sentence encoder whose pre-training nobody here knows.

    folder: with ``bbc_news_summary/{train,test}.parquet``. encoder_name: by which it is known.
    """

    folder: Path
    encoder: Lazy
    encoder_name: str
    tune: int
    out: Path

    name = "bbc"
    noises = (0.0,)
    methods = METHODS

    @property
    def sizes(self) -> Sizes:
        """All test articles."""
        return Sizes(0, 0, self.tune, 0)

    def embedded(self, noise: float, seed: int, progress: Progress) -> Embedded:
        """The first fifty words of articles; headlines, typos and dropped words to test on.

        The articles to tune on are drawn by the seed; what is done to texts is the same for all.
        """
        (texts, labels), (tests, test_labels) = (self._read(p) for p in ("train", "test"))
        if self.tune > len(texts):
            raise DataError(f"{self.tune} articles of {len(texts)}", where=str(self.folder))

        def make() -> dict[str, np.ndarray]:
            encoder, changed = self.encoder(), {"train": texts, ID: tests}
            for kind, change in TEXTS.items():
                rng = generator(0, "corruption", kind)
                changed[kind] = [change(text, rng) for text in tests]
            return {k: _embedded(encoder, found, progress) for k, found in changed.items()}

        found = kept(self.out, [self.encoder_name, digest([texts, tests])], make)
        rows = np.sort(generator(seed, "nmtune", "news").permutation(len(texts))[: self.tune])
        names = np.unique(labels)
        return Embedded(
            found["train"][None, rows],
            np.searchsorted(names, labels[rows]),
            {k: found[k] for k in (ID, *TEXTS)},
            np.searchsorted(names, test_labels),
        )

    def adapted(self, noise: float, seed: int, progress: Progress) -> dict[str, float]:
        """Not for this source."""
        raise ConfigError("text comes embedded: there is no encoder to adapt")

    def _read(self, part: str) -> tuple[list[str], np.ndarray]:
        file = self.folder / "bbc_news_summary" / f"{part}.parquet"
        try:
            table = pq.read_table(file, columns=["document", "category"])
        except OSError as error:
            raise DataError(f"cannot be read: {error}", where=str(file)) from error
        return table["document"].to_pylist(), np.array(table["category"].to_pylist())


def _embedded(encoder: Encoder, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """Means of token states, scaled to length 1: how the encoder was meant to be used."""
    rows = []
    for start in range(0, len(texts), 32):
        part = [" ".join(text.split()[:WORDS]) for text in texts[start : start + 32]]
        rows += [one.states.mean(axis=0) for one in encode_texts(encoder, part, first=start)]
        progress("embed", len(rows), len(texts))
    found = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def kept(
    out: Path, key: Sequence[Any], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that are made once, and lie under ``out/features`` by all that they depend on."""
    file = out / "features" / f"{digest(key)[:16]}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({k: np.ascontiguousarray(v) for k, v in make().items()}, partial)
        partial.replace(file)
    return load_file(file)


def sources(
    folder: Path,
    *,
    sizes: Sizes,
    noises: Sequence[float] = NOISES,
    articles: Sequence[int] = ARTICLES,
    encoder: Lazy,
    encoder_name: str,
    device: str = "cpu",
    out: Path,
) -> list[Source]:
    """What of ``cifar10`` and ``bbc_news_summary`` lies in the folder; DataError for neither."""
    found: list[Source] = []
    if (folder / "cifar10").is_dir():
        found.append(Images(Cifar(folder / "cifar10"), sizes, out, tuple(noises), device))
    if (folder / "bbc_news_summary").is_dir():
        found += [News(folder, encoder, encoder_name, n, out) for n in articles]
    if not found:
        raise DataError("holds neither cifar10 nor bbc_news_summary", where=str(folder))
    return found


def bench(
    sources: Sequence[Source],
    *,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each source, noise rate, method and seed; rows that ``out`` holds are not made.

    Every method chooses its learning rate on a fifth of what it is tuned on; test data decide
    nothing. All methods see the same views. Encoders and features stay in ``out``. Writes
    ``rows.jsonl``, ``table.md``, ``table.html``, ``spectra.html``.
    """
    for name in methods:
        if name not in (*PRESETS, ADAPTED):
            raise ConfigError(
                f"there is no method '{name}'", fix=did_you_mean(name, (*PRESETS, ADAPTED))
            )
    ledger = ResultStore(out, KEYS)
    for source, seed in product(sources, seeds):
        for noise in source.noises:
            told = {"data": source.name, **asdict(source.sizes), "noise": noise}
            keys = [{**told, "method": m, "seed": seed} for m in methods if m in source.methods]
            wanted = [key for key in keys if key not in ledger]
            if not wanted:
                continue
            found = source.embedded(noise, seed, progress)
            for number, key in enumerate(wanted):
                progress(f"{source.name} {noise:g} seed {seed}", number, len(wanted))
                ledger.add({**key, **measured(source, found, key, device, progress)})
    rows = ledger.rows()
    ledger.write("Heads on noisily pre-trained encoders", command, tables(rows))
    (out / "spectra.html").write_text(spectra_page(rows), encoding="utf-8")
    return rows


def measured(
    source: Source, found: Embedded, key: Row, device: str, progress: Progress
) -> dict[str, Any]:
    """Accuracies of one head, the rate that it chose, and the spectrum of what it makes."""
    start = time.perf_counter()
    if key["method"] == ADAPTED:
        accuracies = source.adapted(key["noise"], key["seed"], progress)
        told: dict[str, Any] = {"rate": None, "sve": None, "lsvr": None, "spectrum": None}
    else:
        fitted = NMTune.fit(
            found.views,
            found.labels,
            preset=key["method"],
            seed=key["seed"],
            device=device,
            progress=progress,
        )
        accuracies = {
            kind: float((fitted.predict(x) == found.test_labels).mean())
            for kind, x in found.tests.items()
        }
        values = singular_values(fitted.transform(found.tests[ID]))
        told = {"rate": fitted.rate, "sve": sve(values), "lsvr": lsvr(values)}
        told["spectrum"] = (values / values.sum()).round(8).tolist()
    outside = [value for kind, value in accuracies.items() if kind != ID]
    return {
        "in_domain": accuracies[ID],
        "out_of_domain": float(np.mean(outside)),
        "corruptions": {k: v for k, v in accuracies.items() if k != ID},
        **told,
        "seconds": time.perf_counter() - start,
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Over noise rates, by rate, by corruption; leads are paired by encoder."""
    apart = (by_corruption(rows, data) for (data,) in distinct(rows, "data"))
    return [summary(rows), by_noise(rows), *apart]


def summary(rows: Sequence[Row]) -> Table:
    """Means over noise rates, and over seeds with 95 % t-intervals."""
    lines = []
    for data, tune, method in distinct(rows, "data", "tune", "method"):
        here = [r for r in rows if (r["data"], r["tune"]) == (data, tune)]
        found = [r for r in here if r["method"] == method]
        seeds = str(len(distinct(found, "seed")))
        lines.append((data, f"{tune:,}", method, seeds, *_cells(here, found)))
    head = ("data", "tuned on", "method", "seeds", *_HEAD)
    return Table(head, tuple(lines), "Over all noise rates")


def by_noise(rows: Sequence[Row]) -> Table:
    """The same for every noise rate, of data that have several."""
    several = {d for (d,) in distinct(rows, "data") if len(_noises(rows, d)) > 1}
    lines = []
    for data, tune, noise in sorted(distinct(rows, "data", "tune", "noise")):
        here = [r for r in rows if (r["data"], r["tune"], r["noise"]) == (data, tune, noise)]
        for (method,) in distinct(here, "method") if data in several else ():
            found = [r for r in here if r["method"] == method]
            lines.append((data, f"{noise:g}", f"{tune:,}", method, *_cells(here, found)))
    head = ("data", "noise", "tuned on", "method", *_HEAD)
    return Table(head, tuple(lines), "By noise in pre-training")


def by_corruption(rows: Sequence[Row], data: str) -> Table:
    """Accuracy of each method by kind of corruption, over all noise rates."""
    here = [r for r in rows if r["data"] == data]
    kinds = tuple(here[0]["corruptions"])
    lines = []
    for tune, method in distinct(here, "tune", "method"):
        found = [r for r in here if (r["tune"], r["method"]) == (tune, method)]
        cells = (_over([(r["seed"], r["corruptions"][k]) for r in found]) for k in kinds)
        lines.append((f"{tune:,}", method, *cells))
    head = ("tuned on", "method", *kinds)
    return Table(head, tuple(lines), f"Out of the domain, {data}, accuracy in % by corruption")


def _noises(rows: Sequence[Row], data: str) -> set[float]:
    return {r["noise"] for r in rows if r["data"] == data}


_HEAD = (
    *("in-domain %", "out-of-domain %", "ahead of linear, in", "ahead of linear, out"),
    *("SVE", "LSVR", "rates chosen", "seconds"),
)


def _cells(here: Sequence[Row], found: Sequence[Row]) -> tuple[str, ...]:
    """Numbers of one method's rows; here: those of all methods in the same setting."""
    base = {(r["noise"], r["seed"]): r for r in here if r["method"] == "linear"}
    pairs = [(r, base[r["noise"], r["seed"]]) for r in found if (r["noise"], r["seed"]) in base]
    accuracies, leads = [], []
    for name in ("in_domain", "out_of_domain"):
        accuracies.append(_over([(r["seed"], r[name]) for r in found]))
        ahead = [(r["seed"], r[name] - b[name]) for r, b in pairs if r is not b]
        leads.append(_over(ahead, form="+.2f"))
    spectra = [
        _over([(r["seed"], r[k]) for r in found], form=".3f", scale=1) for k in ("sve", "lsvr")
    ]
    chosen = sorted({r["rate"] for r in found if r["rate"] is not None})
    rates = ", ".join(f"{rate:g}" for rate in chosen) or "–"
    seconds = _over([(r["seed"], r["seconds"]) for r in found], form=".0f", scale=1)
    return (*accuracies, *leads, *spectra, rates, seconds)


def _over(
    values: Sequence[tuple[int, float | None]], *, form: str = ".1f", scale: float = 100
) -> str:
    """Values by seed: the mean of every seed, then the mean over seeds with its interval."""
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    return mean((float(np.mean(v)) for v in by_seed.values()), form=form, scale=scale)


def spectra_page(rows: Sequence[Row]) -> str:
    """Singular spectra of in-domain test features: the encoders by noise, and heads on them."""
    plots = []
    first = next((r["seed"] for r in rows), None)
    shown = [r for r in rows if r["seed"] == first and r["spectrum"]]
    for data, tune, noise in distinct(shown, "data", "tune", "noise"):
        here = [r for r in shown if (r["data"], r["tune"], r["noise"]) == (data, tune, noise)]
        curves = {
            "features" if r["method"] == "linear" else r["method"]: np.array(r["spectrum"])
            for r in here
        }
        plots.append((f"{data}, {tune:,} samples, noise {noise:g}, seed {first}", curves))
    return page("Singular spectra", plots)
