"""Which agreement with its labels a model has that was trained on them."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation.familiarity import why_unfamiliar


@pytest.mark.parametrize(
    ("agreement", "classes", "n", "knows"),
    [
        (0.14, 10, 500, False),  # images prepared in another way than in the training
        (0.10, 10, 500, False),
        (0.28, 10, 500, True),  # 80 % of the labels wrong, the rest predicted
        (0.55, 2, 500, True),  # 45 % wrong
        (0.50, 2, 50_000, False),
        (0.012, 100, 5_000, False),
        (0.20, 100, 5_000, True),
        (0.40, 2, 10, True),  # too few samples to say
    ],
)
def test_a_model_that_predicts_by_chance_does_not_know_its_data(agreement, classes, n, knows):
    assert (why_unfamiliar(agreement, np.arange(n) % classes) == "") == knows


def test_the_most_frequent_label_is_no_knowledge():
    labels = (np.arange(50_000) % 100 == 0).astype(int)
    assert "than the most frequent label has (99.0%)" in why_unfamiliar(0.99, labels)
    assert why_unfamiliar(0.995, labels) == ""
