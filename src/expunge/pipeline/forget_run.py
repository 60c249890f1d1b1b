"""Unlearning of named samples: the repair with a partition that is given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from expunge._core.arrays import Array, Bools
from expunge._core.isolation import isolated
from expunge.config import RepairKeywords, RepairOptions
from expunge.data import DataLike, Samples
from expunge.data.conversion import to_column
from expunge.detection.similar_samples import require_examples
from expunge.detection.similar_scores import MIN_SIMILARITY, score_similar, similar_note
from expunge.errors import ConfigError, DataError, format_ids
from expunge.pipeline.repair_run import open_repair, repair_from_scores
from expunge.recipes import Recipe
from expunge.records import RepairResult, Scores
from expunge.repair_context import RepairContext, validate_inputs
from expunge.storage import serialization
from expunge.storage.hashing import digest


@isolated
def forget(
    model: nn.Module,
    train: DataLike,
    ids: Collection[Any] | Array,
    validation: DataLike | None = None,
    *,
    find_more: bool = False,
    **options: Unpack[RepairKeywords],
) -> RepairResult:
    """Unlearn samples that are named: a deletion request, or a poisoned batch.

    The named samples are bad; all others are good, or are looked through with ``find_more``. The
    units that carry the bad ones are pruned, and the rest is fine-tuned on all other samples.
    ``result.audit`` measures what is left of them; that is not a proof that the model is as if it
    had never seen them.

    Parameters
    ----------
    model, train, validation
        See `repair`.
    ids
        Ids of training samples. Numbers may be given as text. Truth values, one for each sample,
        are a mask.
    find_more
        Whether the named samples, five or more, are a random part of the bad ones. Samples that
        resemble them are found, each with a probability, and unlearned too. The model then learns
        that the labels of all of these are wrong; without it, it does not see them again.
    **options
        See `repair`.

    Raises
    ------
    DataError
        If an id is not there, or if no sample of a class would be left to tune on.

    Examples
    --------
    >>> import numpy as np, torch
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> result = forget(model, data, [3, 17], overrides={"tune": {"epochs": 1}})
    >>> result.audit.samples
    2
    """
    if "held_out" in options:
        raise ConfigError(
            "a deletion takes no held_out, as it is kept in any case",
            where="forget",
            fix="give samples that measure it as validation",
        )
    given = RepairOptions.of(options)
    settings = dict(given.overrides or {})
    tune = settings.get("tune", {})
    threshold = {"threshold": MIN_SIMILARITY} if find_more else {}
    settings |= {
        "partition": {"method": "posterior", **threshold},
        "tune": {**tune, "targets": "complement" if find_more else "filter"},
        "rounds": {"epochs": ()},
    }
    context = validate_inputs(model, train, validation, None, replace(given, overrides=settings))
    named = named_samples(context.train, ids, context.recipe, find_more=find_more)
    deleted = digest(context.train.ids[named].tolist())
    context = replace(
        context,
        may_skip_or_revert=False,
        header={**context.header, "forget": deleted, "find_more": find_more},
    )
    with open_repair(context) as run:
        run.log("start", recipe=context.options.recipe, seed=context.seed, forget=int(named.sum()))
        scores, chain = context.chain(run).stage(
            "score",
            context.recipe.score,
            lambda _: (
                _similar_scores(context, named)
                if find_more
                else _deletion_scores(context.train, named)
            ),
            serialization.SCORES,
            forget=deleted,
            find_more=find_more,
        )
        if find_more:
            context = replace(context, notes=(*context.notes, similar_note(scores)))
        return repair_from_scores(context, scores, chain)


def named_samples(
    samples: Samples, ids: Collection[Any] | Array, recipe: Recipe, *, find_more: bool
) -> Bools:
    """Return which samples have one of these ids, ``bool[n]``, if a recipe can unlearn them.

    Raises
    ------
    DataError
        If an id is not there, if no sample of a class would be left to tune on, or if there are too
        few to find more.
    """
    named = mask_of_ids(samples, ids)
    if find_more:
        require_examples(named)
    if recipe.tune.n_epochs:
        _check_classes_remain(samples, named)
    return named


def mask_of_ids(samples: Samples, ids: Collection[Any] | Array) -> Bools:
    """Return which samples have one of these ids, ``bool[n]``; numbers may be given as text.

    Truth values, one for each sample, are a mask.
    """
    if isinstance(ids, set | frozenset):
        ids = list(ids)
    if isinstance(ids, str | bytes) or not (
        isinstance(ids, Sequence | np.ndarray | Tensor) or hasattr(ids, "to_numpy")
    ):
        raise DataError(
            f"expected a list or array of ids, got {type(ids).__name__}",
            where="forget",
            fix="give the ids of training samples: ids=[3, 17]",
        )
    wanted = to_column(ids, "ids", "forget").reshape(-1)
    own = samples.ids
    if wanted.dtype == np.bool_:
        if len(wanted) != len(own):
            raise DataError(
                f"got {len(wanted)} truth values for {len(own)} training samples",
                where="forget",
                fix="give one truth value for each sample, or ids",
            )
        wanted = own[wanted]
    if not len(wanted):
        raise DataError("no id is given", where="forget", fix="give ids of training samples")
    if "U" in (wanted.dtype.kind, own.dtype.kind):
        wanted, own = wanted.astype(str), own.astype(str)
    unknown = np.setdiff1d(wanted, own)
    if len(unknown):
        raise DataError(
            f"no training sample has the id {format_ids(unknown)}",
            where="forget",
            fix="give ids of training samples; in a file, one a line and nothing else",
        )
    return np.isin(own, wanted)


def _check_classes_remain(samples: Samples, named: Bools) -> None:
    """Refuse to forget all samples of a class."""
    lost = np.setdiff1d(samples.labels, samples.labels[~named])
    if len(lost):
        raise DataError(
            f"no sample of class {format_ids(samples.classes[c] for c in lost)} would be left",
            where="forget",
            fix="give fewer ids; to remove a whole class, train a network without it",
        )


def _similar_scores(context: RepairContext, named: Bools) -> Scores:
    """Score all samples by their likeness to the named ones."""
    return score_similar(
        context.model,
        context.train,
        named,
        context.recipe.score,
        seed=context.seed,
        progress=context.options.progress,
    )


def _deletion_scores(samples: Samples, named: Bools) -> Scores:
    """Return certain scores: 1 for the named samples, 0 for all others; no label is suggested."""
    return Scores(
        ids=samples.ids,
        labels=samples.labels,
        values={"named": named.astype(np.float64)},
        kinds={"named": "label"},
        class_probs=np.eye(len(samples.classes))[samples.labels],
    )
