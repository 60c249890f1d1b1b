"""Commands that repair a model, and that show what a repair has done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from expunge import pipeline, specs
from expunge._core.registry import Registry
from expunge.cli.terminal import Json, Kind, Out, app, print_json, progress, whole_console
from expunge.data.sources import sources
from expunge.data.views import views
from expunge.demo import digits as demos
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import partitioners
from expunge.errors import DataError, RunError
from expunge.pruning.ranking import rankers
from expunge.pruning.selection import pruners
from expunge.recipes import recipes
from expunge.records import Metric, RepairResult
from expunge.reporting.summary import summarise, summarise_stages
from expunge.reporting.tables import headline, outcomes, unlearning_lines
from expunge.storage import export as exports

REGISTRIES: dict[str, Registry[Any, Any]] = {
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


SpecPath = Annotated[Path, typer.Argument(help="The spec file (TOML).")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 if there are red flags.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard what the run folder holds.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Fdr = Annotated[
    float | None,
    typer.Option(help="Flag as many samples as keep the expected share of clean ones below this."),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="See `expunge list recipes`.")]


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
    overwrite: Overwrite = False,
) -> None:
    """Corrupt real digits, train until the noise is memorised, repair: under two minutes."""
    folder = out or Path("runs") / f"demo-{recipe}-{noise}-{kind}-{rate:g}-{seed}"
    with progress() as show:
        result, truth = demos.demo(
            noise=noise.value,
            rate=rate,
            kind=kind.value,
            seed=seed,
            out=folder,
            recipe=recipe,
            overwrite=overwrite,
            progress=show,
        )
    if as_json:
        print_json(summarise(result))
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


@app.command()
def check(spec: SpecPath, as_json: Json = False) -> None:
    """List all problems of a spec without training anything."""
    notes: list[str] = []
    problems = specs.check(spec, note=notes.append)
    if as_json:
        print_json({"spec": str(spec), "problems": problems, "notes": notes})
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
    overwrite: Overwrite = False,
) -> None:
    """Repair the model of a spec; an interrupted repair goes on where it stopped."""
    with progress() as show:
        job = specs.prepare(
            spec, out=out, overwrite=overwrite, seed=seed, recipe=recipe, fdr=fdr, progress=show
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
        print_json(summarise(result))
    else:
        _print_result(result)
    _exit(result, strict)


@app.command()
def forget(
    spec: SpecPath,
    ids: Annotated[
        Path, typer.Option(help="Ids of training samples, one a line.", exists=True, dir_okay=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default the repair's and -forget.")
    ] = None,
    seed: Seed = None,
    recipe: RecipeName = None,
    as_json: Json = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Unlearn the samples that a file names: a deletion request, a poisoned batch.

    The run folder is not that of `expunge repair`, but the one with -forget after its name.
    """
    repaired = None if out else specs.run_folder(specs.load(spec), spec)
    named = _ids_in(ids)
    with progress() as show:
        job = specs.prepare(
            spec,
            out=out or Path(f"{repaired}-forget"),
            trained=repaired,
            overwrite=overwrite,
            seed=seed,
            recipe=recipe,
            progress=show,
        )
        result = pipeline.forget(job.model, job.train, named, job.validation, **job.settings)
    if as_json:
        print_json(summarise(result))
    else:
        _print_result(result)
        for line in unlearning_lines(result):
            typer.echo(f"- {line}")
    _exit(result, strict)


def _ids_in(file: Path) -> list[str]:
    """The lines that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 text: {error.reason} at byte {error.start}",
            where=str(file),
            fix="save it as UTF-8, an id a line",
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _stage(name: str, says: str) -> Callable[..., None]:
    """A command that does the stages up to one, in the folder that `repair` goes on from."""

    def command(
        spec: SpecPath,
        out: Out = None,
        seed: Seed = None,
        recipe: RecipeName = None,
        fdr: Fdr = None,
        as_json: Json = False,
        overwrite: Overwrite = False,
    ) -> None:
        with progress() as show:
            job = specs.prepare(
                spec, out=out, overwrite=overwrite, seed=seed, recipe=recipe, fdr=fdr, progress=show
            )
            made = pipeline.repair_until(
                job.model,
                job.train,
                job.validation,
                held_out=job.held_out,
                until=name,  # type: ignore[arg-type]
                **job.settings,
            )
        facts = summarise_stages(made.scores, made.partition, made.ranking, made.plan)
        facts["run"] = str(job.settings["out"])
        if as_json:
            print_json(facts)
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
        print_json(_result_of(run))
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
        print_json({"folder": str(folder), **manifest})
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
        print_json(results)
        return
    table = Table("run", "recipe", "seed", "before", "after", "gain", "parameters")
    for name, r in results.items():
        accuracy = [
            _plain(r[side]["accuracy"] if r[side] else None) for side in ("before", "after")
        ]
        pruning = r["pruning"]
        size = f"{pruning['parameters_before']:,} → {pruning['parameters_after']:,}"
        table.add_row(name, r["recipe"], str(r["seed"]), *accuracy, _plain(r["gain"]), size)
    whole_console().print(table)


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
        print_json(found)
        return
    for kind, items in found.items():
        typer.echo(kind)
        for name, summary in items.items():
            typer.echo(f"  {name:24}{summary}")


def _print_result(result: RepairResult) -> None:
    console = whole_console()
    for flag in result.flags:
        console.print(
            f"⚑ {flag.code}: {flag.message}", style="yellow", highlight=False, markup=False
        )
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for head in ("model", "accuracy %", "Δ repair − this (pp)", "seconds", "parameters"):
        left = head == "model"
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in outcomes(result):
        accuracy, gain = row.accuracy, row.gain
        table.add_row(
            row.name,
            _percent(accuracy),
            _points(gain),
            f"{row.seconds:.1f}" if row.seconds is not None else "–",
            f"{row.parameters:,}",
        )
    console.print(table)
    typer.echo(headline(result))
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
