"""The spec file (TOML): which model, weights, data and recipe.

A spec names code (the model's constructor), which is imported: run specs that you trust.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from expunge import pipeline, stages
from expunge._core.progress import Progress, silent
from expunge.config import DEFAULT_BASELINES, RepairKeywords, build
from expunge.data import DataConfig, Samples, check_alike, check_disjoint, hold_out, read
from expunge.data.paths import resolve_path
from expunge.data.splitting import MAX_FRACTION
from expunge.editing.earlier_cuts import cut_again, read_cuts
from expunge.errors import (
    ConfigError,
    RunError,
    check_range,
    did_you_mean,
    raise_all,
)
from expunge.models.constructors import construct
from expunge.models.huggingface import (
    class_names,
    has_tokenizer,
    load_pretrained,
    require_model_folder,
)
from expunge.recipes import recipes, resolve
from expunge.storage.atomic_files import write_file
from expunge.storage.json_files import read_json, read_toml
from expunge.storage.reading import is_file
from expunge.storage.run_folder import check_run_folder, differences
from expunge.storage.weights import load_weights
from expunge.training.optimisation import TuneConfig

DATA_SETS = ("train", "validation", "held_out")
# Settings of a set that neither it nor [data] gives.
SET_DEFAULTS: dict[str, dict[str, Any]] = {"validation": {"split": "test"}}
STAGES = ("score", "partition", "rank", "prune", "edit", "tune", "rounds")


@dataclass(frozen=True)
class ModelConfig:
    """constructor: ``"package.module:function"``; it is called with the arguments.

    pretrained: instead of constructor and weights, a folder that transformers' Trainer or
    ``save_pretrained`` wrote. The data have its class names and its tokenizer, unless they name
    others. weights: a safetensors file, or a state dictionary that
    ``torch.load(weights_only=True)`` reads; left out, the spec needs a table ``[train]`` and the
    model is trained first. checkpoints: weights saved during the training, optional evidence (see
    `trajectory`).
    """

    constructor: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    checkpoints: tuple[str, ...] = ()
    pretrained: str = ""

    def __post_init__(self) -> None:
        if not self.constructor and not self.pretrained:
            raise ConfigError(
                "neither constructor nor pretrained is given",
                where="model",
                fix='name constructor = "package.module:function", or pretrained = "checkpoint-9"',
            )
        given = [name for name in ("constructor", "weights") if getattr(self, name)]
        if self.pretrained and given:
            raise ConfigError(
                f"pretrained stands beside {' and '.join(given)}",
                where="model",
                fix="leave one of them out: pretrained names model and weights",
            )

    @property
    def has_weights(self) -> bool:
        """Whether the spec names weights, or a constructor that loads them."""
        loads = self.constructor.endswith(".from_pretrained")
        return bool(self.weights or self.pretrained) or loads


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
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    minutes: float | None = None
    time_share: float | None = None
    trackers: tuple[str, ...] = ()
    hold_out: float | None = None
    train: TuneConfig | None = None
    score: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)
    prune: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    rounds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(ConfigError, {"hold_out": (self.hold_out, f"[0, {MAX_FRACTION}]")})

    @property
    def holds_out(self) -> bool:
        """Whether training samples are held out: the spec trains, and names no held-out labels."""
        names_none = self.held_out_data is None and not self.model.has_weights
        return names_none and self.train is not None and self.hold_out != 0

    def overrides(self) -> dict[str, Any]:
        """Return the tables of stages that are not empty."""
        return {name: getattr(self, name) for name in STAGES if getattr(self, name)}


def read_spec(path: str | Path) -> Spec:
    """Read a spec file; everything that is wrong with it is in one error."""
    spec = build(Spec, read_values(Path(path)), where=str(path))
    check_hold_out(spec, where=str(path))
    return spec


def check_hold_out(spec: Spec, *, where: str) -> None:
    """Refuse samples to hold out where others are named, or the model has seen all."""
    if spec.hold_out and spec.held_out_data is not None:
        raise ConfigError(
            "hold_out stands beside a table [data.held_out]",
            where=where,
            fix="leave one of them out",
        )
    if spec.hold_out and spec.model.has_weights:
        raise ConfigError(
            "hold_out is given, but the model has been trained already",
            where=where,
            fix="name samples that it has not seen in a table [data.held_out]",
        )


def read_values(file: Path) -> dict[str, Any]:
    """Return the values of the file, by the names of `Spec`."""
    if os.path.isdir(file):  # False for a path that the system does not accept
        raise ConfigError(
            "is a folder, expected a spec file", where=str(file), fix=f"name {file / 'spec.toml'}"
        )
    if not is_file(file):
        raise ConfigError("there is no such spec file", where=str(file), fix="check the path")
    values = read_toml(file, error=ConfigError)
    data = values.pop("data", None)
    raise_all(ConfigError, _unknown_keys(data) if isinstance(data, dict) else [], where=str(file))
    if not isinstance(data, dict) or not isinstance(data.get("train"), dict):
        raise ConfigError(
            "the table [data.train] is missing",
            where=str(file),
            fix='add [data.train] with path = "…"',
        )
    # Settings in [data] hold for all sets; each set can override them.
    sets = {k: data.pop(k) for k in DATA_SETS if k in data}
    values |= {f"{k}_data": {**SET_DEFAULTS.get(k, {}), **data, **own} for k, own in sets.items()}
    for own in (values[f"{k}_data"] for k in sets if isinstance(values[f"{k}_data"], dict)):
        named = own.get("input")  # the columns of a table
        if isinstance(named, list) and all(isinstance(n, str) and "," not in n for n in named):
            own["input"] = ",".join(named)
        # One number stands for all channels.
        own |= {k: [own[k]] for k in ("mean", "std") if type(own.get(k)) in (int, float)}
    if isinstance(values.get("train"), dict):
        values["train"] = {"targets": "all", **values["train"]}
    return values


def _unknown_keys(data: dict[str, Any]) -> list[str]:
    """What [data] holds that is neither a set nor a setting of one."""
    settings = [f.name for f in fields(DataConfig)]
    problems = []
    for key, value in data.items():
        table = isinstance(value, dict)
        if key in DATA_SETS and not table:
            problems.append(f"'data.{key}' must be a table, not {value!r}")
        elif key not in (*DATA_SETS, *settings):
            problems.append(
                f"unknown key 'data.{key}': {did_you_mean(key, DATA_SETS if table else settings)}"
            )
    return problems


def run_folder(spec: Spec, path: str | Path) -> Path:
    """Where the runs of a spec file go."""
    return Path(spec.out or Path("runs") / Path(path).stem)


# Where a run notes its spec: as a path relative to the run folder, and what it said.
_NOTED_SPEC = "spec.json"
# What changes no model and no label.
_WITHOUT_EFFECT = ("out", "baselines", "trackers", "workers")


def note_spec(run: Path, path: Path, spec: Spec) -> None:
    """Note in a run folder which spec it was made from, for the commands that take a spec."""
    noted = {"spec": os.path.relpath(path.resolve(), run.resolve()), "values": _noted_values(spec)}
    write_file(run / _NOTED_SPEC, json.dumps(noted, default=str) + "\n")


def _noted_values(spec: Spec) -> dict[str, Any]:
    """What a run depends on, by the names of the file."""
    names = {f.name: f.metadata.get("path", f.name) for f in fields(Spec)}
    return {
        names[name]: _with_effect(value) if isinstance(value, dict) else value
        for name, value in _with_effect(asdict(spec)).items()
    }


def _with_effect(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}


def changes_since(run: Path, spec: Spec) -> list[str]:
    """What a spec says otherwise than when a run was made from it; empty if the run noted none."""
    note = run / _NOTED_SPEC
    noted = read_json(note).get("values") if note.is_file() else None
    if not isinstance(noted, dict):
        return []
    return differences(noted, json.loads(json.dumps(_noted_values(spec), default=str)))


def undo_or_repair(path: str | Path, run: Path) -> str:
    """What to do about a spec that has changed since its run was made."""
    again = shlex.join(["expunge", "repair", str(path), "--out", str(run)])
    return (
        f"undo the change, or run `{again}`: it resumes if model, data and settings are the same, "
        "and needs --overwrite or another folder if not"
    )


def noted_spec(run: Path) -> Path | None:
    """The spec that a run was made from; None if it noted none or the file is gone."""
    note = run / _NOTED_SPEC
    if not note.is_file():
        return None
    found = read_json(note).get("spec")
    path = Path(os.path.relpath(run.resolve() / str(found)))
    return path if path.suffix == ".toml" and path.is_file() else None


def read_data(spec: Spec, folder: Path) -> tuple[Samples, Samples | None, Samples | None]:
    """The training, the validation and the held-out set, with the same classes."""
    train = read_train(spec, folder)
    validation, held_out = (
        read_set(spec, config, folder, classes=train.classes, name=name) if config else None
        for name, config in other_sets(spec)
    )
    return train, validation, held_out


def read_train(spec: Spec, folder: Path) -> Samples:
    """The training set alone."""
    return read_set(spec, spec.train_data, folder, name="training data")


def read_set(
    spec: Spec,
    config: DataConfig,
    folder: Path,
    *,
    classes: tuple[str, ...] | None = None,
    name: str,
) -> Samples:
    """Read one set; class names and tokenizer are those of a pretrained model by default."""
    if spec.model.pretrained:
        source = resolve_path(spec.model.pretrained, folder)
        require_model_folder(source)
        classes = classes or config.classes or class_names(source)
        if not config.tokenizer and has_tokenizer(source):
            config = replace(config, tokenizer=str(source))
    return read(config, folder=folder, classes=classes, name=name)


def other_sets(spec: Spec) -> list[tuple[str, DataConfig | None]]:
    """Return the settings of the optional sets, with their names in messages."""
    return [("validation data", spec.validation_data), ("held-out data", spec.held_out_data)]


def build_model(
    config: ModelConfig, folder: Path, seed: int, train: Samples | None = None
) -> nn.Module:
    """Call the constructor and load the weights if the spec names any; or load a folder.

    Weights of a run that pruned the network are loaded into the pruned network, which is traced
    with the training data.
    """
    if config.pretrained:
        return load_pretrained(resolve_path(config.pretrained, folder), config.arguments)
    model = construct(config.constructor, config.arguments, folder=folder, seed=seed)
    if config.weights:
        path = resolve_path(config.weights, folder)
        if cuts := read_cuts(path):
            model = cut_again(model, cuts, None if train is None else train.example())
        load_weights(model, path)
    return model


class LoadedSpec(NamedTuple):
    """Model, data and options of a spec, ready for `expunge.repair`."""

    model: nn.Module
    train: Samples
    validation: Samples | None
    held_out: Samples | None
    options: RepairKeywords


def load_spec(
    path: str | Path,
    *,
    out: str | Path | None = None,
    trained: Path | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    recipe: str | None = None,
    fdr: float | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    check_data: Callable[[Samples, Samples | None], object] | None = None,
    progress: Progress = silent,
) -> LoadedSpec:
    """Read the data and build the model of a spec; train it first if it has no weights.

    Parameters
    ----------
    path
        The spec file.
    out
        The run folder, instead of the spec's.
    trained
        The run folder whose trained model is used, instead of this run's own.
    overwrite
        Discard what the run folder holds.
    seed, recipe, fdr, epochs, minutes, workers
        Instead of ``seed``, ``recipe``, ``partition.fdr``, ``tune.epochs``, ``minutes`` and
        ``data.workers`` of the spec.
    check_data
        Called with the training and the held-out data before a training.
    progress
        Called as ``progress(what, done, total)``.
    """
    spec, folder = read_spec(path), Path(path).resolve().parent
    if fdr is not None:
        spec = replace(spec, partition={**spec.partition, "fdr": fdr})
    if epochs is not None:
        spec = replace(spec, tune={**spec.tune, "epochs": epochs})
    if workers is not None:
        spec = _with_workers(spec, workers)
    seed = spec.seed if seed is None else seed
    target = Path(out) if out else run_folder(spec, path)
    if not spec.model.has_weights and spec.train is None:
        raise ConfigError(
            "the model has no weights",
            where=str(path),
            fix="name model.weights, or add a table [train] to train it first",
        )
    # What a repair would refuse is refused before a training.
    resolve(recipe or spec.recipe, spec.overrides())
    for name in spec.baselines:
        recipes.get(name)
    train, validation, held_out = read_data(spec, folder)
    for other in (validation, held_out):
        if other is not None:
            check_disjoint(train, other)
            check_alike(train, other)
    notes: tuple[str, ...] = ()
    if spec.holds_out:
        train, held_out, notes = hold_out_some(spec, train, seed)
    if check_data is not None:
        check_data(train, held_out)
    model, seconds = build_model(spec.model, folder, seed, train), None
    if not spec.model.has_weights and spec.train is not None:
        check_run_folder(target, overwrite=overwrite or trained is not None)
        train_model = partial(
            pipeline.train, model, train, spec.train, seed=seed, progress=progress
        )
        if trained is None:
            model, seconds = train_model(out=target / "0-train", overwrite=overwrite)
        else:
            with _not_overwritten():
                model, seconds = train_model(out=trained / "0-train")
    if spec.model.checkpoints:
        files = [resolve_path(file, folder) for file in spec.model.checkpoints]
        seen = stages.average_checkpoint_probs(model, train, files, progress=progress)
        train = replace(train, external_probs={**train.external_probs, "trajectory": seen})
    options: RepairKeywords = {
        "recipe": recipe or spec.recipe,
        "overrides": spec.overrides(),
        "baselines": spec.baselines,
        "seed": seed,
        "out": target,
        "overwrite": overwrite,
        "train_seconds": seconds,
        "minutes": spec.minutes if minutes is None else minutes,
        "time_share": spec.time_share,
        "trackers": spec.trackers,
        "notes": notes,
        "progress": progress,
    }
    return LoadedSpec(model, train, validation, held_out, options)


@contextmanager
def _not_overwritten() -> Iterator[None]:
    """Let no error of another run's folder advise to overwrite it, whatever is wrong with it."""
    try:
        yield
    except RunError as error:
        fix = "undo the change, or name another folder, in which a model is trained: out=…"
        raise RunError(error.what, where=error.where, fix=fix) from error


def hold_out_some(
    spec: Spec, train: Samples, seed: int
) -> tuple[Samples, Samples | None, tuple[str, ...]]:
    """What is trained on, what is held out of it, and what the report says about that.

    seed: that of the repair.
    """
    rest, held_out = hold_out(train, fraction=spec.hold_out, seed=seed)
    if held_out is None:
        return rest, None, ()
    return rest, held_out, (held_out_note(len(held_out), len(train)),)


def held_out_note(n_held_out: int, n: int) -> str:
    """What a report and `check` say about samples that were held out."""
    return (
        f"{n_held_out:,} of {n:,} training samples are held out of the training: their labels show "
        "whether it memorised and whether to keep the repair, but are not examined themselves. "
        "`hold_out = 0` in the spec trains on all."
    )


def _with_workers(spec: Spec, workers: int) -> Spec:
    """The spec with another number of workers for all sets."""
    names = [f"{name}_data" for name in DATA_SETS]
    given = {name: config for name in names if (config := getattr(spec, name)) is not None}
    return replace(spec, **{k: replace(c, workers=workers) for k, c in given.items()})
