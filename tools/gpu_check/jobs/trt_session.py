"""As little TensorRT as a first test needs: build a graph, bind it, run it, capture it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.runtime.arrays import Array
from foveate.runtime.errors import BackendError

if TYPE_CHECKING:
    from foveate.runtime.cuda.memory import DeviceArray
    from foveate.runtime.cuda.stream import Graph

Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]
"""Least, usual and largest shape of an input."""


def build(model: bytes, profile: Mapping[str, Bounds], *, decomposable: bool = False) -> bytes:
    """A plan, through polygraphy's loaders. Raises polygraphy's error with the parser's words."""
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        NetworkFromOnnxBytes,
        Profile,
        SetDecomposableAttentions,
    )

    shapes = Profile()
    for name, bounds in profile.items():
        shapes.add(name, *bounds)
    network: Any = NetworkFromOnnxBytes(model, strongly_typed=True)
    if decomposable:
        network = SetDecomposableAttentions(network)
    plan = EngineBytesFromNetwork(network, config=CreateConfig(profiles=[shapes]))()
    return bytes(plan)


class Session:
    """A plan with one context. Inputs and outputs stay where they are until shapes change."""

    def __init__(self, plan: bytes) -> None:
        import tensorrt

        from foveate.runtime.cuda.device import Device

        self._library: Any = tensorrt
        self._device = Device(0)
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine: Any = _there(self._runtime.deserialize_cuda_engine(plan), "the plan cannot be read")
        self._context: Any = _there(self._engine.create_execution_context(), "there is no context")
        self._held: dict[str, DeviceArray] = {}
        self._allocator: Any = None
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        gives = tensorrt.TensorIOMode.OUTPUT
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == gives]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run; inputs that are not fed keep what they hold."""
        self._bind(feeds)
        self._enqueue()
        return self.outputs()

    def write(self, feeds: Mapping[str, Array]) -> None:
        """New values in the place of the old ones."""
        for name, value in feeds.items():
            self._device.write(self._held[name], value)

    def capture(self) -> Graph:
        """The last run as a CUDA graph. Raises `BackendError` if it cannot be captured."""
        self._device.stream.synchronize()
        with self._device.stream.capture() as captured:
            self._enqueue()
        return captured.taken()

    def outputs(self) -> dict[str, Array]:
        """Of the last run; waits for it."""
        self._device.stream.synchronize()
        found = {}
        for name in self._outputs:
            if self._allocator is not None and name in self._allocator.shapes:
                shape = self._allocator.shapes[name]
                block = self._allocator.blocks[name]
                dtype = _dtype(self._library, self._engine, name)
                whole = self._device.wrap(block.address, shape, dtype, block)
                (found[name],) = self._device.download(whole)
            else:
                (found[name],) = self._device.download(self._held[name])
        return found

    def _bind(self, feeds: Mapping[str, Array]) -> None:
        context, engine = self._context, self._engine
        for name, value in feeds.items():
            if value.dtype.name != _dtype(self._library, engine, name):
                raise BackendError(f"'{name}' is {value.dtype}", wanted=_dtype(self._library, engine, name))
            if -1 in tuple(engine.get_tensor_shape(name)):
                _done(context.set_input_shape(name, value.shape), f"the shape {value.shape} of '{name}'")
            self._held[name] = self._device.upload(value)
            _done(context.set_tensor_address(name, self._held[name].address), f"the address of '{name}'")
        if lacking := context.infer_shapes():
            raise BackendError("inputs have no shapes yet", found=", ".join(lacking))
        for name in self._outputs:
            self._bind_output(name)

    def _bind_output(self, name: str) -> None:
        shape = tuple(self._context.get_tensor_shape(name))
        alias = self._engine.get_aliased_input_tensor(name)
        if alias:
            self._held[name] = self._held[alias]
        elif -1 in shape:
            self._allocator = self._allocator or _allocator(self._library, self._device)
            _done(self._context.set_output_allocator(name, self._allocator), f"an allocator for '{name}'")
            return
        else:
            self._held[name] = self._device.allocate(shape, _dtype(self._library, self._engine, name))
        _done(self._context.set_tensor_address(name, self._held[name].address), f"the address of '{name}'")

    def _enqueue(self) -> None:
        _done(self._context.execute_async_v3(self._device.stream.handle), "a run")


def _allocator(library: Any, device: Any) -> Any:
    """An output allocator: its base class is there only with the library."""

    class Allocator(library.IOutputAllocator):  # type: ignore[misc]
        """Memory of the size that TensorRT asks for while it runs."""

        def __init__(self) -> None:
            library.IOutputAllocator.__init__(self)
            self.blocks: dict[str, Any] = {}
            self.shapes: dict[str, Shape] = {}

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            """The address of a new block."""
            self.blocks[tensor_name] = device.allocate((max(size, 1),), "uint8", zero=False)
            return int(self.blocks[tensor_name].address)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            """The shape, as soon as it is known."""
            self.shapes[tensor_name] = tuple(shape)

    return Allocator()


def _dtype(library: Any, engine: Any, name: str) -> str:
    """The numpy name of a tensor's type."""
    import numpy as np

    return str(np.dtype(library.nptype(engine.get_tensor_dtype(name))).name)


def _there(value: Any, words: str) -> Any:
    if value is None:
        raise BackendError(f"{words}: TensorRT's reason is in the log")
    return value


def _done(answer: bool, what: str) -> None:
    """TensorRT tells by a bool, and raises nothing."""
    if not answer:
        raise BackendError(f"TensorRT refused {what}: its reason is in the log")
