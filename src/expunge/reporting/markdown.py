"""The report as Markdown: red flags first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from expunge.records import DetectionResult, Partition, PooledEvidence, RepairResult
from expunge.reporting.formatting import (
    change,
    counted,
    decimals,
    duration,
    percent,
    signed_gain,
    span,
)
from expunge.reporting.sources import rate_lines, source_rows
from expunge.reporting.tables import (
    class_rows,
    depth_rows,
    headline,
    layer_rows,
    outcomes,
    pruning_skipped,
    review_lines,
    skipped_lines,
    top_suspects,
    unlearning_lines,
)

MAX_SUSPECTS = 10


def render_markdown(result: RepairResult) -> str:
    """Render the report of a repair as Markdown.

    Parameters
    ----------
    result
        Of a repair.

    Returns
    -------
    str
        Names from the user (classes, layers, ids) are escaped.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> from expunge import repair
    >>> result = repair(model, data, overrides={"tune": {"epochs": 1}})
    >>> print(render_markdown(result).splitlines()[0])
    # expunge report: recipe default, seed 0
    """
    parts = [
        f"# expunge report: recipe {escape(result.recipe)}, seed {result.seed}",
        escape(headline(result)),
        "## Red flags",
        "\n".join(f"- **{escape(f.code)}**: {escape(f.message)}" for f in result.flags)
        or "No red flags.",
        "\n".join(f"- Note: {escape(note)}" for note in result.notes),
        "## Result",
        _result_table(result),
        "## Partition",
        _partition_lines(result.partition),
        "\n".join(f"- {escape(s)}" for s in rate_lines(result.partition, result.scores.pooled)),
        _source_table(result.partition, result.scores.pooled),
        "## Flagged samples" if result.partition.flagged.any() else "",
        _flagged_lines(result),
        "## Review" if result.review else "",
        "\n".join(f"- {escape(line)}" for line in review_lines(result)),
        "## Skipped samples" if result.skipped else "",
        "\n".join(f"- {escape(line)}" for line in skipped_lines(result)),
        "## Pruning",
        _pruning_lines(result),
        "## Depth" if result.head else "",
        _depth_lines(result),
        "## Unlearning audit",
        "\n".join(f"- {escape(line)}" for line in unlearning_lines(result)),
        "## Classes",
        _class_table(result),
        "## Time",
        _table(("stage", "time"), [(s, duration(t)) for s, t in result.seconds.items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_detection_markdown(result: DetectionResult, *, name: str) -> str:
    """Render what `expunge.detect` found as Markdown, red flags among the lines of its summary."""
    pooled = result.pooled
    parts = [
        f"# expunge detect: {escape(name)}",
        "\n".join(f"- {escape(line)}" for line in result.summary().splitlines()),
        "\n".join(f"- {escape(line)}" for line in rate_lines(result, pooled)),
        _source_table(result, pooled),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(value: object) -> str:
    """The value on one line, escaped for Markdown and HTML."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*|\[\]])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    cells = [[escape(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), rule, *cells])


def _result_table(result: RepairResult) -> str:
    rows = outcomes(result)
    if not rows:
        return "No validation set was given, so nothing was compared."
    head = ("model", "accuracy", "95 % interval", "Δ repair − this (pp)", "time", "parameters")
    return _table(
        head,
        [
            (
                row.name,
                percent(row.accuracy.value) if row.accuracy else "–",
                span(row.accuracy) if row.accuracy else "–",
                signed_gain(row.gain),
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
        f"p_noisy above {decimals(partition.threshold)}",
        f"- estimated noise rate: {percent(value)} ({percent(low)} to {percent(high)})",
    ]
    for fit in partition.fits:
        bics = ", ".join(f"{k}: {bic:,.0f}" for k, bic in sorted(fit.bic.items()))
        lines.append(
            f"- {escape(fit.kind)} evidence: {counted(len(fit.components), 'component')}, "
            f"separation {decimals(fit.separation)}"
            + (f"; BIC by number of components: {bics}" if bics else "")
        )
    return "\n".join(lines)


def _source_table(partition: Partition, pooled: PooledEvidence | None) -> str:
    rows = [
        (s.name, f"{s.weight:.2f}", percent(s.agreement), percent(s.noise_rate))
        for s in source_rows(partition, pooled)
    ]
    return _table(("source", "weight", "agrees with labels", "noise rate alone"), rows)


def _flagged_lines(result: RepairResult) -> str:
    """The most suspicious flagged samples as a table; empty if nothing is flagged."""
    p, names = result.partition, result.classes
    n_flagged = int(p.flagged.sum())
    shown = top_suspects(p, min(MAX_SUSPECTS, n_flagged))
    rows = [
        (
            *(p.ids[i], percent(p.p_noisy[i]), names[p.labels[i]]),
            "none better" if p.labels[i] == p.suggested_label[i] else names[p.suggested_label[i]],
            percent(p.suggested_probability[i]),
        )
        for i in shown
    ]
    more = f"\n\n{n_flagged - len(shown):,} more are in partition.parquet."
    head = ("id", "noisy", "given label", "suggested label", "its probability")
    return _table(head, rows) + (more if n_flagged > len(shown) else "")


def _pruning_lines(result: RepairResult) -> str:
    plan, before, after = result.plan, result.size_before, result.size_after
    if plan is None:
        return escape(pruning_skipped(result))
    lines = [f"- units: {plan.requested:,} requested, {plan.granted:,} granted"]
    lines += [f"- reason: {escape(reason)}" for reason in plan.reasons]
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("multiply-adds", before.macs, after.macs),
    ):
        lines.append(f"- {name}: {old:,} before, {new:,} after ({change(old, new)})")
    rows = [
        (
            *(r.name, "–" if r.units is None else r.units, r.cut, percent(r.r_squared)),
            "–" if r.effect is None else f"{r.effect:.3f}",
            *(percent(r.direction), percent(r.direction_share), percent(r.layer)),
        )
        for r in layer_rows(result.ranking, plan)
    ]
    head = (
        *("layer", "units", "cut", "R² of p_noisy", "best unit (coefficient)"),
        *("best direction (R²)", "its part of the variance", "whole layer (cross-validated R²)"),
    )
    return "\n".join(lines) + "\n\n" + _table(head, rows)


def _depth_lines(result: RepairResult) -> str:
    rows = [
        (
            row.layer,
            row.columns,
            f"{row.macs:,}",
            percent(row.score),
            percent(row.reproduced),
            "yes" if row.chosen else "",
        )
        for row in depth_rows(result.head)
    ]
    head = ("last layer read", "features", "multiply-adds", "score")
    return _table((*head, "given labels of flagged samples", "chosen"), rows)


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
        for r in class_rows(result, result.before, result.after)
    ]
    hidden = len(result.classes) - len(rows)
    note = f"\n\n{hidden} classes with a smaller flagged share are not shown." if hidden else ""
    return (
        _table(
            ("class", "samples", "flagged", "flagged %", "accuracy before", "accuracy after"), rows
        )
        + note
    )
