"""Records to artefacts of a run folder, and back: the same record, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch

from expunge._core.arrays import Array
from expunge.records import (
    Component,
    DepthCandidate,
    DirectionEffect,
    Fit,
    HeadPlan,
    LayerEffect,
    NeuronRanking,
    Partition,
    PooledEvidence,
    PrunePlan,
    Scores,
    SourceReport,
    TopClasses,
)
from expunge.storage.artefacts import Artefact

T = TypeVar("T")


class Codec(NamedTuple, Generic[T]):
    """How a record becomes an artefact of the run folder, and back."""

    store: Callable[[T], Artefact]
    load: Callable[[Artefact], T]


def store_scores(scores: Scores) -> Artefact:
    """The scores as a table; who made them and the class probabilities beside it."""
    return Artefact(
        metadata={
            "kinds": dict(scores.kinds),
            "agreement": dict(scores.agreement),
            "pooled": None if scores.pooled is None else _pooled_metadata(scores.pooled),
            "classes": scores.class_probs.shape[1],
        },
        tables={"scores": scores.to_table()},
        tensors={
            **_pooled_tensors(scores.pooled),
            **_row_tensors({name: getattr(scores, name) for name in _CLASS_ROWS}),
        },
    )


def load_scores(artefact: Artefact) -> Scores:
    """The very scores that were stored."""
    columns = _columns(artefact.tables["scores"])
    kinds, classes = artefact.metadata["kinds"], artefact.metadata["classes"]
    rows = {name: _load_rows(artefact.tensors, name, classes) for name in _CLASS_ROWS}
    return Scores(
        ids=columns["id"],
        labels=columns["label"],
        values={name: columns[name] for name in kinds},
        kinds=kinds,
        agreement=artefact.metadata["agreement"],
        trusted=columns["trusted"],
        pooled=_load_pooled(artefact),
        **rows,
    )


_CLASS_ROWS = ("class_probs", "loo_probs", "model_probs", "external_probs")


def _row_tensors(tables: Mapping[str, Array | TopClasses]) -> dict[str, torch.Tensor]:
    """Numbers for each class by name; of `TopClasses` also their classes and the rest."""
    arrays: dict[str, Array] = {}
    for name, rows in tables.items():
        if isinstance(rows, TopClasses):
            arrays |= {
                name: rows.values,
                f"{name}.classes": rows.classes,
                f"{name}.rest": rows.rest,
            }
        else:
            arrays[name] = rows
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _load_rows(tensors: Mapping[str, torch.Tensor], name: str, classes: int) -> Any:
    """What `_row_tensors` stored under a name."""
    values = tensors[name].numpy()
    if f"{name}.rest" not in tensors:
        return values
    at, rest = (tensors[f"{name}.{part}"].numpy() for part in ("classes", "rest"))
    return TopClasses(values, at, rest, classes)


_POOLED_NUMBERS = (
    "memorised_fraction",
    "expected_agreement",
    "contradicting_fraction",
    "log_likelihood_gain",
    "probe_weight",
    "held_out_agreement",
    "layer_rate",
    "layer_weight",
)
_POOLED_ARRAYS = ("probs", "novelty", "probe_probs")


def _pooled_metadata(pooled: PooledEvidence) -> dict[str, object]:
    numbers = {name: getattr(pooled, name) for name in _POOLED_NUMBERS}
    return {"sources": [asdict(source) for source in pooled.sources], **numbers}


def _pooled_tensors(pooled: PooledEvidence | None) -> dict[str, torch.Tensor]:
    arrays = {f"pooled.{name}": getattr(pooled, name, None) for name in _POOLED_ARRAYS}
    return _row_tensors({name: v for name, v in arrays.items() if v is not None})


def _load_pooled(artefact: Artefact) -> PooledEvidence | None:
    facts = artefact.metadata["pooled"]
    if facts is None:
        return None
    classes = artefact.metadata["classes"]
    arrays: dict[str, Any] = {
        name: _load_rows(artefact.tensors, f"pooled.{name}", classes)
        for name in _POOLED_ARRAYS
        if f"pooled.{name}" in artefact.tensors
    }
    sources = tuple(SourceReport(**source) for source in facts["sources"])
    numbers = {name: facts[name] for name in _POOLED_NUMBERS}
    return PooledEvidence(sources=sources, **numbers, **arrays)


def store_partition(partition: Partition) -> Artefact:
    """The partition as a table; threshold, noise rate and fits beside it."""
    facts = {
        "threshold": partition.threshold,
        "noise_rate": partition.noise_rate,
        "fits": [asdict(fit) for fit in partition.fits],
        "evidence": list(partition.evidence),
        "memorised": partition.memorised,
        "rate_estimates": dict(partition.rate_estimates),
    }
    return Artefact(metadata=facts, tables={"partition": partition.to_table()})


def load_partition(artefact: Artefact) -> Partition:
    """The very partition that was stored."""
    columns, facts = _columns(artefact.tables["partition"]), artefact.metadata
    value, low, high = facts["noise_rate"]
    fits = []
    for fit in facts["fits"]:
        components = tuple(Component(**c) for c in fit["components"])
        bic = {int(k): v for k, v in fit["bic"].items()}
        fits.append(Fit(**{**fit, "components": components, "bic": bic}))
    return Partition(
        ids=columns["id"],
        labels=columns["label"],
        p_noisy=columns["p_noisy"],
        p_label_fault=columns["p_label_fault"],
        p_input_fault=columns["p_input_fault"],
        suggested_label=columns["suggested_label"],
        suggested_probability=columns["suggested_probability"],
        threshold=facts["threshold"],
        noise_rate=(value, low, high),
        fits=tuple(fits),
        evidence={name: columns[name] for name in facts["evidence"]},
        memorised=facts["memorised"],
        rate_estimates=facts["rate_estimates"],
        reviewed=columns.get("reviewed"),
    )


def store_ranking(ranking: NeuronRanking) -> Artefact:
    """The ranking as a table, one row a unit; what it says of layers and directions beside it."""
    facts = {
        "groups": dict(ranking.groups),
        "explained": dict(ranking.explained),
        "layers": [asdict(effect) for effect in ranking.layers],
        "directions": [asdict(effect) for effect in ranking.directions],
    }
    return Artefact(metadata=facts, tables={"ranking": ranking.to_table()})


def load_ranking(artefact: Artefact) -> NeuronRanking:
    """The very ranking that was stored."""
    columns, facts = _columns(artefact.tables["ranking"]), artefact.metadata
    return NeuronRanking(
        **columns,
        groups=facts["groups"],
        explained=facts["explained"],
        layers=tuple(LayerEffect(**effect) for effect in facts["layers"]),
        directions=tuple(DirectionEffect(**effect) for effect in facts["directions"]),
    )


def store_plan(plan: PrunePlan) -> Artefact:
    """The plan as plain facts."""
    return Artefact(metadata=asdict(plan))


def load_plan(artefact: Artefact) -> PrunePlan:
    """The very plan that was stored."""
    units = {layer: tuple(u) for layer, u in artefact.metadata["units"].items()}
    return PrunePlan(units, artefact.metadata["requested"], tuple(artefact.metadata["reasons"]))


def head_metadata(head: HeadPlan | None) -> dict[str, Any]:
    """How a head reads a network, as plain facts; an empty dictionary without a head."""
    return {} if head is None else asdict(head)


def load_head(facts: Mapping[str, Any]) -> HeadPlan | None:
    """The head that `head_metadata` described."""
    if not facts:
        return None
    candidates = tuple(DepthCandidate(**c) for c in facts["candidates"])
    return HeadPlan(**{**facts, "layers": tuple(facts["layers"]), "candidates": candidates})


def column(table: pa.Table, name: str) -> Array:
    """A column of a table as an array; text becomes ``str``."""
    values: Array = table[name].to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype.kind == "O" else values


def _columns(table: pa.Table) -> dict[str, Array]:
    return {name: column(table, name) for name in table.column_names}


SCORES = Codec(store_scores, load_scores)
PARTITION = Codec(store_partition, load_partition)
RANKING = Codec(store_ranking, load_ranking)
PLAN = Codec(store_plan, load_plan)
