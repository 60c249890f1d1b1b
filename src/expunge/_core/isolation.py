"""Calls that neither see nor change what the caller has set in the process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from expunge._core.rng import seed_everything

P = ParamSpec("P")
R = TypeVar("R")

_ONE_AT_A_TIME = threading.RLock()
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
_is_isolated: ContextVar[bool] = ContextVar("is_isolated", default=False)
_callers_device: ContextVar[torch.device | None] = ContextVar("callers_device", default=None)


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute the same whatever the caller has set, and change none of it.

    - One thread at a time calls this function and all others that are decorated so: threads share
      torch's random state and the modes of a model, which a repair changes for a while.
    - Gradients are on; inference mode, autocast and NumPy's error states are torch's and NumPy's
      defaults, and so are dtype and device of new tensors.
    - The global generators are seeded, and restored at the end.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _ONE_AT_A_TIME:
            if _is_isolated.get():
                return function(*args, **kwargs)
            token = _is_isolated.set(True)
            try:
                with _default_settings(), seed_everything(0, "call"):
                    return function(*args, **kwargs)
            finally:
                _is_isolated.reset(token)

    return alone


@contextmanager
def callers_device() -> Iterator[None]:
    """Make new tensors on the device that the caller has set, as a model's forward may need it."""
    device = _callers_device.get()
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(device)
        yield


@contextmanager
def _default_settings() -> Iterator[None]:
    """Torch's and NumPy's defaults inside the block."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        for kind in _AUTOCAST_DEVICES:
            if kind == "cpu" or torch.is_autocast_enabled(kind):
                # The cache of cast weights would outlast a training step inside another autocast.
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        if device != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
            token = _callers_device.set(device)
            stack.callback(_callers_device.reset, token)
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield
