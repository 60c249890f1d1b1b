"""Commands that find and remove noise in documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from expunge.cli.terminal import Device, Json, err_console, out_console, print_json, progress, text
from expunge.text.documents import COLUMN, Document, Source, batched, line_of, writing
from expunge.text.encoders import BUNDLED, HuggingFaceEncoder
from expunge.text.filters import TextNoiseFilter, TextScores


class ScoreKind(StrEnum):
    """Scores of sentences: ours, the published one, and that one without a background."""

    combined = "combined"
    relative = "relative"
    plain = "plain"


class Unit(StrEnum):
    """What a published score is about."""

    sentence = "sentence"
    leave_one_sentence_out = "leave-one-sentence-out"
    leave_one_token_out = "leave-one-token-out"


class Bad(StrEnum):
    """What is done about a record that cannot be used."""

    fail = "fail"
    skip = "skip"


Documents = Annotated[
    Path, typer.Argument(help="A .txt, .jsonl or .parquet file, or a folder of such.")
]
FilterFolder = Annotated[Path, typer.Option("--filter", help="What `expunge text fit` made.")]
Column = Annotated[str, typer.Option(help="The field of JSON and Parquet that holds the text.")]
Lines = Annotated[
    bool, typer.Option("--lines", help="A text file has a document a line; else it is one.")
]
BadRecords = Annotated[Bad, typer.Option("--bad", help="Records that hold no text.")]
Quantile = Annotated[
    float | None, typer.Option(help="Of clean sentences' scores, above which one is noise.")
]
TextOut = Annotated[Path | None, typer.Option("--out", help="A file; stdout if there is none.")]
# Documents that are read, encoded and written at a time.
TOGETHER = 32


@text.command("fit")
def text_fit(
    documents: Annotated[list[Path], typer.Argument(help="Clean documents of the domain.")],
    background: Annotated[list[Path], typer.Option(help="Other text: files or folders.")],
    out: Annotated[Path, typer.Option(help="The folder of the filter.")],
    encoder: Annotated[
        str, typer.Option(help="The bundled one, a folder, or a name on the Hub.")
    ] = BUNDLED,
    kind: Annotated[ScoreKind, typer.Option(help="Of score.")] = ScoreKind.combined,
    granularity: Annotated[Unit, typer.Option(help="Of a published score.")] = Unit.sentence,
    quantile: Quantile = 0.99,
    column: Column = COLUMN,
    lines: Lines = False,
    bad: BadRecords = Bad.fail,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Draws the documents held out.")] = 0,
    as_json: Json = False,
) -> None:
    """Learn from clean documents what belongs there, and from others what does not."""
    source = _source(column, lines, bad)
    inside = [d.text for path in documents for d in source.read(path)]
    others = [d.text for path in background for d in source.read(path)]
    with progress() as show:
        fitted = TextNoiseFilter.fit(
            inside,
            others,
            encoder=HuggingFaceEncoder.of(encoder, device=device),
            kind=kind.value,
            granularity=granularity.value,
            quantile=0.99 if quantile is None else quantile,
            seed=seed,
            progress=show,
        )
    fitted.save(out)
    facts = {"filter": str(out), "documents": len(inside), "background": len(others)}
    facts["threshold"] = fitted.threshold
    if as_json:
        print_json(facts)
    else:
        typer.echo(
            f"{out}: {kind.value} score of {len(inside):,} documents and {len(others):,} others, "
            f"noise above {fitted.threshold:.3f}"
        )


@text.command("score")
def text_score(
    documents: Documents,
    filter_: FilterFolder,
    out: TextOut = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Scores of tokens too.")] = False,
    quantile: Quantile = None,
    column: Column = COLUMN,
    lines: Lines = False,
    bad: BadRecords = Bad.fail,
    device: Device = "cpu",
) -> None:
    """JSON lines: every document's sentences with their offsets and scores, in order."""
    noise = TextNoiseFilter.load(filter_, device=device).using(quantile=quantile)
    if out is not None and out.suffix not in (".jsonl", ".ndjson"):
        raise typer.BadParameter(f"scores are JSON lines: --out FILE.jsonl, not {out}")
    with nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8") as stream:
        for document, scores in _scored(documents, noise, _source(column, lines, bad)):
            facts = _facts(document, scores, tokens=tokens)
            stream.write(json.dumps(facts, ensure_ascii=False) + "\n")


