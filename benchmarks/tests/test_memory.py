"""Peak memory by number of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge_bench import memory

pytestmark = pytest.mark.usefixtures("few_trees")


def test_memory_is_measured_separately_from_the_features(data, tmp_path):
    rows = memory.bench(data, sizes=[60, 150], views=1, out=tmp_path)
    assert [(r["n"], r["views"]) for r in rows] == [(60, 1), (150, 1)]
    assert rows[1]["feature_bytes"] == 2.5 * rows[0]["feature_bytes"] > 0
    assert "| 150 | 1 |" in (tmp_path / "table.md").read_text()


def test_additional_images_are_shifted_ones():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 1, 4)
    more = memory.ShiftedImages(images, 8)
    found = more.batch(np.array([7, 0, 4]))
    assert torch.equal(found[0], images[1].roll(2, dims=-1))
    assert torch.equal(found[1], images[0])
    assert torch.equal(found[2], images[1].roll(1, dims=-1))
