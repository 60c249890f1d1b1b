"""How long reading, decoding and features of clips take."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from expunge.data.sources import DataConfig, read
from expunge.models.audio import LogMel


def feature_speed(path: Path, *, n: int = 1_000, repeats: int = 3) -> dict[str, float]:
    """Seconds, the best of a few: ``read`` (decoding included) and ``features`` (log-mel).

    path: a Parquet file of one-second clips at 16 kHz, in a column ``audio``.
    """
    config = DataConfig(
        str(path.absolute()), input="audio", sample_rate=16_000, seconds=1.0, max_rows=n
    )
    layer, seconds = LogMel(), {"read": np.inf, "features": np.inf}
    for _ in range(repeats):
        start = time.perf_counter()
        samples = read(config, folder=Path.cwd())
        done = time.perf_counter()
        with torch.inference_mode():
            for at in samples.batches(128):
                layer(samples.batch(at))
        seconds["read"] = min(seconds["read"], done - start)
        seconds["features"] = min(seconds["features"], time.perf_counter() - done)
    return {"n": float(len(samples)), **seconds}
