"""The command that finds noise without a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from expunge.cli.repair import Fdr, Overwrite, Strict
from expunge.cli.terminal import Json, app, echo, print_json


class ProbsSource(StrEnum):
    """Where given probabilities come from."""

    auto = "auto"
    out_of_sample = "out-of-sample"
    in_sample = "in-sample"


def _split(names: list[str] | None) -> list[str]:
    """Names given one by one or separated by commas."""
    return [part.strip() for name in names or () for part in name.split(",") if part.strip()]


@app.command()
def detect(
    data: Annotated[
        Path, typer.Argument(help="A .parquet, .csv, .tsv, .jsonl, .npz or .npy file.")
    ],
    label: Annotated[
        str, typer.Option(help="The column or array of the labels; for .npy a second file.")
    ] = "label",
    features: Annotated[
        list[str] | None,
        typer.Option(help="Columns or arrays of features. Default: all others; of .npz first x."),
    ] = None,
    probs: Annotated[
        list[str] | None,
        typer.Option(help="Class probabilities: a column of lists, or a column for each class."),
    ] = None,
    probs_source: Annotated[
        ProbsSource,
        typer.Option(help="Whether the model of the probabilities was trained on these labels."),
    ] = ProbsSource.auto,
    ids: Annotated[
        str | None, typer.Option("--id", help="The column of the ids. Default: row numbers.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder. Default: runs/detect- and the file's name.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Samples with a larger p_noisy are flagged.")
    ] = 0.5,
    fdr: Fdr = None,
    noise_rate: Annotated[
        float | None,
        typer.Option(help="The share of wrong labels, if it is known, in (0, 1)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Json = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Find wrong labels from embeddings or table columns and labels, without a model."""
    from expunge.detection_run import Columns, detect_file
    from expunge.reporting.summary import summarise_detection

    folder = out or Path("runs") / f"detect-{data.stem}"
    result = detect_file(
        data,
        folder,
        columns=Columns(label, tuple(_split(features)), tuple(_split(probs)), ids),
        overwrite=overwrite,
        probs_source=probs_source.value,
        threshold=threshold,
        fdr=fdr,
        noise_rate=noise_rate,
        seed=seed,
    )
    if as_json:
        print_json({**summarise_detection(result), "run": str(folder)})
    else:
        echo(result.summary())
        echo(f"report: {folder / 'report.html'}")
        echo(f"all samples, with suggested labels: {folder / 'partition.parquet'}")
        echo(f"to answer questions about the doubtful ones: expunge review {quote(str(folder))}")
    if strict and result.flags:
        raise typer.Exit(3)
