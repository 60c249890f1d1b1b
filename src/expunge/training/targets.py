"""What a network learns from: a label and a weight for every sample, by a partition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge._core.arrays import Floats, Ints
from expunge.data import Samples
from expunge.errors import PartitionError, format_ids
from expunge.records import Partition, align
from expunge.training.optimisation import TuneConfig


@dataclass(frozen=True)
class Targets:
    """Training targets.

    Parameters
    ----------
    positions
        ``int64[m]``, positions of the samples to learn from.
    labels
        ``int64[m]``, the label y of each; −1 − y says that it is not y.
    weights
        ``float64[m]``, the weight of each in the loss, above 0.
    """

    positions: Ints
    labels: Ints
    weights: Floats


def build_targets(samples: Samples, partition: Partition | None, config: TuneConfig) -> Targets:
    """Turn a partition into training targets.

    Parameters
    ----------
    samples
        The samples to train on.
    partition
        The partition of these samples, in any order of ids. None: all samples, given labels.
    config
        ``targets`` and ``min_relabel_confidence`` decide; see `TuneConfig`.

    Returns
    -------
    Targets
        The samples with a weight above 0.

    Raises
    ------
    PartitionError
        If no sample is left, or none of a class.
    """
    labels, weights = samples.labels, np.ones(len(samples))
    if partition is not None and config.targets != "all":
        at = align(partition.ids, samples.ids)
        labels, weights = (values[at] for values in _labels_and_weights(partition, config))
    positions = np.flatnonzero(weights > 0)
    if len(positions) == 0:
        raise PartitionError(
            "every sample was flagged", where="tune", fix="raise partition.threshold"
        )
    lost = np.setdiff1d(samples.labels, labels[positions])
    if len(lost):
        raise PartitionError(
            f"every sample of class {format_ids(samples.classes[c] for c in lost)} was flagged",
            where="tune",
            fix="raise partition.threshold, or tune with targets = 'reweight'",
        )
    return Targets(positions, labels[positions], weights[positions])


def classes_without_samples(partition: Partition, config: TuneConfig) -> Ints:
    """Return the classes among the given labels of which no training target would be left."""
    labels, weights = _labels_and_weights(partition, config)
    taught = weights > 0
    if config.targets == "bootstrap":  # flagged samples hardly teach their label
        reviewed = False if partition.reviewed is None else partition.reviewed
        taught &= ~partition.flagged | reviewed
    return np.setdiff1d(partition.labels, labels[taught])


def _labels_and_weights(partition: Partition, config: TuneConfig) -> tuple[Ints, Floats]:
    """Return the label and the weight of every sample of a partition."""
    labels, flagged, kind = partition.labels.copy(), partition.flagged, config.targets
    if kind == "all":
        return labels, np.ones(len(labels))
    weights = (~flagged).astype(np.float64)
    if kind == "reweight":
        weights = 1.0 - partition.p_noisy
    if kind == "bootstrap":
        weights = (partition.p_input_fault <= 0.5).astype(np.float64)
    if kind == "complement":
        wrong = flagged & (partition.p_label_fault >= partition.p_input_fault)
        labels[wrong], weights[wrong] = -1 - labels[wrong], partition.p_noisy[wrong]
    if partition.reviewed is not None:
        # A label that a person gave is learned from, whatever is done with suggested ones.
        corrected = partition.reviewed & (partition.p_label_fault == 1)
        corrected &= partition.p_input_fault == 0
        labels[corrected], weights[corrected] = partition.suggested_label[corrected], 1.0
    if kind == "relabel":
        # No label is right for a corrupted input: such a sample is dropped.
        relabelled = flagged & (partition.p_label_fault >= partition.p_input_fault)
        relabelled &= partition.suggested_probability >= config.min_relabel_confidence
        labels[relabelled] = partition.suggested_label[relabelled]
        weights[relabelled] = partition.suggested_probability[relabelled]
    return labels, weights
