"""A repair in words: the JSON object, Markdown, one HTML page, and the red flags that head them.

Pure: records in, strings and dicts out. Fractions stay fractions in data and become percentages
for people. Ids, class names and layer names are the user's, so they are escaped where they appear.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from expunge import charts
from expunge.data.samples import Samples
from expunge.errors import DataError, some
from expunge.tables import (
    Control,
    Evaluation,
    Fit,
    Flag,
    Metric,
    NeuronRanking,
    Partition,
    PrunePlan,
    RepairResult,
    Scores,
)

MIN_SEPARATION = 1.5  # pooled standard deviations between clean and noisy components
ONE_CLASS_SHARE = 0.9  # of the flagged samples
ONE_CLASS_COUNT = 10  # flagged samples, fewer say nothing
GALLERY = 48  # suspects shown
UNITS = 30  # neurons shown
CLASSES = 50  # rows of the per-class table
MATRIX = 20  # classes of the suggested-label matrix
MEASURING = (
    "compare",
    "controls",
    "report",
    "train",
)  # stages that measure the repair, and are no part of it


class Outcome(NamedTuple):
    """A row of the result table; gain is repaired − this model."""

    name: str
    role: str
    accuracy: Metric | None
    gain: Metric | None
    seconds: float | None
    parameters: int


class ClassRow(NamedTuple):
    """Accuracy and flagged share of a class."""

    name: str
    n: int
    flagged: int
    before: float | None
    after: float | None


class LayerRow(NamedTuple):
    """Units of a layer before and after; ``units`` is None where no ranking tells their number."""

    name: str
    units: int | None
    cut: int
    explained: float | None


# Numbers for people


def percent(fraction: float | None) -> str:
    """``0.8734`` → ``87.3%``."""
    return "–" if fraction is None else f"{100 * fraction:.1f}%"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, signed: ``0.123`` → ``+12.3``."""
    rounded = round(100 * difference, 1)
    return f"{'−' if rounded < 0 else '+'}{abs(rounded):.1f}"


