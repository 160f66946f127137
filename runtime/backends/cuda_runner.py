"""A graph on ONNX Runtime's CUDA provider: everything is bound on the device, and all work is in one stream.

One run enqueues copies, kernels and copies, and waits once, for the outputs that the host reads. Outputs that
only the next graph reads (`BETWEEN_GRAPHS`) stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Bindings, host_dtype
from foveate.runtime.backend import BETWEEN_GRAPHS, NO_BINDINGS
from foveate.runtime.backends.cuda_steps import ON_HOST, Remembered, Steps, shape_of
from foveate.runtime.backends.onnxruntime import ONNX_BFLOAT16, brief
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError
from foveate.runtime.manifest import Stage, TensorSpec

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

    from foveate.runtime.backends.cuda import Backend

# Of a run: no pause at its end, for whoever reads its outputs waits for the stream.
_RUN_CONFIG: Final = {"disable_synchronize_execution_providers": "1"}
_PLAIN: Final = "-1"  # the graph id that means: neither record nor replay


class Runner:
    """One session. Not for use by several threads at once."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        name: str,
        stage: Stage,
        backend: Backend,
        *,
        graphs: bool = False,
    ) -> None:
        # First the session: it has to go before the stream that it works on.
        self.session = session
        self.name, self.stage = name, stage
        self.device: Device = backend.device
        self._backend = backend
        self.plain_options = self.run_options(_PLAIN)
        self._takes = {spec.name: spec for spec in stage.inputs}
        self._gives = {spec.name: spec for spec in stage.outputs}
        self.on_host = frozenset(name for name in self._takes if name.startswith(ON_HOST))
        self._bound = Remembered()
        self._io = session.io_binding()
        self._placed: list[str] = []
        self._steps = Steps(self, graphs=graphs)

    @property
    def recordings(self) -> int:
        """How many steps are recorded as CUDA graphs and in use."""
        return self._steps.recordings

    def close(self) -> None:
        """Let go of the session, of what is bound to it, and of the memory of steps."""
        self._steps = Steps(self, graphs=False)
        self._bound, self._placed = Remembered(), []
        self._io = self.session = None

    def run(self, feeds: Arrays, bindings: Bindings = NO_BINDINGS) -> dict[str, Array]:
        """See `foveate.runtime.backend.Runner.run`."""
        self.device.activate()
        free = [spec for spec in self.stage.inputs if spec.name not in bindings]
        values = {spec.name: self.checked(spec, feeds) for spec in free}
        out = self._steps.run(values, bindings)
        return self.handed(self.plain(values, bindings) if out is None else out)

    def plain(self, values: Mapping[str, Array], bindings: Bindings) -> dict[str, DeviceArray]:
        """Run with memory that is taken for this run; gives the outputs, all on the device."""
        if not self._bound.is_(bindings):
            self._io, self._placed = self.bound(bindings)
            self._bound = Remembered(bindings)
        held = {
            name: self.on_device(value, self._takes[name])
            for name, value in values.items()
            if name not in self.on_host
        }
        for name, memory in held.items():
            self.bind_input(self._io, name, memory)
        for name in self.on_host:
            self._io.bind_cpu_input(name, values[name])
        wanted = [name for name in self._gives if name not in bindings]
        mine = self._kept({**held, **bindings}, wanted)
        for name in wanted:
            # Anew for each run: a binding keeps the shape of its first output, and kept counts differ.
            if name in mine:
                self.bind_output(self._io, name, mine[name])
            else:
                self._io.bind_output(name, self._backend.place, self.device.index)
        self.execute(self._io, self.plain_options, values)
        made = dict(zip([*self._placed, *wanted], self._io.get_outputs(), strict=True))
        return {**mine, **{name: self._wrapped(name, made[name]) for name in wanted if name not in mine}}

    def handed(self, out: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """Outputs as the caller gets them: on the host, but for those that only graphs read."""
        mine = [name for name in out if name not in BETWEEN_GRAPHS]
        # The mapping says "array": what stays has all that its readers need of one, see `BETWEEN_GRAPHS`.
        kept = {name: cast(Array, memory) for name, memory in out.items() if name in BETWEEN_GRAPHS}
        if not mine:
            return kept
        return kept | dict(zip(mine, self.device.download(*(out[name] for name in mine)), strict=True))

    def note(self, reason: str) -> None:
        """Tell why steps are not replayed as CUDA graphs."""
        self._backend.note(f"stage '{self.name}' decodes without CUDA graphs: {reason}")

    # --- bindings -------------------------------------------------------------------------------------------

    def bound(self, bindings: Bindings) -> tuple[Any, list[str]]:
        """An IO binding with memory that stays, and which of its names are outputs, in their order."""
        io = self.session.io_binding()
        for name, memory in bindings.items():
            assert isinstance(memory, DeviceArray), "memory of another backend"
            if name in self._takes:
                self.bind_input(io, name, memory)
            if name in self._gives:
                self.bind_output(io, name, memory)
        return io, [name for name in bindings if name in self._gives]

    def bind_input(self, io: Any, name: str, memory: DeviceArray) -> None:
        """Bind an input to memory, which has to be one piece and has to live through the run."""
        io.bind_input(name, *self._place(memory))

    def bind_output(self, io: Any, name: str, memory: DeviceArray) -> None:
        """Likewise an output."""
        io.bind_output(name, *self._place(memory))

    def _place(self, memory: DeviceArray) -> tuple[Any, ...]:
        kind: Any = ONNX_BFLOAT16 if memory.dtype == "bfloat16" else host_dtype(memory.dtype).type
        return self._backend.place, self.device.index, kind, memory.shape, memory.address

    def run_options(self, graph: str) -> Any:
        """Options of a run: with a number it is recorded at first and replayed afterwards."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        for key, value in {**_RUN_CONFIG, "gpu_graph_id": graph}.items():
            options.add_run_config_entry(key, value)
        return options

    def execute(self, io: Any, options: Any, values: Mapping[str, Array]) -> None:
        """Enqueue a run. Raises `BackendError`."""
        self._backend.before_run()
        try:
            self.session.run_with_iobinding(io, options)
        except Exception as error:  # onnxruntime's exceptions have no common root
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise BackendError(
                f"stage '{self.name}' failed", found=f"{brief(error)}; inputs {shapes}"
            ) from error

    # --- values ---------------------------------------------------------------------------------------------

    def checked(self, spec: TensorSpec, feeds: Arrays) -> Array:
        """A feed; the host's are turned into the right type. Raises `BackendError`: missing or misshapen."""
        value = feeds.get(spec.name)
        if value is None:
            raise BackendError(f"stage '{self.name}' lacks input '{spec.name}'", found=_names(feeds))
        if not isinstance(value, DeviceArray):
            value = np.ascontiguousarray(value, dtype=host_dtype(spec.dtype))
        if not _fits(spec, value):
            raise BackendError(
                f"stage '{self.name}': input '{spec.name}' is misshapen",
                found=f"{list(value.shape)} of {value.dtype}",
                wanted=f"{list(spec.shape)} of {spec.dtype}",
            )
        return value

    def on_device(self, value: Array, spec: TensorSpec) -> DeviceArray:
        """A feed in one piece of the device's memory."""
        if not isinstance(value, DeviceArray):
            return self.device.upload(value, spec.dtype)
        memory: DeviceArray = value
        if memory.contiguous:
            return memory
        packed = self.device.allocate(memory.shape, memory.dtype, zero=False)
        packed[...] = memory
        return packed

    def _kept(self, given: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, DeviceArray]:
        """Memory of ours for outputs that may be needed for a while, where no replay reaches them.

        A recording writes to places in onnxruntime's memory that it hands out again meanwhile: an output that
        waits there for the next graph may be written over. What the host reads is read at once.
        """
        if not self._steps.active:
            return {}
        shapes = {name: memory.shape for name, memory in given.items()}
        found = {}
        for name in (name for name in wanted if name in BETWEEN_GRAPHS):
            spec = self._gives[name]
            shape = shape_of(self.stage, spec.shape, shapes)
            if shape is None:
                self._steps.stop(f"the shape of '{name}' is not known before it runs")
                return {}
            found[name] = self.device.allocate(shape, spec.dtype, zero=False)
        return found

    def _wrapped(self, name: str, value: Any) -> DeviceArray:
        """An output that onnxruntime made, which lives as long as the array."""
        return self.device.wrap(value.data_ptr(), value.shape(), self._gives[name].dtype, value)


def _fits(spec: TensorSpec, value: Any) -> bool:
    sizes = zip(spec.shape, value.shape, strict=False)
    same = value.ndim == len(spec.shape) and all(not isinstance(a, int) or a == b for a, b in sizes)
    return same and (not isinstance(value, DeviceArray) or value.dtype == spec.dtype)


def _names(feeds: Iterable[str]) -> str:
    return ", ".join(feeds)