@text.command("clean")
def text_clean(
    documents: Documents,
    filter_: FilterFolder,
    out: TextOut = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show what is removed, in red; writes only to --out.")
    ] = False,
    quantile: Quantile = None,
    column: Column = COLUMN,
    lines: Lines = False,
    bad: BadRecords = Bad.fail,
    device: Device = "cpu",
) -> None:
    """The documents without noise, in their format and order; all else stays as it is."""
    noise = TextNoiseFilter.load(filter_, device=device).using(quantile=quantile)
    counts = {"documents": 0, "sentences": 0, "removed": 0, "emptied": 0}
    with (
        nullcontext(None) if out is None else writing(documents, out, column=column, lines=lines)
    ) as write:
        for document, scores in _scored(documents, noise, _source(column, lines, bad)):
            removed = int(scores.noise.sum())
            counts["documents"] += 1
            counts["sentences"] += len(scores.scores)
            counts["removed"] += removed
            counts["emptied"] += removed > 0 and removed == len(scores.scores)
            if show:
                _show_removed(document, scores)
            if write is not None:
                write(document, scores.cleaned)
            elif not show:
                sys.stdout.write(line_of(document, scores.cleaned, column=column, lines=lines))
    typer.echo(
        f"{counts['documents']:,} documents, {counts['removed']:,} of {counts['sentences']:,} "
        f"sentences removed; nothing left of {counts['emptied']:,}",
        err=True,
    )


def _source(column: str, lines: bool, bad: Bad) -> Source:
    def skipped(message: str) -> None:
        err_console.print(f"skipped: {message}", style="yellow", markup=False, soft_wrap=True)

    return Source(column, lines, skipped if bad is Bad.skip else None)


def _scored(
    path: Path, noise: TextNoiseFilter, source: Source
) -> Iterator[tuple[Document, TextScores]]:
    """Every document with its scores, a few in memory at a time."""
    for batch in batched(source.read(path), TOGETHER):
        yield from zip(batch, noise.score_all([d.text for d in batch]), strict=True)


def _facts(document: Document, scores: TextScores, *, tokens: bool) -> dict[str, Any]:
    rows = zip(
        scores.sentences.tolist(), scores.scores.tolist(), scores.noise.tolist(), strict=True
    )
    facts: dict[str, Any] = {"where": document.where}
    if "id" in document.record:
        facts["id"] = document.record["id"]
    facts["threshold"] = scores.threshold
    facts["sentences"] = [{"start": a, "end": b, "score": s, "noise": n} for (a, b), s, n in rows]
    if tokens:
        pairs = zip(scores.tokens.tolist(), scores.token_scores.tolist(), strict=True)
        facts["tokens"] = [{"start": a, "end": b, "score": s} for (a, b), s in pairs]
    return facts


def _show_removed(document: Document, scores: TextScores) -> None:
    """The text with what is removed struck out in red, or ``[-so-]`` where there is no colour."""
    marks = ("", "") if out_console.is_terminal else ("[-", "-]")
    whole = scores.text.replace("\x1b", "␛")  # a document gives the terminal no orders
    view, last = Text(), 0
    for (start, end), gone in zip(scores.sentences.tolist(), scores.noise.tolist(), strict=True):
        view.append(whole[last:start])
        piece = whole[start:end]
        view.append(f"{marks[0]}{piece}{marks[1]}" if gone else piece, "red strike" if gone else "")
        last = end
    view.append(whole[last:])
    out_console.rule(Text(document.where, style="dim"))
    out_console.print(view, soft_wrap=True)
