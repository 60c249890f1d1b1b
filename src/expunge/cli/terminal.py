"""What all commands share: the application, options, and what goes to the terminal."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from expunge.cli.progress_log import ProgressLog
from expunge.errors import ExpungeError, RunError, printable


class Interrupted(ExpungeError):
    """The user pressed Ctrl-C."""

    def __init__(self, during: str = "") -> None:
        super().__init__(
            f"stopped by Ctrl-C{during and f' during {during}'}",
            fix="run the same command again; a run folder resumes after its last stage or epoch",
        )


# The commands in the order of their use, as the help lists them; those of other packages are last.
_ORDER = (
    *("demo", "init", "check", "repair", "report", "compare", "review", "clean", "export"),
    *("forget", "detect", "score", "partition", "rank", "prune", "tune", "list", "text", "nmtune"),
)


class _Commands(TyperGroup):
    """Commands in which Ctrl-C is one of our errors, also while packages are imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=_Commands,
    help="Repair neural networks that were trained on noisy data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
text = typer.Typer(help="Noise in documents: find and remove it.", no_args_is_help=True)
app.add_typer(text, name="text")
nmtune = typer.Typer(help="Tune heads on embeddings, NMTune among them.", no_args_is_help=True)
app.add_typer(nmtune, name="nmtune")
out_console = Console()
err_console = Console(stderr=True)
# Columns if the output has no width of its own.
UNLIMITED = 10_000


class Kind(StrEnum):
    """What the demo makes bad."""

    labels = "labels"
    inputs = "inputs"
    both = "both"


# How the command line spells what errors of run folders say for Python.
_OPTIONS = {"out=…": "--out FOLDER", "overwrite=True": "--overwrite"}

Out = Annotated[Path | None, typer.Option(help="The run folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1.")]


def _print_version(value: bool) -> None:
    if value:
        from expunge.reporting.html import installed_version

        echo(f"expunge {installed_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before a command; ``version`` ends the program."""


def in_options(message: str) -> str:
    """A message of the library with options of the command line for the arguments in Python.

    >>> in_options("choose another folder: out=…")
    'choose another folder: --out FOLDER'
    """
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return message


def command_line() -> str:
    """Return the command line, for tables that name the command that made them."""
    return shlex.join(["expunge", *sys.argv[1:]])


def whole_console() -> Console:
    """As wide as the terminal; in a file, a pipe or a CI log so wide that nothing is cut."""
    return out_console if sys.stdout.isatty() else Console(width=UNLIMITED)


def print_json(value: object) -> None:
    """Print JSON, in ASCII."""
    echo(json.dumps(value, indent=2))


def echo(text: str, *, err: bool = False) -> None:
    """Print a line; characters that control a terminal are escaped."""
    with output_errors():
        (sys.stderr if err else sys.stdout).write(f"{printable(text)}\n")


def show(content: Any, console: Console, **settings: Any) -> None:
    """Print with rich: a table, or a text whose brackets are no markup."""
    content = printable(content) if isinstance(content, str) else content
    with output_errors():
        console.print(content, markup=False, highlight=False, **settings)


@contextmanager
def output_errors() -> Iterator[None]:
    """Turn a full disk behind stdout into one of our errors; a closed pipe is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(
            f"stdout cannot be written: {error.strerror or error}", fix="free some space"
        ) from error


def write_text(text: str) -> None:
    """Write a document to stdout: in UTF-8 as it is, escaped on a terminal."""
    if sys.stdout.isatty():
        text = printable(text)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    with output_errors():
        sys.stdout.write(text)


def tolerate_encodings() -> None:
    """Escape what the encoding of the terminal lacks, where writing would fail.

    What is written to a stream that the shell closed (``>&-``) is lost.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on stderr, with the time left; lines if stderr is no terminal.

    Of several processes, the first one shows it.
    """
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:28}"),
        BarColumn(),
        TimeElapsedColumn(),
    ]
    columns.append(TimeRemainingColumn())
    is_first = os.environ.get("RANK", "0") == "0"
    hidden = not err_console.is_terminal
    is_off = hidden or not is_first
    with Progress(*columns, console=err_console, transient=True, disable=is_off) as bars:
        tasks: dict[str, Any] = {}
        running: list[str] = []
        log = ProgressLog(partial(echo, err=True)) if hidden and is_first else None

        def show(what: str, done: int, total: int) -> None:
            running[:] = [f"{what} ({done} of {total})"]
            if log is not None:
                log(what, done, total)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=min(done, total), total=total)

        try:
            yield show
        except KeyboardInterrupt as error:
            raise Interrupted(during=", ".join(running)) from error
