"""Documents of the benchmark: news articles with summaries, and text from another source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expunge._core.rng import generator
from expunge.errors import DataError
from expunge.text.sentences import split_sentences
from expunge_bench.news import ARTICLES, read_articles
from expunge_bench.text_noise.faults import untokenized

# A background document ends with the line that makes it longer than this.
MIN_DOCUMENT_CHARACTERS = 1_800


@dataclass(frozen=True)
class Corpus:
    """News articles with summaries, and two texts of another source.

    Parameters
    ----------
    name
        The value of the column ``data``.
    in_domain
        Clean articles to fit on.
    background
        Documents of another source to fit on.
    stray_lines
        Lines of yet another text; stray sentences are drawn from them.
    documents, summaries, categories
        The articles that are measured.
    other_articles
        Category and text of the test articles that are not measured; of all, if all are.
    """

    name: str
    in_domain: list[str]
    background: list[str]
    stray_lines: list[str]
    documents: list[str]
    summaries: list[str]
    categories: list[str]
    other_articles: list[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path, *, train: int | None, documents: int | None, seed: int) -> Corpus:
        """Draw a part of the articles by the seed.

        Parameters
        ----------
        folder
            Holds ``bbc_news_summary/{train,test}.parquet`` and ``wikitext2/{valid,test}.txt``.
        train
            The number of articles to fit on, and the largest number of background documents; all,
            if None.
        documents
            The number of articles to measure on; all, if None.
        seed
            Seed of the draw.

        Raises
        ------
        DataError
            If a file cannot be read.
        """
        fitted, measured = (
            [
                row
                for row in read_articles(folder / ARTICLES, part)
                if len(split_sentences(row["document"])) > 1
            ]
            for part in _PARTS
        )
        background = join_lines(_read_lines(folder, "valid"))
        order = generator(seed, "articles", "train").permutation(len(fitted))[:train]
        chosen = generator(seed, "articles", "test").permutation(len(measured))
        drawn = generator(seed, "articles", "background").permutation(len(background))[:train]
        rows = [measured[i] for i in chosen[:documents]]
        others = [measured[i] for i in chosen[documents:]] if documents else rows
        return cls(
            "bbc",
            [fitted[i]["document"] for i in order],
            [background[i] for i in drawn],
            _read_lines(folder, "test"),
            [row["document"] for row in rows],
            [row["summary"] for row in rows],
            [row["category"] for row in rows],
            [(row["category"], row["document"]) for row in others],
        )


_PARTS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def _read_lines(folder: Path, part: str) -> list[str]:
    file = folder / "wikitext2" / f"{part}.txt"
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(
            f"cannot be read: {error}",
            where=str(file),
            fix="--data FOLDER: one that holds wikitext2",
        ) from error


def join_lines(lines: Sequence[str]) -> list[str]:
    """Documents about as long as an article, from lines of WikiText without its headings."""
    documents, part = [], ""
    for line in map(untokenized, lines):
        if line and not line.startswith("="):
            part += line + "\n"
        if len(part) > MIN_DOCUMENT_CHARACTERS:
            documents.append(part)
            part = ""
    return [*documents, part] if part else documents
