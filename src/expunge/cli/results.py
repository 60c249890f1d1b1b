"""Commands that show what a repair has done: report, compare, export, list."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from expunge.cli.terminal import Json, app, echo, print_json, show, whole_console
from expunge.errors import printable
from expunge.storage.finished_run import read_record, read_result

if TYPE_CHECKING:
    from expunge._core.registry import Registry
    from expunge.records import Flag, Metric, RepairResult
    from expunge.reporting.tables import Outcome
    from expunge.specs import Spec

# Where the registry of every kind of plug-in is.
REGISTRIES = {
    "recipes": "expunge.recipes:recipes",
    "detectors": "expunge.detection.detectors:detectors",
    "partitions": "expunge.detection.partitioners:partitioners",
    "rankers": "expunge.pruning.ranking:rankers",
    "pruners": "expunge.pruning.selection:pruners",
    "editors": "expunge.editing.editors:editors",
    "trainers": "expunge.training.baselines:trainers",
    "sources": "expunge.data.sources:sources",
    "views": "expunge.data.views:views",
}


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a spec file (TOML).")],
    as_json: Json = False,
) -> None:
    """Print the report of a finished run, and where its HTML page is."""
    run = run_of(run)
    result = read_result(run)
    if as_json:
        print_json(result)
        return
    read_record(run, "report.md")
    echo((run / "report.md").read_text(encoding="utf-8"))
    echo(f"page: {run / 'report.html'}")


def run_of(path: Path) -> Path:
    """A run folder, as it is named or as a spec names it; ConfigError if the spec is not there."""
    if path.suffix == ".toml" and not path.is_dir():
        from expunge import specs

        spec = specs.read_spec(path)
        run = specs.run_folder(spec, path)
        warn_of_changes(path, spec, run)
        return run
    return path


def warn_of_changes(path: Path, spec: Spec, run: Path) -> None:
    """Say on stderr what a spec says otherwise than when its run was made."""
    from expunge import specs

    if changes := specs.changes_since(run, spec):
        listed = "\n".join(f"  {line}" for line in changes)
        echo(
            f"warning: {path}: the spec has changed since {run} was made; what differs:\n{listed}\n"
            f"  fix: {specs.undo_or_repair(path, run)}",
            err=True,
        )


@app.command()
def export(
    spec: Annotated[Path, typer.Argument(help="The spec file (TOML).")],
    run: Annotated[
        Path | None, typer.Option(help="The finished run folder. Default: that of the spec.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder. Default: exports/ and the run folder's name.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write an ONNX file too, and compare it with the model.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="The largest difference of logits that the ONNX file may have.")
    ] = 1e-3,
    as_json: Json = False,
) -> None:
    """Write the repaired model for use: weights, a manifest that rebuilds it, and ONNX."""
    from dataclasses import asdict

    from expunge import specs
    from expunge.export import exported_model as exports
    from expunge.export.manifest import MANIFEST
    from expunge.export.model_card import needed_code
    from expunge.export.pretrained import export_pretrained_run

    read = specs.read_spec(spec)
    run = run or specs.run_folder(read, spec)
    folder = out or Path("exports") / run.resolve().name
    if read.model.pretrained:
        export_pretrained_run(spec, folder, run=run, onnx=onnx, tolerance=tolerance)
        warn_of_changes(spec, read, run)
        written = sorted(p.name for p in folder.iterdir())
        if as_json:
            print_json({"folder": str(folder), "files": written})
        else:
            _print_export(folder, written)
        return
    found = exports.export_run(spec, folder, run=run, onnx=onnx, tolerance=tolerance)
    warn_of_changes(spec, read, run)
    manifest = asdict(found.manifest)
    if as_json:
        print_json({"folder": str(folder), **manifest})
        return
    _print_export(folder, [*found.manifest.sha256, MANIFEST, exports.CARD])
    if code := needed_code(found.manifest):
        echo(code)
    if found.manifest.onnx is not None:
        parity = found.manifest.onnx
        echo(
            f"ONNX: logits differ by at most {parity.max_difference:.2g} on {parity.n_samples} "
            f"samples, {parity.agreement:.1%} of the predictions are equal"
        )


def _print_export(folder: Path, files: list[str]) -> None:
    echo(f"{folder}: {', '.join(files)}")
    echo(f"how to use it, and what was done: {folder / 'README.md'}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or spec files (TOML).")],
    as_json: Json = False,
) -> None:
    """Compare finished runs in one table."""
    results = {str(run): read_result(run_of(run)) for run in runs}
    if as_json:
        print_json(results)
        return
    table = Table("run", "recipe", "seed", "before", "after", "gain", "parameters")
    for name, r in results.items():
        accuracy = [
            _plain(r[side]["accuracy"] if r[side] else None) for side in ("before", "after")
        ]
        pruning = r["pruning"]
        size = f"{pruning['parameters_before']:,} → {pruning['parameters_after']:,}"
        row = (name, r["recipe"], str(r["seed"]), *accuracy, _plain(r["gain"]), size)
        table.add_row(*(Text(printable(cell)) for cell in row))
    show(table, whole_console())


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=f"One of: {', '.join(REGISTRIES)}.")] = "",
    as_json: Json = False,
) -> None:
    """List what can be named in a spec: recipes, detectors, and so on."""
    if what and what not in REGISTRIES:
        raise typer.BadParameter(f"'{what}' is none of: {', '.join(REGISTRIES)}")
    chosen = {kind: _registry(kind) for kind in REGISTRIES if not what or kind == what}
    if as_json:
        print_json({kind: _described(registry) for kind, registry in chosen.items()})
        return
    for kind, registry in chosen.items():
        echo(kind)
        for name, described in _described(registry).items():
            words = ", ".join(str(v) for k, v in described.items() if k != "summary")
            echo(f"  {name:24}{f'({words}) ' if words else ''}{described['summary']}")


def _described(registry: Registry[Any, Any]) -> dict[str, dict[str, Any]]:
    """The plug-ins of a registry: what they do, and their metadata that are not empty."""
    return {
        name: {
            "summary": registry.summary(name),
            **{k: v for k, v in vars(registry.metadata(name)).items() if v and k != "needs"},
        }
        for name in registry.names()
    }


def _registry(kind: str) -> Registry[Any, Any]:
    module, _, name = REGISTRIES[kind].partition(":")
    registry: Registry[Any, Any] = getattr(import_module(module), name)
    return registry


def print_result(result: RepairResult) -> None:
    """Print red flags, the table of models, the decision, and where the report is."""
    from expunge.reporting.tables import headline, outcomes

    print_flags(result.flags)
    console = whole_console()
    if rows := outcomes(result):
        show(_outcomes_table(rows), console)
    echo(headline(result))
    if result.run:
        echo(f"report: {Path(result.run) / 'report.html'}")


def print_flags(flags: Iterable[Flag]) -> None:
    """Print red flags, a line each."""
    console = whole_console()
    for flag in flags:
        show(f"⚑ {flag.code}: {flag.message}", console, style="yellow")


def _outcomes_table(rows: list[Outcome]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for head in ("model", "accuracy %", "Δ repair − this (pp)", "seconds", "parameters"):
        left = head == "model"
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            _percent(row.accuracy),
            _points(row.gain),
            f"{row.seconds:.1f}" if row.seconds is not None else "–",
            f"{row.parameters:,}",
        )
    return table


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
