"""A finished run, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from torch import Tensor, nn

from expunge._core.isolation import isolated
from expunge.config import PruneMode
from expunge.data import DataLike, as_samples
from expunge.editing.readout import rebuild
from expunge.errors import ModelError, PruneError, RunError
from expunge.models.adaptation import unwrap
from expunge.records import (
    Baseline,
    Decision,
    Evaluation,
    Flag,
    HeadPlan,
    LabelAudit,
    Metric,
    PrunePlan,
    RepairResult,
    Size,
    UnlearningAudit,
)
from expunge.storage import serialization
from expunge.storage.artefacts import Artefact, read_artefact, read_table
from expunge.storage.cached_stages import FOLDERS, Stage
from expunge.storage.finished_run import EVALUATIONS, FIX, RESULT, read_record
from expunge.storage.json_files import read_json
from expunge.storage.reading import reading
from expunge.storage.serialization import Codec
from expunge.storage.weight_files import read_weights

T = TypeVar("T")
_PARTITION, _WEIGHTS = "partition.parquet", "model.safetensors"


class StoredWeights(nn.Module):
    """The weights of a finished run whose architecture is not known. It cannot be called."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._state = dict(state)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights by name."""
        return dict(self._state)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse: weights alone are no network."""
        raise ModelError(
            "this run was read without its network, so its model cannot be called",
            fix="give the network: expunge.load_run(folder, model=network, data=samples)",
        )


@isolated
def load_run(
    folder: str | Path, model: nn.Module | None = None, data: DataLike | None = None
) -> RepairResult:
    """Read a finished run.

    Parameters
    ----------
    folder
        The run folder of `expunge.repair` or `expunge.forget`.
    model
        The network that was repaired, with any weights. It is left as it was. Left out, the model
        of the result holds the weights (``state_dict``) and cannot be called.
    data
        Any data of the network, to trace it where units were pruned.

    Returns
    -------
    RepairResult
        As the run returned it, but for the models of the baselines, which are not kept.

    Raises
    ------
    RunError
        If the folder holds no finished run, or files of it cannot be read.
    ModelError
        If the network given is not the one that was repaired.

    Examples
    --------
    >>> load_run("no/such/folder")
    Traceback (most recent call last):
    expunge.errors.RunError: no/such/folder: holds no finished run
      fix: let the repair end first, and start where it was started, or name its run folder
    """
    path = Path(folder)
    record = read_record(path, RESULT, _PARTITION, EVALUATIONS, _WEIGHTS)
    with reading(path, RunError, what="holds a damaged run", fix=FIX):
        return _result_of(path, record, model, data)


def _result_of(
    path: Path, record: Mapping[str, Any], model: nn.Module | None, data: DataLike | None
) -> RepairResult:
    """The result whose files have been checked."""
    summary = read_json(path / RESULT)
    tables = {"partition": read_table(path / _PARTITION)}
    correct = read_table(path / EVALUATIONS)
    evaluations = {
        name: _evaluation(correct, name, found) for name, found in record["evaluations"].items()
    }
    plan = _stage_of(path, record, "prune", serialization.PLAN)
    head = serialization.load_head(record.get("head", {}))
    return RepairResult(
        model=_model_of(path, model, data, (plan, head), mode=record["config"]["prune"]["mode"]),
        recipe=record["recipe"],
        seed=record["seed"],
        config=record["config"],
        scores=serialization.SCORES.load(read_artefact(path / FOLDERS["score"])),
        partition=serialization.PARTITION.load(Artefact(record["partition"], tables)),
        ranking=_stage_of(path, record, "rank", serialization.RANKING),
        plan=plan,
        before=evaluations.get("before"),
        after=evaluations.get("after"),
        gain=_metric(summary["gain"]),
        baselines={
            name: Baseline(
                evaluations[name],
                found["seconds"],
                Size(**record["sizes"][name]),
                Metric(**summary["baselines"][name]["gain"]),
            )
            for name, found in summary["baselines"].items()
        },
        size_before=Size(**record["sizes"]["before"]),
        size_after=Size(**record["sizes"]["after"]),
        seconds=summary["seconds"],
        flags=tuple(Flag(**flag) for flag in summary["flags"]),
        run=str(path),
        classes=tuple(record["classes"]),
        decision=Decision(
            summary["decision"]["action"],
            summary["decision"]["reason"],
            _metric(summary["decision"]["gain"]),
            summary["decision"].get("recipe", ""),
        ),
        audit=_audit_of(summary["audit"]),
        skipped=summary["skipped"],
        head=head,
        prune_skipped_reason=record["prune_skipped_reason"],
        notes=tuple(record["notes"]),
        review=summary["review"],
    )


def _evaluation(table: pa.Table, name: str, found: Mapping[str, Any]) -> Evaluation:
    ids = serialization.column(table, "id")
    metrics_found = {k: Metric(**m) for k, m in found["metrics"].items()}
    return Evaluation(ids, serialization.column(table, name), metrics_found, found["per_class"])


def _stage_of(path: Path, record: Mapping[str, Any], stage: Stage, codec: Codec[T]) -> T | None:
    """The record of a stage; None if the result has none."""
    if not record["stages"][stage]:
        return None
    return codec.load(read_artefact(path / FOLDERS[stage]))


def _model_of(
    path: Path,
    model: nn.Module | None,
    data: DataLike | None,
    plans: tuple[PrunePlan | None, HeadPlan | None],
    *,
    mode: PruneMode,
) -> nn.Module:
    """The repaired model: the network given with the weights of the run."""
    state = read_weights(path / _WEIGHTS)
    if model is None:
        return StoredWeights(state)
    is_changed = any(p is not None for p in plans)
    if is_changed and data is None:
        raise ModelError(
            "units or layers of this model were cut, so data are needed to trace the network",
            where=str(path),
            fix="expunge.load_run(folder, model=network, data=samples)",
        )
    example = None if data is None else as_samples(data).example()
    try:
        return rebuild(unwrap(model).model, *plans, state, example=example, mode=mode)
    except PruneError as error:
        raise ModelError(
            f"the network given has not the units that were cut: {error.what}",
            where=str(path),
            fix="give the network of this run, as its constructor makes it",
        ) from error


def _metric(found: Mapping[str, Any] | None) -> Metric | None:
    return None if found is None else Metric(**found)


def _audit_of(found: Mapping[str, Any] | None) -> UnlearningAudit | None:
    if found is None:
        return None
    before, after = found["predicted"]
    auroc = found["membership_auroc"]
    return UnlearningAudit(
        found["samples"],
        (before, after),
        None if auroc is None else tuple(auroc),
        found["churn"],
        tuple(_label_audit(label) for label in found["labels"]),
    )


def _label_audit(found: Mapping[str, Any]) -> LabelAudit:
    pairs = {
        name: None if found[name] is None else tuple(found[name])
        for name in ("predicted", "mistaken")
    }
    return LabelAudit(**{**found, **pairs})