def duration(seconds: float | None) -> str:
    """``3.2 s``, ``48 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def decimals(value: float) -> str:
    """Three significant digits, or a dash for what is not known (NaN)."""
    return "–" if not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def probability(value: float) -> str:
    """Two decimals, and never 1.00 for what is not certain."""
    if value > 0.995:
        return ">0.99"
    return "<0.01" if value < 0.005 else f"{value:.2f}"


def q_value(value: float) -> str:
    """Three decimals down to 0.001; a dash where the ranker has none."""
    return "<0.001" if value < 0.001 else f"{value:.3f}" if math.isfinite(value) else "–"


def change(before: int, after: int) -> str:
    """Relative change of a size: ``−32%``."""
    return "–" if before == 0 else f"{points((after - before) / before)}%"


def _span(metric: Metric) -> str:
    return f"{percent(metric.low)} to {percent(metric.high)}"


def _gain(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    return f"{points(metric.value)} ({points(metric.low)} to {points(metric.high)})"


# The JSON object


def summary(result: RepairResult) -> dict[str, Any]:
    """The result as plain Python types: what ``result.json`` and ``--json`` hold.

    ``before``, ``after`` and ``gain`` are None where no validation set was given.
    """
    partition, plan = result.partition, result.plan
    value, low, high = (float(x) for x in partition.noise_rate)
    return {
        "before": _metrics(result.before),
        "after": _metrics(result.after),
        "gain": _metric(result.gain),
        "controls": {
            name: {
                **(_metrics(control.evaluation) or {}),
                "seconds": float(control.seconds),
                "parameters": int(control.size.parameters),
                "gain": _metric(control.gain),
            }
            for name, control in result.controls.items()
        },
        "partition": {
            "flagged": int(partition.flagged.sum()),
            "n": len(partition.ids),
            "noise_rate": {"value": value, "low": low, "high": high},
            "threshold": float(partition.threshold),
        },
        "pruning": {
            "requested": int(plan.requested) if plan else 0,
            "granted": int(plan.granted) if plan else 0,
            "parameters_before": int(result.size_before.parameters),
            "parameters_after": int(result.size_after.parameters),
            "macs_before": int(result.size_before.macs),
            "macs_after": int(result.size_after.macs),
        },
        "seconds": {stage: float(s) for stage, s in result.seconds.items()},
        "flags": [{"code": f.code, "sentence": f.sentence} for f in result.flags],
        "recipe": result.recipe,
        "seed": int(result.seed),
        "run": str(result.run),
    }


def stage_summary(
    scores: Scores,
    partition: Partition | None,
    ranking: NeuronRanking | None,
    plan: PrunePlan | None,
) -> dict[str, Any]:
    """What the first stages have found, as plain JSON values."""
    facts: dict[str, Any] = {"n": len(scores.ids), "detectors": dict(scores.kinds)}
    if partition is not None:
        facts["flagged"] = int(partition.flagged.sum())
        facts["noise_rate"] = dict(zip(("value", "low", "high"), partition.noise_rate, strict=True))
    if ranking is not None:
        facts["explained"] = dict(ranking.explained)
        rows = range(min(10, len(ranking.unit)))
        facts["first_units"] = [[str(ranking.layer[i]), int(ranking.unit[i])] for i in rows]
    if plan is not None:
        facts |= {"requested": plan.requested, "granted": plan.granted}
        facts["units"] = {layer: list(units) for layer, units in plan.units.items()}
    return facts


def _metric(metric: Metric | None) -> dict[str, float | int] | None:
    if metric is None:
        return None
    bounds = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {**{k: float(v) for k, v in bounds.items()}, "n": int(metric.n)}


def _metrics(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {name: _metric(metric) for name, metric in evaluation.metrics.items()}


# Rows that Markdown and HTML share


def verdict(result: RepairResult) -> str:
    """What the repair came to, in one sentence."""
    flagged, n = int(result.partition.flagged.sum()), len(result.partition.ids)
    before, after, gain = result.before, result.after, result.gain
    if before is None or after is None:
        return (
            f"{flagged:,} of {n:,} training samples were flagged; no validation set was given, so "
            "whether the model is better is not known."
        )
    path = f"from {percent(before.accuracy.value)} to {percent(after.accuracy.value)}"
    if gain is None:
        return f"Accuracy went {path}."
    by = f"{points(gain.value)} points ({points(gain.low)} to {points(gain.high)})"
    if gain.low > 0:
        return f"Accuracy rose {path}: {by}."
    if gain.high < 0:
        return f"Accuracy fell {path}: {by}."
    return f"No certain change: accuracy went {path}, {by}."


def outcomes(result: RepairResult) -> list[Outcome]:
    """The noisy model, the repaired one and every control; nothing without a validation set."""
    if result.before is None or result.after is None:
        return []
    repair = sum(s for stage, s in result.seconds.items() if stage not in MEASURING)
    sizes = result.size_before.parameters, result.size_after.parameters
    rows = [
        Outcome("noisy model", "noisy", result.before.accuracy, result.gain, None, sizes[0]),
        Outcome("repaired", "repaired", result.after.accuracy, None, repair, sizes[1]),
    ]
    for name, c in result.controls.items():
        size = c.size.parameters
        rows.append(Outcome(name, "control", c.evaluation.accuracy, c.gain, c.seconds, size))
    return rows


def class_rows(result: RepairResult) -> list[ClassRow]:
    """One row a class, in order; of very many classes, those with the largest flagged share."""
    partition, c = result.partition, len(result.classes)
    n = np.bincount(partition.labels, minlength=c)
    flagged = np.bincount(partition.labels[partition.flagged], minlength=c)
    share = flagged / np.maximum(n, 1)
    shown = np.sort(np.argsort(-share, kind="stable")[:CLASSES])
    before = result.before.per_class if result.before else {}
    after = result.after.per_class if result.after else {}
    names = [(int(i), result.classes[i]) for i in shown]
    return [
        ClassRow(name, int(n[i]), int(flagged[i]), before.get(name), after.get(name))
        for i, name in names
    ]


def layer_rows(ranking: NeuronRanking | None, plan: PrunePlan | None) -> list[LayerRow]:
    """One row for every layer that was ranked or cut."""
    units = ranking.units_by_layer() if ranking else {}
    explained = ranking.explained if ranking else {}
    cut = plan.units if plan else {}
    names = [*units, *(name for name in cut if name not in units)]
    return [
        LayerRow(name, units.get(name), len(cut.get(name, ())), explained.get(name))
        for name in names
    ]


def worst(partition: Partition, k: int) -> np.ndarray:
    """Positions of the ``k`` most suspicious samples: by p_noisy, then evidence, then id."""
    evidence = np.zeros(len(partition.ids))
    fits = {fit.kind: fit for fit in partition.fits}
    for name, values in partition.evidence.items():
        fit = fits.get(_kind(name))
        centre, scale = (fit.centre, fit.scale) if fit else (0.0, 1.0)
        evidence += (values - centre) / scale
    return np.lexsort((partition.ids, -evidence, -partition.p_noisy))[: max(k, 0)]


def _kind(evidence: str) -> str:
    return evidence.removesuffix("_evidence")


# Markdown


def markdown(result: RepairResult) -> str:
    """The report as Markdown: red flags first."""
    parts = [
        f"# expunge report: recipe {_text(result.recipe)}, seed {result.seed}",
        verdict(result),
        "## Red flags",
        "\n".join(f"- **{_text(f.code)}**: {_text(f.sentence)}" for f in result.flags)
        or "No red flags.",
        "## Result",
        _result_table(result),
        "## Partition",
        _partition_lines(result.partition),
        "## Pruning",
        _pruning_lines(result),
        "## Classes",
        _class_table(result),
        "## Time",
        _table(("stage", "time"), [(s, duration(t)) for s, t in result.seconds.items()]),
        f"Run folder: {_text(result.run)}" if result.run else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: object) -> str:
    """On one line, with what Markdown or HTML would act on made harmless."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*|\[\]])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers' columns (all but the first) are aligned to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), rule, *cells])


