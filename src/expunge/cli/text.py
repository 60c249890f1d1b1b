"""Commands that detect and remove noise in documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from expunge.cli.terminal import (
    Device,
    Json,
    echo,
    err_console,
    out_console,
    print_json,
    progress,
    show,
    text,
    write_text,
)
from expunge.errors import printable
from expunge.storage.atomic_files import new_file, require_other_file
from expunge.text.documents import (
    COLUMN,
    Document,
    DocumentReader,
    document_writer,
    format_record,
    in_batches,
)
from expunge.text.encoders import BUNDLED, HuggingFaceEncoder
from expunge.text.filters import TextNoiseFilter
from expunge.text.scores import TextScores


class ScoreName(StrEnum):
    """Scores of sentences: ours, the published one, and the published one without background."""

    combined = "combined"
    relative = "relative"
    plain = "plain"


class GranularityName(StrEnum):
    """What a published score is computed for."""

    sentence = "sentence"
    leave_one_sentence_out = "leave-one-sentence-out"
    leave_one_token_out = "leave-one-token-out"


class OnError(StrEnum):
    """What to do with a record that cannot be used."""

    fail = "fail"
    skip = "skip"


Documents = Annotated[
    Path,
    typer.Argument(help="Documents: a .txt, .jsonl or .parquet file, or a folder of such files."),
]
FilterFolder = Annotated[
    Path, typer.Option("--filter", help="The filter: a folder that `expunge text fit` wrote.")
]
Column = Annotated[str, typer.Option(help="Name of the field with the text, in JSON and Parquet.")]
OneDocPerLine = Annotated[
    bool,
    typer.Option(
        "--one-doc-per-line",
        help="Read each line of a text file as one document. By default the file is one document.",
    ),
]
ErrorAction = Annotated[
    OnError,
    typer.Option("--on-error", help="Stop at a record without text (fail), or skip it and warn."),
]
Quantile = Annotated[
    float | None,
    typer.Option(
        help="Quantile, in (0, 1), of the scores of clean sentences: a sentence with a higher "
        "score is noise."
    ),
]
TextOut = Annotated[
    Path | None, typer.Option("--out", help="File to write. By default the result goes to stdout.")
]
# Documents that are read, encoded and written at once.
BATCH_SIZE = 32


@text.command("fit")
def text_fit(
    documents: Annotated[
        list[Path], typer.Argument(help="Clean documents of the domain: files or folders.")
    ],
    background: Annotated[
        list[Path],
        typer.Option(help="Documents of general text, outside the domain: files or folders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the filter to.")],
    encoder: Annotated[
        str,
        typer.Option(help="Encoder: the bundled one, a folder, or a name on the Hugging Face Hub."),
    ] = BUNDLED,
    kind: Annotated[
        ScoreName,
        typer.Option(help="Score: ours (combined), or a published one (relative or plain)."),
    ] = ScoreName.combined,
    granularity: Annotated[
        GranularityName, typer.Option(help="What a published score is computed for.")
    ] = GranularityName.sentence,
    quantile: Quantile = 0.99,
    column: Column = COLUMN,
    one_doc_per_line: OneDocPerLine = False,
    on_error: ErrorAction = OnError.fail,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Random seed that draws the held-out documents.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a filter to clean documents of a domain and to general text."""
    reader = _reader(column, one_doc_per_line, on_error)
    in_domain = [d.text for path in documents for d in reader.read(path)]
    others = [d.text for path in background for d in reader.read(path)]
    with progress() as show:
        fitted = TextNoiseFilter.fit(
            in_domain,
            others,
            encoder=HuggingFaceEncoder.from_pretrained(encoder, device=device),
            kind=kind.value,
            granularity=granularity.value,
            quantile=0.99 if quantile is None else quantile,
            seed=seed,
            progress=show,
        )
    fitted.save(out)
    facts = {"filter": str(out), "documents": len(in_domain), "background": len(others)}
    facts["threshold"] = fitted.threshold
    if as_json:
        print_json(facts)
    else:
        echo(
            f"{out}: {kind.value} score, fitted to {len(in_domain):,} documents and "
            f"{len(others):,} of the background; noise is above {fitted.threshold:.3f}"
        )


