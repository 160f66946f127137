"""Memory of a GPU that behaves like a numpy array, as far as caches need it.

keys = device.allocate((2, 8, 512, 128), "float16")      zeros
keys[:, :, :40] = old[:, :, :40]                         a copy on the GPU, without a pause of the host
keys[1] = 0
np.asarray(hidden)                                       waits, and brings it to the host
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foveate.runtime.arrays import Array, host_dtype

if TYPE_CHECKING:
    from foveate.runtime.cuda.device import Device


class DeviceArray:
    """Some of a GPU's memory.

    Attributes:
        address: of its first element.
        shape, dtype: of its elements, the type by name; `strides` are in bytes.
        device: whose memory it is.
    """

    def __init__(
        self,
        device: Device,
        address: int,
        shape: Sequence[int],
        dtype: str,
        owner: object,
        strides: Sequence[int] | None = None,
    ) -> None:
        """`owner` is what keeps the memory: it lives as long as this does."""
        self.device, self.address, self.dtype = device, address, dtype
        self.shape = tuple(int(size) for size in shape)
        self.itemsize = host_dtype(dtype).itemsize
        self.strides = tuple(strides) if strides is not None else packed(self.shape, self.itemsize)
        self.owner = owner

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of its elements, without what lies between them."""
        return self.size * self.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether it is one piece."""
        wanted = packed(self.shape, self.itemsize)
        pairs = zip(self.shape, self.strides, wanted, strict=True)
        return not self.size or all(size == 1 or have == want for size, have, want in pairs)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)}, {self.dtype}, at {self.address:#x})"

    def __getitem__(self, key: Any, /) -> DeviceArray:
        """A view, by whole numbers, slices of step 1 and `...`."""
        keys = _filled(key if isinstance(key, tuple) else (key,), self.ndim)
        address, shape, strides = self.address, [], []
        for each, size, stride in zip(keys, self.shape, self.strides, strict=True):
            start, stop = _range(each, size)
            address += start * stride
            if isinstance(each, slice):
                shape.append(stop - start)
                strides.append(stride)
        return DeviceArray(self.device, address, shape, self.dtype, self.owner, strides)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        """Copy memory of the same shape and type into it, or an array of the host; or zeros."""
        target = self[key]
        if isinstance(value, DeviceArray):
            self.device.copy(target, value)
        elif isinstance(value, np.ndarray):
            self.device.write(target, value)
        elif value == 0:
            self.device.clear(target)
        else:
            raise TypeError(f"a GPU's memory can be set to zero or copied to, not filled with {value!r}")

    def reshape(self, *shape: int) -> DeviceArray:
        """The same elements, which must be one piece, in another shape."""
        if not self.contiguous or prod(shape) != self.size:
            raise ValueError(f"{self!r} cannot be seen as {list(shape)}")
        return DeviceArray(self.device, self.address, shape, self.dtype, self.owner)

    def view(self, dtype: str, shape: Sequence[int]) -> DeviceArray:
        """The beginning of its memory, which must be one piece, as elements of another type and shape."""
        made = DeviceArray(self.device, self.address, shape, dtype, self.owner)
        if not self.contiguous or made.nbytes > self.nbytes:
            raise ValueError(f"{self!r} cannot be seen as {list(shape)} of {dtype}")
        return made

    def to_host(self) -> Array:
        """Its elements in the host's memory, once all work before is done."""
        return self.device.download(self)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """For numpy, see `to_host`."""
        if copy is False:
            raise ValueError("a GPU's memory cannot be read without a copy")
        values = self.to_host()
        return values if dtype is None else values.astype(dtype, copy=False)


class Rows(NamedTuple):
    """`height` rows of `width` bytes each; `target` and `source` are offsets, with bytes from row to row."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


def rows_of(shape: Sequence[int], target: Sequence[int], source: Sequence[int], size: int) -> Iterator[Rows]:
    """A copy between two layouts (strides in bytes) of elements of so many bytes, as few rectangles."""
    if 0 in shape:
        return
    axes = _merged([axis for axis in zip(shape, target, source, strict=True) if axis[0] > 1])
    width = size
    if axes and axes[-1][1:] == (size, size):
        width *= axes.pop()[0]
    height, target_pitch, source_pitch = axes.pop() if axes else (1, width, width)
    starts = [(0, 0)]
    for number, to, of in axes:
        starts = [(a + i * to, b + i * of) for a, b in starts for i in range(number)]
    for a, b in starts:
        yield Rows(a, target_pitch, b, source_pitch, width, height)


def _merged(axes: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbouring axes (length, two strides) that are one in both layouts, as one."""
    out: list[tuple[int, int, int]] = []
    for size, target, source in axes:
        if out and out[-1][1:] == (size * target, size * source):
            out[-1] = (out[-1][0] * size, target, source)
        else:
            out.append((size, target, source))
    return out


def packed(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """Strides in bytes of elements of so many bytes without holes."""
    strides = [size]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)] if shape else ()


def _filled(key: tuple[Any, ...], ndim: int) -> list[Any]:
    """A key for each axis."""
    dots = [i for i, each in enumerate(key) if each is Ellipsis]
    given, at = len(key) - len(dots), dots[0] if dots else len(key)
    return [*key[:at], *[slice(None)] * (ndim - given), *key[at + 1 :]]


def _range(key: Any, size: int) -> tuple[int, int]:
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        if step != 1:
            raise TypeError("a GPU's memory is sliced in steps of 1")
        return start, max(start, stop)
    if isinstance(key, (int, np.integer)):
        place = int(key) + (size if key < 0 else 0)
        if not 0 <= place < size:
            raise IndexError(f"{key} is outside of an axis of {size}")
        return place, place + 1
    raise TypeError(f"a GPU's memory is indexed by whole numbers and slices, not by {type(key).__name__}")
