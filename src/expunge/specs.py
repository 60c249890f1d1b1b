"""The spec file (TOML): which model, weights, data and recipe. Also `check`: all its problems.

A spec names code (the model's constructor), which is imported: run specs that you trust.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge._core.registry import Registry
from expunge._core.rng import temp_seed
from expunge.config import build
from expunge.data import DataConfig, Samples, check_alike, check_disjoint, read
from expunge.data.paths import resolve_path
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import partitioners
from expunge.errors import (
    ConfigError,
    ExpungeError,
    ModelError,
    did_you_mean,
    group_by_reason,
    raise_all,
)
from expunge.models.inspection import (
    FORWARD_ERRORS,
    check_fit,
    check_model,
    inspect_layers,
    module_named,
)
from expunge.pruning.ranking import rankers
from expunge.pruning.selection import pruners
from expunge.recipes import Recipe, recipes, resolve
from expunge.storage.run_folder import check_run_folder
from expunge.storage.weights import load_weights
from expunge.training.loop import TuneConfig

SETS = ("train", "validation", "held_out")
# What a set says where neither it nor [data] does.
OWN: dict[str, dict[str, Any]] = {"validation": {"split": "test"}}
STAGES = ("score", "partition", "rank", "prune", "tune", "rounds")


@dataclass(frozen=True)
class ModelConfig:
    """constructor: ``"package.module:function"``; it is called with the arguments.

    weights: a safetensors file, or a state dictionary that ``torch.load(weights_only=True)`` reads;
    left out, the spec needs a table ``[train]`` and the model is trained first. checkpoints:
    weights saved during the training, optional evidence (see `trajectory`).
    """

    constructor: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A repair as a file. The tables of the stages override single settings of the recipe."""

    model: ModelConfig
    train_data: DataConfig = field(metadata={"path": "data.train"})
    validation_data: DataConfig | None = field(default=None, metadata={"path": "data.validation"})
    held_out_data: DataConfig | None = field(default=None, metadata={"path": "data.held_out"})
    recipe: str = "default"
    seed: int = 0
    out: str = ""
    controls: tuple[str, ...] = pipeline.CONTROLS
    train: TuneConfig | None = None
    score: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)
    prune: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    rounds: dict[str, Any] = field(default_factory=dict)

    def overrides(self) -> dict[str, Any]:
        """The stages' tables that say something."""
        return {name: getattr(self, name) for name in STAGES if getattr(self, name)}


def load(path: str | Path) -> Spec:
    """Read a spec file; everything that is wrong with it is in one error."""
    return build(Spec, _values(Path(path)), where=str(path))


def _values(file: Path) -> dict[str, Any]:
    """What the file says, by the names of `Spec`."""
    if not file.is_file():
        raise ConfigError("there is no such spec file", where=str(file), fix="check the path")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not valid TOML: {error}", where=str(file)) from error
    data = values.pop("data", None)
    raise_all(ConfigError, _foreign(data) if isinstance(data, dict) else [], where=str(file))
    if not isinstance(data, dict) or not isinstance(data.get("train"), dict):
        raise ConfigError(
            "the table [data.train] is missing",
            where=str(file),
            fix='add [data.train] with path = "…"',
        )
    # What [data] says holds for all sets; each can say otherwise.
    sets = {k: data.pop(k) for k in SETS if k in data}
    values |= {f"{k}_data": {**OWN.get(k, {}), **data, **own} for k, own in sets.items()}
    if isinstance(values.get("train"), dict):
        values["train"] = {"targets": "all", **values["train"]}
    return values


def _foreign(data: dict[str, Any]) -> list[str]:
    """What [data] holds that is neither a set nor a setting of one."""
    settings = [f.name for f in fields(DataConfig)]
    problems = []
    for key, value in data.items():
        table = isinstance(value, dict)
        if key in SETS and not table:
            problems.append(f"'data.{key}' must be a table, not {value!r}")
        elif key not in (*SETS, *settings):
            problems.append(
                f"unknown key 'data.{key}': {did_you_mean(key, SETS if table else settings)}"
            )
    return problems


def run_folder(spec: Spec, path: str | Path) -> Path:
    """Where the runs of a spec file go."""
    return Path(spec.out or Path("runs") / Path(path).stem)