@text.command("score")
def text_score(
    documents: Documents,
    filter_: FilterFolder,
    out: TextOut = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Write the scores of tokens too."),
    ] = False,
    quantile: Quantile = None,
    column: Column = COLUMN,
    one_doc_per_line: OneDocPerLine = False,
    on_error: ErrorAction = OnError.fail,
    device: Device = "cpu",
) -> None:
    """Write the offsets and scores of all sentences, as JSON lines, one a document."""
    noise = TextNoiseFilter.load(filter_, device=device).with_settings(quantile=quantile)
    if out is not None and out.suffix not in (".jsonl", ".ndjson"):
        raise typer.BadParameter(f"expected --out FILE.jsonl (scores are JSON lines), got {out}")
    if out is not None:
        require_other_file(out, documents)
    with _score_stream(out) as write:
        for document, scores in _scored(
            documents, noise, _reader(column, one_doc_per_line, on_error)
        ):
            facts = _facts(document, scores, tokens=tokens)
            write(json.dumps(facts, ensure_ascii=False) + "\n")


@text.command("clean")
def text_clean(
    documents: Documents,
    filter_: FilterFolder,
    out: TextOut = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Show the documents with their noise in red; stdout gets no documents."
        ),
    ] = False,
    quantile: Quantile = None,
    column: Column = COLUMN,
    one_doc_per_line: OneDocPerLine = False,
    on_error: ErrorAction = OnError.fail,
    device: Device = "cpu",
) -> None:
    """Remove the noise of documents; all else keeps every byte, the format and the order."""
    noise = TextNoiseFilter.load(filter_, device=device).with_settings(quantile=quantile)
    counts = {"documents": 0, "sentences": 0, "removed": 0, "emptied": 0}
    with (
        nullcontext(None)
        if out is None
        else document_writer(documents, out, column=column, one_doc_per_line=one_doc_per_line)
    ) as write:
        for document, scores in _scored(
            documents, noise, _reader(column, one_doc_per_line, on_error)
        ):
            removed = int(scores.is_noise.sum())
            counts["documents"] += 1
            counts["sentences"] += len(scores.scores)
            counts["removed"] += removed
            counts["emptied"] += removed > 0 and removed == len(scores.scores)
            if show:
                _show_removed(document, scores)
            if write is not None:
                write(document, scores.cleaned)
            elif not show:
                record = format_record(
                    document, scores.cleaned, column=column, one_doc_per_line=one_doc_per_line
                )
                write_text(record)
    echo(
        f"{counts['documents']:,} documents, {counts['removed']:,} of {counts['sentences']:,} "
        f"sentences removed; {counts['emptied']:,} documents are empty now",
        err=True,
    )


@contextmanager
def _score_stream(out: Path | None) -> Iterator[Callable[[str], object]]:
    """Stdout, or a file that appears when all is written."""
    if out is None:
        yield write_text
        return
    with new_file(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream.write


def _reader(column: str, one_doc_per_line: bool, on_error: OnError) -> DocumentReader:
    def warn(message: str) -> None:
        show(f"skipped: {message}", err_console, style="yellow", soft_wrap=True)

    return DocumentReader(column, one_doc_per_line, warn if on_error is OnError.skip else None)


def _scored(
    path: Path, noise: TextNoiseFilter, reader: DocumentReader
) -> Iterator[tuple[Document, TextScores]]:
    """Score documents in batches; yield each with its scores."""
    for batch in in_batches(reader.read(path), BATCH_SIZE):
        yield from zip(batch, noise.score_all([d.text for d in batch]), strict=True)


def _facts(document: Document, scores: TextScores, *, tokens: bool) -> dict[str, Any]:
    rows = zip(
        scores.sentences.tolist(), scores.scores.tolist(), scores.is_noise.tolist(), strict=True
    )
    facts: dict[str, Any] = {"where": document.where}
    if "id" in document.record:
        facts["id"] = document.record["id"]
    facts["threshold"] = scores.threshold
    facts["sentences"] = [
        {"start": a, "end": b, "score": s, "is_noise": n} for (a, b), s, n in rows
    ]
    if tokens:
        pairs = zip(scores.tokens.tolist(), scores.token_scores.tolist(), strict=True)
        facts["tokens"] = [{"start": a, "end": b, "score": s} for (a, b), s in pairs]
    return facts


def _show_removed(document: Document, scores: TextScores) -> None:
    """Print a text with its noise struck out in red, or as ``[-noise-]`` without colour."""
    marks = ("", "") if out_console.is_terminal else ("[-", "-]")
    whole, view, last = scores.text, Text(), 0
    for (start, end), removed in zip(
        scores.sentences.tolist(), scores.is_noise.tolist(), strict=True
    ):
        view.append(printable(whole[last:start]))
        piece = printable(whole[start:end])
        view.append(
            f"{marks[0]}{piece}{marks[1]}" if removed else piece, "red strike" if removed else ""
        )
        last = end
    view.append(printable(whole[last:]))
    out_console.rule(Text(printable(document.where), style="dim"))
    show(view, out_console, soft_wrap=True)
