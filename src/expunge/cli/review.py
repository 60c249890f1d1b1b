"""The command `expunge review`: a page on which a person looks at samples, and its files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.results import run_of
from expunge.cli.terminal import app, echo, print_json
from expunge.errors import ConfigError, DataError, RunError, format_ids

if TYPE_CHECKING:
    from expunge.data import Samples
    from expunge.review.cards import Cards
    from expunge.review.session import ReviewSession

_SERVER_LOCK = ".review-server.lock"


class FileFormat(StrEnum):
    """Files of questions and answers."""

    csv = "csv"
    parquet = "parquet"
    label_studio = "label-studio"
    argilla = "argilla"
    fiftyone = "fiftyone"


class Shown(StrEnum):
    """When suggestions and reasons are shown."""

    after = "after"
    at_once = "at-once"
    never = "never"


@app.command()
def review(
    run: Annotated[
        Path, typer.Argument(help="A folder of `repair` or `detect`, or a spec file (TOML).")
    ],
    spec: Annotated[
        Path | None,
        typer.Option(help="The spec of the run, to show its inputs. Default: the one it noted."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Number of questions. Default: as many as so far, or 100."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. Default: a free one.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    suggestions: Annotated[
        Shown,
        typer.Option(
            help="When suggestions and reasons are shown: after the given label is called wrong, "
            "at once (reviewers tend to confirm what they see) or never."
        ),
    ] = Shown.after,
    mistakes: Annotated[
        float | None,
        typer.Option(
            help="Rate of mistaken answers, in [0, 0.5). Default: from repeated questions."
        ),
    ] = None,
    text: Annotated[
        str, typer.Option(help="Documents to show, FILE:COLUMN, joined by the column id.")
    ] = "",
    export: Annotated[
        Path | None,
        typer.Option(help="Write questions and answers to a file instead of serving the page."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="Read answers from a file instead of serving the page."),
    ] = None,
    format_: Annotated[
        FileFormat, typer.Option("--format", help="Format of --export and --import.")
    ] = FileFormat.csv,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the answers say, as one JSON object.")
    ] = False,
) -> None:
    """Look at the samples that matter most, in a page on this machine.

    Answers are kept in reviews.jsonl in the run folder. `expunge repair`, or the same `expunge
    detect` again, takes them into account.
    """
    from expunge.review import exchange
    from expunge.storage.run_folder import read_header

    folder, spec = _folder_and_spec(run, spec)
    with _session(folder, spec, budget=budget, seed=seed, mistakes=mistakes) as (session, samples):
        cards = _cards(session, samples, text)
        say = partial(echo, err=as_json)
        if import_ is not None:
            n = exchange.import_answers(session, import_, format=format_.value)
            say(f"{n} new answers read from {import_}. {_progress_line(session)}")
        if export is not None:
            n = exchange.export_questions(
                session, cards, export, format=format_.value, overwrite=export == import_
            )
            say(f"{n} questions and answers written to {export}. {_progress_line(session)}")
            form = "" if format_ is FileFormat.csv else f" --format {format_.value}"
            again = f"{shlex.quote(str(run))} --import {shlex.quote(str(export))}{form}"
            say(f"next: answer them, then: expunge review {again}")
        if as_json:
            print_json(session.progress().review.summary())
        if import_ is None and export is None and not as_json:
            _serve(session, cards, port=port, suggestions=suggestions)
            say(_progress_line(session))
        if export is None and spec is not None:
            say(f"next: {_repair_command(spec, folder)}, which uses the answers")
        elif export is None and "detect" in read_header(folder):
            say("next: the same `expunge detect` again, which uses the answers")


def _repair_command(spec: Path, folder: Path) -> str:
    """The command that repairs in this run folder."""
    from expunge import specs

    is_default = specs.run_folder(specs.read_spec(spec), spec).resolve() == folder.resolve()
    return shlex.join(
        ["expunge", "repair", str(spec), *([] if is_default else ["--out", str(folder)])]
    )


def _progress_line(session: ReviewSession) -> str:
    """How many questions are answered; the others come in batches."""
    from expunge.reporting.formatting import percent

    found = session.progress()
    rate, low, high = map(percent, found.review.noise_rate)
    return (
        f"{found.answered} of {found.budget} questions are answered, {len(session.queue.items)} "
        f"drawn so far; noise rate {rate} ({low} to {high})"
    )


def _folder_and_spec(run: Path, spec: Path | None) -> tuple[Path, Path | None]:
    """The run folder and the spec, whichever was named."""
    from expunge import specs

    if run.is_dir():
        return run, spec or specs.noted_spec(run)
    if run.suffix == ".toml":
        return run_of(run), run
    raise RunError(
        "is neither a run folder nor a spec file",
        where=str(run),
        fix="name the folder that `expunge repair` or `expunge detect` wrote, or the spec",
    )


@contextmanager
def _session(
    folder: Path, spec: Path | None, *, budget: int | None, seed: int, mistakes: float | None
) -> Iterator[tuple[ReviewSession, Samples | None]]:
    """A session in a run folder that no other server uses."""
    from expunge import specs
    from expunge.review.run_files import class_names, open_reviewed_run, require_data_of
    from expunge.review.session import ReviewSession
    from expunge.storage.run_folder import locked

    opened = open_reviewed_run(folder)
    samples = None
    if spec is not None:
        samples = specs.read_train(specs.read_spec(spec), spec.resolve().parent)
        require_data_of(folder, opened.partition, samples)
        classes = samples.classes
    else:
        classes = class_names(folder, opened.scores.class_probs.shape[1])
    message = "another review of this run is open"
    with locked(folder / _SERVER_LOCK, message=message, fix="use its address, or stop it first"):
        session = ReviewSession(opened, classes, budget=budget, seed=seed, mistakes=mistakes)
        try:
            yield session, samples
        finally:
            session.close()


def _cards(session: ReviewSession, samples: Samples | None, text: str) -> Cards:
    """What is shown of every sample."""
    from expunge.review.cards import Cards
    from expunge.review.tables import read_texts

    run, texts = session.run, None
    if text:
        file, _, column = text.rpartition(":")
        if not file:
            raise ConfigError(f"--text expects FILE:COLUMN, got '{text}'")
        texts = read_texts(Path(file), column)
        if texts.keys().isdisjoint(map(str, run.partition.ids.tolist())):
            raise DataError(
                "no id of it is one of the run's",
                where=file,
                fix=f"its column id must hold the run's ids: {format_ids(run.partition.ids)}",
            )
    return Cards(run.partition, run.scores, session.classes, samples=samples, texts=texts)


def _serve(session: ReviewSession, cards: Cards, *, port: int, suggestions: Shown) -> None:
    from expunge.review.guard import bind
    from expunge.review.server import ReviewServer, address, serve

    server = ReviewServer(session, cards, suggestions=suggestions.value)
    listening = bind(port)
    if cards.kind == "none":
        echo("The inputs are not shown: name the spec with --spec, or texts with --text.", err=True)
    echo(f"Review at {address(server, listening)}")
    echo("Ctrl-C ends it; every answer is saved at once.")
    with suppress(KeyboardInterrupt):
        serve(server, listening)
