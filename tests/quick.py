"""Quicker settings, for laws that do not depend on them: ``usefixtures("few_trees")``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from expunge import stages
from expunge.detection import gaussian_mixture, probes
from expunge.storage.weights import model_fingerprint


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """30 trees, not 150, 100 landmarks, not 300, and 10 resamples, not 50.

    They take half of the time of a small repair.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "N_TREES", 30)
        patch.setattr(probes, "N_LANDMARKS", 100)
        patch.setattr(gaussian_mixture, "_BOOTSTRAP_SAMPLES", 10)
        yield


@pytest.fixture(scope="module")
def detected_once() -> Iterator[None]:
    """Repairs of the same model and data share scores and partition.

    For laws of what follows them; that they are the same every time is a law of their own.
    """
    score, partition, known = stages.score, stages.partition, {}

    def once(key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = compute()
        return known[key]

    def scored(model: Any, data: Any, config: Any, **settings: Any) -> Any:
        held_out = settings["held_out"]
        of = [data.fingerprint(), held_out.fingerprint() if held_out else None]
        key = (model_fingerprint(model), str(of), repr(config), settings["seed"])
        return once(key, lambda: score(model, data, config, **settings))

    def partitioned(scores: Any, config: Any, *, seed: int) -> Any:
        key = (pickle.dumps(scores), repr(config), seed)
        return once(key, lambda: partition(scores, config, seed=seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "score", scored)
        patch.setattr(stages, "partition", partitioned)
        yield
