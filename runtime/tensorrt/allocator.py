"""Memory for outputs whose size only the engine finds out, of graphs of the fused layout."""

from __future__ import annotations

from typing import Any

from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray


def make_allocator(device: Device) -> Any:
    """An `IOutputAllocator` for one output.

    It has to live as long as the context that it is set in, which holds no reference. `take` gives the memory
    away: what the next run gives is no part of it.
    """

    import tensorrt as trt

    class OutputAllocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.block: DeviceArray | None = None
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            if self.block is None or self.block.nbytes < size:
                self.block = device.allocate((max(1, size),), "uint8", zero=False)
            return self.block.address

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def take(self) -> tuple[DeviceArray, tuple[int, ...]]:
            block, self.block = self.block, None
            assert block is not None, "TensorRT asks for a byte at least"
            return block, self.shape

    return OutputAllocator()
