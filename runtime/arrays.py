"""Names for the kinds of numpy arrays that pass between the parts of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


def ints(values: Any) -> Ints:
    """An int64 array of `values`."""
    return np.asarray(values, dtype=np.int64)
