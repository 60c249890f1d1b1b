"""Plain inputs as tables."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from expunge.detection.pooling import pool_input


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (torch.randn(4, 30), 30),
        (torch.randn(4, 1, 8, 8), 64),
        (torch.randn(4, 3, 32, 32), 195),
        (torch.randn(4, 2000), 512),
        (torch.randn(4, 16_000), 512),
        (torch.randn(4, 40, 30), 60),
        (torch.randint(0, 1000, (4, 20)), 256),
        ({"ids": torch.randint(0, 9, (4, 20)), "mask": torch.ones(4, 20).long()}, 512),
    ],
)
def test_every_sort_of_input_becomes_a_table(x, columns):
    pooled = pool_input(x)
    assert pooled.shape == (4, columns)
    assert pooled.dtype == torch.float32
    assert torch.isfinite(pooled).all()


def test_long_embeddings_keep_their_distances():
    x = torch.randn(20, 3072, generator=torch.Generator().manual_seed(0))
    assert_allclose(torch.pdist(pool_input(x)), torch.pdist(x), rtol=0.15)
    torch.testing.assert_close(pool_input(x[3:5]), pool_input(x)[3:5])


def test_words_are_counted_wherever_they_stand():
    x = torch.randint(0, 500, (3, 12))
    assert_allclose(pool_input(x), pool_input(x.flip(1)))
    assert_allclose((pool_input(x) ** 2).sum(dim=1), 12.0, rtol=1e-5)
