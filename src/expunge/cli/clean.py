"""The command `expunge clean`: the training data with corrected labels, as a new file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.repair import SpecPath
from expunge.cli.results import print_flags, warn_of_changes
from expunge.cli.terminal import Json, app, echo, print_json, show, whole_console
from expunge.errors import RunError, printable


@app.command()
def clean(
    spec: SpecPath,
    out: Annotated[Path, typer.Option(help="The new file: .parquet, .csv or .jsonl.")],
    run: Annotated[
        Path | None, typer.Option(help="The run folder. Default: that of the spec.")
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(help="Least probability of a suggested label that replaces a given one."),
    ] = 0.9,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the training data with corrected labels; the original is never changed.

    Answers of `expunge review` are taken into account.
    """
    from expunge import specs
    from expunge.evaluation.diagnostics import partition_flags
    from expunge.review.clean import clean_labels, describe_clean, summarise_clean, write_clean
    from expunge.review.run_files import current_partition, require_data_of

    read, folder = specs.read_spec(spec), spec.resolve().parent
    if out.exists() and not overwrite:
        raise RunError("exists already", where=str(out), fix="name another file, or --overwrite")
    run = run or specs.run_folder(read, spec)
    warn_of_changes(spec, read, run)
    samples = specs.read_train(read, folder)
    partition = current_partition(run, samples.classes)
    require_data_of(run, partition, samples)
    cleaned = clean_labels(partition, min_confidence=min_confidence)
    n = write_clean(cleaned, samples, read.train_data, out, folder=folder)
    rows = summarise_clean(cleaned, samples.classes)
    flags = partition_flags(partition, samples.classes)
    if as_json:
        found = [{"code": flag.code, "message": flag.message} for flag in flags]
        print_json({"out": str(out), "rows": n, "classes": rows, "flags": found})
        return
    print_flags(flags)
    _print_summary(rows)
    echo(f"{n:,} rows written to {out}: {describe_clean(cleaned, n - len(samples))}")


def _print_summary(rows: list[dict[str, object]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "class" else "right")
    for row in rows:
        cells = (f"{v:,}" if isinstance(v, int) else printable(str(v)) for v in row.values())
        table.add_row(*map(Text, cells))
    show(table, whole_console())
