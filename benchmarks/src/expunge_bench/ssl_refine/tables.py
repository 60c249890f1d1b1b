"""Tables of the benchmark: methods, rounds, detection, noise, encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    noise_label,
    paired_differences,
)
from expunge_bench.ssl_refine.methods import REFINEMENT

# The value of the column ``method`` in the rows of encoders.
ENCODER = "simclr"
_ROUND_PERCENT = {
    "label_accuracy_before": "labels correct before (%)",
    "label_accuracy": "labels correct after (%)",
    "full_weight": "full weight (%)",
    "full_weight_precision": "precision (%)",
    "accuracy": "accuracy (%)",
}
_ROUND_COUNTS = {
    "n_wrong_to_right": "wrong → right",
    "n_right_to_wrong": "right → wrong",
    "n_wrong_to_wrong": "wrong → wrong",
}
_DETECTION = {
    "flagged_rate": "flagged rate",
    "auroc": "AUROC",
    "f1": "F1",
    "knn_auroc": "k-NN AUROC",
}
_NOISE = {
    "rate": "noise rate",
    "commonest_target": "commonest wrong class",
    "worst_class": "worst-class label acc.",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; differences are paired by seed."""
    trained = [row for row in rows if row["method"] != ENCODER]
    encoders = [row for row in rows if row["method"] == ENCODER]
    return [
        _methods(trained),
        _rounds(trained),
        _detection(trained),
        _noise([row for row in trained if row["method"] == REFINEMENT]),
        _encoders(encoders),
    ]


def _methods(rows: Sequence[Row]) -> Table:
    lines = []
    for (_, noise, rate), here in group_rows(rows, "n", "noise", "rate").items():
        by_method = group_rows(here, "method")
        refined = by_method.get((REFINEMENT,), [])
        for (method,), found in by_method.items():
            gain = paired_differences(refined, found)
            lines.append(
                (
                    *(noise_label(noise, rate), method, str(len(found))),
                    *mean_cells(found, ["accuracy"], form=".1f", scale=100),
                    "–" if method == REFINEMENT else format_mean(gain, form="+.1f", scale=100),
                    *mean_cells(found, ["epochs", "seconds"], form=".0f"),
                )
            )
    head = ("noise", "method", "seeds", "accuracy (%)", "Δ refinement − this (pp)")
    return Table((*head, "epochs", "seconds"), tuple(lines))


def _rounds(rows: Sequence[Row]) -> Table:
    lines = []
    for (_, noise, rate, method), found in _by_method(rows).items():
        rounds = zip(*(r.get("rounds", ()) for r in found), strict=True)
        for number, same_round in enumerate(rounds, start=1):
            cells = partial(mean_cells, same_round)
            lines.append(
                (
                    *(noise_label(noise, rate), method, str(number)),
                    *cells(_ROUND_PERCENT, form=".1f", scale=100),
                    *cells(_ROUND_COUNTS, form=".0f"),
                )
            )
    head = ("noise", "method", "round", *_ROUND_PERCENT.values(), *_ROUND_COUNTS.values())
    return Table(head, tuple(lines), "Labels by round")


def _detection(rows: Sequence[Row]) -> Table:
    lines = [
        (noise_label(noise, rate), method, *mean_cells([r["detection"] for r in found], _DETECTION))
        for (_, noise, rate, method), found in _by_method(rows).items()
        if "detection" in found[0]
    ]
    return Table(("noise", "method", *_DETECTION.values()), tuple(lines), "Detection")


def _noise(rows: Sequence[Row]) -> Table:
    lines = [
        (noise_label(noise, rate), *mean_cells([r["noise_statistics"] for r in found], _NOISE))
        for (_, noise, rate, _), found in _by_method(rows).items()
    ]
    return Table(("noise", *_NOISE.values()), tuple(lines), "Realised noise")


def _encoders(rows: Sequence[Row]) -> Table:
    lines = [
        (
            f"{n:,}",
            *mean_cells(found, ["accuracy"], form=".1f", scale=100),
            *mean_cells(found, ["seconds"], form=".0f"),
        )
        for (n,), found in group_rows(rows, "n").items()
    ]
    return Table(("images", "k-NN accuracy (%)", "seconds"), tuple(lines), "Encoders")


def _by_method(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    return group_rows(rows, "n", "noise", "rate", "method")
