"""Random views of vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import expunge
from expunge.data.vector_views import DROP_RATE, NOISE_LENGTH
from expunge.data.views import view
from expunge.errors import DataError
from expunge.models import mlp

pytestmark = pytest.mark.usefixtures("few_trees")

NAMES = ("neighbour-noise", "feature-dropout", "mix")
X = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 9, 1, 1, 1.0])


def draw(name: str, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return view(name)(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_view_depends_on_the_generator_alone_and_changes_no_input(name):
    before = X.clone()
    assert torch.equal(draw(name, X), draw(name, X))
    assert not torch.equal(draw(name, X), draw(name, X, seed=1))
    assert torch.equal(X, before)
    assert draw(name, X).dtype == X.dtype


@pytest.mark.parametrize("name", NAMES)
def test_a_single_row_and_a_constant_column_stay_as_they_are(name):
    assert torch.equal(draw(name, X[:1]), X[:1])
    constant = torch.cat([X, torch.ones(60, 1)], dim=1)
    torch.testing.assert_close(draw(name, constant)[:, 5], torch.ones(60))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_refused(name):
    with pytest.raises(DataError, match=r"vectors of shape \[b, d\]"):
        draw(name, torch.zeros(2, 3, 8, 8))


def test_noise_has_half_the_distance_of_neighbours_in_the_scale_of_each_column():
    scale = X.std(dim=0)
    z = X / scale
    nearest = (torch.cdist(z, z) + torch.diag(torch.full((60,), torch.inf))).min(dim=1).values
    moved = torch.stack([(draw("neighbour-noise", X, s) - X) / scale for s in range(200)])
    length = moved.square().sum(dim=2).mean(dim=0).sqrt()
    torch.testing.assert_close(length, NOISE_LENGTH * nearest, rtol=0.1, atol=0)
    torch.testing.assert_close(draw("neighbour-noise", 10 * X), 10 * draw("neighbour-noise", X))


def test_dropped_values_become_the_mean_of_their_column():
    x = draw("feature-dropout", X)
    changed = x != X
    assert abs(changed.float().mean() - DROP_RATE) < 0.06
    assert torch.equal(x[changed], X.mean(dim=0).expand(60, 5)[changed])


def test_mixing_stays_near_the_larger_part():
    moved = (draw("mix", X) - X).norm(dim=1)
    farthest = torch.cdist(X, X).max(dim=1).values
    assert (moved <= 0.3 * farthest + 1e-5).all()


def test_views_of_vectors_are_used_in_scores_and_training():
    rng, right = np.random.default_rng(0), np.arange(90) % 3
    x = (np.eye(3, 4)[right] + 0.2 * rng.standard_normal((90, 4))).astype(np.float32)
    samples = expunge.from_arrays(x, right, view="neighbour-noise")
    model = expunge.tune(mlp(inputs=4, classes=3), samples, targets="all", epochs=2)
    assert "augmented" in expunge.score(model, samples).agreement
