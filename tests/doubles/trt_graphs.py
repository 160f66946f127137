"""Small graphs for the double of TensorRT, written as text, and what builds and runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from doubles.cudart import Cudart
from doubles.cudart_names import cudaMemcpyKind, cudaStreamCaptureMode

Shape = tuple[int, ...]


def graph(signature: str, body: str, opset: int = 24) -> bytes:
    """`signature` like "float[b,4] x => float[b,4] y"; nodes are named by operator and place."""
    inputs, outputs = signature.split("=>")
    head = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1, "trt": 1]>'
    model = onnx.parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {{ {body} }}")
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    made: bytes = model.SerializeToString()
    return made


class Log:
    """Lines that TensorRT logged. `of(trt)` gives the logger that fills it."""

    def __init__(self, trt: ModuleType) -> None:
        lines: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                lines.append(msg)

        self.lines, self.logger = lines, Logger()

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Bench:
    """A graph on its way from the parser to a context; every step can be looked at."""

    def __init__(self, trt: ModuleType, cudart: Cudart, model: bytes) -> None:
        self.trt, self.cudart, self.log = trt, cudart, Log(trt)
        self.builder = trt.Builder(self.log.logger)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, self.log.logger)
        self.parsed = self.parser.parse(model)
        self.config = self.builder.create_builder_config()
        self.runtime = trt.Runtime(self.log.logger)
        self._blocks: list[int] = []

    def profile(self, **shapes: tuple[Shape, Shape, Shape]) -> int:
        """Adds a profile and gives its index."""
        made = self.builder.create_optimization_profile()
        for name, three in shapes.items():
            made.set_shape(name, *three)
        return int(self.config.add_optimization_profile(made))

    def build(self) -> Any:
        """The plan, or None."""
        return self.builder.build_serialized_network(self.network, self.config)

    def engine(self) -> Any:
        """The engine of the plan."""
        return self.runtime.deserialize_cuda_engine(self.build())

    def stream(self) -> int:
        return int(self.cudart.cudaStreamCreateWithFlags(1)[1])

    def device(self, value: np.ndarray) -> int:
        """Address of device memory that holds an array."""
        address = self.cudart.cudaMalloc(max(1, value.nbytes))[1]
        self._blocks.append(int(address))
        kind = cudaMemcpyKind.cudaMemcpyHostToDevice
        if value.nbytes:
            self.cudart.cudaMemcpyAsync(address, value.ctypes.data, value.nbytes, kind, 0)
            self.cudart.cudaStreamSynchronize(0)
        return int(address)

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        """What is at an address now."""
        out = np.empty_like(like)
        kind = cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cudart.cudaMemcpyAsync(out.ctypes.data, address, out.nbytes, kind, 0)
        self.cudart.cudaStreamSynchronize(0)
        return out

    def feed(self, engine: Any, context: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Shapes and addresses of inputs, and of the outputs that are aliased with them; the addresses."""
        given = {}
        for name, value in feeds.items():
            if -1 in tuple(engine.get_tensor_shape(name)):
                assert context.set_input_shape(name, value.shape), self.log.lines
            given[name] = self.device(value)
            assert context.set_tensor_address(name, given[name])
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            alias = engine.get_aliased_input_tensor(name)
            if alias is not None:
                given[name] = given[alias]
                assert context.set_tensor_address(name, given[name])
        return given

    def run(self, feeds: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Build, load, run once; `like` has the shapes and types of the outputs that are wanted."""
        engine = self.engine()
        assert engine is not None, self.log.lines
        context = engine.create_execution_context()
        given = self.feed(engine, context, feeds)
        for name, value in like.items():
            if name not in given:
                given[name] = self.device(value)
                assert context.set_tensor_address(name, given[name])
        stream = self.stream()
        assert context.execute_async_v3(stream), self.log.lines
        self.cudart.cudaStreamSynchronize(stream)
        found = {name: self.read(given[name], value) for name, value in like.items()}
        self.cudart.cudaStreamDestroy(stream)
        del context
        self.free()
        return found

    def free(self) -> None:
        """Give back what `device` took."""
        for address in self._blocks:
            self.cudart.cudaFree(address)
        self._blocks.clear()


class Ready:
    """An engine with one context, and what has to be given back."""

    def __init__(self, bench: Bench, strategy: Any = None) -> None:
        self.bench, self.engine = bench, bench.engine()
        assert self.engine is not None, bench.log.lines
        args = () if strategy is None else (strategy,)
        self.context = self.engine.create_execution_context(*args)
        self.stream = bench.stream()
        self.bound: dict[str, int] = {}

    def bind(self, **values: np.ndarray) -> None:
        for name, value in values.items():
            self.bound[name] = self.bench.device(value)
            assert self.context.set_tensor_address(name, self.bound[name])

    def go(self) -> bool:
        return bool(self.context.execute_async_v3(self.stream))

    def capture(self) -> Any:
        """The graph, or None if it cannot be captured."""
        runtime = self.bench.cudart
        mode = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        runtime.cudaStreamBeginCapture(self.stream, mode)
        done = self.go()
        graph = runtime.cudaStreamEndCapture(self.stream)[1]
        if not done:
            runtime.cudaGraphDestroy(graph)
            return None
        made = runtime.cudaGraphInstantiate(graph, 0)[1]
        runtime.cudaGraphDestroy(graph)
        return made

    def result(self, name: str, like: np.ndarray) -> np.ndarray:
        self.bench.cudart.cudaStreamSynchronize(self.stream)
        return self.bench.read(self.bound[name], like)

    def close(self) -> None:
        self.context = None
        self.engine = None
        self.bench.free()
        self.bench.cudart.cudaStreamDestroy(self.stream)
