"""What the callbacks share: score the training data when a training ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from torch import nn

from expunge import stages
from expunge._core.arrays import Floats32
from expunge.data import DataLike, Samples, as_samples
from expunge.errors import DataError
from expunge.records import Partition
from expunge.storage.atomic_files import wrap_io_errors, write_file
from expunge.storage.weights import state_of


class TrainingScorer:
    """Averages a network's probabilities over its training, and scores the data at the end.

    Parameters
    ----------
    data
        The training data; by default those of the training loop.
    out
        A folder for ``partition.parquet``. None writes nothing.
    keep_probs
        Average the probabilities over the epochs. A network learns right labels first
        (arXiv 2001.10528), so the mean shows wrong ones that its end has memorised. Costs one pass
        over the data an epoch.
    """

    def __init__(
        self,
        data: DataLike | None = None,
        out: str | Path | None = None,
        *,
        keep_probs: bool = False,
    ) -> None:
        self.data, self.out, self.keep_probs = data, out, keep_probs
        self.partition: Partition | None = None
        self._samples: Samples | None = None
        self._sum: Floats32 | None = None
        self._count = 0

    def start_training(self, dataset: object = None) -> None:
        """Read the data, so that what is wrong with them is found before the training."""
        self._read(dataset)

    def end_epoch(self, model: nn.Module, dataset: object = None) -> None:
        """Add the probabilities of the network as it is now."""
        if self.keep_probs:
            probs = stages.average_checkpoint_probs(model, self._read(dataset), [state_of(model)])
            self._sum = probs if self._sum is None else self._sum + probs
            self._count += 1

    def end_training(self, model: nn.Module, dataset: object = None) -> None:
        """Score and partition; the result is ``partition``."""
        samples = self._read(dataset)
        if self._sum is not None:
            mean = {**samples.external_probs, "trajectory": self._sum / self._count}
            samples = replace(samples, external_probs=mean)
        self.partition = stages.partition(stages.score(model, samples))
        if self.out is not None:
            folder, table = Path(self.out), self.partition.to_table()
            with wrap_io_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / "partition.parquet", lambda path: pq.write_table(table, path))

    def _read(self, dataset: object) -> Samples:
        """The data as samples, read once."""
        if self._samples is None:
            found = self.data if self.data is not None else dataset
            if found is None:
                raise DataError(
                    "the training loop has no data set of its own",
                    where="score callback",
                    fix="give it: ScoreCallback(data)",
                )
            self._samples = as_samples(found, name="training data")  # type: ignore[arg-type]
        return self._samples
