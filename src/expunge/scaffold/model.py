"""Which constructor, arguments and weights the first spec names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from expunge._core.imports import import_named
from expunge.errors import ConfigError, ExpungeError
from expunge.models.constructors import parameters_of
from expunge.models.huggingface import is_pretrained
from expunge.scaffold.data import InspectedData
from expunge.storage.json_files import read_json

# How constructors call what is known of the data.
_NAMES = {
    "classes": ("classes", "num_classes", "n_classes", "num_labels", "n_labels", "out_features"),
    "channels": ("channels", "in_channels", "in_chans", "input_channels", "num_channels"),
    "inputs": ("inputs", "in_features", "n_features", "num_features", "input_dim", "input_size"),
    "sample_rate": ("sample_rate", "sampling_rate"),
}
# Files beside weights in which trainers note how inputs were prepared.
_NOTES = ("preprocessor_config.json", "manifest.json", "config.json", "args.json")


@dataclass(frozen=True)
class GuessedModel:
    """What stands in ``[model]``.

    pretrained: a folder of a Hugging Face model, instead of constructor and weights.
    is_placeholder: whether the constructor is a network of ours that the user is to replace.
    unknown: required arguments of the constructor that could not be guessed.
    """

    constructor: str
    arguments: dict[str, Any] = field(default_factory=dict)
    is_placeholder: bool = False
    unknown: tuple[str, ...] = ()
    pretrained: Path | None = None


def pretrained_folder(model: str) -> Path | None:
    """The folder of a Hugging Face model; None if a constructor, or nothing, is named.

    Raises
    ------
    ConfigError
        If the name is neither.
    """
    if not model or is_pretrained(Path(model)):
        return Path(model) if model else None
    if ":" in model:
        return None
    raise ConfigError(
        f"'{model}' is neither a constructor nor the folder of a model",
        where="--model",
        fix="write package.module:function, or name a folder that save_pretrained of Transformers "
        "wrote, with its tokenizer",
    )


def guess_model(
    constructor: str, arguments: Mapping[str, Any], data: InspectedData, *, folder: Path
) -> GuessedModel:
    """The constructor or folder that is given, or a small network; with the arguments filled in.

    Raises
    ------
    ExpungeError
        If the constructor that is given cannot be imported.
    """
    if not constructor:
        name, found = _small_network(data)
        return GuessedModel(name, {**found, **arguments}, is_placeholder=True)
    pretrained = pretrained_folder(constructor)
    if pretrained is not None:
        return GuessedModel(constructor, dict(arguments), pretrained=pretrained)
    known = _facts(data)
    parameters = parameters_of(import_named(constructor, folder))
    found = {
        name: known[fact]
        for fact, names in _NAMES.items()
        for name in names
        if name in parameters and fact in known
    }
    found |= arguments
    unknown = [n for n, required in parameters.items() if required and n not in found]
    return GuessedModel(constructor, found, unknown=tuple(unknown))


def _facts(data: InspectedData) -> dict[str, int]:
    facts = {"classes": len(data.samples.classes), "inputs": prod(data.shape)}
    if data.kind == "image":
        facts["channels"] = data.shape[0]
    if data.samples.sample_rate:
        facts["sample_rate"] = data.samples.sample_rate
    return facts


def _small_network(data: InspectedData) -> tuple[str, dict[str, Any]]:
    """A network of ours that takes such inputs."""
    facts = _facts(data)
    name, needed = "mlp", ("inputs", "classes")
    if data.kind == "image" and min(data.shape[1:]) >= 8:
        name, needed = "resnet", ("channels", "classes")
    elif data.kind == "audio":
        name, needed = "kws", ("classes", "sample_rate")
    return f"expunge.models:{name}", {key: facts[key] for key in needed}


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of the form ``name=value``; values are TOML, anything else is text.

    Examples
    --------
    >>> parse_arguments(["depth=18", "widths=[16, 32]", "norm=batch"])
    {'depth': 18, 'widths': [16, 32], 'norm': 'batch'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"'{text}' is no argument", fix="write --argument name=value")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value.strip()
    return found


def noted_scale(weights: Path) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
    """Mean, std and the file's name, if a file beside the weights notes how inputs were scaled.

    Read are ``image_mean`` and ``image_std`` of Hugging Face processors, ``mean`` and ``std`` of
    timm's ``config.json`` and of exported models.
    """
    for name in _NOTES:
        path = weights.parent / name
        if not path.is_file():
            continue
        try:
            noted = read_json(path)
        except ExpungeError:  # a file of another tool, which is only a hint
            continue
        nested = noted.get("pretrained_cfg")
        for table in (noted, nested if isinstance(nested, dict) else {}):
            for prefix in ("image_", ""):
                mean, std = (_numbers(table.get(f"{prefix}{key}")) for key in ("mean", "std"))
                if mean and len(mean) == len(std):
                    return mean, std, name
    return None


def _numbers(values: Any) -> tuple[float, ...]:
    """The numbers of a list; () if it is none."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return ()
    return tuple(map(float, values))
