"""Cross-fitted probes: none uses the sample's own label. Compared with slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.neighbors import KNeighborsClassifier

from expunge.detection.neighbours import vote_shares
from expunge.detection.principal_space import Space
from expunge.detection.probes import kernel_probe, nearest_others, tree_probe


def blobs(n=300, c=3, seed=0, apart=3.0, d=5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    return (apart * rng.standard_normal((c, d))[y] + rng.standard_normal((n, d))), y


def test_votes_are_those_of_scikit_learn_without_the_sample_itself():
    x, y = blobs(80)
    near, _ = nearest_others(x, 7)(slice(0, 80))
    for i in (0, 17, 79):
        rest = np.arange(80) != i
        share = KNeighborsClassifier(7).fit(x[rest], y[rest]).predict_proba(x[[i]])[0]
        assert_allclose(vote_shares(y[near], 3)[i], (7 * share + 1 / 3) / 8)


def test_a_sample_is_never_its_own_neighbour_even_among_copies():
    x = np.repeat(np.random.default_rng(0).standard_normal((10, 3)), 12, axis=0)
    near, distance = nearest_others(x, 5)(slice(0, 120))
    assert near.shape == distance.shape == (120, 5)
    assert (near != np.arange(120)[:, None]).all()


def test_left_out_kernel_regression_does_not_depend_on_the_own_label():
    x, y = blobs(120)
    other = y.copy()
    other[5] = (y[5] + 1) % 3
    first, second = (kernel_probe(Space(x), labels, 3) for labels in (y, other))
    assert_allclose(first[5], second[5], atol=0.02)


@pytest.mark.parametrize("probe", [tree_probe, kernel_probe])
def test_probes_give_distributions_that_know_the_class(probe):
    x, y = blobs()
    q = probe(Space(x), y, 4)  # the last class does not occur
    assert q.shape == (300, 4)
    assert_allclose(q.sum(axis=1), 1.0, rtol=1e-6)
    assert (q > 0).all()
    assert (q.argmax(axis=1) == y).mean() > 0.9


def test_probes_on_labels_without_meaning_do_not_agree_with_them():
    x, _ = blobs()
    y = np.random.default_rng(3).integers(0, 3, 300)
    for probe in (tree_probe, kernel_probe):
        assert (probe(Space(x), y, 3).argmax(axis=1) == y).mean() < 0.45
