"""For all tests. That this file is here also puts the folder on the import path."""

from __future__ import annotations

import warnings

import pytest
import torch
from threadpoolctl import threadpool_limits

from quick import detected_once as detected_once
from quick import few_trees as few_trees


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all():
    """The networks are so small that threads only wait for each other."""
    torch.set_num_threads(1)
    # On a GPU: float32 that is float32, and sums in one order. Some versions warn of the old name.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    with threadpool_limits(1):
        yield
