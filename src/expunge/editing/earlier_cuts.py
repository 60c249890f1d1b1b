"""The cuts of earlier runs, noted on a model that starts another one, so that it can be rebuilt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from expunge.config import PruneMode
from expunge.data import Batch
from expunge.errors import ModelError
from expunge.pruning.surgery import apply_plan
from expunge.records import PrunePlan
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

_NOTE = "_expunge_earlier_cuts"


@dataclass(frozen=True)
class EarlierCut:
    """The units that a run has pruned.

    Parameters
    ----------
    units
        By layer, as in `PrunePlan`.
    mode
        Whether they were removed or masked.
    """

    units: dict[str, tuple[int, ...]]
    mode: PruneMode = "remove"


def earlier_cuts(model: nn.Module) -> tuple[EarlierCut, ...]:
    """The cuts noted on a model, in their order; copies of the model keep the note."""
    noted: tuple[EarlierCut, ...] = vars(model).get(_NOTE, ())
    return noted


def cut_again(model: nn.Module, cuts: Sequence[EarlierCut], example: Batch | None) -> nn.Module:
    """A copy of the network, as its constructor makes it, with these cuts, which are noted on it.

    Raises
    ------
    ModelError
        If there are cuts and no example to trace the network with.
    """
    if not cuts:
        return model
    if example is None:
        raise ModelError(
            "units of this model were pruned, so training data are needed to trace the network",
            fix="correct the problems of the training data first",
        )
    for cut in cuts:
        plan = PrunePlan(cut.units, sum(map(len, cut.units.values())))
        model = apply_plan(model.eval(), plan, example, mode=cut.mode)
    vars(model)[_NOTE] = tuple(cuts)
    return model


def cut_metadata(
    units: Mapping[str, Sequence[int]], mode: PruneMode, before: nn.Module
) -> dict[str, str]:
    """What a weights file keeps: the units that a run cut, and what was cut before it."""
    cuts = [asdict(cut) for cut in earlier_cuts(before)]
    plan = {layer: list(numbers) for layer, numbers in units.items()}
    return {"plan": json.dumps(plan), "mode": mode, "earlier": json.dumps(cuts)}


def read_cuts(path: Path) -> tuple[EarlierCut, ...]:
    """All cuts behind the weights that a run wrote; none for other files.

    Raises
    ------
    ModelError
        If the file is damaged, or the model has a closed-form head.
    """
    with reading(path, ModelError, what="not a safetensors file", also=(SafetensorError,)):
        is_there = path.suffix == ".safetensors" and path.is_file()
    if not is_there:
        return ()
    with (
        reading(path, ModelError, what="not a safetensors file", also=(SafetensorError,)),
        safe_open(path, framework="pt") as file,
    ):
        facts = file.metadata() or {}
        if "plan" not in facts:
            return ()
        head = parse_json(facts.get("head", "null"))
        cuts = earlier_from(parse_json(facts.get("earlier", "[]")))
        units = _units_of(parse_json(facts["plan"]))
    if head:
        raise ModelError(
            "these are weights of a model with a closed-form head, which starts no other run",
            where=str(path),
            fix="name the weights of a run that tuned the network itself",
        )
    mode: PruneMode = "mask" if facts.get("mode") == "mask" else "remove"
    return (*cuts, EarlierCut(units, mode)) if units else cuts


def earlier_from(found: Sequence[Mapping[str, Any]]) -> tuple[EarlierCut, ...]:
    """The cuts that `cut_metadata` wrote."""
    return tuple(
        EarlierCut(_units_of(cut["units"]), "mask" if cut["mode"] == "mask" else "remove")
        for cut in found
    )


def _units_of(found: Mapping[str, Sequence[Any]]) -> dict[str, tuple[int, ...]]:
    return {str(layer): tuple(map(int, numbers)) for layer, numbers in found.items()}
