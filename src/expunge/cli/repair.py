"""Commands that repair a model: demo, check, repair, forget, and the single stages."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expunge.cli.results import print_result
from expunge.cli.terminal import Json, Kind, Out, app, echo, print_json, progress
from expunge.errors import DataError

if TYPE_CHECKING:
    from expunge.data import Samples
    from expunge.records import RepairResult

StageName = Literal["score", "partition", "rank", "prune", "tune"]


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
    typer.Option(
        help="Choose the threshold so that the expected fraction of clean samples among the "
        "flagged ones is at most this."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=0, help="Epochs of the tuning; of a recipe of several rounds, of the first."),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Time budget of the repair, without the baselines, which have as much each."),
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="The recipe; see `expunge list recipes`.")
]

Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that decode images and clips, for each process of a run."),
]


@app.command()
def demo(
    noise: Annotated[Noise, typer.Option(help="How wrong labels are drawn.")] = Noise.symmetric,
    rate: Annotated[float, typer.Option(help="Fraction of noisy samples, in [0, 1).")] = 0.4,
    kind: Annotated[Kind, typer.Option(help="What is corrupted.")] = Kind.labels,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    recipe: Annotated[
        str, typer.Option(help="The recipe; see `expunge list recipes`.")
    ] = "default",
    review: Annotated[
        int, typer.Option(min=0, help="Answers of a simulated reviewer, then repair again.")
    ] = 0,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Corrupt real digits, train until the noise is memorised, and repair; under two minutes."""
    from expunge.demo import digits
    from expunge.reporting.summary import summarise
    from expunge.reporting.tables import review_lines

    folder = out or Path("runs") / f"demo-{recipe}-{noise}-{kind}-{rate:g}-{seed}"
    with progress() as show:
        result, truth = digits.run_demo(
            noise=noise.value,
            rate=rate,
            kind=kind.value,
            seed=seed,
            out=folder,
            recipe=recipe,
            review=review,
            overwrite=overwrite,
            progress=show,
        )
    if as_json:
        print_json(summarise(result))
    else:
        print_result(result)
        for line in review_lines(result):
            typer.echo(f"review: {line}")
    if "auroc" in truth:
        echo(
            f"Against the true labels, which the repair did not see: AUROC {truth['auroc']:.3f}, "
            f"F1 {truth['f1']:.3f}, noise rate {truth['noise_rate']:.1%}. Suggested labels are "
            f"right for {truth['corrected_label_accuracy']:.1%} of the training samples, given "
            f"labels for {1 - truth['noise_rate']:.1%}.",
            err=as_json,
        )
    if "f1_before_review" in truth:
        typer.echo(
            f"With the answers F1 of the flags is {truth['f1']:.3f}, without them "
            f"{truth['f1_before_review']:.3f}.",
            err=as_json,
        )
    _exit(result, strict)


@app.command()
def check(spec: SpecPath, as_json: Json = False) -> None:
    """List all problems of a spec without training anything."""
    from expunge.spec_check import check_spec

    notes: list[str] = []
    problems = check_spec(spec, on_note=notes.append)
    if as_json:
        print_json({"spec": str(spec), "problems": problems, "notes": notes})
    else:
        for line in notes:
            echo(f"· {line}")
        for problem in problems:
            echo(f"✗ {problem}")
        echo(
            f"{spec}: {len(problems)} problem(s)"
            if problems
            else f"✓ {spec}: no problems. Next: expunge repair {shlex.quote(str(spec))}"
        )
    if problems:
        raise typer.Exit(1)


