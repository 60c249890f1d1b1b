"""All problems of a spec file, found without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from expunge import stages
from expunge._core.registry import Registry
from expunge._core.rng import subsample
from expunge.config import build
from expunge.data import Samples, check_alike, check_disjoint
from expunge.data.checks import require_two_labels
from expunge.data.inputs import is_ragged
from expunge.data.overlap import without_copies
from expunge.data.splitting import n_held_out
from expunge.detection.detectors import detectors
from expunge.detection.partitioners import partitioners
from expunge.editing.editors import editors
from expunge.errors import (
    ConfigError,
    ExpungeError,
    ModelError,
    did_you_mean,
    format_ids,
    group_by_reason,
)
from expunge.evaluation.familiarity import MAX_SAMPLES, likely_class_order, why_unfamiliar
from expunge.models.adaptation import adapt_model, stability_notes
from expunge.models.calls import module_named
from expunge.models.checks import check_fit, check_model, check_training
from expunge.models.inspection import inspect_model
from expunge.pruning.head_readouts import readable_heads
from expunge.pruning.ranking import rankers
from expunge.pruning.selection import pruners
from expunge.recipes import Recipe, recipes, resolve
from expunge.reporting.formatting import percent
from expunge.specs import (
    Spec,
    build_model,
    check_hold_out,
    held_out_note,
    other_sets,
    read_set,
    read_train,
    read_values,
)
from expunge.tracking import check_trackers

T = TypeVar("T")


@dataclass
class _Findings:
    """What a check finds. note: called with what is no problem but worth knowing."""

    note: Callable[[str], object]
    problems: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        """The result of a step; None if it failed."""
        try:
            return step(*arguments, **options)
        except ExpungeError as error:
            self.problems.extend(error.problems)
            return None


def check_spec(path: str | Path, *, on_note: Callable[[str], object] = str) -> list[str]:
    """All problems of a spec, found without training: settings, data, model, weights, layers.

    on_note: called with what is no problem but worth knowing: which samples are left out, and why.
    """
    findings = _Findings(on_note)
    values = findings.attempt(read_values, Path(path))
    if values is None:
        return findings.problems
    folder = Path(path).resolve().parent
    findings.attempt(build, Spec, values, where=str(path))
    spec, invalid = _valid_parts(values)
    findings.attempt(check_hold_out, spec, where=str(path))
    recipe = _checked_recipe(spec, findings)
    train = None
    if "train_data" not in invalid:
        train = findings.attempt(read_train, spec, folder)
    others = _checked_others(spec, folder, train, findings)
    for samples in ([] if train is None else [train]) + others:
        findings.attempt(samples.check_finite)
        for line in group_by_reason("samples", samples.skipped):
            findings.note(f"{samples.name}, left out: {line}")
    if train is not None:
        _note_training_data(spec, train, findings)
    if not invalid & {"model", "train"} and not spec.model.has_weights and spec.train is None:
        findings.problems.append("the model has no weights, and there is no table [train]")
    if "model" not in invalid:
        model = findings.attempt(build_model, spec.model, folder, spec.seed, train)
        if model is not None:
            findings.attempt(check_model, model)
        if model is not None and train is not None:
            _check_model_on_data(spec, model, [train, *others], recipe, findings)
    return list(dict.fromkeys(findings.problems))


def _checked_others(
    spec: Spec, folder: Path, train: Samples | None, findings: _Findings
) -> list[Samples]:
    """The validation and the held-out set, as far as they can be read."""
    classes, sets = train.classes if train else None, []
    for name, config in other_sets(spec):
        if config is None:
            continue
        other = findings.attempt(read_set, spec, config, folder, classes=classes, name=name)
        if other is None:
            continue
        sets.append(other)
        if train is not None:
            findings.attempt(check_disjoint, train, other)
            findings.attempt(check_alike, train, other)
            if name == "held-out data":
                findings.attempt(without_copies, train, other)
    return sets


def _note_training_data(spec: Spec, train: Samples, findings: _Findings) -> None:
    """Say how many samples will be held out, and which classes have none."""
    if spec.holds_out and (n := n_held_out(len(train), spec.hold_out)):
        findings.note(held_out_note(n, len(train)))
    if unused := {*range(len(train.classes))} - {*train.labels.tolist()}:
        names = format_ids(train.classes[k] for k in sorted(unused))
        findings.note(f"{train.name}: no sample has the class {names}")


def _check_model_on_data(
    spec: Spec,
    model: nn.Module,
    sets: list[Samples],
    recipe: Recipe | None,
    findings: _Findings,
) -> None:
    """The model takes the samples of all sets, can be trained, and knows what it learned.

    sets: the training set first.
    """
    train, *others = sets
    adapted = findings.attempt(adapt_model, model, train)
    if adapted is None:
        return
    for note in (*adapted.notes, *stability_notes(adapted.model, train)):
        findings.note(note)
    if not findings.attempt(_check_layers, adapted.model, train, recipe):
        return
    for other in others:
        findings.attempt(check_fit, adapted.model, other)
    findings.attempt(check_training, adapted.model, train)
    if spec.model.has_weights:
        findings.attempt(_check_familiarity, adapted.model, train)


def _valid_parts(values: dict[str, Any]) -> tuple[Spec, set[str]]:
    """A spec of the entries that are right by themselves, and the names of the others."""
    stub = {"model": {"constructor": "module:function"}, "train_data": {"path": ""}}
    valid, invalid = dict(stub), {name for name in stub if name not in values}
    for name, value in values.items():
        try:
            build(Spec, {**stub, name: value}, where="")
            valid[name] = value
        except ConfigError:
            invalid.add(name)
    return build(Spec, valid, where=""), invalid


def _checked_recipe(spec: Spec, findings: _Findings) -> Recipe | None:
    """The recipe, if it is valid; every name in it is looked up."""
    known = findings.attempt(recipes.get, spec.recipe) is not None
    for name in spec.baselines:
        findings.attempt(recipes.get, name)
    findings.attempt(check_trackers, spec.trackers)
    recipe = findings.attempt(resolve, spec.recipe if known else "default", spec.overrides())
    if recipe is None:
        return None
    used: list[tuple[Registry[Any, Any], str, dict[str, Any]]] = [
        *((detectors, name, {}) for name in recipe.score.detectors),
        *((detectors, name, options) for name, options in recipe.score.options.items()),
        (partitioners, recipe.partition.method, recipe.partition.method_options),
        (rankers, recipe.rank.method, recipe.rank.options),
        (pruners, recipe.prune.method, recipe.prune.options),
        *([(editors, recipe.edit.method, recipe.edit.options)] if recipe.edit.method else []),
    ]
    for registry, name, options in used:
        findings.attempt(registry.check_options, name, options)
    return recipe if known else None


def _check_familiarity(model: nn.Module, train: Samples) -> None:
    """The model knows the data that it was trained on: a few hundred of them tell."""
    some = train.subset(subsample(len(train), min(MAX_SAMPLES, len(train)), 0, "check"))
    predicted = stages.predict(model, some)
    message = why_unfamiliar(float((predicted == some.labels).mean()), some.labels)
    if not message:
        return
    fix = "compare mean, std, size, channels and class names with the model's training, or name "
    fix += "your own preprocessing with data.transform"
    if is_ragged(train.inputs):
        fix = "compare the tokenizer, length and class names with the model's training"
    # Numbers are indices of the classes or their names: another order would be ambiguous.
    are_names = not any(name.isdecimal() for name in some.classes)
    if are_names and (found := likely_class_order(predicted, some.labels, some.classes)):
        order, agreement = found
        fix = f"it predicts {percent(agreement)} if the classes have the order of its training: "
        fix += f"classes = {json.dumps(order, ensure_ascii=False)} in [data]"
    raise ModelError(message, where="model", fix=fix)


def _check_layers(model: nn.Module, train: Samples, recipe: Recipe | None) -> bool:
    """The layers that the recipe names are in the model, which takes the samples."""
    check_fit(model, train)
    require_two_labels(train.labels, where=train.name)
    layout = inspect_model(model, train)
    if recipe is not None:
        for name in (*recipe.score.feature_layers, *filter(None, [recipe.score.attribution_layer])):
            module_named(model, name)
        ranked = recipe.rank.layers
        known = set(layout.readouts)
        if not known.issuperset(ranked):
            known.update(readable_heads(model, train.example()))
        for name in ranked:
            if name not in known:
                raise ModelError(f"no layer of units: '{name}'", fix=did_you_mean(name, known))
    return True
