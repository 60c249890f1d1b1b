"""Names for the types of arrays, by what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
# Floats of either width, where a function takes both.
AnyFloats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# Of a dtype that varies: ids (text or integers), stored inputs, user's columns.
Array = NDArray[Any]
