"""Where a network was cut and read out by a closed-form head."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.errors import ModelError


@dataclass(frozen=True)
class DepthCandidate:
    """A depth at which a network could be cut, and what speaks for it.

    Parameters
    ----------
    layer
        The last layer that is read. Layers behind it are not needed.
    columns
        Number of features of all layers up to it.
    score
        Accuracy of a closed-form head on samples that it was not fitted on, in [0, 1], against the
        labels that decide.
    reproduced
        Fraction of the flagged samples whose given label a head on this layer alone predicts, in
        [0, 1]; the head was not fitted on them. High: the layer has memorised. None if no sample
        is flagged.
    macs
        Multiply-adds of one sample up to the layer.
    """

    layer: str
    columns: int
    score: float
    reproduced: float | None
    macs: int


@dataclass(frozen=True)
class HeadPlan:
    """How a closed-form head reads a network; it rebuilds the architecture.

    Parameters
    ----------
    layers
        The layers whose pooled outputs are read, first to last. The network ends behind the last.
    max_part_means
        As in `expunge.detection.pooling.pool`.
    columns
        Number of features.
    classes
        Number of classes.
    candidates
        The depths that were compared.

    Raises
    ------
    ModelError
        If no layer is read.
    """

    layers: tuple[str, ...]
    max_part_means: int
    columns: int
    classes: int
    candidates: tuple[DepthCandidate, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("a head must read one layer or more", where="edit")
