"""One plan, deserialised: its inputs and outputs, its profiles, and the contexts that run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.runtime.errors import EngineError
from foveate.runtime.tensorrt.library import Library
from foveate.runtime.tensorrt.profiles import Profile, Shape

if TYPE_CHECKING:
    import tensorrt as trt

# TensorRT's names of types and ours.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output; -1 in `shape` is a dynamic axis.

    Attributes:
        on_host: its address is one of the host's: the engine computes shapes with its values.
        alias: the input whose memory an output has to share.
    """

    name: str
    is_input: bool
    dtype: str
    shape: Shape
    on_host: bool
    alias: str | None

    @property
    def is_dynamic(self) -> bool:
        """Whether an axis is not known before it runs."""
        return -1 in self.shape


class Engine:
    """A deserialised plan.

    Args:
        library: TensorRT.
        runtime: its `Runtime`, which has to outlive this.
        path: the plan.
        name: of the stage.
        mend: the command that builds it anew.

    Raises:
        EngineError: TensorRT does not take it.
    """

    def __init__(self, library: Library, runtime: trt.Runtime, path: Path, name: str, mend: str) -> None:
        self.library = library
        self.name = name
        self.mend = mend
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(
                f"TensorRT {library.version} does not take the engine of stage '{name}'",
                found=library.why(),
                mend=f"build it again: {mend} --rebuild",  # a plan of the right size counts as up to date
            )
        self._engine: trt.ICudaEngine = engine
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {each: self._tensor(each) for each in names}
        self.profiles = tuple(self._profile(i) for i in range(self._engine.num_optimization_profiles))

    def _tensor(self, name: str) -> Tensor:
        import tensorrt as trt

        engine = self._engine
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            mend = f"build it again: {self.mend}"
            raise EngineError(
                f"stage '{self.name}': tensor '{name}' has an unknown type", found=kind, mend=mend
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return Tensor(
            name=name,
            is_input=is_input,
            dtype=_DTYPES[kind],
            shape=tuple(engine.get_tensor_shape(name)),
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            alias=None if is_input else engine.get_aliased_input_tensor(name) or None,
        )

    def _profile(self, index: int) -> Profile:
        ranges = {}
        for tensor in self.tensors.values():
            if tensor.is_input and tensor.is_dynamic:
                least, _, most = self._engine.get_tensor_profile_shape(tensor.name, index)
                ranges[tensor.name] = (tuple(least), tuple(most))
        return Profile(index, ranges)

    @property
    def scratch_bytes(self) -> int:
        """Memory that a context needs while it runs, at the largest shapes of the largest profile."""
        sizes = map(self._engine.get_device_memory_size_for_profile_v2, range(len(self.profiles)))
        return max(sizes, default=0)

    def stream_weights(self) -> None:
        """Keep on the device what fits of the weights of an engine that can stream them.

        Has to be called before the first context is made.
        """
        if self._engine.streamable_weights_size:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()

    @property
    def streams_weights(self) -> bool:
        """Whether some of its weights stay on the host. Such engines synchronise, so nothing is captured."""
        total = self._engine.streamable_weights_size
        return bool(total) and self._engine.weight_streaming_budget_v2 < total

    def make_context(self) -> trt.IExecutionContext:
        """A TensorRT context without scratch memory of its own.

        Raises:
            EngineError: there is none, for want of memory mostly.
        """
        import tensorrt as trt

        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(
                f"TensorRT cannot make a context for stage '{self.name}'", found=self.library.why()
            )
        return context

    def close(self) -> None:
        """Free the engine; its contexts have to be gone."""
        del self._engine
