"""What scores samples by their likeness to others: left-out regressions, or fixed scores. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from expunge._core.arrays import AnyFloats, Bools, Floats, Ints
from expunge.detection.class_rows import row_chunks
from expunge.detection.lda import safe_scale

# A regression within one given label needs this many named samples of that label.
_MIN_NAMED_OF_LABEL = 3
# λ in mean variances of a column, of which the one with the least left-out error is taken.
_RIDGES = (0.03, 0.3, 3.0, 30.0)
# Directions of less variance, in mean variances of a column, are as good as unused by the ridges.
_MIN_VARIANCE = 1e-3


class Scorer(Protocol):
    """What scores every sample without its own target."""

    def left_out(self, targets: Floats) -> Floats:
        """Return scores for each column of targets, ``[n, k]``."""
        ...


@dataclass(frozen=True)
class _FixedScore:
    """A score that depends on no target, ``float[n]``."""

    values: AnyFloats

    def left_out(self, targets: Floats) -> Floats:
        """Return the score for each column of targets."""
        return np.broadcast_to(self.values[:, None].astype(np.float64), targets.shape)


@dataclass(frozen=True)
class _Space:
    """Standardised features in the eigenvectors of their scatter, and its eigenvalues.

    unit: the mean variance of a column.
    """

    rotated: AnyFloats
    values: Floats
    unit: float

    @classmethod
    def of(cls, features: AnyFloats) -> _Space:
        location = features.mean(axis=0, dtype=np.float64)
        scale = safe_scale(features.std(axis=0, dtype=np.float64), location)
        z = ((features - location) / scale).astype(np.float32)
        n, d = z.shape
        if n < d:
            values, vectors = np.linalg.eigh((z @ z.T).astype(np.float64) / n)
        else:
            scatter = np.zeros((d, d))
            for rows in row_chunks(n):
                scatter += z[rows].T @ z[rows]
            values, vectors = np.linalg.eigh(scatter / n)
        unit = max(float(values.sum()) / d, 1e-12)
        kept = values > _MIN_VARIANCE * unit
        values, vectors = values[kept], vectors[:, kept].astype(np.float32)
        rotated = vectors * np.sqrt(n * values).astype(np.float32) if n < d else z @ vectors
        return cls(rotated, values, unit)

    def left_out(self, targets: Floats) -> Floats:
        """Return predictions of targets ``[n, k]`` without each sample's own.

        Those of the ridge with the least squared error, samples weighted so that a target and its
        complement count equally.
        """
        # The mean stays in: without it, every example would be predicted below all others.
        n, means = len(targets), targets.mean(axis=0)
        centred = targets - means
        products = (self.rotated.T @ centred.astype(np.float32)).astype(np.float64) / n
        weights = targets / np.maximum(means, 1e-12) + (1 - targets) / np.maximum(1 - means, 1e-12)
        errors, found = np.full(len(means), np.inf), centred.copy()
        squares = self.rotated**2
        for ridge in _RIDGES:
            shrunk = self.values + ridge * self.unit
            leverage = np.minimum(squares @ (1 / shrunk) / n, 0.99)[:, None]
            fitted = self.rotated @ (products / shrunk[:, None]).astype(np.float32)
            predicted = (fitted - leverage * centred) / (1 - leverage)
            error = (weights * (predicted - centred) ** 2).sum(axis=0)
            found[:, error < errors] = predicted[:, error < errors]
            errors = np.minimum(errors, error)
        predictions: Floats = found + means
        return predictions


@dataclass(frozen=True)
class _SpaceByLabel:
    """A space for each of some labels; rows: the samples of each."""

    rows: tuple[Ints, ...]
    spaces: tuple[_Space, ...]

    def left_out(self, targets: Floats) -> Floats:
        """Return predictions without each sample's own target; 0 for other labels."""
        found = np.zeros(targets.shape)
        for at, space in zip(self.rows, self.spaces, strict=True):
            found[at] = space.left_out(targets[at])
        return found


def scorers(sources: Mapping[str, AnyFloats], labels: Ints, named: Bools) -> dict[str, Scorer]:
    """Return what scores by each source: of features, all samples and those of each label."""
    counts = np.bincount(labels[named], minlength=int(labels.max()) + 1)
    enough = np.flatnonzero(counts >= _MIN_NAMED_OF_LABEL)
    rows = tuple(np.flatnonzero(labels == label) for label in enough)
    found: dict[str, Scorer] = {}
    for name, x in sources.items():
        if x.ndim == 1:
            found[name] = _FixedScore(x)
            continue
        found[name] = _Space.of(x)
        if rows:
            found[f"{name}, by label"] = _SpaceByLabel(rows, tuple(_Space.of(x[at]) for at in rows))
    return found
