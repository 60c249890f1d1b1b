"""A closed-form head on the pooled features of several layers, and the depth at which to cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Floats, Ints
from expunge._core.distributed import broadcast_decision, gather_rows, this_process
from expunge._core.rng import subsample
from expunge.data import Batch
from expunge.detection.pooling import MAX_PART_MEANS, default_feature_layers
from expunge.editing.batch_norm import reestimate_batch_norm
from expunge.editing.editors import BATCH_SIZE, EditedModel, EditTask, editors
from expunge.editing.readout import (
    FeatureReadout,
    ReadoutClassifier,
    build_classifier,
    feature_readout,
)
from expunge.editing.statistics import LinearFit, RegressionStatistics, ridge_fits
from expunge.errors import ConfigError, ModelError, check_range
from expunge.models.calls import (
    call_model,
    device_of,
    eval_mode,
    on_device,
    to_channels_last,
    to_device,
)
from expunge.models.inspection import inspect_model
from expunge.pruning.dependencies import copy_without_hooks
from expunge.pruning.surgery import size
from expunge.records import Partition
from expunge.records.editing import DepthCandidate, HeadPlan
from expunge.training.optimisation import autocast

Depth = Literal["auto", "full", "half"]
ClassWeights = Literal["prior", "balanced", "none"]
# λ in variances of a standardised column; features of more columns than that are thinned out.
RIDGES, MAX_COLUMNS = (0.001, 0.01, 0.1, 1.0), 4096
# Samples that decide the depth and λ, and the largest fraction of all samples.
MAX_DECIDING, MAX_DECIDING_FRACTION = 4096, 0.2
# The λ of the heads on single layers that show which layers have memorised.
_EVIDENCE_RIDGE = 0.01
# Factors from predicted class indicators to logits.
_LOGIT_SCALES = np.geomspace(1, 100, 60)


class _Depth(NamedTuple):
    """A depth: the number of layers that are read, and the multiply-adds up to the last."""

    n_layers: int
    macs: int


@dataclass(frozen=True)
class _Features:
    """What one pass over the training samples gives.

    moments: of kept samples that are not left out. left_out: ``float32[m, d]``, the features of the
    others; positions: theirs. partition: of all samples.
    """

    moments: RegressionStatistics
    left_out: Tensor
    positions: Ints
    partition: Partition

    def reproduced(self, columns: Tensor) -> float | None:
        """Return the fraction of flagged samples whose given label a head on columns predicts."""
        flagged = self.partition.flagged[self.positions]
        if not flagged.any():
            return None
        (fit,) = ridge_fits(self.moments, columns, (_EVIDENCE_RIDGE,))
        at = torch.from_numpy(flagged).to(columns.device)
        predicted = fit.predict(self.left_out[at][:, columns]).argmax(dim=1).cpu().numpy()
        return float((predicted == self.partition.labels[self.positions][flagged]).mean())


@dataclass(frozen=True)
class _Judges:
    """Samples that the heads are compared on, and their labels and weights."""

    features: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Ints, weights: Floats) -> _Judges:
        """Move labels and weights to the device of the features."""
        y, w = (torch.from_numpy(np.array(v)).to(features.device) for v in (labels, weights))
        return cls(features, y, w)

    def accuracy(self, fit: LinearFit, columns: Tensor) -> float:
        """Return the weighted accuracy of a head on some columns."""
        right = fit.predict(self.features[:, columns]).argmax(dim=1) == self.labels
        return float((right * self.weights).sum() / self.weights.sum())


@editors.register("ridge-head")
def ridge_head(
    task: EditTask,
    *,
    layers: Sequence[str] = (),
    views: int = 2,
    depth: Depth = "auto",
    class_weights: ClassWeights = "prior",
    batch_norm: bool = False,
) -> EditedModel:
    """Fit a head on features of several layers in one pass, and cut what it does not read.

    A ridge regression of the kept samples' labels on pooled outputs of the layers up to some depth.
    The depth and λ are those whose head, fitted without them, is right most often on up to 4,096
    samples: held-out ones with their given labels, else training samples with the partition's most
    probable labels. A network that has memorised its labels does so in its last layers: a head on
    them predicts the given labels of flagged samples, which it was not fitted on.

    Parameters
    ----------
    task
        Network, samples and partition.
    layers
        The layers that are read. Left out: at most six, evenly over the depth.
    views
        Random views of each sample that are added to the statistics, 0 or more.
    depth
        ``"auto"`` compares all depths, ``"full"`` reads all layers, ``"half"`` only depths of at
        most half of the multiply-adds, or the smallest one.
    class_weights
        ``"prior"`` weights the kept samples so that classes are as frequent as among the most
        probable labels of all samples, ``"balanced"`` so that all are equally frequent.
    batch_norm
        Whether the averages of batch norm are re-estimated on the kept samples first, in one more
        pass.

    Returns
    -------
    EditedModel
        A smaller network, and the plan that rebuilds it.

    Raises
    ------
    ConfigError
        If an option is out of range.
    ModelError
        For an unknown layer.

    Notes
    -----
    Cost: one pass over the kept samples for the plain inputs and one for each view, and d³ for d
    features, at most 4,096. Memory: d², whatever the number of samples. It fails where no layer
    knows more than the logits do.

    Examples
    --------
    >>> from expunge import stages
    >>> x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    >>> data = x, (x[:, 0] > 0).astype(np.int64)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> split = stages.partition(stages.score(model, data, detectors=("loss",)))
    >>> stages.edit(model, data, split, method="ridge-head").head.layers
    ('1',)
    """
    check_range(ConfigError, {"edit.options.views": (views, "[0, inf)")})
    model, example = copy_without_hooks(task.model), task.samples.example()
    if batch_norm:
        reestimate_batch_norm(model, task)
    with on_device(model, task.device), eval_mode(model), torch.no_grad():
        names = tuple(layers) or default_feature_layers(inspect_model(model, task.samples))
        readout, widths = _readout(model, names, example, n=len(task.samples))
        depths = _depths(readout, size(model, example).macs, example, depth=depth)
        weights = _sample_weights(task.partition, len(task.samples.classes), class_weights)
        found = _pass(readout, task, weights=weights, n_views=views)
        judges = _judges(readout, task, found)
        candidates, fits = _compare(readout, widths, depths, found, judges)
        at = broadcast_decision(
            this_process(), lambda: int(np.argmax([c.score for c in candidates]))
        )
        plan = HeadPlan(
            readout.layers[: depths[at].n_layers],
            readout.max_part_means,
            candidates[at].columns,
            len(task.samples.classes),
            tuple(candidates),
        )
        classifier = build_classifier(model, plan, example)
        _fit_head(classifier, fits[at], found, judges, weights)
    return EditedModel(classifier.to(device_of(task.model)).eval(), plan)


def most_probable_labels(partition: Partition) -> Ints:
    """Return the given label of kept samples and the suggested one of flagged samples."""
    labels: Ints = np.where(partition.flagged, partition.suggested_label, partition.labels)
    return labels


def _sample_weights(partition: Partition, classes: int, kind: ClassWeights) -> Floats:
    """The weight of every sample in the regression, ``float64[n]``; 0 for flagged ones."""
    kept, labels = partition.kept, partition.labels
    own = np.bincount(labels[kept], minlength=classes) / max(int(kept.sum()), 1)
    if kind == "balanced":
        wanted = np.where(own > 0, 1 / max(int((own > 0).sum()), 1), 0.0)
    elif kind == "prior":
        wanted = np.bincount(most_probable_labels(partition), minlength=classes) / len(labels)
    else:
        wanted = own
    by_class = np.divide(wanted, own, out=np.zeros(classes), where=own > 0)
    return np.asarray(np.where(kept, by_class[labels], 0.0), dtype=np.float64)


def _readout(
    model: nn.Module, names: Sequence[str], example: Batch, *, n: int
) -> tuple[FeatureReadout, list[int]]:
    """Read at most `MAX_COLUMNS` features; returns the readout and the columns of each layer."""
    if not names:
        raise ModelError(
            "no layer of the model has an output for each sample that a head could read",
            where="edit",
            fix="use a recipe without a new head: default, or semi",
        )
    # Statistics of more columns than that would identify single samples.
    readout = feature_readout(model, names, example, max_part_means=min(MAX_PART_MEANS, n // 4))
    while True:
        widths = [_run(_up_to(readout, k), example).shape[1] for k in range(1, len(names) + 1)]
        if widths[-1] <= MAX_COLUMNS or len(names) == 1:
            return readout, np.diff([0, *widths]).tolist()
        names = tuple(names)[::-1][::2][::-1]
        readout = feature_readout(model, names, example, max_part_means=readout.max_part_means)


def _up_to(readout: FeatureReadout, n_layers: int) -> FeatureReadout:
    return FeatureReadout(
        readout.body, readout.layers[:n_layers], readout.units[:n_layers], readout.max_part_means
    )


def _run(readout: nn.Module, batch: Batch) -> Tensor:
    features: Tensor = call_model(readout, to_device(batch, device_of(readout)))
    return features


def _pass(readout: FeatureReadout, task: EditTask, *, weights: Floats, n_views: int) -> _Features:
    """Accumulate the statistics of the kept samples; keep the features of those left out."""
    n, classes = len(task.samples), len(task.samples.classes)
    count = 0 if task.held_out is not None else int(min(MAX_DECIDING, MAX_DECIDING_FRACTION * n))
    is_left_out = np.zeros(n, dtype=bool)
    is_left_out[subsample(n, count, task.seed, "left out")] = True
    positions = np.flatnonzero((weights > 0) | is_left_out)
    rows, parts = [], []
    first = task.samples.batch(positions[:BATCH_SIZE], device=task.device)
    with autocast(task.precision, task.device):
        shift = _run(readout, to_channels_last(first)).mean(dim=0)
    moments = RegressionStatistics(shift, classes)
    rows, parts = [np.empty(0, dtype=np.int64)], [shift.new_empty(0, len(shift))]
    # A sample that is left out is judged in a random view, if there is one.
    for batch, inputs in task.batches(positions, n_views=max(1, n_views)):
        out = is_left_out[batch]
        w = torch.from_numpy(np.where(out, 0.0, weights[batch])).to(task.device)
        y = torch.from_numpy(task.samples.labels[batch]).to(task.device)
        for number, x in enumerate(inputs):
            with autocast(task.precision, task.device):
                features = _run(readout, x)
            if number <= n_views:
                moments.add(features, y, w)
        rows.append(batch[out])
        parts.append(features[torch.from_numpy(out).to(task.device)])
    moments.all_reduce()
    left_out = np.flatnonzero(is_left_out)
    own = {"features": torch.cat(parts).cpu().numpy()}
    at = np.searchsorted(left_out, np.concatenate(rows))
    features = torch.from_numpy(gather_rows(own, at, count)["features"]).to(task.device)
    return _Features(moments, features, left_out, task.partition)


def _judges(readout: FeatureReadout, task: EditTask, found: _Features) -> _Judges:
    """Held-out samples with their labels; else those left out, with their most probable labels."""
    if task.held_out is None:
        partition, at = task.partition, found.positions
        certainty = np.where(
            partition.flagged, partition.suggested_probability, 1 - partition.p_noisy
        )[at]
        labels = most_probable_labels(partition)[at]
        return _Judges.of(found.left_out, labels, certainty)
    held_out, parts = task.held_out, []
    chosen = subsample(len(held_out), MAX_DECIDING, task.seed, "held out")
    for batch in held_out.batches(BATCH_SIZE, positions=chosen):
        with autocast(task.precision, task.device):
            x = held_out.batch(batch, device=task.device)
            parts.append(_run(readout, to_channels_last(x)))
    return _Judges.of(torch.cat(parts), held_out.labels[chosen], np.ones(len(chosen)))


def _depths(readout: FeatureReadout, macs: int, example: Batch, *, depth: Depth) -> list[_Depth]:
    """The depths to compare."""
    n = len(readout.layers)
    found = [_Depth(k, size(_up_to(readout, k), example).macs) for k in range(1, n + 1)]
    if depth == "full":
        return found[-1:]
    if depth == "half":
        found = [d for d in found if 2 * d.macs <= macs] or found[:1]
    return found


def _compare(
    readout: FeatureReadout,
    widths: Sequence[int],
    depths: Sequence[_Depth],
    found: _Features,
    judges: _Judges,
) -> tuple[list[DepthCandidate], list[LinearFit]]:
    """Fit the heads of all depths; returns what speaks for each, and its best fit."""
    ends, candidates, fits = np.cumsum(widths), [], []
    for n_layers, macs in depths:
        columns = torch.arange(int(ends[n_layers - 1]), device=judges.features.device)
        tried = ridge_fits(found.moments, columns, RIDGES)
        scores = [judges.accuracy(fit, columns) for fit in tried]
        best = int(np.argmax(scores))
        reproduced = found.reproduced(columns[-widths[n_layers - 1] :])
        name = readout.layers[n_layers - 1]
        candidates.append(DepthCandidate(name, len(columns), scores[best], reproduced, macs))
        fits.append(tried[best])
    return candidates, fits


def _fit_head(
    classifier: ReadoutClassifier,
    chosen: LinearFit,
    found: _Features,
    judges: _Judges,
    weights: Floats,
) -> None:
    """Fit the chosen head on all kept samples, and scale its outputs to logits."""
    columns = torch.arange(len(chosen.location), device=judges.features.device)
    predicted, best = chosen.predict(judges.features[:, columns]), (np.inf, 1.0)
    for scale in _LOGIT_SCALES:
        losses = nn.functional.cross_entropy(scale * predicted, judges.labels, reduction="none")
        best = min(best, (float((losses * judges.weights).sum()), float(scale)))
    labels = torch.from_numpy(found.partition.labels[found.positions]).to(columns.device)
    w = torch.from_numpy(weights[found.positions]).to(columns.device)
    found.moments.add(found.left_out, labels, w)
    fit, scale = ridge_fits(found.moments, columns, (chosen.ridge,))[0], best[1]
    is_constant = torch.isinf(fit.scale)
    classifier.location.copy_(fit.location)
    classifier.scale.copy_(torch.where(is_constant, 1.0, fit.scale))
    classifier.head.weight.copy_(scale * fit.coefficients.T)
    classifier.head.bias.copy_(scale * fit.intercept)
