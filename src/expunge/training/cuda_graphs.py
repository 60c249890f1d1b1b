"""Forward and backward passes of a network as CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

# Passes of a shape before it is captured: a last, smaller batch is not worth a graph.
_EAGER_PASSES = 4


class GraphedNetwork(nn.Module):
    """A network in training whose passes are captured once for each shape and then replayed.

    The launches of a small batch can take longer than its computation; a graph is one launch. The
    output of a pass is overwritten by the next one of the same shape, so a step may run the network
    once with gradients. Without gradients, on a CPU, with several inputs and in evaluation mode the
    network runs as it is, and so it does if a capture fails.

    Parameters
    ----------
    network
        In training mode. Its parameters stay where they are.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network
        self._graphs: dict[Any, Callable[[Tensor], Tensor]] = {}
        self._passes: Counter[Any] = Counter()
        self.is_captured = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns."""
        x = args[0] if len(args) == 1 and not kwargs else None
        can = isinstance(x, Tensor) and x.is_cuda and not x.requires_grad
        if not (can and self.is_captured and self.module.training and torch.is_grad_enabled()):
            return self.module(*args, **kwargs)
        x = cast(Tensor, x)
        key = (x.shape, x.stride(), x.dtype, torch.is_autocast_enabled("cuda"))
        if key not in self._graphs:
            self._passes[key] += 1
            if self._passes[key] <= _EAGER_PASSES:
                return self.module(x)
            try:
                self._graphs[key] = self._capture(x)
            except RuntimeError:
                self.is_captured = False
                return self.module(x)
        return self._graphs[key](x)

    def _capture(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Capture the passes of a shape; the buffers keep their values."""
        buffers = [b.clone() for b in self.module.buffers()]
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            graphed = torch.cuda.make_graphed_callables(
                _Shell(self.module).train(), (x.detach().clone(),), allow_unused_input=True
            )
        with torch.no_grad():
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value)
        return cast(Callable[[Tensor], Tensor], graphed)


class _Shell(nn.Module):
    """A module of its own around a network: capturing replaces the forward function of a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network

    def forward(self, x: Tensor) -> Any:
        return self.module(x)
