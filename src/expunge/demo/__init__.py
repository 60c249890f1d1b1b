"""The demo: inject noise into real digits, and repair a network that memorised it.

`expunge.demo.noise` also serves the benchmarks.
"""

from expunge.demo.digits import noisy_digits_dataset, run_demo
from expunge.demo.noise import GroundTruth, NoisyDataset

__all__ = ["GroundTruth", "NoisyDataset", "noisy_digits_dataset", "run_demo"]
