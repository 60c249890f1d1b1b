"""Singular spectra, SVE and LSVR, and the learning rates tried, as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from expunge.errors import RunError
from expunge.nmtune.heads import NMTune
from expunge.nmtune.spectra import lsvr, sve
from expunge.reporting import charts
from expunge.storage.reading import reading

# A caption, and singular values by the name of the curve.
Plot = tuple[str, Mapping[str, np.ndarray]]
# By which a page is recognised as ours.
_MARK = b'<meta name="generator" content="expunge">'


def report(fitted: NMTune, probe: NMTune | None = None) -> str:
    """Render the report of a fit: learning rates tried, and the spectra before and after.

    Parameters
    ----------
    fitted
        The head.
    probe
        A linear probe that was fitted to the same data, for comparison.

    Returns
    -------
    str
        HTML.
    """
    heads = {"head": fitted} | ({"linear probe": probe} if probe else {})
    trials = [
        (name, t.learning_rate, t.accuracy, t.loss, t.learning_rate == head.learning_rate)
        for name, head in heads.items()
        for t in head.trials
    ]
    samples = "held-out samples" if fitted.trials else "the training samples"
    return page("NMTune", [(f"Features of {samples}", fitted.spectra)], trials)


def require_own_page(file: Path) -> None:
    """Refuse to overwrite a page that `page` did not render.

    Raises
    ------
    RunError
        If the file is of another program, or cannot be read.
    """
    with reading(file, RunError):
        is_foreign = file.exists() and _MARK not in file.read_bytes()[:1000]
    if is_foreign:
        raise RunError(
            "is a page of another program", where=str(file), fix="name another folder with --out"
        )


def page(
    title: str,
    plots: Sequence[Plot],
    trials: Sequence[tuple[str, float, float, float, bool]] = (),
) -> str:
    """Render a plot and a table of SVE and LSVR for each set of spectra, as HTML.

    Parameters
    ----------
    title
        The title of the page.
    plots
        A caption, and singular values by name, for each plot.
    trials
        Head, learning rate, accuracy and loss on the held-out part, and whether it was chosen.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    shown = [
        {
            "caption": caption,
            "plot": charts.spectrum(
                [(f"curve line-{i}", values) for i, values in enumerate(curves.values())],
                label=f"Singular spectrum: {caption}",
            ),
            "rows": [(i, name, sve(v), lsvr(v)) for i, (name, v) in enumerate(curves.items())],
        }
        for caption, curves in plots
    ]
    environment = Environment(
        loader=PackageLoader("expunge.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("spectra.html.j2")
    return template.render(title=title, plots=shown, trials=trials)
