"""A callback for Lightning."""

from __future__ import annotations

from typing import Any

from lightning import Callback

from expunge.integrations.scoring import TrainingScorer


class ScoreCallback(TrainingScorer, Callback):
    """Score the training data when a ``lightning.Trainer`` ends; see `TrainingScorer`.

    ``Trainer(…, callbacks=[ScoreCallback(out="runs/scores")])``; the result is ``.partition``. The
    module's ``forward`` returns logits.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the data."""
        self.start_training(_dataset(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add the probabilities of this epoch, if they are kept."""
        self.end_epoch(pl_module, _dataset(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Score and partition."""
        self.end_training(pl_module, _dataset(trainer))


def _dataset(trainer: Any) -> object:
    return getattr(trainer.train_dataloader, "dataset", None)
