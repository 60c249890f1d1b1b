"""expunge repairs neural networks that were trained on noisy data."""

from expunge.data import Samples, from_arrays, from_dataset
from expunge.errors import ExpungeError
from expunge.pipeline import compare, partition, plan, prune, rank, repair, score, tune
from expunge.reports import markdown as report

__all__ = [
    "ExpungeError",
    "Samples",
    "compare",
    "from_arrays",
    "from_dataset",
    "partition",
    "plan",
    "prune",
    "rank",
    "repair",
    "report",
    "score",
    "tune",
]
