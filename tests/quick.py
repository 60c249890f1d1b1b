"""Quicker settings, for laws that do not depend on them: ``usefixtures("few_trees")``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from expunge.detection import gaussian_mixture, probes


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """30 trees, not 150, and 10 resamples, not 50: they take half of the time of a small repair."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "N_TREES", 30)
        patch.setattr(gaussian_mixture, "_BOOTSTRAP_SAMPLES", 10)
        yield
