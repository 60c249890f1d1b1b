"""What all commands share: the application, options, and what goes to the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
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

app = typer.Typer(
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


Out = Annotated[Path | None, typer.Option(help="The run folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1.")]


def command_line() -> str:
    """Return the command line, for tables that name the command that made them."""
    return shlex.join(["expunge", *sys.argv[1:]])


def whole_console() -> Console:
    """As wide as the terminal; in a file, a pipe or a CI log so wide that nothing is cut."""
    return out_console if sys.stdout.isatty() else Console(width=UNLIMITED)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
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
