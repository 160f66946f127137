"""The execution context: shapes, addresses, enqueue, with the failures that the documentation names.

It holds its engine and its output allocators as the C++ objects do: without keeping them alive.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from doubles.tensorrt import device
from doubles.tensorrt.enums import ExecutionContextAllocationStrategy
from doubles.tensorrt.values import NUMPY, Dims

if TYPE_CHECKING:
    from doubles.tensorrt.engine import ICudaEngine

ALIGNMENT = 256
Shape = tuple[int, ...]


class IOutputAllocator:
    """What applications derive from: reallocate_output_async and notify_shape are looked up on the object."""

    def __init__(self) -> None:
        self._made = True


class IExecutionContext:
    """One execution at a time of an engine."""

    def __init__(self, engine: ICudaEngine, strategy: Any) -> None:
        self._engine, self._strategy = weakref.ref(engine), strategy
        self._logger = engine._runtime.logger
        self._profile = 0
        self._shapes = dict[str, Shape]()
        self._addresses = dict[str, int]()
        self._allocators = dict[str, weakref.ref[IOutputAllocator]]()
        self._scratch = self._given = self._needed = 0
        self._warm: tuple[Any, ...] | None = None
        self._busy = list[int]()  # streams with work of this context that is not done
        self._measured = dict[Any, dict[str, Shape]]()
        self.name = ""

    def _prepare(self) -> bool:
        """Take the scratch memory of the strategies that own it; False if there is too little."""
        if self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            return True
        taken = device.take(self.engine.device_memory_size_v2)
        self._scratch = taken or 0
        return taken is not None

    def __del__(self) -> None:
        device.give_back(getattr(self, "_scratch", 0))

    @property
    def engine(self) -> Any:
        return self._engine()

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    # --- shapes ---------------------------------------------------------------------------------------------

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Another profile; every dynamic shape and every address has to be given again."""
        if not 0 <= int(profile_index) < self.engine.num_optimization_profiles:
            return self._fail(f"setOptimizationProfileAsync: there is no profile {profile_index}")
        if device.capturing(int(stream_handle)):
            return self._fail("setOptimizationProfileAsync: not while the stream is captured")
        self._profile, self._shapes, self._addresses = int(profile_index), {}, {}
        self._warm, self._measured = None, {}
        self._enqueue(int(stream_handle), lambda: None)
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        sizes = tuple(int(size) for size in shape)
        tensor = self.engine._tensors.get(name)
        if tensor is None or not tensor.is_network_input:
            return self._fail(f"setInputShape: {name} is not an input")
        wanted = tuple(tensor.shape)
        if -1 not in wanted:
            return self._fail(f"setInputShape: {name} has the static shape {wanted}")
        if len(sizes) != len(wanted) or any(w not in (-1, s) for w, s in zip(wanted, sizes, strict=True)):
            return self._fail(f"setInputShape: {name} wants {wanted}, found {sizes}")
        low, _, high = map(tuple, self.engine.get_tensor_profile_shape(name, self._profile))
        if not all(a <= size <= b for a, size, b in zip(low, sizes, high, strict=True)):
            where = f"profile {self._profile}: min {low}, max {high}"
            return self._fail(f"setInputShape: {name} = {sizes} does not satisfy {where}")
        self._shapes[name] = sizes
        return True

    def infer_shapes(self) -> list[str]:
        """Names of the inputs that lack a shape, or, if the host reads them, an address.

        Raises:
            RuntimeError: two axes with one name have two lengths, or a shape value is outside the profile.
        """
        missing = []
        for name, tensor in self.engine._tensors.items():
            if tensor.is_network_input:
                shapeless = -1 in tuple(tensor.shape) and name not in self._shapes
                if shapeless or (tensor.is_shape_tensor and name not in self._addresses):
                    missing.append(name)
        if not missing:
            self._named_axes()
            self._check_values()
        return missing

    def get_tensor_shape(self, name: str) -> Dims:
        tensor = self.engine._tensors.get(name)
        if tensor is None:
            return Dims()
        if tensor.is_network_input:
            return Dims(self._shapes.get(name, tuple(tensor.shape)))
        return Dims(self._output_shape(name))

    def get_max_output_size(self, name: str) -> int:
        """Bytes; for a data-dependent output those of the largest input that it could come from."""
        tensor = self.engine._tensors.get(name)
        if tensor is None or tensor.is_network_input or self.infer_shapes():
            return -1
        sizes = self._output_shape(name)
        bound = max(
            math.prod(self._input_shape(i)) for i, t in self.engine._tensors.items() if t.is_network_input
        )
        count = math.prod(bound if size < 0 else size for size in sizes)
        return count * NUMPY[tensor.dtype].itemsize

    def _input_shape(self, name: str) -> Shape:
        return self._shapes.get(name, tuple(self.engine._tensors[name].shape))

    def _named_axes(self) -> dict[str, int]:
        """Lengths of the named axes of all inputs whose shape is known."""
        lengths = dict[str, int]()
        for name, axes in self.engine._axes.items():
            if self.engine._tensors[name].is_network_input:
                for axis, size in zip(axes, self._input_shape(name), strict=True):
                    if axis and size >= 0 and lengths.setdefault(axis, size) != size:
                        raise RuntimeError(
                            f"axis {axis} of {name} is {size} long, and elsewhere {lengths[axis]}"
                        )
        return lengths

    def _check_values(self) -> None:
        for name, tensor in self.engine._tensors.items():
            if tensor.is_shape_tensor:
                values = self._read(name, self._addresses[name]).reshape(-1).tolist()
                low, _, high = self.engine.get_tensor_profile_values(self._profile, name)
                if not all(a <= value <= b for a, value, b in zip(low, values, high, strict=True)):
                    raise RuntimeError(f"{name} = {values} is outside the profile's {low}..{high}")

    def _output_shape(self, name: str) -> Shape:
        """As far as it is known before the run; -1 where it is not."""
        engine = self.engine
        wanted = tuple(engine._tensors[name].shape)
        if -1 not in wanted or self.infer_shapes():
            return wanted
        lengths = self._named_axes()
        known = tuple(
            lengths.get(axis, -1) if size < 0 else size
            for axis, size in zip(engine._axes[name], wanted, strict=True)
        )
        if -1 not in known or name in engine._facts.dependent:
            return known
        key = tuple(sorted(self._shapes.items())), tuple(self._host_values())
        if key not in self._measured:
            self._measured[key] = self._measure()
        return self._measured[key][name]

    def _measure(self) -> dict[str, Shape]:
        """Shapes of all outputs, by running once on zeros: no value decides about a shape here."""
        engine, feeds = self.engine, {}
        for name, tensor in engine._tensors.items():
            if tensor.is_shape_tensor:
                feeds[name] = self._read(name, self._addresses[name])
            elif tensor.is_network_input:
                feeds[name] = np.zeros(self._input_shape(name), NUMPY[tensor.dtype])
        outputs = [name for name, tensor in engine._tensors.items() if tensor.is_network_output]
        return {name: v.shape for name, v in zip(outputs, engine._compute(feeds, outputs), strict=True)}

    def _host_values(self) -> list[tuple[str, bytes]]:
        names = [name for name, tensor in self.engine._tensors.items() if tensor.is_shape_tensor]
        return [(name, self._read(name, self._addresses[name]).tobytes()) for name in names]

    # --- addresses ------------------------------------------------------------------------------------------

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._tensors:
            return self._fail(f"setTensorAddress: there is no tensor {name}")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator | None) -> bool:
        tensor = self.engine._tensors.get(name)
        if tensor is None or tensor.is_network_input:
            return self._fail(f"setOutputAllocator: {name} is not an output")
        if output_allocator is None:
            self._allocators.pop(name, None)
            return True
        if not isinstance(output_allocator, IOutputAllocator) or not getattr(
            output_allocator, "_made", False
        ):
            raise TypeError("set_output_allocator(): an IOutputAllocator whose __init__ has run is wanted")
        if name in self.engine._facts.aliases:
            return self._fail(f"setOutputAllocator: {name} is aliased with an input")
        self._allocators[name] = weakref.ref(output_allocator)
        return True

    def get_output_allocator(self, name: str) -> IOutputAllocator | None:
        return self._allocators[name]() if name in self._allocators else None

    def update_device_memory_size_for_shapes(self) -> int:
        return int(self.engine.get_device_memory_size_for_profile_v2(self._profile))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._given, self._needed = int(memory), int(size)

    # --- running --------------------------------------------------------------------------------------------

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue; False, and why in the log, if anything is missing. Results come when it is waited for."""
        stream = int(stream_handle)
        if self.engine is None:
            return self._fail("enqueueV3: the engine of this context was destroyed")
        reason = (
            self._elsewhere(stream) or self._unready() or self._unscratched() or self._uncapturable(stream)
        )
        if reason:
            return self._fail(f"enqueueV3: {reason}")
        outputs = {n: t for n, t in self.engine._tensors.items() if t.is_network_output}
        if any(-1 in self._output_shape(name) for name in outputs):
            return self._run_dependent(stream, list(outputs))
        targets = dict[str, int]()
        for name in outputs:
            if (target := self._target(name, self._output_shape(name), stream)) is None:
                return self._fail(f"enqueueV3: the output allocator of {name} gave no memory")
            targets[name] = target
        self._enqueue(stream, self._work(targets))
        self._warm = self._state()
        return True

    def _enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Into the stream; until it is done this context belongs to it."""
        if device.capturing(stream):
            device.enqueue(stream, work)
            return
        busy = self._busy
        busy.append(stream)

        def done() -> None:
            busy.remove(stream)
            work()

        device.enqueue(stream, done)

    def _elsewhere(self, stream: int) -> str | None:
        """A context does one thing at a time; other streams have to wait for a switch of profiles too."""
        others = [each for each in self._busy if each != stream]
        return f"this context still has work in stream {others[0]}: synchronise it first" if others else None

    def _unready(self) -> str | None:
        try:
            missing = self.infer_shapes()
        except RuntimeError as error:
            return str(error)
        if missing:
            return f"not specified: {', '.join(missing)}"
        for name, tensor in self.engine._tensors.items():
            if not self._addresses.get(name):
                if tensor.is_network_output and name in self._allocators:
                    if self.get_output_allocator(name) is None:
                        return f"the output allocator of {name} was destroyed"
                    continue
                return f"no address for {name}"
            if tensor.is_execution_tensor and self._addresses[name] % ALIGNMENT:
                return f"the address of {name} is not aligned to {ALIGNMENT} bytes"
            if -1 in (shape := tuple(self.get_tensor_shape(name))) and name not in self._allocators:
                return f"{name} {shape} is data-dependent and needs an output allocator"
        for out, cache in self.engine._facts.aliases.items():
            if self._addresses[out] != self._addresses[cache]:
                return f"{out} is aliased with {cache} and must have its address"
        return None

    def _unscratched(self) -> str | None:
        if self._strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            return None
        size = self.update_device_memory_size_for_shapes()
        if size and (not self._given or self._needed < size or self._given % ALIGNMENT):
            return f"set_device_memory: {size} aligned bytes are needed, {self._needed} were given"
        device.require(self._given, size, "device")
        return None

    def _uncapturable(self, stream: int) -> str | None:
        if not device.capturing(stream):
            return None
        engine = self.engine
        if engine._facts.syncs or engine._budget < engine.streamable_weights_size:
            return "operation not permitted when stream is capturing: the engine synchronises"
        if self._warm != self._state():
            return "a first run with these shapes and addresses must come before the capture"
        return None

    def _state(self) -> tuple[Any, ...]:
        return self._profile, tuple(sorted(self._shapes.items())), tuple(sorted(self._addresses.items()))

    def _target(self, name: str, shape: Shape, stream: int) -> int | None:
        """Where an output goes; an allocator is asked for at least one byte, and told the shape."""
        allocator = self.get_output_allocator(name)
        if allocator is None:
            return self._addresses[name]
        size = max(1, math.prod(shape) * NUMPY[self.engine._tensors[name].dtype].itemsize)
        offered = self._addresses.get(name, 0)
        ask = getattr(allocator, "reallocate_output_async", None)
        if ask is not None:
            address = ask(name, offered, size, ALIGNMENT, stream)
        else:
            address = allocator.reallocate_output(name, offered, size, ALIGNMENT)  # type: ignore[attr-defined]
        allocator.notify_shape(name, Dims(shape))  # type: ignore[attr-defined]
        return int(address) if address else None

    def _work(self, targets: dict[str, int]) -> Callable[[], None]:
        """What the stream will do: everything as it is bound now, the memory as it is then."""
        engine = self.engine
        inputs = {n: self._addresses[n] for n, t in engine._tensors.items() if t.is_network_input}
        shapes = {name: self._input_shape(name) for name in inputs}
        host = {n: self._read(n, inputs[n]).copy() for n in inputs if engine._tensors[n].is_shape_tensor}
        for name, address in inputs.items():
            self._read(name, address)

        def work() -> None:
            feeds = host | {n: _view(engine, n, a, shapes[n]) for n, a in inputs.items() if n not in host}
            for (name, address), value in zip(
                targets.items(), engine._compute(feeds, list(targets)), strict=True
            ):
                _write(engine, name, address, value)

        return work

    def _run_dependent(self, stream: int, outputs: list[str]) -> bool:
        """A data-dependent run: the host waits for the lengths, so all of it is done when this returns."""
        device.synchronise(stream)
        engine = self.engine
        feeds = {
            n: self._read(n, self._addresses[n]) for n, t in engine._tensors.items() if t.is_network_input
        }
        for name, value in zip(outputs, engine._compute(feeds, outputs), strict=True):
            target = self._target(name, value.shape, stream)
            if target is None:
                return self._fail(f"enqueueV3: the output allocator of {name} gave no memory")
            _write(engine, name, target, value)
        return True

    def _read(self, name: str, address: int) -> np.ndarray:
        return _view(self.engine, name, address, self._input_shape(name))

    def _fail(self, text: str) -> bool:
        self._logger.log(self._logger.ERROR, text)
        return False


def _view(engine: ICudaEngine, name: str, address: int, shape: Shape) -> np.ndarray:
    """An input's memory as an array; the runtime's double objects to memory that is not there."""
    tensor = engine._tensors[name]
    dtype, count = NUMPY[tensor.dtype], math.prod(shape)
    device.require(address, count * dtype.itemsize, "host" if tensor.is_shape_tensor else "device")
    if not count:
        return np.zeros(shape, dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


def _write(engine: ICudaEngine, name: str, address: int, value: np.ndarray) -> None:
    data = np.ascontiguousarray(value, NUMPY[engine._tensors[name].dtype])
    device.require(address, data.nbytes, "device")
    ctypes.memmove(address, data.ctypes.data, data.nbytes)
