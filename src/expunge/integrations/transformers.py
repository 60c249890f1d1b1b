"""A callback for the Trainer of Hugging Face Transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from expunge.integrations.scoring import TrainingScorer


class ScoreCallback(TrainingScorer, TrainerCallback):
    """Score the training data when a ``transformers.Trainer`` ends; see `TrainingScorer`.

    ``Trainer(…, callbacks=[ScoreCallback(out="runs/scores")])``; the result is ``.partition``.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the data."""
        self.start_training(_dataset(kwargs))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the probabilities of this epoch, if they are kept."""
        self.end_epoch(kwargs["model"], _dataset(kwargs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score and partition."""
        self.end_training(kwargs["model"], _dataset(kwargs))


def _dataset(kwargs: dict[str, Any]) -> object:
    return getattr(kwargs.get("train_dataloader"), "dataset", None)
