"""The command that writes the first spec."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.terminal import Json, app, echo, print_json
from expunge.errors import ConfigError


class Example(StrEnum):
    """Folders that `expunge init --example` writes."""

    digits = "digits"
    images = "images"
    text = "text"
    sound = "sound"
    table = "table"


@app.command()
def init(
    data: Annotated[
        Path | None,
        typer.Argument(help="The training data: a file, or a folder of class folders."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help='The constructor, "package.module:function", or a folder of save_pretrained. '
            "Default: a small network."
        ),
    ] = "",
    argument: Annotated[
        list[str] | None, typer.Option(help="An argument of the constructor, name=value.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The weights. Without them the model is trained first.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="The validation data.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="The held-out data.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of the labels.")] = None,
    inputs: Annotated[
        str, typer.Option("--input", help="The column of the inputs; several with commas.")
    ] = "",
    ids: Annotated[str | None, typer.Option("--id", help="The column of the ids.")] = None,
    example: Annotated[
        Example | None, typer.Option(help="Write a folder with data and a spec that runs.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The spec file. Default: spec.toml. With --example: a new folder."),
    ] = None,
    as_json: Json = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the spec file.")] = False,
) -> None:
    """Look at data and model, and write a spec with comments. Without DATA it asks."""
    from expunge.scaffold.data import NamedColumns
    from expunge.scaffold.examples import SPEC, write_example
    from expunge.scaffold.model import parse_arguments
    from expunge.scaffold.spec_file import Request, write_spec
    from expunge.spec_check import check_spec

    if example is not None:
        folder = out or Path(example.value)
        target, facts = folder / SPEC, write_example(example.value, folder)
    else:
        if data is None:
            data, model, weights, validation = _ask(model, weights, validation)
        target = out or Path("spec.toml")
        names = tuple(name.strip() for name in inputs.split(",") if name.strip())
        request = Request(
            data,
            model=model,
            arguments=parse_arguments(argument or ()),
            weights=weights,
            validation=validation,
            held_out=held_out,
            columns=NamedColumns(label, names, ids),
        )
        facts = write_spec(request, target, overwrite=overwrite)
    problems = check_spec(target)
    if as_json:
        print_json({"spec": str(target), "found": facts, "problems": problems})
    else:
        _show(target, facts, problems)
    if problems:
        raise typer.Exit(1)


def _ask(
    model: str, weights: Path | None, validation: Path | None
) -> tuple[Path, str, Path | None, Path | None]:
    """Ask for what is not given; an empty answer leaves it out."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "no data are named", where="expunge init", fix="expunge init DATA, or --example digits"
        )
    data = Path(typer.prompt("Training data (file or folder)"))
    model = model or _optional("Model (package.module:function; empty: a small network)")
    answers = [
        given or _path(_optional(question))
        for given, question in (
            (weights, "Weights (empty: the model is trained first)"),
            (validation, "Validation data (empty: none)"),
        )
    ]
    return data, model, answers[0], answers[1]


def _optional(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False)).strip()


def _path(answer: str) -> Path | None:
    return Path(answer) if answer else None


def _show(target: Path, facts: list[str], problems: list[str]) -> None:
    for fact in facts:
        echo(f"· {fact}")
    echo(f"{target} is written; lines with CHANGE are guesses")
    for problem in problems:
        echo(f"✗ {problem}")
    file = shlex.quote(str(target))
    if problems:
        echo(f"{target}: {len(problems)} problem(s); correct them, then: expunge check {file}")
    else:
        echo(f"✓ no problems. Next: expunge repair {file}")
