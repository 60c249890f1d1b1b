"""Signals and scores with and without planted faults."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from expunge.records import Scores, Signals

CLASSES = 4


def signals(n=80, c=4, seed=0, **changes):
    """Every signal there is, without anything planted."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, c))
    fields = {
        "ids": np.arange(n) * 3,
        "labels": rng.integers(0, c, n),
        "logits": logits,
        "per_sample": {
            "attribution": rng.standard_normal(n),
            "attribution_mass": rng.random(n) + 0.5,
            "head_input_norm": rng.random(n) + 1,
        },
        "features": {
            "early": rng.standard_normal((n, 6)).astype(np.float32),
            "late": rng.standard_normal((n, 3)).astype(np.float32),
        },
        "augmented_probs": softmax(logits + rng.standard_normal((n, c)), axis=1).astype(np.float32),
        "augmented_loss": rng.random(n).astype(np.float32),
        "attributions": rng.random((n, 5)).astype(np.float32),
        "external_probs": {
            "folds": softmax(rng.standard_normal((n, c)), axis=1).astype(np.float32)
        },
        "attribution_features": {"early": rng.standard_normal((n, 6)).astype(np.float32)},
        "inputs": rng.standard_normal((n, 5)).astype(np.float32),
    }
    fields["per_sample"]["attribution.early"] = rng.standard_normal(n)
    fields["per_sample"]["attribution.late"] = rng.standard_normal(n)
    return Signals(**{**fields, **changes})


def signal_rows(s, at):
    """The same signals for some of the samples, in another order."""
    part = lambda table: {k: v[at] for k, v in table.items()}  # noqa: E731
    return Signals(
        s.ids[at],
        s.labels[at],
        s.logits[at],
        part(s.per_sample),
        part(s.features),
        s.augmented_probs[at],
        s.augmented_loss[at],
        s.attributions[at],
        part(s.external_probs),
        attribution_features=part(s.attribution_features),
        inputs=s.inputs[at],
    )


def scores(label=None, inputs=None, *, contradicted=None, seed=0, **changes):
    """Scores from columns of evidence; the class distribution contradicts the labels of some."""
    columns = {f"l{i}": v for i, v in enumerate(label or [])}
    columns |= {f"i{i}": v for i, v in enumerate(inputs or [])}
    n = len(next(iter(columns.values())))
    labels = np.random.default_rng(seed).integers(0, CLASSES, n)
    contradicted = np.zeros(n, dtype=bool) if contradicted is None else contradicted
    probs = np.full((n, CLASSES), 0.1)
    probs[np.arange(n), (labels + contradicted) % CLASSES] = 0.7
    fields = {
        "ids": np.arange(n) * 2,
        "labels": labels,
        "values": columns,
        "kinds": {k: "label" if k[0] == "l" else "input" for k in columns},
        "class_probs": probs,
    }
    return Scores(**{**fields, **changes})


def two_groups(n=1000, rate=0.3, apart=4.0, seed=0):
    """Evidence whose bad share lies higher, and which samples those are."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) < round(rate * n)
    rng.shuffle(bad)
    return rng.standard_normal(n) + apart * bad, bad


def squash(values):
    return 1 / (1 + np.exp(2.0 - values))


def both_kinds(name, n=300, seed=0):
    """Scores of both kinds that the partitioner takes."""
    label, wrong = two_groups(n, apart=6.0, seed=seed)
    inputs, _ = two_groups(n, rate=0.1, apart=6.0, seed=seed + 1)
    if name == "posterior":
        label, inputs = squash(label), squash(inputs)
    return scores([label], [inputs], contradicted=wrong)


def score_rows(s, at):
    return Scores(
        s.ids[at],
        s.labels[at],
        {k: v[at] for k, v in s.values.items()},
        s.kinds,
        s.class_probs[at],
    )


def planted_labels(transition, *, n=4000, seed=0, sharp=2.0):
    """A source that is calibrated for the right labels, the right labels, and given ones."""
    rng = np.random.default_rng(seed)
    c = len(transition)
    q = softmax(sharp * rng.standard_normal((n, c)), axis=1)
    right = (q.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(max=c - 1)
    given = (transition[right].cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(max=c - 1)
    return q[None], right, given


def symmetric(rate, c=CLASSES):
    """The transition of symmetric noise."""
    return np.full((c, c), rate / (c - 1)) + (1 - rate - rate / (c - 1)) * np.eye(c)
