"""Tables of the benchmark: detection, and ROUGE of summaries."""

from __future__ import annotations

from collections.abc import Sequence

from expunge_bench.results import Row, Table, group_rows, mean_cells

_DETECTION = {
    "auroc": "AUROC",
    "auroc_document": "AUROC by document",
    "auroc_sentence": "AUROC by sentence",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "fpr": "FPR",
    "clean_document_fpr": "FPR in clean documents",
    "seconds": "seconds",
}
_VERSIONS = ("clean", "noisy", "filtered", "oracle")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals."""
    detection, summaries = [], []
    groups = group_rows(rows, "fault", "amount", "method", "documents")
    for (fault, amount, method, documents), here in groups.items():
        name = (fault, f"{amount:g}", method)
        counts = (str(documents), str(len(here)))
        detection.append((*name, *mean_cells(here, _DETECTION), *counts))
        for summariser in ("lead", "centroid"):
            cells = (
                " / ".join(mean_cells(here, [f"{summariser}_{v}_rouge_{k}" for k in "12l"]))
                for v in _VERSIONS
            )
            recovered = mean_cells(here, [f"{summariser}_recovered"])
            summaries.append((*name, summariser, *cells, *recovered))
    head = ("noise", "amount", "method")
    return [
        Table((*head, *_DETECTION.values(), "documents", "seeds"), tuple(detection), "Detection"),
        Table(
            (*head, "summary", *_VERSIONS, "R-1 recovered"),
            tuple(summaries),
            "ROUGE-1 / 2 / L of summaries",
        ),
    ]
