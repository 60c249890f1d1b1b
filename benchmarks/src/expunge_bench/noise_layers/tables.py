"""Tables of the benchmark, and the plot of accuracy against sigma."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.reporting.charts import line_chart
from expunge_bench.noise_layers.methods import METHODS
from expunge_bench.results import Row, Table, format_mean, group_rows

ATTACKS = ("fgsm", "pgd", "margin", "square", "transfer")


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each size of the benchmark: accuracy by attack and budget, cost, checks; and by sigma."""
    names = ("data", "n", "epochs", "n_attacked")
    return [
        table
        for size, here in group_rows(rows, *names).items()
        for table in _tables_of_size(
            here, ", ".join(f"{name} {value}" for name, value in zip(names, size, strict=True))
        )
    ]


def _tables_of_size(rows: Sequence[Row], size: str) -> list[Table]:
    budgets = sorted({eps for r in rows for eps in r["accuracy"]["pgd"]})
    columns = [(attack, eps) for eps in budgets for attack in ATTACKS]
    plain_seconds = {r["seed"]: r["seconds"] for r in rows if r["method"] == "plain"}
    max_queries = max((r["queries"] for r in rows), default=0)
    main, sweep = [], []
    for (method, expectation, sigma), found in group_rows(
        rows, "method", "expectation", "sigma"
    ).items():
        name = (method, expectation, f"{sigma:g}" if sigma else "–")
        sweep.append((*name, str(len(found)), *_accuracies(found, columns)))
        fully_attacked = [r for r in found if r["queries"] == max_queries]
        if fully_attacked:
            cost = (
                r["seconds"] / plain_seconds[r["seed"]] for r in found if r["seed"] in plain_seconds
            )
            main.append(
                (
                    *(*name, str(len(fully_attacked)), *_accuracies(fully_attacked, columns)),
                    *(format_mean(cost, form=".1f"), _failed_checks(found)),
                )
            )
    attacks = [f"{attack} {_format_budget(eps)} (%)" for attack, eps in columns]
    head = ("training", "expectation", "σ", "seeds", "clean (%)", *attacks)
    sweep.sort(key=lambda r: (r[0], r[1], float(r[2].replace("–", "0"))))
    return [
        Table(
            (*head, "time / plain", "gradient-masking checks failed"),
            tuple(main),
            f"Accuracy under attack: {size}",
        ),
        Table(head, tuple(sweep), f"By σ: {size}"),
    ]


def _accuracies(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Clean accuracy, then accuracy under each attack and budget."""
    values = [
        [r["clean"] for r in rows],
        *([r["accuracy"].get(attack, {}).get(eps) for r in rows] for attack, eps in columns),
    ]
    return tuple(format_mean(column, form=".1f", scale=100) for column in values)


def _failed_checks(rows: Sequence[Row]) -> str:
    failed = {name for r in rows for name, (holds, _) in r["checks"].items() if not holds}
    return ", ".join(sorted(failed)) or "none"


def _format_budget(eps: str) -> str:
    """``0.0314`` as ``8/255``; larger fractions unchanged."""
    value = 255 * float(eps)
    return f"{value:.0f}/255" if value < 20 else f"{float(eps):g}"


def plot_sigma(rows: Sequence[Row]) -> str:
    """Clean accuracy, and accuracy under PGD at the largest budget, against sigma: an SVG.

    σ = 0 is plain training. Of the expectation models the better one is shown.
    """
    if not rows:
        return ""
    largest = max(rows[0]["accuracy"]["pgd"], key=float)
    seed = rows[0]["seed"]
    plain = [r for r in rows if r["method"] == "plain" and r["seed"] == seed]
    series: dict[str, list[tuple[float, float]]] = {}
    for (method,), found in group_rows(rows, "method").items():
        if not METHODS[method].has_noise:
            continue
        best: dict[float, Row] = {r["sigma"]: r for r in plain}
        for r in found:
            if r["seed"] == seed:
                rival = best.get(r["sigma"], r)
                best[r["sigma"]] = max(rival, r, key=lambda one: one["accuracy"]["pgd"][largest])
        ordered = [best[sigma] for sigma in sorted(best)]
        series[f"{method}, clean"] = [(r["sigma"], 100 * r["clean"]) for r in ordered]
        name = f"{method}, PGD {_format_budget(largest)}"
        series[name] = [(r["sigma"], 100 * r["accuracy"]["pgd"][largest]) for r in ordered]
    return line_chart(series, x="σ", y="accuracy, percent")