def _result_table(result: RepairResult) -> str:
    rows = outcomes(result)
    if not rows:
        return "No validation set was given: nothing was compared."
    head = ("model", "accuracy", "interval", "repaired − this, points", "time", "parameters")
    return _table(
        head,
        [
            (
                row.name,
                percent(row.accuracy.value) if row.accuracy else "–",
                _span(row.accuracy) if row.accuracy else "–",
                _gain(row.gain),
                duration(row.seconds),
                f"{row.parameters:,}",
            )
            for row in rows
        ],
    )


def _partition_lines(partition: Partition) -> str:
    flagged, n = int(partition.flagged.sum()), len(partition.ids)
    value, low, high = partition.noise_rate
    lines = [
        f"- flagged: {flagged:,} of {n:,} samples ({percent(flagged / max(n, 1))}), "
        f"p_noisy above {partition.threshold:g}",
        f"- estimated noise rate: {percent(value)} ({percent(low)} to {percent(high)})",
    ]
    for fit in partition.fits:
        bics = ", ".join(f"{k}: {bic:,.0f}" for k, bic in sorted(fit.bic.items()))
        lines.append(
            f"- {_text(fit.kind)} evidence: {_count(len(fit.components), 'component')}, "
            f"separation {decimals(fit.separation)}; BIC by number of components: {bics}"
        )
    return "\n".join(lines)


def _pruning_lines(result: RepairResult) -> str:
    plan, before, after = result.plan, result.size_before, result.size_after
    if plan is None:
        return "Nothing was cut."
    lines = [f"- units: {plan.requested:,} requested, {plan.granted:,} granted"]
    lines += [f"- why: {_text(reason)}" for reason in plan.reasons]
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("multiply-adds", before.macs, after.macs),
    ):
        lines.append(f"- {name}: {old:,} before, {new:,} after ({change(old, new)})")
    rows = [
        (r.name, "–" if r.units is None else r.units, r.cut, percent(r.explained))
        for r in layer_rows(result.ranking, plan)
    ]
    return "\n".join(lines) + "\n\n" + _table(("layer", "units", "cut", "explained"), rows)


def _class_table(result: RepairResult) -> str:
    rows = [
        (
            r.name,
            r.n,
            r.flagged,
            percent(r.flagged / max(r.n, 1)),
            percent(r.before),
            percent(r.after),
        )
        for r in class_rows(result)
    ]
    more = len(result.classes) - len(rows)
    note = f"\n\n{more} classes with a smaller flagged share are not shown." if more else ""
    return _table(("class", "samples", "flagged", "share", "before", "after"), rows) + note


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# HTML


