"""Averages of batch norm, estimated again."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge._core.distributed import all_reduce_sum, this_process
from expunge.editing.editors import EditTask
from expunge.models.calls import eval_mode, logits_of, on_device
from expunge.training.optimisation import autocast


def reestimate_batch_norm(model: nn.Module, task: EditTask) -> None:
    """Set the averages of batch norm to those of the kept samples, in place.

    The network runs once over a random view of each kept sample, or over the plain inputs, with
    batch norm in training mode. The averages are means over batches.

    Notes
    -----
    Cost: one pass. Each process sees its share; the averages of the processes are averaged.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    norms = [m for m in norms if m.running_mean is not None and m.running_var is not None]
    if not norms:
        return
    momenta, accelerator = [m.momentum for m in norms], this_process()
    with on_device(model, task.device), eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for batch, inputs in task.batches(np.flatnonzero(task.partition.kept), n_views=1):
            if len(batch) > 1:
                with autocast(task.precision, task.device):
                    logits_of(model, inputs[-1])
        averages = [
            [all_reduce_sum(values, accelerator) / accelerator.num_processes for values in pair]
            for pair in map(_running, norms)
        ]
    for norm, momentum, found in zip(norms, momenta, averages, strict=True):
        norm.momentum = momentum
        for values, average in zip(_running(norm), found, strict=True):
            values.copy_(average)


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a batch norm that has them."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
