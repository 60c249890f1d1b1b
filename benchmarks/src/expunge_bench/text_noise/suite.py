"""The rows of the benchmark: documents with noise, every method on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.text.encoders import Encoder
from expunge_bench.results import Row
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.text_noise.corpus import Corpus
from expunge_bench.text_noise.faults import (
    AMOUNTS,
    NoisyText,
    inject,
    noise_pieces,
    stray_sentences,
)
from expunge_bench.text_noise.measures import measure_detection, measure_summaries
from expunge_bench.text_noise.methods import (
    METHODS,
    CachingEncoder,
    MethodFactory,
    remove_true_noise,
)
from expunge_bench.text_noise.tables import tables
from expunge_bench.timing import timed

# "other-category": sentences of other news categories. They are in-domain by construction.
FAULTS = ("code", "url", "emoji", "sentence", "other-category")
N_NOISE_PIECES, N_TIMED_DOCUMENTS = 5_000, 10
SUITE = Suite(
    "Noise in text",
    ("data", "train", "documents", "encoder", "fault", "amount", "method", "seed"),
    tables,
)
Measures = Mapping[str, float | None]


def bench(
    folder: Path,
    *,
    encoder: Encoder,
    encoder_name: str,
    faults: Sequence[str] = FAULTS,
    amounts: Sequence[float] = AMOUNTS,
    methods: Sequence[str] = METHODS,
    train: int | None = None,
    documents: int | None = None,
    seeds: Sequence[int] = (0,),
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each fault, amount, method and seed.

    Parameters
    ----------
    folder
        Holds ``bbc_news_summary`` and ``wikitext2``.
    encoder, encoder_name
        The sentence encoder, and its value in the column ``encoder``.
    faults, amounts
        Kinds of noise, and its fractions of all tokens.
    methods
        Names among `METHODS`. Only ``rules`` knows the kinds of noise; each method has one setting
        for all of them.
    train, documents, seeds
        See `Corpus.read`.
    out
        Where filters, rows and tables go.
    command, progress
        The command line, for the page; called during the work.

    Raises
    ------
    ConfigError
        If a fault or a method is unknown.
    DataError
        If the folder cannot be read.
    """
    check_names("fault", faults, FAULTS)
    check_names("method", methods, METHODS)

    def groups() -> Iterable[RowGroup]:
        for seed in seeds:
            corpus = Corpus.read(folder, train=train, documents=documents, seed=seed)
            fitted = {"train": len(corpus.in_domain), "encoder": encoder_name, "seed": seed}
            fitted_key = {"data": corpus.name, **fitted}
            factory = MethodFactory(corpus, fitted_key, out / "filters", encoder, progress)
            documents_of_seed = _Documents(corpus, factory, CachingEncoder(encoder), {})
            for fault, amount in product(faults, amounts):
                shared = {**fitted_key, "documents": len(corpus.documents)}
                shared |= {"fault": fault, "amount": amount}
                keys = [SUITE.key({**shared, "method": method}) for method in methods]
                rows_of = partial(_rows, documents_of_seed, fault, amount, progress)
                yield RowGroup(keys, rows_of)

    return SUITE.run(groups(), out=out, command=command)


@dataclass(frozen=True)
class _Documents:
    """The documents of one seed, and the measures that methods or kinds of noise share."""

    corpus: Corpus
    factory: MethodFactory
    encoder: CachingEncoder
    shared: dict[tuple[Any, ...], Measures]

    def cached(self, key: tuple[Any, ...], compute: Callable[[], Measures]) -> Measures:
        """The measures with that key, computed on the first call."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]


def _rows(
    documents: _Documents,
    fault: str,
    amount: float,
    progress: Progress,
    missing: Sequence[Row],
) -> Iterable[Row]:
    corpus = documents.corpus
    noisy = corrupt_documents(corpus, fault=fault, amount=amount, seed=missing[0]["seed"])
    for number, key in enumerate(missing):
        progress(f"{fault} {amount:g}", number, len(missing))
        name = key["method"]
        method = documents.factory.make(name, encoder=documents.encoder)
        found = [method(one.text) for one in noisy]
        texts = {
            "clean": corpus.documents,
            "noisy": [one.text for one in noisy],
            "filtered": [scores.cleaned for scores in found],
            "oracle": [remove_true_noise(one) for one in noisy],
        }
        yield {
            **key,
            **measure_detection(found, noisy, by_token=name == "leave-one-token-out"),
            **documents.cached(("clean", name), partial(_measure_clean, documents, name)),
            **measure_summaries(
                texts,
                references=corpus.summaries,
                encoder=documents.encoder,
                cached=partial(_cached_by_version, documents, (fault, amount)),
            ),
        }


def _cached_by_version(
    documents: _Documents,
    noise: tuple[str, float],
    version: str,
    summariser: str,
    compute: Callable[[], Measures],
) -> Measures:
    """Cache what does not depend on the method: all versions of documents but the filtered one."""
    if version == "filtered":
        return compute()
    same_noise = () if version == "clean" else noise
    return documents.cached((version, summariser, *same_noise), compute)


def _measure_clean(documents: _Documents, name: str) -> Measures:
    """The fraction of sentences that a method removes from clean articles; seconds per article."""
    articles, factory = documents.corpus.documents, documents.factory
    method = factory.make(name, encoder=documents.encoder)
    removed = np.concatenate([method(article).is_noise for article in articles])
    uncached = factory.make(name, encoder=factory.encoder)
    timed_articles = articles[:N_TIMED_DOCUMENTS]
    _, seconds = timed(lambda: [uncached(article) for article in timed_articles])
    return {
        "clean_document_fpr": float(removed.mean()),
        "seconds": seconds / len(timed_articles),
    }


def corrupt_documents(corpus: Corpus, *, fault: str, amount: float, seed: int) -> list[NoisyText]:
    """Inject noise of one kind and amount into every measured document."""
    drawn: dict[str, list[str]] = {}
    for category in dict.fromkeys(corpus.categories):
        if fault == "other-category":
            lines = [text for other, text in corpus.other_articles if other != category]
            drawn[category] = stray_sentences(lines, N_NOISE_PIECES, seed=seed)
        elif drawn:
            drawn[category] = next(iter(drawn.values()))
        else:
            drawn[category] = noise_pieces(
                fault, N_NOISE_PIECES, seed=seed, stray_lines=corpus.stray_lines
            )
    return [
        inject(document, drawn[category], amount=amount, seed=seed, name=number)
        for number, (document, category) in enumerate(
            zip(corpus.documents, corpus.categories, strict=True)
        )
    ]
