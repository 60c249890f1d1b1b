"""Commands that fit a head to embeddings, and apply it."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from expunge.cli.terminal import Device, Json, echo, nmtune, print_json, progress
from expunge.nmtune import files, pages
from expunge.nmtune.heads import NMTune
from expunge.nmtune.objectives import PRESETS
from expunge.nmtune.spectra import lsvr, singular_values, sve
from expunge.storage.atomic_files import require_other_file, write_file


class Preset(StrEnum):
    """The published forms of the method, and their baselines."""

    linear = "linear"
    mlp = "mlp"
    paper = "paper"
    code = "code"


class Centre(StrEnum):
    """The means that are subtracted before singular values are computed."""

    none = "none"
    columns = "columns"
    rows = "rows"


Embeddings = Annotated[
    Path,
    typer.Argument(help="Embeddings: a .parquet file, or an .npz file with the arrays x and y."),
]
Column = Annotated[
    str, typer.Option(help="Name of the column with the embeddings, in a Parquet file.")
]


@nmtune.command("fit")
def nmtune_fit(
    embeddings: Embeddings,
    out: Annotated[Path, typer.Option(help="Folder to write the head and its report to.")],
    column: Column = "embedding",
    label: Annotated[
        str, typer.Option(help="Name of the column with the classes, in a Parquet file.")
    ] = "label",
    preset: Annotated[
        Preset, typer.Option(help="Form of the method, or a baseline.")
    ] = Preset.paper,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="Candidate learning rate. Repeat it for several.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 30,
    held_out: Annotated[
        float,
        typer.Option(help="Fraction of the samples, held out to choose the learning rate."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fit a head to labelled embeddings, and a linear probe; report.html compares them."""
    pages.require_own_page(out / "report.html")
    x, y, classes = files.read_labelled(embeddings, column=column, label=label)
    heads: dict[str, NMTune] = {}
    with progress() as show:
        for name in dict.fromkeys((preset.value, "linear")):
            config = replace(PRESETS[name], epochs=epochs)
            config = (
                replace(config, learning_rates=tuple(learning_rate)) if learning_rate else config
            )
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
    write_file(out / "report.html", page)
    facts = {"head": str(out), "samples": len(x), "classes": len(classes)}
    facts |= {name: _facts(head) for name, head in heads.items()}
    if as_json:
        print_json(facts)
    else:
        for name, head in heads.items():
            echo(f"{name}: {_summary(head)}")
        echo(f"report: {out / 'report.html'}")


@nmtune.command("apply")
def nmtune_apply(
    embeddings: Embeddings,
    head: Annotated[Path, typer.Option(help="The head: a folder that `expunge nmtune fit` wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .npz.")],
    column: Column = "embedding",
    transformed: Annotated[
        bool, typer.Option("--transformed", help="Write the transformed features too.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Classify embeddings: write the columns prediction and probability."""
    require_other_file(out, embeddings)
    fitted = NMTune.load(head, device=device)
    x = files.read_embeddings(embeddings, column=column)
    p = fitted.probabilities(x)
    predicted = p.argmax(axis=1)
    columns = {"prediction": np.array(fitted.classes)[predicted], "probability": p.max(axis=1)}
    if transformed:
        columns["transformed"] = fitted.transform(x)
    files.write(out, columns, source=embeddings)
    counts = np.bincount(predicted, minlength=len(fitted.classes)).tolist()
    if as_json:
        print_json({"out": str(out), "predicted": dict(zip(fitted.classes, counts, strict=True))})
    else:
        echo(f"{out}: {len(x):,} predictions")


@nmtune.command("spectrum")
def nmtune_spectrum(
    embeddings: Embeddings,
    column: Column = "embedding",
    centre: Annotated[
        Centre,
        typer.Option(help="Means to subtract first: none, those of columns, or those of rows."),
    ] = Centre.none,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale every embedding to length 1 first.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, with a plot.")] = None,
    as_json: Json = False,
) -> None:
    """Print SVE and LSVR of embeddings; labels are not needed."""
    if out is not None:
        require_other_file(out, embeddings)
    x = files.read_embeddings(embeddings, column=column)
    values = singular_values(x, centre=centre.value, normalise=normalise)
    if out is not None:
        plot = (f"{len(x):,} embeddings", {embeddings.name: values})
        write_file(out, pages.page("Singular spectrum", [plot]))
    if as_json:
        print_json({"sve": sve(values), "lsvr": lsvr(values), "values": values.tolist()})
    else:
        echo(f"SVE {sve(values):.3f}, LSVR {lsvr(values):.3f}")


def _facts(head: NMTune) -> dict[str, Any]:
    best = next((t for t in head.trials if t.learning_rate == head.learning_rate), None)
    return {
        "learning_rate": head.learning_rate,
        "accuracy_held_out": best.accuracy if best else None,
        "loss_held_out": best.loss if best else None,
        "sve": {name: sve(values) for name, values in head.spectra.items()},
        "lsvr": {name: lsvr(values) for name, values in head.spectra.items()},
    }


def _summary(head: NMTune) -> str:
    facts = _facts(head)
    accuracy = facts["accuracy_held_out"]
    held_out = "" if accuracy is None else f", held-out accuracy {accuracy:.1%}"
    before, after = (
        f"{facts['sve'][k]:.2f} and {facts['lsvr'][k]:.2f}" for k in ("features", "transformed")
    )
    return f"learning rate {head.learning_rate:g}{held_out}; SVE and LSVR from {before} to {after}"
