"""Options that the commands of `expunge bench` share, and the decorator that adds a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypedDict

import typer
from typer.core import TyperCommand

from expunge._core.progress import Progress
from expunge.cli.terminal import Json, command_line, print_json, progress
from expunge_bench.cifar import Cifar, LabelColumns
from expunge_bench.datasets import STATES, BenchmarkDataset, Setting, grid
from expunge_bench.digits import Digits
from expunge_bench.folders import dataset_in_folder
from expunge_bench.results import Row

bench = typer.Typer(
    help="Compare expunge with published methods on data whose noise is known.",
    no_args_is_help=True,
)

_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
CIFAR_FOLDER = Path("cifar10")
_RENAMED = {
    "--truth": "--true-labels",
    "--on": "--dataset",
    "--attacked": "--n-attacked",
    "--relearning": "the command 'relearning'",
}


class State(StrEnum):
    """How the networks are trained."""

    regularised = "regularised"
    overfit = "overfit"


CifarFolder = Annotated[
    Path,
    typer.Option(help="Folder with train.parquet and test.parquet, or with cifar-10-batches-py."),
]
ImageOrSpeechFolder = Annotated[
    Path, typer.Option(help="Folder with CIFAR-10 or with Speech Commands.")
]
DataSet = Annotated[str, typer.Option(help="Data set: cifar10 or digits.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds: 0 … n − 1.")]
_GRID_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "data": (
        Annotated[
            Path,
            typer.Option(
                help="Folder with CIFAR-10, with Speech Commands (train.parquet and "
                "test.parquet: id, audio, label, speaker) or with BBC news (document, category), "
                "or the word digits."
            ),
        ],
        CIFAR_FOLDER,
    ),
    "noise": (
        Annotated[list[str] | None, typer.Option(help="Kinds of noise. Default: all.")],
        None,
    ),
    "rate": (
        Annotated[list[float] | None, typer.Option(help="Noise rates. Default: the data set's.")],
        None,
    ),
    "state": (
        Annotated[
            list[State] | None, typer.Option(help="How networks are trained. Default: both.")
        ],
        None,
    ),
    "n": (
        Annotated[
            int | None,
            typer.Option(
                min=100,
                help="Training samples. Default: 25,000 images, 3,200 clips, 600 articles, "
                "1,000 digits.",
            ),
        ],
        None,
    ),
    "labels": (
        Annotated[str, typer.Option(help="Given labels, FILE:COLUMN. Needs --true-labels.")],
        "",
    ),
    "true_labels": (
        Annotated[str, typer.Option(help="True labels, FILE:COLUMN. Needs --labels.")],
        "",
    ),
}


class RunOptions(TypedDict):
    """The keyword arguments that every ``bench`` function takes."""

    out: Path
    command: str
    progress: Progress


@dataclass(frozen=True)
class BenchmarkRun:
    """The values of the options that commands share.

    Parameters
    ----------
    options
        Keyword arguments of the ``bench`` function.
    seeds
        Seeds of the benchmark.
    dataset, settings
        The data and the noise, for commands with ``has_grid``.
    """

    options: RunOptions
    seeds: Sequence[int]
    dataset: BenchmarkDataset
    settings: Sequence[Setting]

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.options["out"]


class _Command(TyperCommand):
    """Names the new option for a renamed one."""

    # Typer has a copy of click's classes in some versions, so that the context has no stable type.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for option in (argument.partition("=")[0] for argument in args):
            if option in _RENAMED:
                raise typer.BadParameter(f"{option} is now called {_RENAMED[option]}")
        return super().parse_args(ctx, args)


def bench_command(
    name: str, *, has_grid: bool = False, has_seeds: bool = True, default_seeds: int = 1
) -> Callable[[Callable[..., list[Row]]], Callable[..., list[Row]]]:
    """Decorator: add a command with the options ``--out``, ``--json`` and those that are named.

    The function receives a `BenchmarkRun` and its own options, and returns rows. Its docstring is
    the help of the command.

    Parameters
    ----------
    name
        The command; results go to ``runs/bench-{name}`` by default.
    has_grid
        Whether the command has ``--data --noise --rate --state --n --labels --true-labels``.
    has_seeds, default_seeds
        Whether the command has ``--seeds``, and its default.
    """

    def decorate(function: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared: dict[str, tuple[Any, Any]] = dict(_GRID_OPTIONS) if has_grid else {}
        n_first = len(shared)
        if has_seeds:
            shared["seeds"] = (Seeds, default_seeds)
        out_help = "Folder of the results. An interrupted benchmark resumes there."
        shared["out"] = (
            Annotated[Path, typer.Option(help=out_help)],
            Path("runs") / f"bench-{name}",
        )
        shared["as_json"] = (Json, False)

        def command(**given: Any) -> None:
            values = {option: given.pop(option) for option in shared}
            as_json = values.pop("as_json")
            with _benchmark_run(values, has_grid=has_grid) as run:
                rows = function(run, **given)
            _print_rows(rows, values["out"], as_json=as_json)

        parameters = [
            inspect.Parameter(option, _KEYWORD_ONLY, default=value, annotation=kind)
            for option, (kind, value) in shared.items()
        ]
        own = [parameter.replace(kind=_KEYWORD_ONLY) for parameter in own]
        parameters[n_first:n_first] = own
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        bench.command(name, cls=_Command)(command)
        return function

    return decorate


@contextmanager
def _benchmark_run(values: Mapping[str, Any], *, has_grid: bool) -> Iterator[BenchmarkRun]:
    seeds = range(values.get("seeds", 1))
    dataset, settings = _grid(values, seeds) if has_grid else (Digits(), [])
    with progress() as show:
        options: RunOptions = {"out": values["out"], "command": command_line(), "progress": show}
        yield BenchmarkRun(options, seeds, dataset, settings)


def _grid(
    values: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[BenchmarkDataset, list[Setting]]:
    """The data set, and all settings of the options."""
    data, labels, true_labels = values["data"], values["labels"], values["true_labels"]
    if bool(labels) != bool(true_labels):
        raise typer.BadParameter("--labels and --true-labels go together")
    dataset: BenchmarkDataset
    if labels:
        dataset = Cifar(data, LabelColumns(labels, true_labels))
    elif str(data) == "digits":
        dataset = Digits()
    else:
        dataset = dataset_in_folder(data)
    chosen = {state.value for state in values["state"] or State}
    settings = grid(
        dataset,
        noises=values["noise"] or (),
        rates=values["rate"] or (),
        states=[state for state in STATES if state in chosen],
        seeds=seeds,
        n=values["n"],
    )
    return dataset, settings


def _print_rows(rows: Sequence[Row], out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"))
        typer.echo(f"rows: {out / 'rows.jsonl'}")
