"""skorch: a fitted net in, a repaired net out."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, Unpack

import numpy as np

from expunge.config import RepairKeywords
from expunge.data import DataLike, from_arrays
from expunge.pipeline import repair
from expunge.records import RepairResult

Net = TypeVar("Net")


def repair_net(
    net: Net,
    X: Any,
    y: Any,
    validation: DataLike | None = None,
    *,
    held_out: DataLike | None = None,
    **options: Unpack[RepairKeywords],
) -> tuple[Net, RepairResult]:
    """Repair the module of a fitted ``skorch.NeuralNetClassifier``.

    Parameters
    ----------
    net
        Its module returns logits (``criterion=torch.nn.CrossEntropyLoss``). It is left as it was.
    X, y
        The arrays that it was fitted on.
    validation, held_out, **options
        See `expunge.repair`.

    Returns
    -------
    net, result
        A copy of the net with the repaired module, and the `RepairResult`. Train it further with
        ``partial_fit``; ``fit`` starts from a new network.
    """
    module: Any = net
    names = np.unique(np.asarray(y)).astype(str).tolist()
    codes = np.unique(np.asarray(y), return_inverse=True)[1]
    samples = from_arrays(np.asarray(X), codes, classes=names)
    result = repair(module.module_, samples, validation, held_out=held_out, **options)
    repaired: Any = copy.deepcopy(net)
    repaired.module_ = result.model.to(repaired.device)
    repaired.initialize_optimizer()
    return repaired, result
