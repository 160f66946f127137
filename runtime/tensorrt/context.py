"""One execution context: the shapes and addresses set in it, what goes to the host and back, and its graph.

A context is kept for one purpose (prompts of one profile; decoding steps of one batch size), because setting
shapes costs more than running a step, and a CUDA graph is good for one set of shapes and addresses.

    step 1    shapes, addresses; copies in, engine, copies out      all is set, and TensorRT warms up
    step 2    the same captured into a graph, then the graph        nothing had changed since step 1
    step 3    the graph
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Set
from typing import Any, TypeAlias

from foveate.runtime.arrays import Array, Bindings
from foveate.runtime.backend import BETWEEN_GRAPHS
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.cuda.stream import Graph
from foveate.runtime.errors import BackendError
from foveate.runtime.tensorrt.allocator import make_allocator
from foveate.runtime.tensorrt.engine import Engine, Tensor
from foveate.runtime.tensorrt.graphs import Graphs
from foveate.runtime.tensorrt.profiles import Shape
from foveate.runtime.tensorrt.staging import ALIGNMENT, Lane, Slot, bytes_of

Bound: TypeAlias = "tuple[tuple[str, int, Shape], ...]"
Values: TypeAlias = "Mapping[str, Array | DeviceArray]"


def signature(bindings: Bindings) -> Bound:
    """Name, address and shape of memory that is bound: all that a context has to know, and hold, of it.

    Holding the memory itself would keep the caches of an answer that is finished.
    """
    return tuple((name, memory.address, memory.shape) for name, memory in bindings.items())  # type: ignore[attr-defined]


class Context:
    """Runs an engine with one profile. Belongs to one stream, which is the device's.

    Args:
        scratch: memory for what the engine computes on its way. Contexts of one stream never overlap, so all
            of them share it.
        graphs: None for contexts that are never captured.
    """

    def __init__(
        self, engine: Engine, profile: int, lane: Lane, scratch: DeviceArray, graphs: Graphs | None
    ) -> None:
        self._engine, self._lane, self._scratch, self._graphs = engine, lane, scratch, graphs
        self._device = lane.device
        self._tensors = engine.tensors
        # Then shapes depend on more than shapes, and a recording would hold the numbers of its day.
        self._reads_values = any(tensor.is_input and tensor.on_host for tensor in engine.tensors.values())
        self._context = engine.make_context()
        self._require(
            self._context.set_optimization_profile_async(profile, self._device.stream.handle),
            f"take profile {profile}",
        )
        lane.wait()
        self._context.set_device_memory(scratch.address, scratch.nbytes)
        self._shapes: dict[str, Shape] = {}
        self._fed: dict[str, Shape] = {}
        self._bound: Bound = ()
        self._addresses: dict[str, int] = {}
        self._results: dict[str, Shape] | None = None  # of the outputs, for the shapes that are set
        self._slots: dict[str, Slot] = {}
        self._blocks: dict[str, DeviceArray] = {}
        self._leases: dict[str, weakref.ref[_Lease]] = {}
        self._allocators: dict[str, Any] = {}
        self._graph: Graph | None = None
        self._repeats = 0  # runs since a shape or an address was another
        self._sent = -1  # waits of the lane when copies out of page-locked memory were last enqueued

    # --- shapes and addresses -------------------------------------------------------------------------------

    def is_set(self, shapes: Mapping[str, Shape], bound: Bound) -> bool:
        """Whether it ran with these shapes of feeds and this very memory the last time."""
        return bound == self._bound and shapes == self._fed

    def set(self, shapes: Mapping[str, Shape], bound: Bound) -> None:
        """Set the shapes of all feeds, and shapes and addresses of the memory that is bound by name."""
        inputs = {name: shape for name, _, shape in bound if self._takes(name)}
        self._fed, self._bound = {}, ()  # should this break off, what was set before is no more
        for name, shape in {**shapes, **inputs}.items():
            if self._shapes.get(name) == shape:
                continue
            if self._tensors[name].is_dynamic:
                self._require(self._context.set_input_shape(name, shape), f"take '{name}' as {list(shape)}")
            self._shapes[name] = shape
            self._results = None
            self._forget_graph()
        for name, address, _ in bound:
            if name in self._tensors:
                self._place(name, address)
        self._fed, self._bound = dict(shapes), bound

    def _takes(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name].is_input

    def _place(self, name: str, address: int) -> None:
        if self._addresses.get(name) == address:
            return
        self._require(self._context.set_tensor_address(name, address), f"bind '{name}'")
        self._addresses[name] = address
        self._forget_graph()

    def _require(self, done: bool, what: str) -> None:
        """TensorRT's calls return False where others raise."""
        if not done:
            raise BackendError(
                f"TensorRT did not {what} in stage '{self._engine.name}'", found=self._engine.library.why()
            )

    @property
    def captured(self) -> bool:
        """Whether its step is a CUDA graph now."""
        return self._graph is not None

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._graph, self._repeats = None, 0

    # --- running --------------------------------------------------------------------------------------------

    def run(self, feeds: Values, unbound: Set[str], unread: Set[str] = frozenset()) -> dict[str, Any]:
        """Run with the shapes that are set.

        Args:
            feeds: all inputs that are not bound, in the engine's types, contiguous.
            unbound: names of the outputs that are not bound.
            unread: those of them that nobody wants. Where only these are for the host, it does not wait.

        Returns:
            The others: on the device that the next graph reads (`DeviceArray`), and numpy arrays.

        Raises:
            BackendError: TensorRT failed.
        """
        if self._sent == self._lane.waits:
            self._lane.wait()  # for the last copies out of the memory that is written to now
        incoming = {name: size for name, value in feeds.items() if (size := self._feed(name, value))}
        if self._results is None or self._reads_values:
            self._results = self._infer(unbound)
        kept, fetched = self._place_outputs(self._results, unread)
        self._execute(incoming, fetched)
        self._sent = self._lane.waits
        if fetched or self._allocators:
            self._lane.wait()
        read = {name: self._slots[name].read(self._results[name], self._dtype(name)) for name in fetched}
        return {**kept, **read, **{name: self._allocated(name) for name in self._allocators}}

    def _feed(self, name: str, value: Array | DeviceArray) -> int:
        """Put an input where the engine reads it; gives the bytes that have to be copied there."""
        tensor = self._tensors[name]
        if isinstance(value, DeviceArray):
            if value.contiguous and value.address % ALIGNMENT == 0:
                # It may be given back as soon as this is enqueued: whoever gets it comes later in the stream.
                self._place(name, value.address)
                return 0
            block = self._device.allocate(value.shape, value.dtype, zero=False)
            block[...] = value
            return self._feed(name, block)
        slot = self._slot(tensor, value.nbytes)
        slot.fill(value)
        self._place(name, slot.address)
        return 0 if tensor.on_host else value.nbytes

    def _slot(self, tensor: Tensor, size: int) -> Slot:
        """Where a tensor crosses; it stays where it is until it has to grow."""
        slot = self._slots.get(tensor.name)
        if slot is None or slot.size < size:
            slot = Slot(self._device, max(1, size), twin=not tensor.on_host)
            self._slots[tensor.name] = slot
        return slot

    def _infer(self, unbound: Set[str]) -> dict[str, Shape]:
        """Shapes of the outputs; -1 where only a run can tell."""
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:  # inputs that contradict one another
            raise BackendError(f"stage '{self._engine.name}' was fed nonsense", found=str(error)) from error
        self._require(not missing, f"find out the shape of {', '.join(missing)}")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in unbound}

    def _place_outputs(
        self, shapes: Mapping[str, Shape], unread: Set[str]
    ) -> tuple[dict[str, DeviceArray], dict[str, int]]:
        """Outputs that stay on the device, and the bytes of those that the host wants."""
        kept: dict[str, DeviceArray] = {}
        fetched: dict[str, int] = {}
        for name, shape in shapes.items():
            tensor = self._tensors[name]
            if -1 in shape:
                self._allow(name)
            elif name in BETWEEN_GRAPHS and not tensor.on_host:
                kept[name] = self._lease(name, shape)
                self._place(name, kept[name].address)
            else:
                size = bytes_of(shape, tensor.dtype)
                self._place(name, self._slot(tensor, size).address)
                fetched |= {} if name in unread else {name: size}
        return kept, fetched

    def _lease(self, name: str, shape: Shape) -> DeviceArray:
        """The block of an output, unless somebody still holds what it had the last time: then a new one."""
        dtype = self._dtype(name)
        block, lease = self._blocks.get(name), self._leases.get(name)
        in_use = lease is not None and lease() is not None
        if block is None or in_use or block.nbytes < bytes_of(shape, dtype):
            block = self._device.allocate((bytes_of(shape, dtype),), "uint8", zero=False)
            self._blocks[name] = block
        owner = _Lease(block)
        self._leases[name] = weakref.ref(owner)
        return self._device.wrap(block.address, shape, dtype, owner)

    def _allow(self, name: str) -> None:
        """Let the engine ask for an output's memory when it knows its size."""
        if name not in self._allocators:
            allocator = make_allocator(self._device)
            self._require(self._context.set_output_allocator(name, allocator), f"ask for memory of '{name}'")
            self._allocators[name] = allocator

    def _allocated(self, name: str) -> Any:
        block, shape = self._allocators[name].take()
        array = self._device.wrap(block.address, shape, self._dtype(name), block)
        return array if name in BETWEEN_GRAPHS else self._device.download(array)[0]

    def _execute(self, incoming: Mapping[str, int], fetched: Mapping[str, int]) -> None:
        captures = self._graphs is not None and self._graphs.on
        captures = captures and not self._allocators and not self._reads_values
        if captures and self._repeats and self._graph is None:
            self._capture(incoming, fetched)
        if self._graph is None:
            self._enqueue(incoming, fetched)
        else:
            self._graph.launch()
        self._repeats += 1

    def _capture(self, incoming: Mapping[str, int], fetched: Mapping[str, int]) -> None:
        assert self._graphs is not None
        try:
            with self._device.stream.capture() as captured:
                self._enqueue(incoming, fetched)
            self._graph = captured.graph
        except BackendError as error:
            self._graphs.give_up(self._engine.name, error)

    def _enqueue(self, incoming: Mapping[str, int], fetched: Mapping[str, int]) -> None:
        """Everything on the device that a run consists of."""
        for name, size in incoming.items():
            self._slots[name].send(size)
        self._require(self._context.execute_async_v3(self._device.stream.handle), "run")
        for name, size in fetched.items():
            self._slots[name].fetch(size)

    def _dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def close(self) -> None:
        """Free the graph, then the context, then the memory; it cannot be used any more."""
        self._forget_graph()
        for name in ("_context", "_allocators", "_slots", "_blocks", "_scratch"):
            self.__dict__.pop(name, None)


class _Lease:
    """Lives as long as anybody holds an output, or a view of it."""

    def __init__(self, block: DeviceArray) -> None:
        self.block = block
