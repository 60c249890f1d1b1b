"""The report as one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from expunge._core.arrays import Array
from expunge.models.audio import LogMel
from expunge.records import (
    DetectionResult,
    Fit,
    Metric,
    NeuronRanking,
    Partition,
    PooledEvidence,
    PrunePlan,
    RepairResult,
)
from expunge.reporting import charts
from expunge.reporting.formatting import (
    change,
    decimals,
    duration,
    fraction,
    percent,
    points,
    probability,
    q_value,
    signed_gain,
)
from expunge.reporting.listing import list_flagged
from expunge.reporting.media import Clip, SuspectRows, data_uri, heat, pixels, wav_uri
from expunge.reporting.sources import rate_lines, source_rows
from expunge.reporting.summary import repair_seconds
from expunge.reporting.tables import (
    MAX_SHOWN,
    Partitioned,
    class_rows,
    depth_rows,
    headlines,
    kind_of_evidence,
    layer_rows,
    outcomes,
    pruning_skipped,
    review_lines,
    skipped_lines,
    top_suspects,
    unlearning_lines,
)

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_UNITS = 30  # shown
MAX_MATRIX_CLASSES = 20  # of the suggested-label matrix


def render_html(
    result: RepairResult,
    *,
    images: Mapping[Any, Tensor | Array] | None = None,
    clips: Mapping[Any, Clip] | None = None,
    rows: SuspectRows | None = None,
    thumbnails: Mapping[Any, str] | None = None,
) -> str:
    """Render the report of a repair as one self-contained page.

    Parameters
    ----------
    result
        Of a repair.
    images
        Images by sample id, for the gallery of the most suspicious samples; see `media.images_for`.
    clips
        Audio by sample id, shown with a player, a waveform and a spectrogram; see
        `media.clips_for`. Samples with neither are listed in a table.
    rows
        Values of these samples for that table; see `media.rows_for`.
    thumbnails
        Small pictures by sample id, for the list of all flagged samples; see
        `listing.thumbnails_for`.

    Returns
    -------
    str
        It loads nothing from elsewhere; names from the user are escaped.
    """
    suspects = _suspects(result, images or {}, clips or {}, rows or SuspectRows())
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_common(result, suspects, rows, result.scores.pooled),
            listing=list_flagged(result, thumbnails),
            headlines=headlines(result),
            tiles=_tiles(result),
            outcomes=outcomes(result),
            metrics=_other_metrics(result),
            skipped=skipped_lines(result),
            review=review_lines(result),
            neurons=_neurons(result.ranking, result.plan),
            layers=layer_rows(result.ranking, result.plan),
            pruning_skipped=pruning_skipped(result),
            depths=depth_rows(result.head),
            audit=unlearning_lines(result),
            per_class=class_rows(result, result.before, result.after),
            config=json.dumps(dict(result.config), indent=2, default=str, ensure_ascii=False),
        )
    )


def render_detection(
    result: DetectionResult,
    *,
    name: str,
    rows: SuspectRows | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Render what `expunge.detect` found as one self-contained page.

    Parameters
    ----------
    result
        Of `expunge.detect`.
    name
        What the data are called, the file's name for example.
    rows
        Values of the most suspicious samples, see `media.SuspectRows`.
    config
        The settings.
    """
    flagged, n, (rate, low, high) = int(result.flagged.sum()), len(result.ids), result.noise_rate
    headline = f"{flagged:,} of {n:,} samples are flagged ({percent(flagged / max(n, 1))})."
    tiles = [
        ("Flagged", f"{flagged:,}", f"of {n:,} samples"),
        ("Estimated noise rate", percent(rate), f"{percent(low)} to {percent(high)}"),
        ("Classes", f"{len(result.classes):,}", f"probabilities: {result.probs}"),
    ]
    suspects = _suspects(result, {}, {}, rows or SuspectRows())
    return (
        _environment()
        .get_template("detection.html.j2")
        .render(
            **_common(result, suspects, rows, result.pooled),
            listing=list_flagged(result),
            name=name,
            headlines=(headline,),
            tiles=tiles,
            outcomes=[],
            skipped=[],
            review=[],
            notes=result.notes,
            per_class=class_rows(result),
            config=json.dumps(dict(config or {}), indent=2, default=str, ensure_ascii=False),
        )
    )


