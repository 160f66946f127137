"""Names for the kinds of numpy arrays that pass between the parts of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


class Memory(Protocol):
    """What caches ask of memory, be it numpy's or a GPU's (`foveate.runtime.cuda.memory.DeviceArray`).

    Slices are views, and assigning to one copies: numbers, or memory of the same kind.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its axes."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __setitem__(self, key: Any, value: Any, /) -> None: ...


Bindings: TypeAlias = Mapping[str, Memory]


def ints(values: Any) -> Ints:
    """An int64 array of `values`."""
    return np.asarray(values, dtype=np.int64)


def host_dtype(dtype: str) -> np.dtype[Any]:
    """How numpy holds a tensor of this type; bfloat16, which it has not, as its bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)
