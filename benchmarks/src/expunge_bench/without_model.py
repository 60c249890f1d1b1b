"""`expunge bench without-model`: `expunge.detect` on tables and embeddings, beside cleanlab.

The tables are those of `expunge bench zoo`, with its wrong labels; no network is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import expunge
from expunge._core.arrays import Array, Floats, Ints
from expunge._core.progress import Progress, silent
from expunge.data.feature_files import read_labelled_features
from expunge.demo.noise import GroundTruth
from expunge_bench.peers import N_FOLDS
from expunge_bench.results import ResultStore, Row, Table
from expunge_bench.zoo import Found, cleanlab_decision, measure, partition_decision, zoo_settings
from expunge_bench.zoo_data import FROM_FILES, Part, ZooData, load_zoo_set, with_noise

KEYS = ("name", "method")
# Kinds of noise that leave the inputs as they are.
_LABEL_NOISE = ("none", "symmetric", "pair", "annotator", "ambiguous", "class")
_EMBEDDING_NOISE = (("none", 0.0), ("symmetric", 0.27), ("pair", 0.25), ("annotator", 0.2))
_CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "trees": lambda: ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0),
}


@dataclass(frozen=True)
class NoisyTable:
    """Features with labels of which some are wrong, and the truth about them."""

    data: str
    noise: str
    rate: float
    seed: int
    x: Array
    labels: Ints
    truth: GroundTruth

    @property
    def name(self) -> str:
        """What identifies its rows."""
        return f"{self.data}-{self.noise}-{self.rate:g}-{self.seed}"


def bench(
    *,
    part: Part,
    out: Path,
    data: Path | None = None,
    embeddings: Path | None = None,
    sets: Sequence[str] = (),
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each table and method; rows that ``out`` holds are not made again.

    data: the folder that news is read from; left out without. embeddings: a file with true labels,
    ``x`` and ``y`` of an ``.npz``. sets: names of data sets, all by default. Writes ``rows.jsonl``,
    ``table.md``, ``table.html`` and ``summary.json``.
    """
    store = ResultStore(out, KEYS)
    tables = [*_zoo_tables(part, data), *(_embedding_tables(embeddings) if embeddings else ())]
    chosen = [t for t in tables if not sets or t.data in sets]
    for number, table in enumerate(chosen):
        common = {k: getattr(table, k) for k in ("name", "data", "noise", "rate", "seed")}
        for method, decide in _methods(table).items():
            if {"name": table.name, "method": method} not in store:
                found = measure(decide(), table.truth)
                store.add({**common, "n": len(table.labels), "method": method, **found})
        progress("without a model", number + 1, len(chosen))
    rows: list[Row] = list(store.rows())
    (out / "summary.json").write_text(json.dumps(summary(rows), indent=1), encoding="utf-8")
    store.write_tables("Without a model", command, result_tables(rows))
    return rows


def _zoo_tables(part: Part, folder: Path | None) -> Iterator[NoisyTable]:
    """The zoo's sets of rows of numbers, each with its kinds of wrong labels."""
    seen: set[str] = set()
    for setting in zoo_settings():
        name, noise = setting.data, setting.noise
        if setting.part != part or noise not in _LABEL_NOISE or name == "cifar":
            continue
        if name in FROM_FILES and folder is None:
            continue
        data = load_zoo_set(name, setting.seed, folder)
        if data.x.ndim != 2 or data.x.dtype != np.float32:
            continue
        table = _with_noise(name, data, noise, setting.rate, setting.seed)
        if table.name not in seen:
            seen.add(table.name)
            yield table


def _embedding_tables(path: Path) -> Iterator[NoisyTable]:
    read = read_labelled_features(path, label="y")
    labels = np.unique(read.labels, return_inverse=True)[1].astype(np.int64)
    data = ZooData(np.asarray(read.features, dtype=np.float32), labels, int(labels.max()) + 1)
    for noise, rate in _EMBEDDING_NOISE:
        yield _with_noise(path.stem, data, noise, rate, 0)


def _with_noise(name: str, data: ZooData, noise: str, rate: float, seed: int) -> NoisyTable:
    x, given, truth = with_noise(data, noise, rate, seed)
    return NoisyTable(name, noise, rate, seed, x, given, truth)


def _methods(table: NoisyTable) -> dict[str, Callable[[], Found]]:
    """`expunge.detect` alone and with probabilities, and cleanlab on these, by name."""
    work: dict[str, Callable[[], Found]] = {
        "detect": lambda: partition_decision(expunge.detect(table.x, table.labels))
    }
    for kind in _CLASSIFIERS:
        work[f"detect+{kind}"] = lambda kind=kind: partition_decision(  # type: ignore[misc]
            expunge.detect(table.x, table.labels, _out_of_fold(table, kind))
        )
        work[f"cleanlab+{kind}"] = lambda kind=kind: cleanlab_decision(  # type: ignore[misc]
            table.labels, _out_of_fold(table, kind)
        )
    return work


def _out_of_fold(table: NoisyTable, kind: str) -> Floats:
    """Class probabilities of five folds, ``float64[n, c]``."""
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
    classifier = _CLASSIFIERS[kind]()
    probs: Floats = cross_val_predict(
        classifier, table.x, table.labels, cv=folds, method="predict_proba"
    )
    return probs


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean F1 over the kinds of noise, by data set and method."""
    found: dict[str, dict[str, float]] = {}
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data and row["f1"] is not None]
        methods = dict.fromkeys(row["method"] for row in own)
        found[data] = {
            m: float(np.mean([row["f1"] for row in own if row["method"] == m])) for m in methods
        }
    return found


def result_tables(rows: Sequence[Row]) -> list[Table]:
    """F1 by data set and method, and every row by itself."""
    by_set = summary(rows)
    methods = tuple(dict.fromkeys(method for found in by_set.values() for method in found))
    lines = [(data, *(f"{found[m]:.3f}" for m in methods)) for data, found in by_set.items()]
    columns = ("auroc", "f1", "max_f1", "noise_rate", "estimated_rate", "flagged")
    each = [
        (row["name"], row["method"], *("–" if row[k] is None else f"{row[k]:.3f}" for k in columns))
        for row in rows
    ]
    return [
        Table(("data", *methods), tuple(lines), "F1, means over kinds of noise"),
        Table(("table", "method", *columns), tuple(each), "Every table"),
    ]
