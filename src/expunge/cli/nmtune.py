"""Commands that tune a head on embeddings, and use it."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from expunge.cli.terminal import Device, Json, nmtune, print_json, progress
from expunge.nmtune import files, pages
from expunge.nmtune.heads import NMTune
from expunge.nmtune.objectives import PRESETS
from expunge.nmtune.spectra import lsvr, singular_values, sve


class Preset(StrEnum):
    """The published forms of the method, and what they are compared with."""

    linear = "linear"
    mlp = "mlp"
    paper = "paper"
    code = "code"


class Centre(StrEnum):
    """What is subtracted before singular values are taken."""

    none = "none"
    columns = "columns"
    rows = "rows"


Embeddings = Annotated[
    Path, typer.Argument(help="A .parquet file, or .npz with arrays x and (to fit) y.")
]
Column = Annotated[str, typer.Option(help="Of a Parquet file, with lists of numbers.")]


@nmtune.command("fit")
def nmtune_fit(
    embeddings: Embeddings,
    out: Annotated[Path, typer.Option(help="The folder of the head and its report.")],
    column: Column = "embedding",
    label: Annotated[str, typer.Option(help="Of a Parquet file, with the classes.")] = "label",
    preset: Annotated[Preset, typer.Option(help="Which form of the method.")] = Preset.paper,
    rate: Annotated[list[float] | None, typer.Option(help="Learning rates to try.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of every training.")] = 30,
    held_out: Annotated[float, typer.Option(help="Share that chooses the learning rate.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Tune a head on embeddings with labels, beside a linear probe; report.html compares them."""
    x, y, classes = files.labelled(embeddings, column=column, label=label)
    heads: dict[str, NMTune] = {}
    with progress() as show:
        for name in dict.fromkeys((preset.value, "linear")):
            config = replace(PRESETS[name], epochs=epochs)
            config = replace(config, rates=tuple(rate)) if rate else config
            heads[name] = NMTune.fit(
                x,
                y,
                config=config,
                classes=classes,
                held_out=held_out,
                seed=seed,
                device=device,
                progress=show,
            )
    fitted, probe = heads[preset.value], heads["linear"]
    fitted.save(out)
    page = pages.report(fitted, probe if probe is not fitted else None)
    (out / "report.html").write_text(page, encoding="utf-8")
    facts = {"head": str(out), "samples": len(x), "classes": len(classes)}
    facts |= {name: _facts(head) for name, head in heads.items()}
    if as_json:
        print_json(facts)
    else:
        for name, head in heads.items():
            typer.echo(f"{name}: {_told(head)}")
        typer.echo(f"report: {out / 'report.html'}")


@nmtune.command("apply")
def nmtune_apply(
    embeddings: Embeddings,
    head: Annotated[Path, typer.Option(help="What `expunge nmtune fit` made.")],
    out: Annotated[Path, typer.Option(help="A .parquet or .npz file.")],
    column: Column = "embedding",
    transformed: Annotated[
        bool, typer.Option("--transformed", help="Also the features that the head makes.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Classify embeddings: adds the columns prediction and probability."""
    fitted = NMTune.load(head, device=device)
    x = files.unlabelled(embeddings, column=column)
    p = fitted.probabilities(x)
    predicted = p.argmax(axis=1)
    columns = {"prediction": np.array(fitted.classes)[predicted], "probability": p.max(axis=1)}
    if transformed:
        columns["transformed"] = fitted.transform(x)
    files.write(out, columns, beside=embeddings)
    counts = np.bincount(predicted, minlength=len(fitted.classes)).tolist()
    if as_json:
        print_json({"out": str(out), "predicted": dict(zip(fitted.classes, counts, strict=True))})
    else:
        typer.echo(f"{out}: {len(x):,} predictions")


@nmtune.command("spectrum")
def nmtune_spectrum(
    embeddings: Embeddings,
    column: Column = "embedding",
    centre: Annotated[Centre, typer.Option(help="Means to subtract.")] = Centre.none,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale every embedding to length 1 before.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A page with the plot.")] = None,
    as_json: Json = False,
) -> None:
    """SVE and LSVR of embeddings, with or without labels."""
    x = files.unlabelled(embeddings, column=column)
    values = singular_values(x, centre=centre.value, normalise=normalise)
    if out is not None:
        plot = (f"{len(x):,} embeddings", {embeddings.name: values})
        out.write_text(pages.page("Singular spectrum", [plot]), encoding="utf-8")
    if as_json:
        print_json({"sve": sve(values), "lsvr": lsvr(values), "values": values.tolist()})
    else:
        typer.echo(f"SVE {sve(values):.3f}, LSVR {lsvr(values):.3f}")


def _facts(head: NMTune) -> dict[str, Any]:
    best = next((t for t in head.trials if t.rate == head.rate), None)
    return {
        "rate": head.rate,
        "accuracy_held_out": best.accuracy if best else None,
        "loss_held_out": best.loss if best else None,
        "sve": {name: sve(values) for name, values in head.spectra.items()},
        "lsvr": {name: lsvr(values) for name, values in head.spectra.items()},
    }


def _told(head: NMTune) -> str:
    facts = _facts(head)
    accuracy = facts["accuracy_held_out"]
    held_out = "" if accuracy is None else f", {accuracy:.1%} of the part held out right"
    before, after = (
        f"{facts['sve'][k]:.2f} and {facts['lsvr'][k]:.2f}" for k in ("features", "transformed")
    )
    return f"learning rate {head.rate:g}{held_out}; SVE and LSVR from {before} to {after}"
