"""What is left of the flagged samples in a repaired model: a measurement, not a proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from expunge._core.arrays import Floats, Ints
from expunge._core.isolation import isolated
from expunge._core.rng import subsample
from expunge.data import DataLike, Samples, as_samples
from expunge.detection.class_rows import ClassRows
from expunge.detection.signals import collect
from expunge.evaluation.metrics import confidence_auroc
from expunge.records import LabelAudit, Partition, UnlearningAudit, align

MAX_AUDIT_SAMPLES = 5_000  # of each sort: flagged, kept, unseen
MAX_LABELS = 10


@isolated
def audit(
    before: nn.Module,
    after: nn.Module,
    data: DataLike,
    partition: Partition,
    unseen: DataLike | None = None,
    *,
    evidence: ClassRows | None = None,
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
    evidence
        Class probabilities of the training samples that were made without their own labels,
        ``float[n, c]`` in the order of the partition: the pooled evidence of the scores.
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
    drawn, probs = models.predict_probs(samples, np.flatnonzero(flagged), "flagged")
    reproduced = [float((p.argmax(axis=1) == drawn.labels).mean()) for p in probs]
    churn, membership, seen = 0.0, None, None
    if not flagged.all():
        _, (old, new) = models.predict_probs(samples, np.flatnonzero(~flagged), "kept")
        churn = float((old.argmax(axis=1) != new.argmax(axis=1)).mean())
    if unseen is not None:
        others = as_samples(unseen)
        others, of_others = models.predict_probs(others, np.arange(len(others)), "unseen")
        membership = [confidence_auroc(a, b) for a, b in zip(probs, of_others, strict=True)]
        seen = others.labels, [p.argmax(axis=1) for p in of_others]
    expected = None
    if evidence is not None:
        expected = evidence[align(partition.ids, drawn.ids)].argmax(axis=1)
    return UnlearningAudit(
        samples=min(int(flagged.sum()), MAX_AUDIT_SAMPLES),
        predicted=(reproduced[0], reproduced[1]),
        membership_auroc=(membership[0], membership[1]) if membership else None,
        churn=churn,
        labels=_by_label(drawn, [p.argmax(axis=1) for p in probs], expected, seen),
    )


def _by_label(
    flagged: Samples,
    predicted: Sequence[Ints],
    expected: Ints | None,
    unseen: tuple[Ints, Sequence[Ints]] | None,
) -> tuple[LabelAudit, ...]:
    """Audit the most frequent given labels of flagged samples.

    predicted: of both models. expected: by evidence. unseen: labels and predictions of both models.
    """
    counts = np.bincount(flagged.labels, minlength=len(flagged.classes))
    found = []
    for label in np.argsort(-counts, kind="stable")[: min(MAX_LABELS, int((counts > 0).sum()))]:
        own, mistaken = flagged.labels == label, None
        if unseen is not None and (unseen[0] != label).any():
            old, new = (float((p[unseen[0] != label] == label).mean()) for p in unseen[1])
            mistaken = old, new
        before, after = (float((p[own] == label).mean()) for p in predicted)
        share = None if expected is None else float((expected[own] == label).mean())
        name, n = flagged.classes[label], int(counts[label])
        found.append(LabelAudit(name, n, (before, after), share, mistaken))
    return tuple(found)


@dataclass(frozen=True)
class _Models:
    before: nn.Module
    after: nn.Module
    seed: int

    def predict_probs(
        self, samples: Samples, rows: Ints, what: str
    ) -> tuple[Samples, list[Floats]]:
        """Draw some rows, and return the class probabilities of both models: ``float64[n, c]``."""
        from scipy.special import softmax

        drawn = samples.subset(subsample(rows, MAX_AUDIT_SAMPLES, self.seed, what))
        logits = (collect(m, drawn, what="audit").logits for m in (self.before, self.after))
        return drawn, [softmax(np.asarray(z, dtype=np.float64), axis=1) for z in logits]
