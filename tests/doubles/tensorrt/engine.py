"""Runtime, engine and inspector: what can be asked about a plan once it is read."""

from __future__ import annotations

import json
import weakref
from typing import Any

import numpy as np
import onnx

from doubles.tensorrt.analysis import analyse
from doubles.tensorrt.compute import Computer, inferred
from doubles.tensorrt.context import IExecutionContext
from doubles.tensorrt.enums import (
    DataType,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    LayerInformationFormat,
    ProfilingVerbosity,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from doubles.tensorrt.network import ITensor, _tensor
from doubles.tensorrt.plan import Header, read_plan
from doubles.tensorrt.values import NUMPY, Dims, IHostMemory, check_logger, host_memory
from doubles.tensorrt.version import version

violations: list[str] = []
"""What was destroyed in the wrong order, for tests to look at."""


class IRuntimeConfig:
    """Options of a context."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def set_execution_context_allocation_strategy(
        self, strategy: Any = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        self._strategy = strategy


class Runtime:
    """Reads plans."""

    def __init__(self, logger: Any) -> None:
        self.logger = check_logger(logger)
        self.engine_host_code_allowed = False
        self.max_threads = 1

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """The engine, or None; the reason is only logged."""
        data = bytes(serialized_engine)
        found = read_plan(data, version(), self.engine_host_code_allowed)
        if isinstance(found, str):
            self.logger.log(self.logger.ERROR, f"deserializeCudaEngine: {found}")
            return None
        return ICudaEngine(self, *found, plan=data)


class ICudaEngine:
    """Tensors, profiles and aliases of a plan; makes contexts."""

    def __init__(self, runtime: Runtime, header: Header, model: bytes, plan: bytes) -> None:
        self._runtime, self._header, self._plan = runtime, header, plan
        self._model = onnx.ModelProto.FromString(model)
        self._facts = analyse(self._model)
        plain = inferred(self._model)
        self._compute = Computer(self._model)
        shapes = {v.name: v for v in plain.graph.value_info}
        constants = {tensor.name for tensor in self._model.graph.initializer}
        self._tensors = dict[str, ITensor]()
        self._axes = dict[str, tuple[str, ...]]()
        for role, values in (("input", self._model.graph.input), ("output", self._model.graph.output)):
            for value in values:
                if value.name in constants:
                    continue
                known = value if value.type.tensor_type.HasField("shape") else shapes.get(value.name, value)
                self._tensors[value.name] = _tensor(known, role, value.name in self._facts.shape_inputs)
                self._axes[value.name] = tuple(d.dim_param for d in known.type.tensor_type.shape.dim)
        self._contexts = weakref.WeakSet[IExecutionContext]()
        self._budget = header.weights

    def __del__(self) -> None:
        living = len(getattr(self, "_contexts", ()))
        if living:
            violations.append(f"an engine was destroyed before {living} of its contexts")

    name = property(lambda self: self._header.name)
    num_io_tensors = property(lambda self: len(self._tensors))
    num_layers = property(lambda self: len(self._model.graph.node))
    num_optimization_profiles = property(lambda self: len(self._header.shapes))
    num_aux_streams = property(lambda self: self._header.aux_streams)
    refittable = property(lambda self: self._header.refittable)
    hardware_compatibility_level = property(lambda self: HardwareCompatibilityLevel[self._header.hardware])
    profiling_verbosity = property(lambda self: ProfilingVerbosity[self._header.verbosity])

    def __getitem__(self, index: int) -> str:
        return self.get_tensor_name(index)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        if name not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if self._tensors[name].is_network_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype if name in self._tensors else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(tuple(self._tensors[name].shape)) if name in self._tensors else Dims()

    def get_tensor_location(self, name: str) -> Any:
        return self._tensors[name].location if name in self._tensors else TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        return TensorFormat.LINEAR

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name].is_shape_tensor

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._facts.aliases.get(name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        three = self._header.shapes[profile_index].get(name)
        static = (tuple(self._tensors[name].shape),) * 3
        return [Dims(shape) for shape in (three or static)]

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[list[int]]:
        """The index, then the name: the bindings have the names of the two the wrong way round."""
        if not isinstance(name, int) or not isinstance(profile_index, str):
            raise TypeError("get_tensor_profile_values(): incompatible function arguments: (int, str)")
        return [list(values) for values in self._header.values[name].get(profile_index, ())]

    @property
    def streamable_weights_size(self) -> int:
        return self._header.weights if self._header.weight_streaming else 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if (
            len(self._contexts)
            or not self._header.weight_streaming
            or not 0 <= budget <= self._header.weights
        ):
            self._log(
                "setWeightStreamingBudgetV2: not while a context exists, nor without streamable weights"
            )
            return
        self._budget = int(budget)

    def get_weight_streaming_automatic_budget(self) -> int:
        return self._header.weights // 2

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """A plain estimate: four times the largest inputs that are not caches, in whole 256-byte steps."""
        caches = set(self._facts.aliases.values())
        total = 0
        for name, tensor in self._tensors.items():
            if tensor.is_network_input and name not in caches:
                largest = tuple(self.get_tensor_profile_shape(name, profile_index)[2])
                total += 4 * int(np.prod(largest, dtype=np.int64)) * NUMPY[tensor.dtype].itemsize
        return -(-total // 256) * 256

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, strategy: Any = ExecutionContextAllocationStrategy.STATIC, runtime_config: Any = None
    ) -> IExecutionContext | None:
        """A context, or None if its scratch memory cannot be had."""
        config = runtime_config if runtime_config is not None else strategy
        if isinstance(config, IRuntimeConfig):
            config = config.get_execution_context_allocation_strategy()
        context = IExecutionContext(self, config)
        if not context._prepare():
            self._log(
                f"createExecutionContext: cannot allocate {self.device_memory_size_v2} bytes: out of memory"
            )
            return None
        self._contexts.add(context)
        return context

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def serialize(self) -> IHostMemory:
        return host_memory(self._plan)

    def _log(self, text: str) -> None:
        self._runtime.logger.log(self._runtime.logger.ERROR, text)


class EngineInspector:
    """Layers as text; names only unless the engine was built with DETAILED verbosity."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_layer_information(self, layer_index: int, format: Any) -> str:
        layer = self._layer(layer_index)
        return json.dumps(layer) if format is LayerInformationFormat.JSON else str(layer)

    def get_engine_information(self, format: Any) -> str:
        layers = [self._layer(index) for index in range(self._engine.num_layers)]
        tensors = list(self._engine._tensors)
        key = "I/O Tensors" if int(version().split(".")[0]) >= 11 else "Bindings"
        if format is LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers, key: tensors})
        return "\n".join(map(str, layers))

    def _layer(self, index: int) -> Any:
        node = self._engine._model.graph.node[index]
        if self._engine.profiling_verbosity is not ProfilingVerbosity.DETAILED:
            return node.name
        found = {"Name": node.name, "LayerType": node.op_type, "Inputs": list(node.input)}
        waits = (node.name or node.output[0]) in self._engine._facts.syncs
        return found | {"Outputs": list(node.output)} | ({"Copy": "DeviceToShapeHostCopy"} if waits else {})
