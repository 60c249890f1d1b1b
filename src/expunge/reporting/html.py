"""The report as one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.signal import resample_poly
from torch import Tensor

from expunge.data import Samples
from expunge.errors import DataError, format_ids
from expunge.models.audio import LogMel
from expunge.records import Fit, Metric, NeuronRanking, Partition, PrunePlan, RepairResult
from expunge.reporting import charts
from expunge.reporting.formatting import (
    change,
    decimals,
    duration,
    percent,
    points,
    probability,
    q_value,
    signed_gain,
)
from expunge.reporting.markdown import (
    MAX_SHOWN,
    class_rows,
    kind_of_evidence,
    layer_rows,
    outcomes,
    prune_skipped_reason,
    quarantine,
    repair_seconds,
    top_suspects,
    unlearning_lines,
    verdict,
)

UNITS = 30  # neurons shown
PLAYED, PLAYED_RATE = 4, 16_000  # seconds and Hz of an embedded clip, at most
MATRIX = 20  # classes of the suggested-label matrix


class Clip(NamedTuple):
    """Sound to be played: ``int16[n]``, and its rate in Hz."""

    sound: np.ndarray
    rate: int


def html(
    result: RepairResult,
    *,
    images: Mapping[Any, Tensor | np.ndarray] | None = None,
    clips: Mapping[Any, Clip] | None = None,
) -> str:
    """The report as one self-contained page.

    images: pictures by sample id (see `images_for`) for the gallery of suspects. clips: sound (see
    `clips_for`), which gets a player, a waveform and a spectrogram; suspects with neither are
    listed.
    """
    page = Environment(
        loader=PackageLoader("expunge.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    formats = (percent, points, duration, decimals, probability, q_value)
    page.filters.update({f.__name__: f for f in formats})
    page.filters["gain"] = signed_gain
    return page.get_template("report.html.j2").render(
        result=result,
        verdict=verdict(result),
        tiles=_tiles(result),
        outcomes=outcomes(result),
        metrics=_other_metrics(result),
        evidence=_evidence(result.partition),
        p_noisy=_p_noisy(result.partition),
        suspects=_suspects(result, images or {}, clips or {}),
        quarantine=quarantine(result),
        matrix=_matrix(result),
        neurons=_neurons(result.ranking, result.plan),
        layers=layer_rows(result.ranking, result.plan),
        prune_skipped_reason=prune_skipped_reason(result),
        unlearned=unlearning_lines(result),
        per_class=class_rows(result),
        config=json.dumps(dict(result.config), indent=2, default=str, ensure_ascii=False),
        version=version("expunge"),
        bar=charts.bar,
    )


def _tiles(result: RepairResult) -> list[tuple[str, str, str]]:
    """(name, number, note) of the key figures."""
    partition, plan = result.partition, result.plan
    flagged, n = int(partition.flagged.sum()), len(partition.ids)
    value, low, high = partition.noise_rate
    before, after = result.size_before.parameters, result.size_after.parameters
    repair = repair_seconds(result)
    return [
        ("Flagged", f"{flagged:,}", f"of {n:,} samples ({percent(flagged / max(n, 1))})"),
        ("Estimated noise", percent(value), f"{percent(low)} to {percent(high)}"),
        ("Units cut", f"{plan.granted:,}" if plan else "0", _requested(plan)),
        ("Parameters", f"{after:,}", f"{change(before, after)} from {before:,}"),
        ("Repair time", duration(repair), "without the controls"),
    ]


def _requested(plan: PrunePlan | None) -> str:
    return f"of {plan.requested:,} requested" if plan else "nothing was to be cut"


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


def _evidence_plot(
    kind: str, values: np.ndarray, flagged: np.ndarray, fit: Fit | None
) -> dict[str, Any]:
    low, high = _limits(values)
    bins = int(np.clip(np.sqrt(len(values)), 8, 48))
    per_bin = len(values) * (high - low) / bins
    curves = []
    for part in fit.components if fit else ():
        x = np.linspace(low, high, charts.POINTS)
        std = max(part.std * fit.scale, 1e-12) if fit else 1.0
        mean = fit.centre + fit.scale * part.mean if fit else 0.0
        density = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
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


def _limits(values: np.ndarray) -> tuple[float, float]:
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
    result: RepairResult,
    images: Mapping[Any, Tensor | np.ndarray],
    clips: Mapping[Any, Clip],
) -> list[dict[str, Any]]:
    """The worst flagged samples, with a picture or a player where there is one."""
    p, names = result.partition, result.classes
    rows = []
    for i in top_suspects(p, min(MAX_SHOWN, int(p.flagged.sum()))):
        name: Hashable = p.ids[i].item()
        image = charts.pixels(images[name]) if name in images else None
        rows.append(
            {
                "id": name,
                "clip": _player(clips[name]) if name in clips else None,
                "image": None if image is None else charts.data_uri(image),
                "pixelated": image is not None and max(image.shape[:2]) <= 64,
                "given": names[p.labels[i]],
                "suggested": names[p.suggested_label[i]],
                "same": bool(p.labels[i] == p.suggested_label[i]),
                "probability": float(p.suggested_probability[i]),
                "p_noisy": float(p.p_noisy[i]),
            }
        )
    return rows


def _player(clip: Clip) -> dict[str, Any]:
    """What is heard and seen of a clip."""
    x = torch.from_numpy(clip.sound.astype(np.float32) / 32768)[None]
    mels = LogMel(rate=clip.rate, unit="decibel", floor=1e-8)(x)[0, 0].numpy()
    return {
        "sound": charts.wav_uri(clip.sound, clip.rate),
        "picture": charts.data_uri(charts.heat(mels)),
        "wave": charts.waveform(clip.sound),
    }


def _matrix(result: RepairResult) -> dict[str, Any] | None:
    """Given × suggested labels of the flagged samples; the classes with most of them."""
    p, c = result.partition, len(result.classes)
    if not p.flagged.any():
        return None
    given, suggested = p.labels[p.flagged], p.suggested_label[p.flagged]
    involved = np.bincount(given, minlength=c) + np.bincount(suggested, minlength=c)
    shown = np.sort(np.argsort(-involved, kind="stable")[:MATRIX])
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
    k = min(UNITS, len(ranking.unit))
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
            "noisy" if gone else "control",
            whisker=ends if error[i] > 0 else None,
        )
        numbers = {
            "effect": f"{effect[i]:.{places}f}".replace("-", "−"),
            "stderr": f"{error[i]:.{places}f}" if error[i] > 0 else "–",
            "q": float(ranking.q_value[i]),
        }
        rows.append({"layer": layer, "unit": unit, "cut": gone, "bar": bar, **numbers})
    return rows


def images_for(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, np.ndarray]:
    """``uint8`` pictures (H×W or H×W×3) of these samples, by id; empty if they are not images.

    Images are stored inputs of shape ``[C, H, W]`` with C = 1 or 3, ``uint8`` or floating (each
    scaled from its smallest to its largest value). Raises DataError for ids that are not there.
    """
    drawn = {name: charts.pixels(x) for name, x in _stored(samples, ids).items()}
    return {name: image for name, image in drawn.items() if image is not None}


def clips_for(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, Clip]:
    """The sound of these samples, by id; empty if they are not sound ``[samples]`` of a known rate.

    At most the first 4 seconds, and not more than 16 kHz: the page is to be small. Floating sound
    is clipped to [−1, 1). Raises DataError for ids that are not there.
    """
    if samples.sample_rate is None:
        return {}
    found = _stored(samples, ids)
    if not all(_is_sound(x) for x in found.values()):
        return {}
    return {
        name: _played(x[: PLAYED * samples.sample_rate], samples.sample_rate)
        for name, x in found.items()
    }


def _is_sound(x: Tensor) -> bool:
    return x.dim() == 1 and (x.dtype == torch.int16 or x.is_floating_point())


def _played(x: Tensor, rate: int) -> Clip:
    scale = 1.0 if x.dtype == torch.int16 else 32768.0
    sound = x.cpu().double().mul(scale).numpy()
    if rate > PLAYED_RATE:
        common = math.gcd(rate, PLAYED_RATE)
        sound = resample_poly(sound, PLAYED_RATE // common, rate // common)
        rate = PLAYED_RATE
    return Clip(np.round(sound).clip(-32768, 32767).astype(np.int16), rate)


def _stored(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, Tensor]:
    """The stored inputs of these samples, by id; empty if each is more than one tensor."""
    position = {name: i for i, name in enumerate(samples.ids.tolist())}
    wanted = list(ids)
    unknown = [name for name in wanted if name not in position]
    if unknown:
        raise DataError(
            f"no samples with the ids {format_ids(unknown)}",
            where=samples.name,
            fix="take what is shown from the data set that was partitioned",
        )
    if not wanted:
        return {}
    stored = samples.inputs.batch(np.array([position[name] for name in wanted]))
    if isinstance(stored, dict):
        return {}
    return dict(zip(wanted, stored, strict=True))
