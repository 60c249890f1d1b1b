"""The command line: results on stdout, progress on stderr, one line for an error.

Exit codes: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 red flags with --strict.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from expunge import export as exports
from expunge import pipeline, reports, specs
from expunge.benchmarks import cifar, detect, digits, folders, memory, published, text_noise
from expunge.benchmarks import demo as demos
from expunge.benchmarks import repair as repairs
from expunge.benchmarks.fields import Field, Setting, grid
from expunge.data.sources import sources
from expunge.data.views import views
from expunge.detectors import detectors
from expunge.errors import ExpungeError, RunError
from expunge.neurons import rankers
from expunge.partitions import partitioners
from expunge.processes import leave
from expunge.pruners import pruners
from expunge.recipes import recipes
from expunge.registry import Registry
from expunge.related.text.documents import COLUMN, Document, Source, batched, line_of, writing
from expunge.related.text.encoders import BUNDLED, HuggingFaceEncoder
from expunge.related.text.filters import TextNoiseFilter, TextScores
from expunge.tables import Metric, RepairResult

app = typer.Typer(
    help="Repair neural networks that were trained on noisy data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Benchmarks: the only place that knows the truth.", no_args_is_help=True)
app.add_typer(bench, name="bench")
text = typer.Typer(help="Noise in documents: find and remove it.", no_args_is_help=True)
app.add_typer(text, name="text")
out_console = Console()
err_console = Console(stderr=True)

REGISTRIES: dict[str, Registry[Any]] = {
    "recipes": recipes,
    "detectors": detectors,
    "partitions": partitioners,
    "rankers": rankers,
    "pruners": pruners,
    "sources": sources,
    "views": views,
}


class Noise(StrEnum):
    """How the demo's wrong labels are drawn."""

    symmetric = "symmetric"
    pair = "pair"


class Kind(StrEnum):
    """What the demo makes bad."""

    labels = "labels"
    inputs = "inputs"
    both = "both"


SpecPath = Annotated[Path, typer.Argument(help="The spec file (TOML).")]
Out = Annotated[Path | None, typer.Option(help="The run folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 if there are red flags.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what the run folder holds.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Fdr = Annotated[
    float | None,
    typer.Option(help="Flag as many samples as keep the expected share of clean ones below this."),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="See `expunge list recipes`.")]


def main() -> None:
    """Entry point: our errors become one message on stderr and exit code 1."""
    _keep_freed_memory()
    try:
        # Of several processes, which all have the result, the first one prints it.
        with redirect_stdout(io.StringIO()) if int(os.environ.get("RANK", 0)) else nullcontext():
            app()
    except ExpungeError as error:
        err_console.print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)
    finally:
        leave()


