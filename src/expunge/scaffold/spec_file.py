"""Writes the first spec file: what was found, and comments at the lines that may have to change."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data.paths import require_file
from expunge.data.splitting import n_held_out
from expunge.data.transforms import HubProcessor, has_processor
from expunge.errors import ConfigError
from expunge.scaffold.data import (
    InspectedData,
    NamedColumns,
    find_splits,
    inspect_data,
    measure_scale,
    settings,
    split_in_clone,
)
from expunge.scaffold.model import GuessedModel, guess_model, noted_scale, pretrained_folder
from expunge.scaffold.toml_text import toml_lines, toml_value
from expunge.storage.atomic_files import write_file

# Begins the comment of a line that is a guess.
CHANGE = "CHANGE"
# Epochs of the training of a model without weights.
EPOCHS = 20
# The fraction that is held out of small data.
HOLD_OUT = 0.2
# What is said of a network of ours.
_PLACEHOLDER = "a small network; yours: --model package.module:function"
# What the training data are called; the shape of one input goes into the braces.
_KINDS = {
    "image": "images of {}",
    "audio": "clips of {} values",
    "text": "texts",
    "table": "a table of {} columns",
    "features": "arrays of {}",
}
_VIEWS = {"image": "crop", "audio": "speech"}
_HELD_OUT = (
    "# Not used for training, labelled like the training data: decides whether the repair is",
    "# kept. Without it, a part of the training data is held out if the model is trained first.",
)
_VALIDATION = ("# Measures the result and decides nothing; best with labels that are right.",)


@dataclass(frozen=True)
class Request:
    """What the user gives; the rest is guessed.

    Parameters
    ----------
    data
        The training set: a file or folder, or a folder of the folders train, val and test.
    model
        ``"package.module:function"``, or the folder of a Hugging Face model; without it a small
        network for such data.
    arguments
        Arguments of the constructor.
    weights
        The file of the weights; without it the spec trains the model first.
    validation, held_out
        Further sets.
    columns
        Columns that are not to be guessed.
    training
        Settings of the training of a model without weights.
    name
        Of the run folder in ``runs``; that of the spec's file or, for ``spec.toml``, of its folder.
    """

    data: Path
    model: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    validation: Path | None = None
    held_out: Path | None = None
    columns: NamedColumns = field(default_factory=NamedColumns)
    training: Mapping[str, Any] = field(default_factory=lambda: {"epochs": EPOCHS})
    name: str = ""


def write_spec(request: Request, target: Path, *, overwrite: bool = False) -> list[str]:
    """Look at the data and the model, and write a spec that `check_spec` can check.

    Parameters
    ----------
    request
        What is known.
    target
        The spec file. Paths in it are relative to its folder.
    overwrite
        Whether a file that is there is replaced.

    Returns
    -------
    list
        What was found, a line a fact.

    Raises
    ------
    ConfigError
        If the file is there already.
    ExpungeError
        If the data cannot be read, their columns are not clear, or the model cannot be imported.
    """
    if target.is_dir():
        raise ConfigError(
            "is a folder, expected a file to write the spec to",
            where=str(target),
            fix=f"--out {target / 'spec.toml'}",
        )
    if target.exists() and not overwrite:
        raise ConfigError(
            "this file exists", where=str(target), fix="name another with --out, or --overwrite"
        )
    splits = find_splits(request.data)
    given = {"validation": request.validation, "held_out": request.held_out}
    splits |= {name: path for name, path in given.items() if path is not None}
    pretrained = pretrained_folder(request.model)
    data = inspect_data(
        splits["train"],
        columns=request.columns,
        pretrained=pretrained,
        has_weights=request.weights is not None,
    )
    folder = target.parent.resolve()  # a link is replaced, not followed
    model = guess_model(request.model, request.arguments, data, folder=folder)
    weights = require_file(request.weights) if request.weights else None
    is_trained = weights is not None or pretrained is not None
    view, scale = _VIEWS.get(data.kind, "none"), ""
    if pretrained is None:
        data, scale = _scaled(data, weights)
    elif data.kind in ("image", "audio") and has_processor(pretrained):
        data, view = _processed(data, pretrained, folder)
    sets: dict[str, dict[str, str]] = {k: {"path": _relative(v, folder)} for k, v in splits.items()}
    for name, keys in sets.items():
        if name != "train" and splits[name] == splits["train"] and splits[name].is_dir():
            keys["split"] = split_in_clone(splits[name], name)
    if data.test and "validation" not in sets:
        sets["validation"] = {**sets["train"], **data.test}
    lines = [
        *_head(target, request.name, data, sets, is_trained=is_trained),
        *_model_table(model, weights, folder, request.training),
        *_data_tables(data, sets, scale=scale, view=view),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_file(target, "\n".join(lines) + "\n", error=ConfigError)
    return _facts(data, model, sets)


def _scaled(data: InspectedData, weights: Path | None) -> tuple[InspectedData, str]:
    """Set mean and std, and the comment that says where they come from.

    Weights go with the scale of their training; without a note of it, nothing is standardised.
    """
    if weights is None:
        if not data.has_scale:
            return data, ""
        mean, std = measure_scale(data)
        comment = "measured on the training data"
    elif (noted := noted_scale(weights)) is not None:
        mean, std, name = noted
        comment = f"from {name} beside the weights"
    else:
        return data, "none"
    return replace(data, config=replace(data.config, mean=mean, std=std)), comment


def _processed(data: InspectedData, model: Path, folder: Path) -> tuple[InspectedData, str]:
    """Prepare images and sound by the processor of the model's folder; and the view that fits.

    What the processor makes of a clip is a waveform still, or a spectrogram, which no view of audio
    takes.
    """
    config = replace(data.config, transform=_relative(model, folder), size=None)
    if data.kind == "image":
        return replace(data, config=config), _VIEWS["image"]
    processor = HubProcessor(model)
    rate = int(processor.settings["sampling_rate"])
    is_waveform = processor(np.zeros(rate, dtype=np.float32)).ndim == 1
    config = replace(config, sample_rate=rate)
    return replace(data, config=config), _VIEWS["audio"] if is_waveform else "none"


def _head(
    target: Path, name: str, data: InspectedData, sets: Collection[str], *, is_trained: bool
) -> list[str]:
    baselines = '["finetune-only", "retrain-filtered"]' if "validation" in sets else "[]"
    # Specs of several folders are all named spec.toml, and each has a run folder of its own.
    name = name or (target.stem if target.stem != "spec" else target.parent.resolve().name)
    return [
        f"# Lines with {CHANGE} are guesses: look at these first. All keys: docs/spec.md.",
        "#",
        f"#     expunge check {target.name}",
        f"#     expunge repair {target.name}",
        "",
        'recipe = "default"  # see `expunge list recipes`',
        f"out = {toml_value(f'runs/{name}')}  # the run folder, from the working directory",
        f"baselines = {baselines}  # compared with the repair on the validation data",
        *_hold_out(data, sets, is_trained=is_trained),
        "",
    ]


def _hold_out(data: InspectedData, sets: Collection[str], *, is_trained: bool) -> list[str]:
    """Small data are held out only if the spec says so."""
    if "held_out" in sets or is_trained or n_held_out(len(data.samples)):
        return []
    return [f"hold_out = {HOLD_OUT}  # of the training data: decides whether the repair is kept"]


def _model_table(
    model: GuessedModel, weights: Path | None, folder: Path, training: Mapping[str, Any]
) -> list[str]:
    if model.pretrained is not None:
        table: dict[str, Any] = {"pretrained": _relative(model.pretrained, folder)}
        if model.arguments:
            table["arguments"] = model.arguments
        return ["[model]", *toml_lines(table), ""]
    comments = {}
    if model.is_placeholder:
        comments["constructor"] = f"{CHANGE}: yours, as package.module:function; arguments too"
    if model.unknown:
        comments["arguments"] = f"{CHANGE}: required too: {', '.join(model.unknown)}"
    table = {"constructor": model.constructor}
    if model.arguments or model.unknown:
        table["arguments"] = model.arguments
    if weights is not None:
        table["weights"] = _relative(weights, folder)
        return ["[model]", *toml_lines(table, comments), ""]
    return [
        "[model]",
        *toml_lines(table, comments),
        f'# weights = "model.safetensors"  # {CHANGE}: yours; then remove [train] and hold_out',
        "",
        "[train]  # the model has no weights: it is trained first, on the labels as they are",
        *toml_lines(training),
        "",
    ]


def _data_tables(
    data: InspectedData, sets: Mapping[str, Mapping[str, str]], *, scale: str, view: str
) -> list[str]:
    shared = settings(replace(data.config, view=view))
    mirrored = '; "crop-flip" if mirrored images keep their class'
    comments = {"view": "random views" + (mirrored if data.kind == "image" else "")}
    if data.unused:
        comments["input"] = f"not used: {', '.join(data.unused)}"
    if data.config.mean:
        comments["mean"] = scale
    if data.config.transform:
        comments["transform"] = "the processor of the model prepares every input"
    lines = ["[data]", *toml_lines(shared, comments)]
    if scale == "none":
        lines.append(f"# mean, std: {CHANGE}: those of the training of the weights, if any")
    return [
        *lines,
        *("", "[data.train]", *toml_lines(sets["train"])),
        *("", *_further_set("held_out", sets, _HELD_OUT)),
        *("", *_further_set("validation", sets, _VALIDATION)),
    ]


def _further_set(
    name: str, sets: Mapping[str, Mapping[str, str]], comments: Sequence[str]
) -> list[str]:
    """The table of a set; without the set, as a comment."""
    if name in sets:
        return [f"[data.{name}]", *comments, *toml_lines(sets[name])]
    return [f"# [data.{name}]", *comments, '# path = "…"']


def _facts(
    data: InspectedData, model: GuessedModel, sets: Mapping[str, Mapping[str, str]]
) -> list[str]:
    samples, shape = data.samples, " × ".join(map(str, data.shape))
    names = ", ".join(samples.classes[:5]) + (", …" if len(samples.classes) > 5 else "")
    found = [
        f"{len(samples):,} training samples: {_KINDS[data.kind].format(shape)}",
        f"{len(samples.classes)} classes: {names}",
        f"model: {model.constructor}" + (f" ({_PLACEHOLDER})" if model.is_placeholder else ""),
    ]
    for name, keys in sets.items():
        if name != "train":
            part = f", split {keys['split']}" if "split" in keys else ""
            found.append(f"{name.replace('_', '-')} set: {keys['path']}{part}")
    if data.unused:
        found.insert(2, f"columns that are not used: {', '.join(data.unused)}")
    if model.unknown:
        found.append(f"arguments that the model needs too: {', '.join(model.unknown)}")
    return found


def _relative(path: Path, folder: Path) -> str:
    """The path from the spec's folder."""
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()
