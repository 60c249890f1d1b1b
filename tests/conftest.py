"""For all tests. That this file is here also puts the folder on the import path."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all():
    """The networks are so small that threads only wait for each other."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
