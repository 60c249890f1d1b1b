"""The answers of reviewers in a repair: read from the run folder, brought into every partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from expunge._core.distributed import broadcast_decision
from expunge.records import Partition
from expunge.repair_context import RepairContext
from expunge.review import Review, reviewed
from expunge.review.answer_log import AnswerLog
from expunge.review.answers import answers_digest, latest
from expunge.storage import serialization
from expunge.storage.artefacts import NOTE, Artefact, read_note
from expunge.storage.cached_stages import FOLDERS, Chain
from expunge.storage.reading import is_file
from expunge.storage.run_folder import Run
from expunge.storage.serialization import Codec

# The stages that depend on answers, the stage "review" last: until it is gone they are stale.
_LATER = ("rounds", *(f"{FOLDERS[name]}*" for name in ("rank", "prune", "edit", "tune")))
_REVIEWED_STAGES = (
    *_LATER,
    *(f"baselines/*/{name}" for name in (*_LATER, FOLDERS["review"])),
    FOLDERS["review"],
)


@dataclass(frozen=True)
class _ReviewSettings:
    """The stage "review" has none; its key holds the digest of the answers."""


def with_answers(context: RepairContext, run: Run) -> RepairContext:
    """Read the answers of reviewers in the run folder; what depended on others is discarded."""
    if run.folder is None or not context.may_skip_or_revert:
        return context
    log = AnswerLog(run.folder, context.train.classes)
    answers = broadcast_decision(context.accelerator, lambda: tuple(latest(log.read())))
    used = broadcast_decision(context.accelerator, partial(_used_answers, run.folder))
    if used != answers_digest(answers):
        run.discard(*_REVIEWED_STAGES)
    return replace(context, answers=answers)


def _used_answers(folder: Path) -> str:
    """The digest of the answers that an earlier run of the folder took into account."""
    note = folder / FOLDERS["review"] / NOTE
    return str(read_note(note.parent)["key"].get("reviews")) if is_file(note) else ""


def cached_review(
    context: RepairContext, chain: Chain, split: Partition
) -> tuple[RepairContext, Partition, Chain]:
    """Bring the answers of reviewers into a partition; without answers it stays as it is."""
    if not context.answers:
        return context, split, chain

    def compute(_: object) -> Review:
        return broadcast_decision(
            context.accelerator,
            lambda: reviewed(split, context.answers, n_classes=len(context.train.classes)),
        )

    (split, summary), chain = chain.stage(
        "review", _ReviewSettings(), compute, _REVIEW, reviews=answers_digest(context.answers)
    )
    if context.review is None:
        context = replace(context, review=summary)
    return context, split, chain


def _store_review(review: Review) -> Artefact:
    stored = serialization.PARTITION.store(review.partition)
    return replace(stored, metadata={**stored.metadata, "review": review.summary()})


def _load_review(artefact: Artefact) -> tuple[Partition, Mapping[str, object]]:
    return serialization.PARTITION.load(artefact), artefact.metadata["review"]


_REVIEW: Codec[Any] = Codec(_store_review, _load_review)