@app.command()
def repair(
    spec: SpecPath,
    out: Out = None,
    seed: Seed = None,
    recipe: RecipeName = None,
    fdr: Fdr = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    workers: Workers = None,
    as_json: Json = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Repair the model of a spec. An interrupted repair resumes where it stopped."""
    from expunge import pipeline, specs
    from expunge.reporting.summary import summarise
    from expunge.reporting.tables import partition_line

    read = specs.read_spec(spec)  # as it is now; it may change while the repair runs
    with progress() as show:
        loaded = specs.load_spec(
            spec,
            out=out,
            overwrite=overwrite,
            seed=seed,
            recipe=recipe,
            fdr=fdr,
            epochs=epochs,
            minutes=minutes,
            workers=workers,
            progress=show,
        )
        result = pipeline.repair(
            loaded.model,
            loaded.train,
            loaded.validation,
            held_out=loaded.held_out,
            **loaded.options,
        )
    specs.note_spec(Path(result.run), spec, read)
    if as_json:
        print_json(summarise(result))
    else:
        print_result(result)
        echo(partition_line(result.partition))
        _print_next(result, spec, is_default=out is None)
    _exit(result, strict)


def _print_next(result: RepairResult, spec: Path, *, is_default: bool) -> None:
    """Print commands that use a finished repair; they run as written."""
    run = "" if is_default else f" --run {shlex.quote(str(result.run))}"
    file = shlex.quote(str(spec))
    steps = {
        f"review {file if is_default else shlex.quote(str(result.run))}": "correct the flags",
        f"clean {file} --out corrected.parquet{run}": "data with corrected labels",
    }
    if better := result.decision.recipe:
        folder = shlex.quote(f"{result.run}-{better}")
        epochs = _epochs_of_baseline(result, better)
        steps[f"repair {file} --recipe {better}{epochs} --out {folder}"] = "the better network"
    if result.decision.kept:
        steps[f"export {file}{run}"] = "the repaired model for use"
    width = max(map(len, steps))
    echo("next:")
    for step, purpose in steps.items():
        echo(f"  expunge {step:{width}}  # {purpose}")


def _epochs_of_baseline(result: RepairResult, name: str) -> str:
    """The option that trains a network for as long as beside a repair of several rounds."""
    from expunge.config import build
    from expunge.recipes import Recipe, recipes

    repaired = build(Recipe, dict(result.config), where="recipe")
    epochs = recipes.get(name)(repaired).tune.epochs
    return f" --epochs {epochs}" if repaired.rounds.n_epochs and epochs else ""


@app.command()
def forget(
    spec: SpecPath,
    ids: Annotated[
        Path,
        typer.Option(
            help="A file with the ids of training samples, one a line.", exists=True, dir_okay=False
        ),
    ],
    find_more: Annotated[
        bool,
        typer.Option(
            "--find-more",
            help="The named samples, five or more, are examples: find those like them as well.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder. Default: that of the repair, with -forget at its end."),
    ] = None,
    seed: Seed = None,
    recipe: RecipeName = None,
    workers: Workers = None,
    as_json: Json = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Unlearn the samples that a file names: a deletion request, or a poisoned batch."""
    from expunge import pipeline, specs
    from expunge.pipeline.forget_run import named_samples
    from expunge.recipes import resolve
    from expunge.reporting.summary import summarise
    from expunge.reporting.tables import unlearning_lines

    read = specs.read_spec(spec)
    repaired = None if out else specs.run_folder(read, spec)
    named = _read_ids(ids)

    def check_data(train: Samples, held_out: Samples | None) -> None:
        nonlocal named
        if read.holds_out and held_out is not None:
            named = _without_unseen(named, held_out)
        unlearning = resolve(recipe or read.recipe, read.overrides())
        named_samples(train, named, unlearning, find_more=find_more)

    with progress() as show:
        loaded = specs.load_spec(
            spec,
            out=out or Path(f"{repaired}-forget"),
            trained=repaired,
            overwrite=overwrite,
            seed=seed,
            recipe=recipe,
            workers=workers,
            check_data=check_data,
            progress=show,
        )
        result = pipeline.forget(
            loaded.model,
            loaded.train,
            named,
            loaded.validation,
            find_more=find_more,
            **loaded.options,
        )
    specs.note_spec(Path(result.run), spec, read)
    if as_json:
        print_json(summarise(result))
    else:
        print_result(result)
        for line in unlearning_lines(result):
            echo(f"- {line}")
        run = shlex.quote(str(result.run))
        echo(f"next: expunge export {shlex.quote(str(spec))} --run {run}")
    _exit(result, strict)


def _without_unseen(named: list[str], held_out: Samples) -> list[str]:
    """Leave out the ids of samples that the model was not trained on, and say so."""
    unseen = {str(i) for i in held_out.ids}
    kept = [name for name in named if name not in unseen]
    if len(kept) < len(named):
        echo(
            f"{len(named) - len(kept):,} of these samples were held out of the training: the model "
            "has not seen them",
            err=True,
        )
    if named and not kept:
        raise DataError(
            "the model has not seen any of these samples",
            where="forget",
            fix="there is nothing to forget",
        )
    return kept


def _read_ids(file: Path) -> list[str]:
    """Return the lines that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 text: {error.reason} at byte {error.start}",
            where=str(file),
            fix="save it as UTF-8, an id a line",
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _stage(name: StageName, summary: str) -> Callable[..., None]:
    """A command that runs the stages up to one, in the folder from which `repair` resumes."""

    def command(
        spec: SpecPath,
        out: Out = None,
        seed: Seed = None,
        recipe: RecipeName = None,
        fdr: Fdr = None,
        workers: Workers = None,
        as_json: Json = False,
        overwrite: Overwrite = False,
    ) -> None:
        from expunge import pipeline, specs
        from expunge.reporting.summary import summarise_stages

        read = specs.read_spec(spec)
        with progress() as show:
            loaded = specs.load_spec(
                spec,
                out=out,
                overwrite=overwrite,
                seed=seed,
                recipe=recipe,
                fdr=fdr,
                workers=workers,
                progress=show,
            )
            made = pipeline.repair_until(
                loaded.model,
                loaded.train,
                loaded.validation,
                held_out=loaded.held_out,
                until=name,
                **loaded.options,
            )
        facts = summarise_stages(made.scores, made.partition, made.ranking, made.plan)
        facts["run"] = str(loaded.options["out"])
        specs.note_spec(Path(facts["run"]), spec, read)
        if as_json:
            print_json(facts)
        else:
            for key, value in facts.items():
                echo(f"{key}: {json.dumps(value, ensure_ascii=False)}")

    command.__doc__ = summary
    return command


_STAGES: dict[StageName, str] = {
    "score": "Score how suspicious every sample is. Stops after the scores.",
    "partition": "Estimate which samples are noisy. Stops after the partition.",
    "rank": "Rank the units that carry the noise. Stops after the ranking.",
    "prune": "Choose the units to prune. Stops after the plan.",
    "tune": "Prune and fine-tune, without baselines and report.",
}
for _name, _summary in _STAGES.items():
    app.command(_name)(_stage(_name, _summary))


def _exit(result: RepairResult, strict: bool) -> None:
    if strict and result.flags:
        raise typer.Exit(3)
