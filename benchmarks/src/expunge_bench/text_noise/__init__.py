"""`expunge bench text-noise`: noise in documents, its removal, and what summaries gain by it."""

from expunge_bench.text_noise.faults import AMOUNTS
from expunge_bench.text_noise.methods import METHODS
from expunge_bench.text_noise.suite import FAULTS, bench

__all__ = ["AMOUNTS", "FAULTS", "METHODS", "bench"]