def read_data(spec: Spec, folder: Path) -> tuple[Samples, Samples | None, Samples | None]:
    """The training, the validation and the held-out set, with the same classes."""
    train = read(spec.train_data, folder=folder, name="training data")
    validation, held_out = (
        read(config, folder=folder, classes=train.classes, name=name) if config else None
        for name, config in _others(spec)
    )
    return train, validation, held_out


def _others(spec: Spec) -> list[tuple[str, DataConfig | None]]:
    """What a spec says of the sets that are optional, with what messages call them."""
    return [("validation data", spec.validation_data), ("held-out data", spec.held_out_data)]


def build_model(config: ModelConfig, folder: Path, seed: int) -> nn.Module:
    """Call the constructor and load the weights, if the spec names any."""
    constructor = _constructor(config.constructor, folder)
    try:
        with temp_seed(seed, "network"):
            model = constructor(**config.arguments)
    except (*FORWARD_ERRORS, ArithmeticError, ImportError, NameError, OSError) as error:
        raise ModelError(
            _told(error), where=config.constructor, fix="mend model.arguments, or the constructor"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"made a {type(model).__name__}, not a module", where=config.constructor)
    if config.weights:
        load_weights(model, resolve_path(config.weights, folder))
    return model


class Job(NamedTuple):
    """A spec made real; `settings` are the keyword arguments of `pipeline.repair`."""

    model: nn.Module
    train: Samples
    validation: Samples | None
    held_out: Samples | None
    settings: dict[str, Any]
    train_seconds: float | None


def prepare(
    path: str | Path,
    *,
    out: str | Path | None = None,
    trained: Path | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    recipe: str | None = None,
    fdr: float | None = None,
    progress: Progress = silent,
) -> Job:
    """Read the data and make the model of a spec; train it first if it has no weights.

    seed, recipe, fdr: instead of what the spec says (``partition.fdr`` for the last). trained: the
    run folder whose training serves, if not this run's own.
    """
    spec, folder = load(path), Path(path).resolve().parent
    if fdr is not None:
        spec = replace(spec, partition={**spec.partition, "fdr": fdr})
    seed = spec.seed if seed is None else seed
    target = Path(out) if out else run_folder(spec, path)
    if not spec.model.weights and spec.train is None:
        raise ConfigError(
            "the model has no weights",
            where=str(path),
            fix="name model.weights, or add a table [train] to train it first",
        )
    # What a repair would refuse is refused before a training.
    resolve(recipe or spec.recipe, spec.overrides())
    for name in spec.controls:
        recipes.get(name)
    train, validation, held_out = read_data(spec, folder)
    for other in (validation, held_out):
        if other is not None:
            check_disjoint(train, other)
            check_alike(train, other)
    model, seconds = build_model(spec.model, folder, seed), None
    if not spec.model.weights and spec.train is not None:
        check_run_folder(target, overwrite=overwrite or trained is not None)
        model, seconds = pipeline.train(
            model,
            train,
            spec.train,
            seed=seed,
            out=(trained or target) / "0-train",
            overwrite=overwrite and trained is None,
            progress=progress,
        )
    if spec.model.checkpoints:
        files = [resolve_path(file, folder) for file in spec.model.checkpoints]
        seen = stages.average_checkpoint_probs(model, train, files, progress=progress)
        train = replace(train, external_probs={**train.external_probs, "trajectory": seen})
    settings = {
        "recipe": recipe or spec.recipe,
        "overrides": spec.overrides(),
        "controls": spec.controls,
        "seed": seed,
        "out": target,
        "overwrite": overwrite,
        "progress": progress,
    }
    return Job(model, train, validation, held_out, settings, seconds)


