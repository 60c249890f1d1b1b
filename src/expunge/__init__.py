"""expunge repairs neural networks that were trained on noisy data."""

from expunge.data import Samples, from_arrays, from_dataset
from expunge.errors import ExpungeError
from expunge.pipeline import forget, repair
from expunge.reporting.markdown import markdown as report
from expunge.stages import certify, compare, partition, plan, prune, rank, score, trajectory, tune
from expunge.storage.export import load_exported, save_exported

__all__ = [
    "ExpungeError",
    "Samples",
    "certify",
    "compare",
    "forget",
    "from_arrays",
    "from_dataset",
    "load_exported",
    "partition",
    "plan",
    "prune",
    "rank",
    "repair",
    "report",
    "save_exported",
    "score",
    "trajectory",
    "tune",
]
