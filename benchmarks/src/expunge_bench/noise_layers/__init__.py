"""`expunge bench noise-layers` and `relearning`: noise inside the layers of a network."""

from expunge_bench.noise_layers.methods import METHODS
from expunge_bench.noise_layers.relearning import bench as bench_relearning
from expunge_bench.noise_layers.suite import bench

__all__ = ["METHODS", "bench", "bench_relearning"]
