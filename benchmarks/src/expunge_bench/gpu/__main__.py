"""``python -m expunge_bench.gpu``: all pieces, or one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from expunge_bench.gpu.runner import ORDER, TABLE, run_all
from expunge_bench.gpu.setup import FULL, SMALL, GpuRun, pieces

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="CIFAR-10: train.parquet and test.parquet.")],
    out: Annotated[Path, typer.Option(help="Gets rows, table and log.")] = Path("build/gpu/out"),
    work: Annotated[Path, typer.Option(help="Kept between calls.")] = Path("build/gpu/work"),
    seconds: Annotated[float, typer.Option(min=1, help="Time limit.")] = 530.0,
    processes: Annotated[int, typer.Option(min=1, help="Pieces beside each other.")] = 6,
    only: Annotated[list[str] | None, typer.Option(help="Pieces. Default: all.")] = None,
    piece: Annotated[str, typer.Option(help="Run this piece here and print its rows.")] = "",
    small: Annotated[bool, typer.Option("--small", help="Sizes for a test on a CPU.")] = False,
) -> None:
    """Measure everything that a GPU must show; an interrupted run resumes."""
    run = GpuRun(data.resolve(), work.resolve(), SMALL if small else FULL)
    if piece:
        torch.backends.cudnn.benchmark = True
        for row in pieces.get(piece)(run):
            print(json.dumps({**row}, default=float), flush=True)  # noqa: T201
        return
    arguments = ["--data", str(run.data), "--work", str(run.work), *(["--small"] if small else [])]
    run_all(
        run,
        out=out.resolve(),
        arguments=arguments,
        seconds=seconds,
        max_processes=processes,
        names=[name for name in ORDER if not only or name in only],
    )
    typer.echo((out / TABLE).read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
