"""skorch: a fitted net in, a repaired net out."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, Unpack

from expunge.config import RepairKeywords
from expunge.data import DataLike, from_arrays
from expunge.errors import ModelError
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
        What it was fitted on: arrays, a frame or arrays by name, or a data set and None.
    validation, held_out, **options
        See `expunge.repair`.

    Returns
    -------
    net, result
        A copy of the net with the repaired module, and the `RepairResult`. Train it further with
        ``partial_fit``; ``fit`` starts from a new network.

    Raises
    ------
    ModelError
        If the net is not fitted.
    """
    module = getattr(net, "module_", None)
    if module is None:
        raise ModelError(
            f"expected a fitted skorch net, got {type(net).__name__} without module_",
            where="net",
            fix="fit it first; of a pipeline, pass its last step and the inputs of that step",
        )
    classes = [str(name) for name in getattr(net, "classes_", ())]
    data = X if y is None else from_arrays(X, y, classes=classes or None)
    result = repair(module, data, validation, held_out=held_out, **options)
    repaired: Any = copy.deepcopy(net)
    repaired.module_ = result.model.to(repaired.device)
    repaired.initialize_optimizer()
    return repaired, result
