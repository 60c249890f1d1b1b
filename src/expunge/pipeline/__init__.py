"""The method: `repair`, its parts, `forget`, and the training of a model before it.

Read `repair_run` first. It is the method from top to bottom.
"""

from expunge.pipeline.forget_run import forget
from expunge.pipeline.repair_run import StageResults, repair, repair_until
from expunge.pipeline.training_run import Trained, train

__all__ = ["StageResults", "Trained", "forget", "repair", "repair_until", "train"]