@cache
def _environment() -> Environment:
    """Return the templates, compiled once; what they show is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(
        loader=PackageLoader("expunge.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    formats = (percent, points, duration, decimals, fraction, probability, q_value)
    page.filters.update({f.__name__: f for f in formats})
    page.filters["gain"] = signed_gain
    return page


def _common(
    result: Partitioned,
    suspects: list[dict[str, Any]],
    rows: SuspectRows | None,
    pooled: PooledEvidence | None,
) -> dict[str, Any]:
    """What the pages of a repair and of a detection both show."""
    return {
        "result": result,
        "evidence": _evidence(result.partition),
        "p_noisy": _p_noisy(result.partition),
        "sources": source_rows(result.partition, pooled),
        "rates": rate_lines(result.partition, pooled),
        "suspects": suspects,
        "row_names": rows.names if rows else (),
        "matrix": _matrix(result),
        "version": installed_version(),
        "bar": charts.bar,
    }


def installed_version() -> str:
    """Return the installed version of expunge; a source tree that is only on the path has none."""
    try:
        return version("expunge")
    except PackageNotFoundError:
        return "(not installed)"


def _tiles(result: RepairResult) -> list[tuple[str, str, str]]:
    """(name, number, note) of the key figures."""
    partition, plan = result.partition, result.plan
    flagged, n = int(partition.flagged.sum()), len(partition.ids)
    value, low, high = partition.noise_rate
    before, after = result.size_before.parameters, result.size_after.parameters
    repair = repair_seconds(result)
    return [
        ("Flagged", f"{flagged:,}", f"of {n:,} samples ({percent(flagged / max(n, 1))})"),
        ("Estimated noise rate", percent(value), f"{percent(low)} to {percent(high)}"),
        ("Units pruned", f"{plan.granted:,}" if plan else "0", _requested(plan)),
        ("Parameters", f"{after:,}", f"{change(before, after)} from {before:,}"),
        ("Repair time", duration(repair), "without the baselines"),
    ]


def _requested(plan: PrunePlan | None) -> str:
    return f"of {plan.requested:,} requested" if plan else "none requested"


def _other_metrics(result: RepairResult) -> list[tuple[str, Metric, Metric | None]]:
    if result.before is None or result.after is None:
        return []
    after = result.after.metrics
    return [(k, m, after.get(k)) for k, m in result.before.metrics.items() if k != "accuracy"]


def _evidence(partition: Partition) -> list[dict[str, Any]]:
    """For each line of evidence: a histogram with the fitted components over it, and the fit."""
    fits = {fit.kind: fit for fit in partition.fits}
    lines = [(kind_of_evidence(name), values) for name, values in partition.evidence.items()]
    return [
        {
            "kind": kind,
            "fit": fits.get(kind),
            "bics": _bics(fits.get(kind)),
            **_evidence_plot(kind, np.asarray(values), partition.flagged, fits.get(kind)),
        }
        for kind, values in lines
        if len(values)
    ]


def _evidence_plot(kind: str, values: Array, flagged: Array, fit: Fit | None) -> dict[str, Any]:
    low, high = _limits(values)
    bins = int(np.clip(np.sqrt(len(values)), 8, 48))
    per_bin = len(values) * (high - low) / bins
    curves = []
    for part in fit.components if fit else ():
        x = np.linspace(low, high, charts.POINTS)
        std = max(part.std, 1e-12)
        density = np.exp(-0.5 * ((x - part.mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        role = "curve noisy-line" if part.noisy else "curve clean-line"
        curves.append((role, part.weight * per_bin * density))
    plot = charts.histogram(
        values,
        flagged,
        limits=(low, high),
        bins=bins,
        curves=curves,
        label=f"Histogram of the {kind} evidence with the fitted components",
    )
    return {"plot": plot, "beyond": int(((values < low) | (values > high)).sum())}


def _limits(values: Array) -> tuple[float, float]:
    """The axis: all but half a percent at either end, and a little room."""
    low, high = (float(q) for q in np.quantile(values, (0.005, 0.995)))
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _bics(fit: Fit | None) -> list[tuple[int, float, float]]:
    """(components, BIC, difference to the best)."""
    if fit is None or not fit.bic:
        return []
    best = min(fit.bic.values())
    return [(k, bic, bic - best) for k, bic in sorted(fit.bic.items())]


def _p_noisy(partition: Partition) -> str:
    return charts.histogram(
        partition.p_noisy,
        partition.flagged,
        limits=(0.0, 1.0),
        bins=40,
        rule=partition.threshold,
        root=True,
        label="Histogram of the probability of being noisy, with the threshold",
    )


def _suspects(
    result: Partitioned,
    images: Mapping[Any, Tensor | Array],
    clips: Mapping[Any, Clip],
    values: SuspectRows,
) -> list[dict[str, Any]]:
    """The most suspicious flagged samples, with an image or a player if there is one."""
    p, names = result.partition, result.classes
    rows = []
    for i in top_suspects(p, min(MAX_SHOWN, int(p.flagged.sum()))):
        name: Hashable = p.ids[i].item()
        image = pixels(images[name]) if name in images else None
        rows.append(
            {
                "id": name,
                "clip": _player(clips[name]) if name in clips else None,
                "image": None if image is None else data_uri(image),
                "pixelated": image is not None and max(image.shape[:2]) <= 64,
                "given": names[p.labels[i]],
                "suggested": names[p.suggested_label[i]],
                "same": bool(p.labels[i] == p.suggested_label[i]),
                "probability": float(p.suggested_probability[i]),
                "p_noisy": float(p.p_noisy[i]),
                "row": values.values.get(name, ()),
            }
        )
    return rows


def _player(clip: Clip) -> dict[str, Any]:
    """The audio, spectrogram and waveform of a clip."""
    x = torch.from_numpy(clip.audio.astype(np.float32) / 32768)[None]
    mels = LogMel(sample_rate=clip.sample_rate, unit="decibel", floor=1e-8)(x)[0, 0].numpy()
    return {
        "audio": wav_uri(clip),
        "spectrogram": data_uri(heat(mels)),
        "waveform": charts.waveform(clip.audio),
    }


def _matrix(result: Partitioned) -> dict[str, Any] | None:
    """Given × suggested labels of the flagged samples; the classes with most of them."""
    p, c = result.partition, len(result.classes)
    if not p.flagged.any():
        return None
    given, suggested = p.labels[p.flagged], p.suggested_label[p.flagged]
    involved = np.bincount(given, minlength=c) + np.bincount(suggested, minlength=c)
    shown = np.sort(np.argsort(-involved, kind="stable")[:MAX_MATRIX_CLASSES])
    place = np.full(c, -1)
    place[shown] = np.arange(len(shown))
    rows, columns = place[given], place[suggested]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(counts, (rows[inside], columns[inside]), 1)
    return {
        "classes": [result.classes[i] for i in shown],
        "counts": counts.tolist(),
        "top": max(int(counts.max()), 1),
        "hidden": c - len(shown),
    }


def _neurons(ranking: NeuronRanking | None, plan: PrunePlan | None) -> list[dict[str, Any]]:
    """The first units of the ranking, with bars on one common axis."""
    if ranking is None or not len(ranking.unit):
        return []
    k = min(MAX_UNITS, len(ranking.unit))
    effect = ranking.effect[:k]
    error = np.nan_to_num(ranking.stderr[:k])
    low = min(0.0, float((effect - error).min()))
    width = max(0.0, float((effect + error).max())) - low or 1.0
    # Four significant digits of the largest, so that the column is aligned.
    places = int(np.clip(3 - math.floor(math.log10(float(abs(effect).max()) or 1.0)), 0, 9))
    cut = plan.units if plan else {}
    rows = []
    for i in range(k):
        layer, unit = str(ranking.layer[i]), int(ranking.unit[i])
        owner = ranking.groups.get(layer, layer)
        gone = unit in cut.get(layer, ()) or unit in cut.get(owner, ())
        ends = ((effect[i] - error[i] - low) / width, (effect[i] + error[i] - low) / width)
        bar = charts.bar(
            -low / width,
            (effect[i] - low) / width,
            "noisy" if gone else "baseline",
            whisker=ends if error[i] > 0 else None,
        )
        numbers = {
            "effect": f"{effect[i]:.{places}f}".replace("-", "−"),
            "stderr": f"{error[i]:.{places}f}" if error[i] > 0 else "–",
            "q": float(ranking.q_value[i]),
        }
        rows.append({"layer": layer, "unit": unit, "cut": gone, "bar": bar, **numbers})
    return rows