def check(path: str | Path, *, note: Callable[[str], object] = str) -> list[str]:
    """All problems of a spec, found without training: settings, data, model, weights, layers.

    note: called with what is no problem but worth knowing: which samples are left out, and why.
    """
    problems: list[str] = []

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ExpungeError as error:
            problems.extend(error.problems)
            return None

    values = attempt(lambda: _values(Path(path)))
    if values is None:
        return problems
    folder = Path(path).resolve().parent
    attempt(lambda: build(Spec, values, where=str(path)))
    spec, unsound = _sound(values)
    recipe = _checked_recipe(spec, attempt)
    train = model = None
    if "train_data" not in unsound:
        train = attempt(lambda: read(spec.train_data, folder=folder, name="training data"))
    sets = [train] if train is not None else []
    classes = train.classes if train else None
    for name, config in _others(spec):
        if config is not None:
            other = attempt(partial(read, config, folder=folder, classes=classes, name=name))
            sets += [other] if other is not None else []
            if train is not None and other is not None:
                attempt(partial(check_disjoint, train, other))
                attempt(partial(check_alike, train, other))
    for samples in sets:
        for line in group_by_reason("samples", samples.skipped):
            note(f"{samples.name}, left out: {line}")
    if not unsound & {"model", "train"} and not spec.model.weights and spec.train is None:
        problems.append("the model has no weights, and there is no table [train]")
    if "model" not in unsound:
        model = attempt(lambda: build_model(spec.model, folder, spec.seed))
    if model is not None:
        attempt(lambda: check_model(model))
    if model is not None and train is not None:
        attempt(lambda: _check_layers(model, train, recipe))
    return problems


def _sound(values: dict[str, Any]) -> tuple[Spec, set[str]]:
    """A spec of the entries that are right by themselves, and the names of the others."""
    stub = {"model": {"constructor": ""}, "train_data": {"path": ""}}
    sound, unsound = dict(stub), {name for name in stub if name not in values}
    for name, value in values.items():
        try:
            build(Spec, {**stub, name: value}, where="")
            sound[name] = value
        except ConfigError:
            unsound.add(name)
    return build(Spec, sound, where=""), unsound


def _checked_recipe(spec: Spec, attempt: Callable[[Callable[[], Any]], Any]) -> Recipe | None:
    """The recipe, if it is sound; every name in it is looked up."""
    known = attempt(lambda: recipes.get(spec.recipe)) is not None
    for name in spec.controls:
        attempt(lambda name=name: recipes.get(name))  # type: ignore[misc]
    recipe = attempt(lambda: resolve(spec.recipe if known else "default", spec.overrides()))
    if recipe is None:
        return None
    used: list[tuple[Registry[Any, Any], str, dict[str, Any]]] = [
        *((detectors, name, {}) for name in recipe.score.detectors),
        *((detectors, name, options) for name, options in recipe.score.options.items()),
        (partitioners, recipe.partition.method, recipe.partition.options),
        (rankers, recipe.rank.method, recipe.rank.options),
        (pruners, recipe.prune.method, recipe.prune.options),
    ]
    for registry, name, options in used:
        attempt(lambda r=registry, n=name, o=options: r.check_options(n, o))  # type: ignore[misc]
    return recipe if known else None


def _check_layers(model: nn.Module, train: Samples, recipe: Recipe | None) -> None:
    """The layers that the recipe names are in the model, which takes the samples."""
    check_fit(model, train)
    layout = inspect_layers(model, stages.example_batch(train))
    if recipe is not None:
        for name in (*recipe.score.feature_layers, *filter(None, [recipe.score.attribution_layer])):
            module_named(model, name)
        for name in recipe.rank.layers:
            if name not in layout.readouts:
                raise ModelError(
                    f"no layer of units: '{name}'", fix=did_you_mean(name, layout.readouts)
                )


def _constructor(name: str, folder: Path) -> Callable[..., Any]:
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ConfigError(f"'{name}' names no constructor", fix='write "package.module:function"')
    with _importable(folder):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ModelError(
                f"cannot be imported: {error}",
                where=module_name,
                fix="install it, or mend the name",
            ) from error
        except (*FORWARD_ERRORS, ArithmeticError, NameError, OSError, SyntaxError) as error:
            raise ModelError(
                f"cannot be imported: {_told(error)}", where=module_name, fix="mend it"
            ) from error
    found = getattr(module, function, None)
    if not callable(found):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ModelError(
            f"has no function '{function}'", where=module_name, fix=did_you_mean(function, public)
        )
    return found


def _told(error: Exception) -> str:
    """What was raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules beside the spec file be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
