"""The model card of an exported model, as the Hugging Face Hub shows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.data import Samples
from expunge.export.manifest import InputFormat, Manifest, input_formats
from expunge.reporting.formatting import percent
from expunge.reporting.markdown import escape

MAX_NAMES = 50  # of classes and of columns
_USE = """```python
import expunge

model = expunge.load_exported_model("path/of/this/folder")
names = model.predict(inputs)
```
{columns}{code}
The manifest names code that is imported: load what you trust."""

_USE_PRETRAINED = """```python
from transformers import pipeline

classify = pipeline("{task}", "path/of/this/folder")
found = classify(inputs{settings})
```"""


_USE_INPUTS = """```python
from transformers import {name}

model = {name}.from_pretrained("path/of/this/folder").eval()
logits = model({inputs}).logits
```

The folder holds neither a tokenizer nor a processor. The training data were {formats}{prepared}."""


def render_model_card(manifest: Manifest, summary: Mapping[str, Any] | None = None) -> str:
    """Render what the model is, what was found in its training data, and what was done.

    Parameters
    ----------
    manifest
        Of the export.
    summary
        ``result.json`` of the repair, or None.

    Returns
    -------
    str
        Markdown with the metadata that the Hub reads. Text from the user is escaped.
    """
    return _render(
        manifest.classes,
        summary,
        library="expunge",
        task=_task(manifest.inputs, manifest.sample_rate),
        source=manifest.constructor,
        use=_USE.format(
            columns=_columns(manifest.columns),
            code=f"\n{code}\n" if (code := needed_code(manifest)) else "",
        ),
    )


def _columns(names: Sequence[str]) -> str:
    """What the columns of an input are; empty if it is no table."""
    return f"\nThe columns of the inputs, in this order: {_names(names)}.\n" if names else ""


def needed_code(manifest: Manifest) -> str:
    """What must be importable where the model is used; empty if that is expunge alone."""
    if not manifest.modules:
        return ""
    files = ", ".join(f"{name}.py" for name in manifest.modules if not _is_package(name))
    copied = f", or copy {files} into this folder" if files else ""
    found = f"It imports {' and '.join(manifest.modules)}: install that{copied}."
    if manifest.constructor.endswith(".from_pretrained"):
        found += (
            " Its constructor loads what its arguments name, which must be there too. With "
            "model.pretrained in the spec, the exported folder holds all."
        )
    return found


def _is_package(name: str) -> bool:
    """Whether a module is a folder, and no file that could be copied."""
    module = sys.modules.get(name)
    return module is not None and hasattr(module, "__path__")


def render_pretrained_card(
    name: str, samples: Samples, summary: Mapping[str, Any] | None, *, is_whole: bool
) -> str:
    """Render the card of a folder that ``from_pretrained`` reads.

    name: of the model's class. is_whole: whether the folder has a tokenizer or a processor.
    """
    formats = input_formats(samples.inputs.batch(np.arange(1)))
    task = _task(formats, samples.sample_rate)
    if is_whole:
        use = _USE_PRETRAINED.format(
            task=task, settings=", truncation=True" if task == "text-classification" else ""
        )
    else:
        use = _use_inputs(name, samples, formats)
    return _render(
        samples.classes, summary, library="transformers", task=task, source=name, use=use
    )


def _use_inputs(name: str, samples: Samples, formats: Mapping[str, InputFormat]) -> str:
    """How to use a model whose folder does not say how its inputs are made."""
    listed = ", ".join(
        f"`{part.dtype}[{', '.join(map(str, ('b', *part.shape)))}]`" for part in formats.values()
    )
    steps = [f", multiplied by 1/{round(1 / p.scale)}" for p in formats.values() if p.scale != 1]
    if samples.prepare.mean:
        mean, std = (list(values) for values in (samples.prepare.mean, samples.prepare.std))
        steps.append(f", less the mean {mean}, divided by {std}")
    inputs = "inputs" if list(formats) == ["input"] else "**inputs"
    return _USE_INPUTS.format(name=name, inputs=inputs, formats=listed, prepared="".join(steps))


def _render(
    classes: Sequence[str],
    summary: Mapping[str, Any] | None,
    *,
    library: str,
    task: str,
    source: str,
    use: str,
) -> str:
    is_unchanged = summary is not None and summary["decision"]["action"] in ("skip", "revert")
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- expunge\n- label-noise\n---",
        "# An examined classifier" if is_unchanged else "# A repaired classifier",
        f"{len(classes)} classes, made by `{escape(source)}` and trained on noisy data. "
        "[expunge](https://arxiv.org/abs/2506.11615) "
        + ("examined it and left it unchanged." if is_unchanged else "repaired it."),
    ]
    if summary is not None:
        parts += [
            "## What was found",
            _bullets(_found(summary)),
            "## What was done",
            _bullets(_done(summary)),
            _accuracy(summary),
        ]
    parts += ["## Use", use, "## Classes", _names(classes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(inputs: Mapping[str, InputFormat], sample_rate: int | None) -> str:
    """The Hub's name for what the model does, by the shape of its inputs."""
    shapes = [tuple(part.shape) for part in inputs.values()]
    if sample_rate is not None:
        return "audio-classification"
    if len(shapes) == 1 and len(shapes[0]) == 3:
        return "image-classification"
    return "tabular-classification" if len(shapes[0]) == 1 == len(shapes) else "text-classification"


def _found(summary: Mapping[str, Any]) -> Iterator[str]:
    partition = summary["partition"]
    rate = partition["noise_rate"]
    yield f"{partition['flagged']:,} of {partition['n']:,} training samples were flagged as noisy."
    yield (
        f"Estimated noise rate: {percent(rate['value'])} "
        f"({percent(rate['low'])} to {percent(rate['high'])})."
    )
    for flag in summary["flags"]:
        yield f"Red flag {escape(flag['code'])}: {escape(flag['message'])}"


def _done(summary: Mapping[str, Any]) -> Iterator[str]:
    decision = summary["decision"]
    yield f"Decision: {escape(decision['action'])}, because {escape(decision['reason'])}."
    yield f"Recipe {escape(summary['recipe'])}, seed {summary['seed']}."
    yield f"{summary['pruning'].get('granted', 0):,} units were pruned."


def _accuracy(summary: Mapping[str, Any]) -> str:
    rows = [
        (name, measured["accuracy"])
        for name in ("before", "after")
        if (measured := summary.get(name)) is not None
    ]
    if not rows:
        return "No validation data were given, so accuracy was not measured."
    lines = []
    for name, a in rows:
        value, low, high = (percent(a[key]) for key in ("value", "low", "high"))
        lines.append(f"| {name} | {value} | {low} to {high} | {a['n']:,} |")
    head = "| model | accuracy | 95 % interval | validation samples |\n| --- | --- | --- | --- |"
    return "\n".join([head, *lines])


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(escape(name) for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, … ({len(names):,} in all)"
