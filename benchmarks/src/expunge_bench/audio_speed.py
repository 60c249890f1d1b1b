"""Measure how fast clips are read, decoded and turned into features."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from expunge.data.data_config import DataConfig
from expunge.data.sources import read
from expunge.models.audio import LogMel


def feature_seconds(path: Path, *, n: int = 1_000, repeats: int = 3) -> dict[str, float]:
    """Time the reading of clips and the computation of their log-mel features.

    Parameters
    ----------
    path
        A Parquet file of one-second clips at 16 kHz, in a column ``audio``.
    n
        The number of clips.
    repeats
        How often to measure; the smallest times count.

    Returns
    -------
    dict
        ``n``; seconds of ``read`` (decoding included) and of ``features``.
    """
    config = DataConfig(
        str(path.absolute()), input="audio", sample_rate=16_000, seconds=1.0, max_rows=n
    )
    layer, seconds = LogMel(), {"read": np.inf, "features": np.inf}
    for _ in range(repeats):
        started = time.perf_counter()
        samples = read(config, folder=Path.cwd())
        is_read = time.perf_counter()
        with torch.inference_mode():
            for at in samples.batches(128):
                layer(samples.batch(at))
        seconds["read"] = min(seconds["read"], is_read - started)
        seconds["features"] = min(seconds["features"], time.perf_counter() - is_read)
    return {"n": float(len(samples)), **seconds}