@app.command()
def demo(
    noise: Annotated[Noise, typer.Option(help="How wrong labels are drawn.")] = Noise.symmetric,
    rate: Annotated[float, typer.Option(help="Share of bad samples, in [0, 1).")] = 0.4,
    kind: Annotated[Kind, typer.Option(help="What is made bad.")] = Kind.labels,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    recipe: Annotated[str, typer.Option(help="See `expunge list recipes`.")] = "default",
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Corrupt real digits, train until the noise is memorised, repair: under two minutes."""
    folder = out or Path("runs") / f"demo-{recipe}-{noise}-{kind}-{rate:g}-{seed}"
    with _progress() as show:
        result, truth = demos.demo(
            noise=noise.value,
            rate=rate,
            kind=kind.value,
            seed=seed,
            out=folder,
            recipe=recipe,
            fresh=fresh,
            progress=show,
        )
    if as_json:
        _print_json(reports.summary(result))
    else:
        _print_result(result)
    if "auroc" in truth:
        typer.echo(
            f"Against the truth, which the repair did not see: AUROC {truth['auroc']:.3f}, "
            f"F1 {truth['f1']:.3f}, noise rate {truth['noise_rate']:.1%}, suggested labels "
            f"right for {truth['suggested_accuracy']:.1%} of the training samples "
            f"({1 - truth['noise_rate']:.1%} of the samples were good).",
            err=as_json,
        )
    _exit(result, strict)


@bench.command("digits")
def bench_digits(
    kind: Annotated[list[Kind] | None, typer.Option(help="What is made bad; all kinds.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Share of bad samples; 0.4.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … n − 1.")] = 5,
    recipe: Annotated[str, typer.Option(help="See `expunge list recipes`.")] = "default",
    out: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path(
        "runs/bench-digits"
    ),
    as_json: Json = False,
) -> None:
    """The demo over kinds of noise and seeds: accuracy, controls, detection, with intervals."""
    with _progress() as show:
        rows = digits.bench(
            kinds=tuple(k.value for k in kind or Kind),
            rates=tuple(rate or [0.4]),
            seeds=tuple(range(seeds)),
            recipe=recipe,
            out=out,
            progress=show,
        )
    if as_json:
        _print_json(rows)
    else:
        typer.echo(digits.table(rows))
        typer.echo(f"rows: {out / 'rows.jsonl'}")


class State(StrEnum):
    """How the networks of a suite were trained."""

    fresh = "fresh"
    memorised = "memorised"


CifarFolder = Annotated[
    Path, typer.Option(help="train.parquet and test.parquet, or cifar-10-batches-py.")
]
CIFAR = Path("cifar10")


SuiteData = Annotated[
    Path,
    typer.Option(
        help="A folder with CIFAR-10 (see bench memory) or with Speech Commands (train.parquet and "
        "test.parquet: id, audio, label, speaker), or the word digits."
    ),
]
DataFolder = Annotated[
    Path, typer.Option(help="A folder with CIFAR-10 or with Speech Commands, see bench repair.")
]
Noises = Annotated[list[str] | None, typer.Option("--noise", help="Kinds of noise; all.")]
Rates = Annotated[list[float] | None, typer.Option("--rate", help="Shares of bad samples.")]
States = Annotated[list[State] | None, typer.Option("--state", help="States of the network; both.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds 0 … n − 1.")]
Count = Annotated[
    int | None,
    typer.Option(
        "--n", min=100, help="Training samples: 25,000 images, 3,200 clips, 1,000 digits."
    ),
]
GivenLabels = Annotated[str, typer.Option("--labels", help="FILE:COLUMN, for the noise 'labels'.")]
RightLabels = Annotated[
    str, typer.Option("--truth", help="FILE:COLUMN, the right labels of these.")
]


def _suite(
    data: Path,
    noise: list[str] | None,
    rate: list[float] | None,
    state: list[State] | None,
    seeds: int,
    n: int | None,
    labels: str,
    truth: str,
) -> tuple[Field, list[Setting]]:
    """The data and all settings that were asked for."""
    if bool(labels) != bool(truth):
        raise typer.BadParameter("--labels and --truth go together")
    if labels:
        field: Field = cifar.Cifar(data, cifar.Extra(labels, truth))
    else:
        field = demos.Digits() if str(data) == "digits" else folders.field_of(data)
    settings = grid(
        field,
        noises=noise or (),
        rates=rate or (),
        states=[s.value for s in state or State],
        seeds=range(seeds),
        n=n,
    )
    return field, settings


def _print_suite(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    if as_json:
        _print_json(rows)
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"))


@bench.command("detect")
def bench_detect(
    data: SuiteData = CIFAR,
    noise: Noises = None,
    rate: Rates = None,
    state: States = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="expunge, expunge-fast, a detector, or a peer.")
    ] = None,
    seeds: Seeds = 1,
    n: Count = None,
    labels: GivenLabels = "",
    truth: RightLabels = "",
    out: Annotated[Path, typer.Option(help="Where networks, rows and tables go.")] = Path(
        "runs/bench-detect"
    ),
    as_json: Json = False,
) -> None:
    """Detection: noise × state of the network × detector, against the truth."""
    field, settings = _suite(data, noise, rate, state, seeds, n, labels, truth)
    with _progress() as show:
        rows = detect.bench(
            field,
            settings=settings,
            names=detector or detect.DEFAULT,
            out=out,
            command=shlex.join(["expunge", *sys.argv[1:]]),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("repair")
def bench_repair(
    data: SuiteData = CIFAR,
    noise: Noises = None,
    rate: Rates = None,
    state: States = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipes, controls, oracles and peers; all.")
    ] = None,
    seeds: Seeds = 1,
    n: Count = None,
    labels: GivenLabels = "",
    truth: RightLabels = "",
    out: Annotated[Path, typer.Option(help="Where networks, runs, rows and tables go.")] = Path(
        "runs/bench-repair"
    ),
    as_json: Json = False,
) -> None:
    """Repair: noise × state × recipe, with controls, oracles and peers."""
    field, settings = _suite(data, noise, rate, state, seeds, n, labels, truth)
    with _progress() as show:
        rows = repairs.bench(
            field,
            settings=settings,
            names=recipe or (),
            out=out,
            command=shlex.join(["expunge", *sys.argv[1:]]),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("rlap")
def bench_rlap(
    data: DataFolder = CIFAR,
    n: Annotated[
        int | None,
        typer.Option(min=100, help="Training samples, half get noise: 50,000 images, 3,200 clips."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of the noisy model's training: 60 on images, 300 on clips."),
    ] = None,
    width: Annotated[
        int,
        typer.Option(min=1, help="Of the first of four stages, for images; 64 is the ResNet-18."),
    ] = 64,
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where networks, rows and table go.")] = Path(
        "runs/bench-rlap"
    ),
    as_json: Json = False,
) -> None:
    """The published protocol of the method on CIFAR-10 or speech, and our repair beside it."""
    field = folders.field_of(data)
    if isinstance(field, cifar.Cifar):
        protocol = published.on_images(field, epochs=epochs or 60, width=width)
    else:
        protocol = published.on_speech(field, epochs=epochs or 300)
    with _progress() as show:
        rows = published.bench(
            protocol,
            n=n or (50_000 if isinstance(field, cifar.Cifar) else 3_200),
            seeds=range(seeds),
            out=out,
            command=shlex.join(["expunge", *sys.argv[1:]]),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("memory")
def bench_memory(
    data: CifarFolder = CIFAR,
    n: Annotated[list[int] | None, typer.Option(help="Numbers of samples.")] = None,
    views: Annotated[int, typer.Option(min=0, help="Random views; more cost time alone.")] = 1,
    out: Annotated[Path, typer.Option(help="Where rows and table go.")] = Path("runs/bench-memory"),
    as_json: Json = False,
) -> None:
    """Peak memory of scores and partition, over the number of samples."""
    with _progress() as show:
        rows = memory.bench(
            cifar.Cifar(data),
            sizes=n or (25_000, 250_000),
            views=views,
            out=out,
            command=shlex.join(["expunge", *sys.argv[1:]]),
            progress=show,
        )
    _print_suite(rows, out, as_json)


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
Device = Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1.")]
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
    with _progress() as show:
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
        _print_json(facts)
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


@bench.command("text-noise")
def bench_text_noise(
    data: Annotated[
        Path, typer.Option(help="A folder with bbc_news_summary (Parquet) and wikitext2.")
    ],
    fault: Annotated[list[str] | None, typer.Option(help="Kinds of noise; all.")] = None,
    amount: Annotated[
        list[float] | None,
        typer.Option(help="Shares of noise in all tokens; 0.05, 0.1, 0.25, 0.5."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Scores and baselines; all.")] = None,
    train: Annotated[
        int | None, typer.Option(min=10, help="Articles to fit on, and others; all.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Articles to measure on; all of them.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="The bundled one, a folder, or a name on the Hub.")
    ] = BUNDLED,
    device: Device = "cpu",
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where filters, rows and tables go.")] = Path(
        "runs/bench-text-noise"
    ),
    as_json: Json = False,
) -> None:
    """Noise in news articles: found by whom, and what summaries gain by its removal."""
    with _progress() as show:
        rows = text_noise.bench(
            data,
            encoder=HuggingFaceEncoder.of(encoder, device=device),
            encoder_name=encoder,
            faults=fault or text_noise.FAULTS,
            amounts=amount or text_noise.AMOUNTS,
            methods=method or text_noise.METHODS,
            train=train,
            documents=documents,
            seeds=tuple(range(seeds)),
            out=out,
            command=shlex.join(["expunge", *sys.argv[1:]]),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@app.command()
def check(spec: SpecPath, as_json: Json = False) -> None:
    """List all problems of a spec without training anything."""
    notes: list[str] = []
    problems = specs.check(spec, note=notes.append)
    if as_json:
        _print_json({"spec": str(spec), "problems": problems, "notes": notes})
    else:
        for line in notes:
            typer.echo(f"· {line}")
        for problem in problems:
            typer.echo(f"✗ {problem}")
        typer.echo(f"{spec}: {len(problems)} problem(s)" if problems else f"✓ {spec}: no problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def repair(
    spec: SpecPath,
    out: Out = None,
    seed: Seed = None,
    recipe: RecipeName = None,
    fdr: Fdr = None,
    as_json: Json = False,
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Repair the model of a spec; an interrupted repair goes on where it stopped."""
    with _progress() as show:
        job = specs.prepare(
            spec, out=out, fresh=fresh, seed=seed, recipe=recipe, fdr=fdr, progress=show
        )
        result = pipeline.repair(
            job.model,
            job.train,
            job.validation,
            held_out=job.held_out,
            train_seconds=job.train_seconds,
            **job.settings,
        )
    if as_json:
        _print_json(reports.summary(result))
    else:
        _print_result(result)
    _exit(result, strict)


@app.command()
def forget(
    spec: SpecPath,
    ids: Annotated[
        Path, typer.Option(help="Ids of training samples, one a line.", exists=True, dir_okay=False)
    ],
    out: Out = None,
    seed: Seed = None,
    recipe: RecipeName = None,
    as_json: Json = False,
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Unlearn the samples that a file names: a deletion request, a poisoned batch."""
    named = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines() if line.strip()]
    with _progress() as show:
        job = specs.prepare(spec, out=out, fresh=fresh, seed=seed, recipe=recipe, progress=show)
        result = pipeline.forget(job.model, job.train, named, job.validation, **job.settings)
    if as_json:
        _print_json(reports.summary(result))
    else:
        _print_result(result)
        for line in reports.unlearned(result):
            typer.echo(f"- {line}")
    _exit(result, strict)


def _stage(name: str, says: str) -> Callable[..., None]:
    """A command that does the stages up to one, in the folder that `repair` goes on from."""

    def command(
        spec: SpecPath,
        out: Out = None,
        seed: Seed = None,
        recipe: RecipeName = None,
        fdr: Fdr = None,
        as_json: Json = False,
        fresh: Fresh = False,
    ) -> None:
        with _progress() as show:
            job = specs.prepare(
                spec, out=out, fresh=fresh, seed=seed, recipe=recipe, fdr=fdr, progress=show
            )
            made = pipeline.repair_until(
                job.model,
                job.train,
                job.validation,
                held_out=job.held_out,
                until=name,  # type: ignore[arg-type]
                **job.settings,
            )
        facts = reports.stage_summary(made.scores, made.partition, made.ranking, made.plan)
        facts["run"] = str(job.settings["out"])
        if as_json:
            _print_json(facts)
        else:
            for key, value in facts.items():
                typer.echo(f"{key}: {json.dumps(value, ensure_ascii=False)}")

    command.__doc__ = says
    return command


for _name, _says in {
    "score": "How suspicious is every sample? Stops after the scores.",
    "partition": "Which samples are bad? Stops after the partition.",
    "rank": "Which neurons carry the noise? Stops after the ranking.",
    "prune": "Which units would be cut? Stops after the plan.",
    "tune": "Cut and fine-tune, without controls and report.",
}.items():
    app.command(_name)(_stage(_name, _says))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False
) -> None:
    """Print the report of a finished run, and where its HTML page is."""
    if as_json:
        _print_json(_result_of(run))
        return
    _result_of(run)
    typer.echo((run / "report.md").read_text(encoding="utf-8"))
    typer.echo(f"page: {run / 'report.html'}")


@app.command()
def export(
    spec: SpecPath,
    run: Annotated[
        Path | None, typer.Option(help="The finished run folder; by default the spec's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; by default exports/ and the spec's name.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="An ONNX file too, compared with the model.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="The largest difference of logits that the ONNX file may have.")
    ] = exports.TOLERANCE,
    as_json: Json = False,
) -> None:
    """Write the repaired model for use: weights, a manifest that rebuilds it, and ONNX."""
    folder = out or Path("exports") / spec.stem
    found = exports.export_run(spec, folder, run=run, onnx=onnx, tolerance=tolerance)
    manifest = asdict(found.manifest)
    if as_json:
        _print_json({"folder": str(folder), **manifest})
        return
    typer.echo(f"{folder}: {', '.join((*found.manifest.sha256, exports.MANIFEST))}")
    if found.manifest.onnx is not None:
        parity = found.manifest.onnx
        typer.echo(
            f"ONNX: logits differ by {parity.difference:.2g} at most on {parity.samples} samples, "
            f"{parity.equal:.1%} of the predictions are equal"
        )


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")], as_json: Json = False
) -> None:
    """Compare finished runs in one table."""
    results = {str(run): _result_of(run) for run in runs}
    if as_json:
        _print_json(results)
        return
    table = Table("run", "recipe", "seed", "before", "after", "gain", "parameters")
    for name, r in results.items():
        accuracy = [
            _plain(r[side]["accuracy"] if r[side] else None) for side in ("before", "after")
        ]
        pruning = r["pruning"]
        size = f"{pruning['parameters_before']:,} → {pruning['parameters_after']:,}"
        table.add_row(name, r["recipe"], str(r["seed"]), *accuracy, _plain(r["gain"]), size)
    out_console.print(table)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=f"One of: {', '.join(REGISTRIES)}.")] = "",
    as_json: Json = False,
) -> None:
    """List what can be named: recipes, detectors, and so on."""
    if what and what not in REGISTRIES:
        raise typer.BadParameter(f"'{what}' is none of: {', '.join(REGISTRIES)}")
    chosen = {k: r for k, r in REGISTRIES.items() if not what or k == what}
    found = {k: {n: r.summary(n) for n in r.names()} for k, r in chosen.items()}
    if as_json:
        _print_json(found)
        return
    for kind, items in found.items():
        typer.echo(kind)
        for name, summary in items.items():
            typer.echo(f"  {name:24}{summary}")


def _print_result(result: RepairResult) -> None:
    for flag in result.flags:
        out_console.print(f"⚑ {flag.code}: {flag.sentence}", style="yellow", highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for head in ("model", "accuracy %", "repair ahead by", "seconds", "parameters"):
        left = head == "model"
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in reports.outcomes(result):
        accuracy, gain = row.accuracy, row.gain
        table.add_row(
            row.name,
            _percent(accuracy),
            _points(gain),
            f"{row.seconds:.1f}" if row.seconds is not None else "–",
            f"{row.parameters:,}",
        )
    out_console.print(table)
    typer.echo(reports.verdict(result))
    if result.run:
        typer.echo(f"report: {Path(result.run) / 'report.html'}")


def _percent(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    return f"{100 * metric.value:.1f} ({100 * metric.low:.1f}–{100 * metric.high:.1f})"


def _points(gain: Metric | None) -> str:
    if gain is None:
        return "–"
    return f"{100 * gain.value:+.1f} ({100 * gain.low:.1f}…{100 * gain.high:.1f})"


def _plain(metric: dict[str, float] | None) -> str:
    if metric is None:
        return "–"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _exit(result: RepairResult, strict: bool) -> None:
    if strict and result.flags:
        raise typer.Exit(3)


def _result_of(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"holds no finished run: {error}", where=str(run), fix="let `expunge repair` end first"
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on stderr, with the time left; nothing if stderr is no terminal."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:28}"),
        BarColumn(),
        TimeElapsedColumn(),
    ]
    columns.append(TimeRemainingColumn())
    hidden = not err_console.is_terminal
    with Progress(*columns, console=err_console, transient=True, disable=hidden) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=min(done, total), total=total)

        yield show


def _keep_freed_memory() -> None:
    """Let glibc's allocator keep large freed blocks instead of returning them to the system.

    Training on a CPU makes and drops many large tensors, and is 1.4 … 1.9 times slower otherwise.
    Settings that the user made in the environment are kept.
    """
    trim_threshold, mmap_max = -1, -4  # names of the parameters in malloc.h
    if any(name.startswith("MALLOC_") for name in os.environ) or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
