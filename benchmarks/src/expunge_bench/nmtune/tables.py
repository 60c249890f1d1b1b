"""Tables of the benchmark, and the page of singular spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.nmtune.pages import page
from expunge_bench.results import Row, Table, format_mean, group_rows

_HEAD = (
    *("in-domain (%)", "out-of-domain (%)"),
    *("Δ vs linear, in-domain (pp)", "Δ vs linear, out-of-domain (pp)"),
    *("SVE", "LSVR", "learning rates", "seconds"),
)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Over noise rates, by noise rate, by corruption; differences are paired by encoder."""
    return [
        summary(rows),
        by_noise_rate(rows),
        *(by_corruption(found, data) for (data,), found in group_rows(rows, "data").items()),
    ]


def summary(rows: Sequence[Row]) -> Table:
    """Means over noise rates, and over seeds with 95 % t-intervals."""
    lines = []
    for (data, tune), here in group_rows(rows, "data", "tune").items():
        for (method,), found in group_rows(here, "method").items():
            seeds = str(len({r["seed"] for r in found}))
            lines.append((data, f"{tune:,}", method, seeds, *_cells(here, found)))
    head = ("data", "n tuned", "method", "seeds", *_HEAD)
    return Table(head, tuple(lines), "Over all noise rates")


def by_noise_rate(rows: Sequence[Row]) -> Table:
    """The same for every noise rate of the pre-training, of data that have several."""
    lines = []
    for (data,), of_data in sorted(group_rows(rows, "data").items()):
        if len({r["rate"] for r in of_data}) < 2:
            continue
        for (tune, rate), here in sorted(group_rows(of_data, "tune", "rate").items()):
            for (method,), found in group_rows(here, "method").items():
                lines.append((data, f"{rate:g}", f"{tune:,}", method, *_cells(here, found)))
    head = ("data", "noise rate", "n tuned", "method", *_HEAD)
    return Table(head, tuple(lines), "By noise rate of the pre-training")


def by_corruption(rows: Sequence[Row], data: str) -> Table:
    """Accuracy of each method by corruption, over all noise rates."""
    kinds = tuple(rows[0]["corruptions"])
    lines = []
    for (tune, method), found in group_rows(rows, "tune", "method").items():
        cells = (
            _mean_by_seed([(r["seed"], r["corruptions"][kind]) for r in found]) for kind in kinds
        )
        lines.append((f"{tune:,}", method, *cells))
    head = ("n tuned", "method", *(f"{kind} (%)" for kind in kinds))
    return Table(head, tuple(lines), f"Out-of-domain accuracy, {data}")


def _cells(here: Sequence[Row], found: Sequence[Row]) -> tuple[str, ...]:
    """Numbers of one method's rows; ``here`` are those of all methods in the same setting."""
    linear = {(r["rate"], r["seed"]): r for r in here if r["method"] == "linear"}
    pairs = [(r, linear[r["rate"], r["seed"]]) for r in found if (r["rate"], r["seed"]) in linear]
    accuracies, differences = [], []
    for name in ("in_domain", "out_of_domain"):
        accuracies.append(_mean_by_seed([(r["seed"], r[name]) for r in found]))
        paired = [(r["seed"], r[name] - base[name]) for r, base in pairs if r is not base]
        differences.append(_mean_by_seed(paired, form="+.2f"))
    spectra = [
        _mean_by_seed([(r["seed"], r[name]) for r in found], form=".3f", scale=1)
        for name in ("sve", "lsvr")
    ]
    chosen = sorted({r["learning_rate"] for r in found if r["learning_rate"] is not None})
    learning_rates = ", ".join(f"{lr:g}" for lr in chosen) or "–"
    seconds = _mean_by_seed([(r["seed"], r["seconds"]) for r in found], form=".0f", scale=1)
    return (*accuracies, *differences, *spectra, learning_rates, seconds)


def _mean_by_seed(
    values: Sequence[tuple[int, float | None]], *, form: str = ".1f", scale: float = 100
) -> str:
    """Values by seed: the mean of every seed, then the mean over seeds with its interval."""
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    return format_mean((float(np.mean(v)) for v in by_seed.values()), form=form, scale=scale)


def spectra_page(rows: Sequence[Row]) -> str:
    """Singular spectra of in-domain test features: of encoders by noise rate, and of heads."""
    plots = []
    seed = next((r["seed"] for r in rows), None)
    shown = [r for r in rows if r["seed"] == seed and r["spectrum"]]
    for (data, tune, rate), here in group_rows(shown, "data", "tune", "rate").items():
        curves = {
            "features" if r["method"] == "linear" else r["method"]: np.array(r["spectrum"])
            for r in here
        }
        plots.append((f"{data}, {tune:,} samples, noise rate {rate:g}, seed {seed}", curves))
    return page("Singular spectra", plots)
