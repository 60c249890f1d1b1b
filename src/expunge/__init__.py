"""expunge repairs neural networks that were trained on noisy data."""

from expunge.data import Samples, from_arrays, from_dataset
from expunge.errors import ExpungeError
from expunge.pipeline import forget, repair
from expunge.reporting.markdown import render_markdown as report
from expunge.stages import (
    audit,
    average_checkpoint_probs,
    compare,
    partition,
    plan,
    prune,
    rank,
    score,
    tune,
)
from expunge.storage.export import export_model, load_exported_model

__all__ = [
    "ExpungeError",
    "Samples",
    "audit",
    "average_checkpoint_probs",
    "compare",
    "export_model",
    "forget",
    "from_arrays",
    "from_dataset",
    "load_exported_model",
    "partition",
    "plan",
    "prune",
    "rank",
    "repair",
    "report",
    "score",
    "tune",
]
