"""The stages of a repair in a run folder: computed once, read from disk after that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from expunge.errors import RunError
from expunge.storage.artefacts import FIX
from expunge.storage.epoch_checkpoint import EpochCheckpoint
from expunge.storage.reading import reading
from expunge.storage.run_folder import Run
from expunge.storage.serialization import Codec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Stage = Literal["score", "partition", "review", "rank", "prune", "edit", "tune"]

# Raised when a stage computes something else than before, so that old results are not reused.
CACHE_VERSION = 34
# The folder of every stage.
FOLDERS: Mapping[Stage, str] = {
    "score": "1-score",
    "partition": "2-partition",
    "review": "2-review",
    "rank": "3-rank",
    "prune": "4-prune",
    "edit": "4-edit",
    "tune": "5-tune",
}


@dataclass(frozen=True)
class StageRecord:
    """A stage that was done: its folder, the digest of its key, and the seconds that it took."""

    stage: Stage
    baseline: str
    folder: str
    key: str
    seconds: float


@dataclass(frozen=True)
class Chain:
    """The stages behind an artefact, in their order, and where the next one goes.

    Every stage of a chain depends on the inputs and on all stages before it.

    Parameters
    ----------
    run
        The open run folder.
    inputs
        What every stage depends on: seed, fingerprints of model and data.
    baseline
        The baseline that the stages belong to; empty for the repair itself.
    round
        The round of the repair, from 1.
    records
        The stages done.
    """

    run: Run
    inputs: Mapping[str, Any]
    baseline: str = ""
    round: int = 1
    records: tuple[StageRecord, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all stages of the chain together."""
        return sum(record.seconds for record in self.records)

    def folder(self, stage: Stage) -> str:
        """The folder of a stage, below the run folder."""
        owner = f"baselines/{self.baseline}/" if self.baseline else ""
        return f"{owner}{self.stream(stage)}"

    def stream(self, stage: Stage) -> str:
        """The name of a stage's random numbers; the repair and its baselines share them."""
        return f"rounds/{self.round}/{FOLDERS[stage]}" if self.round > 1 else FOLDERS[stage]

    def stage(
        self,
        stage: Stage,
        config: DataclassInstance,
        compute: Callable[[EpochCheckpoint | None], T],
        codec: Codec[T],
        **more: object,
    ) -> tuple[T, Chain]:
        """Do a stage, or read it if it was done with the same key.

        Parameters
        ----------
        stage
            Which stage.
        config
            Its settings.
        compute
            Makes the record. Called with a checkpoint for the state between epochs, or None if
            nothing is kept.
        codec
            How the record is written and read.
        more
            What else the record depends on.

        Returns
        -------
        tuple
            The record, as it was stored, and the chain with this stage at its end.

        Raises
        ------
        RunError
            If the folder holds this stage with another key, or cannot be read or written.
        """
        folder = self.folder(stage)
        key = {
            "version": CACHE_VERSION,
            "settings": asdict(config),
            **self.inputs,
            "reads": {record.folder: record.key for record in self.records},
            **more,
        }
        artefact = self.run.stage(
            folder, key, lambda: codec.store(compute(self.run.checkpoint(folder, key)))
        )
        record = StageRecord(
            stage, self.baseline, folder, self.run.keys[folder], self.run.seconds[folder]
        )
        is_read = bool(artefact.folder)
        with reading(artefact.folder, RunError, fix=FIX) if is_read else nullcontext():
            found = codec.load(artefact)
        return found, replace(self, records=(*self.records, record))
