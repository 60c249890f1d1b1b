"""`expunge bench text-noise`: noise in documents, found, removed, and what summaries gain by it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from expunge._core.progress import Progress, silent
from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError, did_you_mean
from expunge.evaluation import metrics
from expunge.storage.hashing import digest
from expunge.text.characters import CharacterModel
from expunge.text.encoders import Encoder, TokenStates
from expunge.text.filter_files import SETTINGS_FILE
from expunge.text.filters import HELD_OUT_FRACTION, TextNoiseFilter
from expunge.text.published import Granularity
from expunge.text.scores import ScoreKind, TextScores
from expunge.text.sentences import split_sentences
from expunge.text.summarisers import centroid, lead, rouge
from expunge_bench.suites import ResultStore, Row, Table, distinct, mean
from expunge_bench.text_faults import (
    AMOUNTS,
    NoisyText,
    inject,
    pieces,
    strays,
    tokens,
    untokenized,
)

KEYS = ("data", "train", "documents", "encoder", "fault", "amount", "method", "seed")
# Sentences of another category are of the same source: in-domain by construction, so reported only.
FAULTS = ("code", "url", "emoji", "sentence", "other-category")
PUBLISHED: Mapping[str, tuple[ScoreKind, Granularity]] = {
    "relative": ("relative", "sentence"),
    "plain": ("plain", "sentence"),
    "leave-one-sentence-out": ("relative", "leave-one-sentence-out"),
    "leave-one-token-out": ("relative", "leave-one-token-out"),
}
METHODS = ("combined", *PUBLISHED, "rules", "perplexity")
# Pieces of noise to draw from, characters of a background document, documents that are timed.
PIECES, LONG, TIMED = 5_000, 1_800, 10
REMEMBERED = 300_000
# A smaller drop of ROUGE-1 is none: shares of it mean nothing.
LEAST = 0.01
# What gives a line away to a reader who knows the kinds of noise.
_RULES = re.compile(
    r"\w+://|www\.|[=;{}]\s*$|[\w)\]]\(.*\)|\w\s*[!=+-]?=\s*\S|^\s*(?:def|class|import|from|return|if|"
    r"for|while|else|elif|try|except|raise|with)\b.*:?$|[\U0001F300-\U0001FAFF\u2600-\u27BF]"
)
# A document to its scores.
Method = Callable[[str], TextScores]


@dataclass(frozen=True)
class News:
    """Articles with summaries and a category, and two texts of another source.

    in_domain: clean, for fitting. background: other text, for fitting. strays: yet other text,
    that stray sentences are drawn from. folder: ``bbc_news_summary/{train,test}.parquet`` and
    ``wikitext2/{valid,test}.txt`` lie in it.
    """

    name: str
    in_domain: list[str]
    background: list[str]
    strays: list[str]
    documents: list[str]
    summaries: list[str]
    categories: list[str]
    others: list[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path, *, train: int | None, documents: int | None, seed: int) -> News:
        """A part of the articles, drawn by the seed; all of them if there is no number.

        train: articles to fit on, and background documents at most.
        """
        try:
            tables = [
                pq.read_table(folder / "bbc_news_summary" / f"{part}.parquet")
                for part in ("train", "test")
            ]
            valid, test = (
                (folder / "wikitext2" / f"{part}.txt").read_text(encoding="utf-8").split("\n")
                for part in ("valid", "test")
            )
        except OSError as error:
            raise DataError(
                f"cannot be read: {error}", where=str(folder), fix="--data FOLDER with both"
            ) from error
        fitted, measured = (
            [row for row in table.to_pylist() if len(split_sentences(row["document"])) > 1]
            for table in tables
        )
        order = generator(seed, "articles", "train").permutation(len(fitted))[:train]
        chosen = generator(seed, "articles", "test").permutation(len(measured))
        others = articles(valid)
        apart = generator(seed, "articles", "background").permutation(len(others))[:train]
        rows = [measured[i] for i in chosen[:documents]]
        rest = [measured[i] for i in chosen[documents:]] if documents else rows
        return cls(
            "bbc",
            [fitted[i]["document"] for i in order],
            [others[i] for i in apart],
            test,
            [row["document"] for row in rows],
            [row["summary"] for row in rows],
            [row["category"] for row in rows],
            [(row["category"], row["document"]) for row in rest],
        )


@dataclass
class Remembering:
    """An encoder that encodes the same text once; several methods read the same documents.

    What it remembers is forgotten when it has grown to `REMEMBERED` tokens.
    """

    encoder: Encoder
    known: dict[str, TokenStates] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        if sum(len(one.states) for one in self.known.values()) > REMEMBERED:
            self.known.clear()
        missing = [t for t in dict.fromkeys(texts) if t not in self.known]
        self.known.update(zip(missing, self.encoder(missing) if missing else [], strict=True))
        return [self.known[t] for t in texts]


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
) -> list[dict[str, Any]]:
    """One row for each fault, amount, method and seed; rows that ``out`` holds are not made again.

    Fitted filters stay in ``out/filters``. Writes ``rows.jsonl``, ``table.md``, ``table.html``.
    No method but the rules knows what kinds of noise there are, and all have one setting for all.
    """
    for names, known in ((faults, FAULTS), (methods, METHODS)):
        for name in names:
            if name not in known:
                raise ConfigError(f"there is no '{name}'", fix=did_you_mean(name, known))
    ledger = ResultStore(out, KEYS)
    for seed in seeds:
        news = News.read(folder, train=train, documents=documents, seed=seed)
        sizes = {"train": len(news.in_domain), "documents": len(news.documents)}
        told = {"data": news.name, **sizes, "encoder": encoder_name, "seed": seed}
        remembering = Remembering(encoder)
        shared: dict[tuple[Any, ...], dict[str, float | None]] = {}
        for fault, amount in product(faults, amounts):
            keys = [{**told, "fault": fault, "amount": amount, "method": m} for m in methods]
            wanted = [key for key in keys if key not in ledger]
            if wanted:
                noisy = spoiled(news, fault, amount, seed)
                case = Case(news, remembering, told, fault, amount, noisy, out, shared, progress)
            for number, key in enumerate(wanted):
                progress(f"{fault} {amount:g}", number, len(wanted))
                ledger.add({**key, **measured(case, str(key["method"]))})
    rows = ledger.rows()
    ledger.write("Noise in text", command, tables(rows))
    return rows


@dataclass(frozen=True)
class Case:
    """What every method is measured on."""

    news: News
    encoder: Remembering
    told: Mapping[str, Any]
    fault: str
    amount: float
    noisy: list[NoisyText]
    out: Path
    # What several methods or kinds of noise have in common.
    shared: dict[tuple[Any, ...], dict[str, float | None]]
    progress: Progress

    def once(
        self,
        key: tuple[Any, ...],
        make: Callable[[], Mapping[str, float | None]],
        *,
        keep: bool = True,
    ) -> dict[str, float | None]:
        """What was made under that key before, or is made now."""
        found = self.shared.get(key) or dict(make())
        if keep:
            self.shared[key] = found
        return found

    def method(self, name: str, encoder: Encoder) -> Method:
        """A method by name; fitted on clean text, without the noise and the truth about it."""
        if name == "rules":
            return rules
        if name == "perplexity":
            return perplexity(self.news.in_domain, self.told["seed"])
        kind, granularity = PUBLISHED.get(name, ("combined", "sentence"))
        return self._filter(kind, encoder).with_settings(kind=kind, granularity=granularity).score

    def _filter(self, kind: ScoreKind, encoder: Encoder) -> TextNoiseFilter:
        """Fitted once and kept; known by all that it depends on."""
        first: ScoreKind = "combined" if kind == "combined" else "relative"
        texts = {"inside": self.news.in_domain, "background": self.news.background}
        fitted = {k: v for k, v in self.told.items() if k != "documents"}
        folder = self.out / "filters" / f"{first}-{digest({**fitted, **texts})[:16]}"
        if not (folder / SETTINGS_FILE).exists():  # written last
            TextNoiseFilter.fit(
                *texts.values(),
                encoder=self.encoder.encoder,
                kind=first,
                seed=self.told["seed"],
                progress=self.progress,
            ).save(folder)
        return TextNoiseFilter.load(folder, encoder=encoder)


def measured(case: Case, name: str) -> dict[str, float | None]:
    """Every number of a row: detection, false alarms, ROUGE, cost."""
    method = case.method(name, case.encoder)
    found = [method(one.text) for one in case.noisy]
    texts = {
        "clean": case.news.documents,
        "noisy": [one.text for one in case.noisy],
        "filtered": [scores.cleaned for scores in found],
        "oracle": [oracle(one) for one in case.noisy],
    }
    return {
        **detection(found, case.noisy, by_token=name == "leave-one-token-out"),
        **case.once(("clean", name), lambda: on_clean(case, name)),
        **rouges(case, texts),
    }


def on_clean(case: Case, name: str) -> dict[str, float | None]:
    """Share of sentences that a method removes from clean articles, and its seconds an article."""
    method = case.method(name, case.encoder)
    wrongly = np.concatenate([method(document).is_noise for document in case.news.documents])
    bare = case.method(name, case.encoder.encoder)
    start = time.perf_counter()
    for document in case.news.documents[:TIMED]:
        bare(document)
    seconds = (time.perf_counter() - start) / len(case.news.documents[:TIMED])
    return {"removed_in_clean": float(wrongly.mean()), "seconds": seconds}


def detection(
    found: Sequence[TextScores], noisy: Sequence[NoisyText], *, by_token: bool
) -> dict[str, float | None]:
    """AUROC pooled over tokens as published, and over sentences; the decision about sentences.

    ``auroc``: tokens share the score of their sentence (or have their own), pooled over documents;
    ``auroc_document``: by document, then the mean. ``auroc_sentence``: pooled over sentences.
    ``removed_clean``: share of clean sentences removed beside the noise. None without two classes.
    """
    truth = [one.noisy(s.sentences) for one, s in zip(noisy, found, strict=True)]
    weights = [_tokens(s) for s in found]
    columns = [(t, s.scores, w) for t, s, w in zip(truth, found, weights, strict=True)]
    if by_token:
        columns = [
            (one.noisy(s.tokens), s.token_scores, np.ones(len(s.tokens)))
            for one, s in zip(noisy, found, strict=True)
        ]
    single = [_auroc(*column) for column in columns]
    pooled = [np.concatenate(part) for part in zip(*columns, strict=True)]
    y, flagged = np.concatenate(truth), np.concatenate([s.is_noise for s in found])
    scores = np.concatenate([s.scores for s in found])
    known = [value for value in single if value is not None]
    return {
        "auroc": _auroc(*pooled),
        "auroc_document": float(np.mean(known)) if known else None,
        "auroc_sentence": _auroc(y, scores, np.ones(len(y))),
        "f1": metrics.f1(y, flagged),
        "precision": float(precision_score(y, flagged, zero_division=0.0)),
        "recall": float(recall_score(y, flagged, zero_division=0.0)),
        "removed_clean": float(flagged[~y].mean()) if not y.all() else None,
        "noise": float(y.mean()),
    }


def rouges(case: Case, texts: Mapping[str, Sequence[str]]) -> dict[str, float | None]:
    """ROUGE of summaries of each version of the documents; the share of the ROUGE-1 drop recovered.

    Summaries have as many words as the references have on average.
    ``recovered = (filtered − noisy) / (clean − noisy)``, None if noise costs less than a point.
    """
    references = case.news.summaries
    size = round(float(np.mean([len(summary.split()) for summary in references])))
    found: dict[str, float | None] = {}
    for label, summariser in {
        "lead": lead(size, unit="words"),
        "centroid": centroid(case.encoder, size, unit="words"),
    }.items():
        first = {}
        for version, documents in texts.items():
            same = () if version == "clean" else (case.fault, case.amount)
            values = case.once(
                (version, label, *same),
                lambda: rouge(summariser(documents), references),  # noqa: B023
                keep=version != "filtered",
            )
            first[version] = values["rouge_1"] or 0.0
            found |= {f"{label}_{version}_{metric}": v for metric, v in values.items()}
        drop = first["clean"] - first["noisy"]
        gain = first["filtered"] - first["noisy"]
        found[f"{label}_recovered"] = gain / drop if drop > LEAST else None
    return found


def spoiled(news: News, fault: str, amount: float, seed: int) -> list[NoisyText]:
    """Every document with that much noise of that kind."""
    drawn: dict[str, list[str]] = {}
    for category in dict.fromkeys(news.categories):
        if fault == "other-category":
            lines = [text for other, text in news.others if other != category]
            drawn[category] = strays(lines, PIECES, seed=seed)
        elif drawn:
            drawn[category] = next(iter(drawn.values()))
        else:
            drawn[category] = pieces(fault, PIECES, seed=seed, strays_from=news.strays)  # type: ignore[arg-type]
    return [
        inject(document, drawn[category], amount=amount, seed=seed, name=number)
        for number, (document, category) in enumerate(
            zip(news.documents, news.categories, strict=True)
        )
    ]


def oracle(one: NoisyText) -> str:
    """The text without its noise, known from the truth."""
    spans = split_sentences(one.text)
    return _scores(one.text, one.noisy(spans).astype(np.float64), 0.5).cleaned


def rules(document: str) -> TextScores:
    """Whether a regular expression for links, code and emoji matches a sentence."""
    spans = split_sentences(document)
    found = [bool(_RULES.search(document[a:b])) for a, b in spans.tolist()]
    return _scores(document, np.array(found, dtype=np.float64), 0.5)


def perplexity(documents: Sequence[str], seed: int) -> Method:
    """Mean surprise of a sentence's characters under n-grams of the domain.

    The threshold is the 99th percentile in a fifth of the documents, which were held out.
    """
    order = generator(seed, "perplexity").permutation(len(documents))
    apart = max(1, round(HELD_OUT_FRACTION * len(documents)))
    model = CharacterModel.fit([documents[i] for i in order[apart:]])

    def score(document: str) -> np.ndarray:
        total = np.r_[0.0, np.cumsum(model.surprisal(document))]
        start, end = split_sentences(document).T
        return (total[end] - total[start]) / np.maximum(end - start, 1)

    usual = np.concatenate([score(documents[i]) for i in order[:apart]])
    threshold = float(np.quantile(usual, 0.99))
    return lambda document: _scores(document, score(document), threshold)


def articles(lines: Sequence[str]) -> list[str]:
    """Documents about as long as an article, from lines of WikiText without headings and marks."""
    found, part = [], ""
    for line in map(untokenized, lines):
        if line and not line.startswith("="):
            part += line + "\n"
        if len(part) > LONG:
            found.append(part)
            part = ""
    return [*found, part] if part else found


def tables(rows: Sequence[Row]) -> list[Table]:
    """Detection, and summaries by each summariser: means over seeds with 95 % t-intervals."""
    found, summaries = [], []
    groups = distinct(rows, "fault", "amount", "method", "documents")
    for fault, amount, method, documents in groups:
        here = [
            r
            for r in rows
            if (r["fault"], r["amount"], r["method"], r["documents"])
            == (fault, amount, method, documents)
        ]

        def over(name: str, form: str = ".3f") -> str:
            return mean((r[name] for r in here), form=form)  # noqa: B023

        label = (fault, f"{amount:g}", method)
        numbers = ("auroc", "auroc_document", "auroc_sentence", "f1", "precision", "recall")
        alarms = ("removed_clean", "removed_in_clean")
        cost = (over("seconds"), str(documents), str(len(here)))
        found.append((*label, *(over(n) for n in (*numbers, *alarms)), *cost))
        for summariser in ("lead", "centroid"):
            versions = ("clean", "noisy", "filtered", "oracle")
            cells = [
                " / ".join(over(f"{summariser}_{v}_rouge_{k}") for k in ("1", "2", "l"))
                for v in versions
            ]
            summaries.append((*label, summariser, *cells, over(f"{summariser}_recovered")))
    head = ("noise", "amount", "method", "AUROC", "by document", "by sentence", "F1", "precision")
    more = ("recall", "clean removed", "in clean texts", "seconds", "documents", "seeds")
    tail = ("clean", "noisy", "filtered", "oracle", "R-1 recovered")
    return [
        Table((*head, *more), tuple(found), "Detection"),
        Table(
            ("noise", "amount", "method", "summary", *tail),
            tuple(summaries),
            "ROUGE-1 / 2 / L of summaries",
        ),
    ]


def _scores(document: str, scores: np.ndarray, threshold: float) -> TextScores:
    nothing, nowhere = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    return TextScores(document, split_sentences(document), scores, nowhere, nothing, threshold)


def _tokens(scores: TextScores) -> np.ndarray:
    """How many words and signs every sentence has, one at least."""
    parts = [scores.text[a:b] for a, b in scores.sentences.tolist()]
    return np.array([max(1, tokens(part)) for part in parts], dtype=np.float64)


def _auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float | None:
    if not truth.any() or truth.all():
        return None
    return float(roc_auc_score(truth, scores, sample_weight=weights))