def html(result: RepairResult, *, images: Mapping[Any, Tensor | np.ndarray] | None = None) -> str:
    """The report as one self-contained page.

    images: pictures by sample id (see `images_for`) for the gallery of suspects; those without one
    are listed.
    """
    page = Environment(
        loader=PackageLoader("expunge"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    formats = (percent, points, duration, decimals, probability, q_value)
    page.filters.update({f.__name__: f for f in formats})
    page.filters["gain"] = _gain
    return page.get_template("report.html.j2").render(
        result=result,
        verdict=verdict(result),
        tiles=_tiles(result),
        outcomes=outcomes(result),
        metrics=_other_metrics(result),
        evidence=_evidence(result.partition),
        p_noisy=_p_noisy(result.partition),
        suspects=_suspects(result, images or {}),
        matrix=_matrix(result),
        neurons=_neurons(result.ranking, result.plan),
        layers=layer_rows(result.ranking, result.plan),
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
    repair = sum(s for stage, s in result.seconds.items() if stage not in MEASURING)
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
    lines = [(_kind(name), values) for name, values in partition.evidence.items()]
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
    result: RepairResult, images: Mapping[Any, Tensor | np.ndarray]
) -> list[dict[str, Any]]:
    """The worst flagged samples, with a picture where there is one."""
    p, names = result.partition, result.classes
    rows = []
    for i in worst(p, min(GALLERY, int(p.flagged.sum()))):
        name: Hashable = p.ids[i].item()
        image = charts.pixels(images[name]) if name in images else None
        rows.append(
            {
                "id": name,
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
    position = {name: i for i, name in enumerate(samples.ids.tolist())}
    wanted = list(ids)
    unknown = [name for name in wanted if name not in position]
    if unknown:
        raise DataError(
            f"no samples with the ids {some(unknown)}",
            where=samples.name,
            fix="take the pictures from the data set that was partitioned",
        )
    if not wanted:
        return {}
    stored = samples.inputs.batch(np.array([position[name] for name in wanted]))
    if isinstance(stored, dict):
        return {}
    drawn = ((name, charts.pixels(x)) for name, x in zip(wanted, stored, strict=True))
    return {name: image for name, image in drawn if image is not None}


# Red flags


def find_flags(
    partition: Partition | None,
    plan: PrunePlan | None,
    before: Evaluation | None,
    after: Evaluation | None,
    controls: Mapping[str, Control],
    shared_inputs: int = 0,
    extra: tuple[Flag, ...] = (),
) -> tuple[Flag, ...]:
    """Every reason to doubt the numbers, each with its evidence.

    shared_inputs: validation inputs that are also training inputs. extra: flags raised elsewhere.
    """
    return (
        *extra,
        *(_mixture_not_separated(partition) if partition else ()),
        *(_one_component_fits_better(partition) if partition else ()),
        *(_flagged_set_is_one_class(partition) if partition else ()),
        *_granted_less_than_requested(plan),
        *_validation_overlaps_training(shared_inputs),
        *_clean_accuracy_fell(before, after),
        *_random_control_as_good(controls),
    )


def _mixture_not_separated(partition: Partition) -> Iterator[Flag]:
    for fit in partition.fits:
        if any(c.noisy for c in fit.components) and fit.separation < MIN_SEPARATION:
            yield Flag(
                "mixture-not-separated",
                f"In the {fit.kind} evidence the noisy and the clean component lie "
                f"{fit.separation:.2f} standard deviations apart, less than {MIN_SEPARATION}: many "
                "samples could belong to either.",
            )


def _one_component_fits_better(partition: Partition) -> Iterator[Flag]:
    for fit in partition.fits:
        best = min(fit.bic, key=lambda k: (fit.bic[k], k), default=0)
        others = [bic for k, bic in fit.bic.items() if k != 1]
        if best == 1 and others:
            yield Flag(
                "one-component-fits-better",
                f"One component describes the {fit.kind} evidence best: its BIC is lower by "
                f"{min(others) - fit.bic[1]:.1f} than that of several, so there may be no noise of "
                "this kind.",
            )


def _flagged_set_is_one_class(partition: Partition) -> Iterator[Flag]:
    given = partition.labels[partition.flagged]
    if len(given) < ONE_CLASS_COUNT or len(np.unique(partition.labels)) < 3:
        return
    label, most = max(zip(*np.unique(given, return_counts=True), strict=True), key=lambda x: x[1])
    if most >= ONE_CLASS_SHARE * len(given):
        yield Flag(
            "flagged-set-is-one-class",
            f"{most:,} of {len(given):,} flagged samples ({percent(most / len(given))}) have the "
            f"given label {label}: this may be a rare or hard class and not noise.",
        )


def _granted_less_than_requested(plan: PrunePlan | None) -> Iterator[Flag]:
    if plan is not None and plan.granted < plan.requested:
        why = f": {'; '.join(plan.reasons)}" if plan.reasons else ""
        yield Flag(
            "granted-less-than-requested",
            f"{plan.granted:,} of {plan.requested:,} units were cut{why}.",
        )


def _validation_overlaps_training(shared_inputs: int) -> Iterator[Flag]:
    if shared_inputs > 0:
        yield Flag(
            "validation-overlaps-training",
            f"Training and validation share {_count(shared_inputs, 'input')}: the accuracies are "
            "too high for what is new to the model.",
        )


def _clean_accuracy_fell(before: Evaluation | None, after: Evaluation | None) -> Iterator[Flag]:
    """Below the interval of the accuracy before."""
    if before is None or after is None:
        return
    old, new = before.accuracy, after.accuracy
    if new.value < old.low:
        yield Flag(
            "clean-accuracy-fell",
            f"Accuracy fell from {percent(old.value)} ({_span(old)}) to {percent(new.value)} "
            f"({_span(new)}): the repair did harm.",
        )


def _random_control_as_good(controls: Mapping[str, Control]) -> Iterator[Flag]:
    control = controls.get("random-units")
    if control is not None and control.gain.low <= 0:
        yield Flag(
            "random-control-as-good",
            f"Cutting random units does as well: the repaired model is ahead by only "
            f"{_gain(control.gain)} points, so the choice of units is not what helped.",
        )
