"""What is left of the flagged samples in a repaired model: a measurement, not a proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from expunge._core.arrays import Floats, Ints
from expunge._core.rng import subsample
from expunge.data import DataLike, Samples, as_samples
from expunge.detection.signals import collect
from expunge.evaluation.metrics import confidence_auroc
from expunge.records import Partition, UnlearningAudit, align

MAX_AUDIT_SAMPLES = 5_000  # of each sort: flagged, kept, unseen


def audit(
    before: nn.Module,
    after: nn.Module,
    data: DataLike,
    partition: Partition,
    unseen: DataLike | None = None,
    *,
    seed: int = 0,
) -> UnlearningAudit | None:
    """Measure what is left of the flagged samples in a repaired model.

    Parameters
    ----------
    before, after
        The model before and after the repair.
    data
        The training samples.
    partition
        Says which are flagged; matched by id.
    unseen
        Held-out samples. With them the audit measures membership: without samples that the model
        never saw, memorisation cannot be distinguished from generalisation.
    seed
        Draws at most `MAX_AUDIT_SAMPLES` flagged, kept and unseen samples.

    Returns
    -------
    UnlearningAudit or None
        None if nothing is flagged.

    Raises
    ------
    DataError
        For a sample without a row in the partition.

    Notes
    -----
    Cost: two plain passes over the samples drawn. A low membership AUROC does not prove that a
    sample was unlearned: stronger attacks exist.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> x, y, p = torch.randn(8, 2), np.arange(8) % 2, np.zeros(8)
    >>> clean = Partition(np.arange(8), y, p, p, p, y, p, 0.5, (0.0, 0.0, 0.0))
    >>> audit(model, model, (x, y), clean) is None
    True
    """
    samples = as_samples(data)
    flagged = partition.flagged[align(partition.ids, samples.ids)]
    if not flagged.any():
        return None
    models = _Models(before, after, seed)
    labels, probs = models.predict_probs(samples, np.flatnonzero(flagged), "flagged")
    reproduced = [float((p.argmax(axis=1) == labels).mean()) for p in probs]
    churn, membership = 0.0, None
    if not flagged.all():
        _, (old, new) = models.predict_probs(samples, np.flatnonzero(~flagged), "kept")
        churn = float((old.argmax(axis=1) != new.argmax(axis=1)).mean())
    if unseen is not None:
        others = as_samples(unseen)
        _, of_others = models.predict_probs(others, np.arange(len(others)), "unseen")
        membership = [confidence_auroc(a, b) for a, b in zip(probs, of_others, strict=True)]
    return UnlearningAudit(
        samples=min(int(flagged.sum()), MAX_AUDIT_SAMPLES),
        predicted=(reproduced[0], reproduced[1]),
        membership_auroc=(membership[0], membership[1]) if membership else None,
        churn=churn,
    )


@dataclass(frozen=True)
class _Models:
    before: nn.Module
    after: nn.Module
    seed: int

    def predict_probs(self, samples: Samples, rows: Ints, what: str) -> tuple[Ints, list[Floats]]:
        """Labels of some rows, and the class probabilities of both models: ``float64[n, c]``."""
        from scipy.special import softmax

        drawn = samples.subset(subsample(rows, MAX_AUDIT_SAMPLES, self.seed, what))
        logits = (collect(m, drawn, what="audit").logits for m in (self.before, self.after))
        return drawn.labels, [softmax(z.astype(np.float64), axis=1) for z in logits]
