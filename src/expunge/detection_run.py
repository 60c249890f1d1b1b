"""`expunge.detect` on a file, with its results in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge._core.arrays import Ints
from expunge.data.feature_files import LabelledFeatures, read_labelled_features
from expunge.data.feature_table import as_arrow
from expunge.model_free import ProbsSource, detect
from expunge.records import DetectionResult
from expunge.reporting.html import render_detection
from expunge.reporting.markdown import render_detection_markdown
from expunge.reporting.media import MAX_COLUMNS, MAX_TABLE_COLUMNS, SuspectRows
from expunge.reporting.summary import summarise_detection
from expunge.reporting.tables import MAX_SHOWN, top_suspects
from expunge.review import reviewed
from expunge.review.answer_log import AnswerLog
from expunge.review.answers import latest
from expunge.storage.cached_stages import CACHE_VERSION, FOLDERS
from expunge.storage.digests import file_digest
from expunge.storage.finished_run import RESULT, write_record
from expunge.storage.reading import reading
from expunge.storage.run_folder import Run, open_run
from expunge.storage.serialization import PARTITION, SCORES


@dataclass(frozen=True)
class Columns:
    """The columns or arrays of a file; see `read_labelled_features`."""

    label: str
    features: tuple[str, ...] = ()
    probs: tuple[str, ...] = ()
    ids: str | None = None


def detect_file(
    path: Path,
    out: Path,
    *,
    columns: Columns,
    overwrite: bool = False,
    probs_source: ProbsSource = "auto",
    threshold: float = 0.5,
    fdr: float | None = None,
    noise_rate: float | None = None,
    seed: int = 0,
) -> DetectionResult:
    """Detect noise in a file; write ``partition.parquet``, ``result.json`` and the reports.

    Answers of `expunge review` in the folder are taken into account.

    Parameters
    ----------
    path
        See `read_labelled_features`.
    out
        The folder for the results: a new one, or one of the same file and settings.
    columns
        What the file's columns or arrays are.
    overwrite
        Discard what an earlier run left in the folder.
    probs_source, threshold, fdr, noise_rate, seed
        See `expunge.detect`.

    Raises
    ------
    ExpungeError
        If the file or a setting cannot be used, or the folder holds other files.
    """
    read = read_labelled_features(
        path,
        label=columns.label,
        features=columns.features,
        probs=columns.probs,
        ids=columns.ids,
    )
    settings: dict[str, Any] = {
        "probs_source": probs_source,
        "threshold": threshold,
        "fdr": fdr,
        "noise_rate": noise_rate,
        "seed": seed,
    }
    with reading(path):
        content = file_digest(path)
    config = {**settings, "columns": asdict(columns)}
    header = {"detect": config, "data": content}
    with open_run(out, header, overwrite=overwrite) as run:
        result = detect(
            read.features,
            read.labels,
            read.probs,
            ids=read.ids,
            classes=read.classes,
            **settings,
        )
        result = _reviewed(run, result, header)
        rows = suspect_rows(read, result, top_suspects(result, MAX_SHOWN))
        page = render_detection(result, name=path.name, rows=rows, config=config)
        run.write("partition.parquet", lambda p: pq.write_table(result.to_table(), p))
        run.write("report.html", page)
        run.write("report.md", render_detection_markdown(result, name=path.name))
        run.write(RESULT, json.dumps(summarise_detection(result), indent=2) + "\n")
        write_record(run, {"classes": list(result.classes)})
    return result


def _reviewed(run: Run, result: DetectionResult, header: Mapping[str, Any]) -> DetectionResult:
    """Keep what a review shows, and bring its answers into the result."""
    assert run.folder is not None
    assert result.scores is not None
    key, scores = {"version": CACHE_VERSION, **header}, result.scores
    run.stage(FOLDERS["score"], key, lambda: SCORES.store(scores))
    run.stage(FOLDERS["partition"], key, lambda: PARTITION.store(result))
    answers = latest(AnswerLog(run.folder, result.classes).read())
    if not answers:
        return result
    found = reviewed(result, answers, n_classes=len(result.classes)).partition
    return cast(DetectionResult, found)


def suspect_rows(read: LabelledFeatures, result: DetectionResult, positions: Ints) -> SuspectRows:
    """The first values of some rows of the features, for people; none of embeddings."""
    names, columns = _shown_columns(read.features, positions)
    cells = zip(*columns, strict=True) if columns else ()
    ids = result.ids[positions].tolist()
    return SuspectRows(names, dict(zip(ids, cells, strict=True)) if columns else {})


def _shown_columns(features: Any, positions: Ints) -> tuple[tuple[str, ...], list[Sequence[str]]]:
    """Names and texts of the first plain columns, at the positions."""
    if isinstance(features, np.ndarray):
        matrix = features[:, None] if features.ndim == 1 else features
        if matrix.shape[1] > MAX_TABLE_COLUMNS:
            return (), []
        shown = matrix[positions, :MAX_COLUMNS]
        names = tuple(f"column {k}" for k in range(shown.shape[1]))
        return names, [[_cell(v) for v in column] for column in shown.T.tolist()]
    table = as_arrow(features, "features")
    plain = [f.name for f in table.schema if not pa.types.is_nested(f.type)][:MAX_COLUMNS]
    taken = table.select(plain).take(pa.array(positions))
    return tuple(plain), [[_cell(v) for v in taken.column(n).to_pylist()] for n in plain]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return "–" if value is None else str(value)[:80]
