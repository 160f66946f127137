"""Memory and order on the double: output allocators, capture, scratch memory, streaming, destruction."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from doubles.cudart import Cudart, Misuse
from doubles.tensorrt import engine as engines
from doubles.trt_graphs import Bench, Ready, graph

ROWS = graph("float[b,4] x => float[b,4] y", "y = Relu(x)")
X = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
TO_4 = {"x": ((1, 4), (2, 4), (4, 4))}
CHOOSE = graph("bool[4] x => int64[1,n] y", "y = NonZero(x)")


def _allocator(trt: ModuleType, give: Callable[[int], int]) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.asked, self.shapes = list[int](), dict[str, tuple[int, ...]]()

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            self.asked.append(size)
            return give(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return Allocator()


@pytest.mark.parametrize("flags", [(0, 1, 0, 1), (0, 0, 0, 0)])
def test_a_dependent_output_needs_an_allocator(make: Any, tensorrt: ModuleType, flags: Any) -> None:
    run = make(CHOOSE)
    run.bind(x=np.array(flags, bool), y=np.zeros(8, np.int64))
    assert tuple(run.context.get_tensor_shape("y")) == (1, -1)
    assert not run.go()
    assert "needs an output allocator" in run.bench.log
    allocator = _allocator(tensorrt, lambda size: run.bound["y"])
    assert run.context.set_output_allocator("y", allocator)
    assert run.go()
    count = sum(flags)
    assert allocator.shapes["y"] == (1, count), "known when the call returns"
    assert allocator.asked == [max(1, 8 * count)]
    assert run.result("y", np.zeros(8, np.int64))[:count].tolist() == np.flatnonzero(flags).tolist()


def test_an_allocator_has_to_give_memory_and_to_live(make: Any, tensorrt: ModuleType) -> None:
    run = make(CHOOSE)
    run.bind(x=np.ones(4, bool))
    allocator = _allocator(tensorrt, lambda size: 0)
    assert run.context.set_output_allocator("y", allocator)
    assert not run.go()
    assert "gave no memory" in run.bench.log
    del allocator
    gc.collect()
    assert not run.go()
    assert "was destroyed" in run.bench.log


def test_lengths_from_the_device_make_a_shape_dependent(make: Any, tensorrt: ModuleType) -> None:
    """K by arithmetic on a shape is free; K from a sum over values waits for the device."""
    one = "o = Constant<value = int64[1] {1}>() "
    free = graph("float[s] x => float[k] y", one + "n = Shape(x) k = Sub(n, o) y, i = TopK(x, k)")
    run = make(free, {"x": ((2,), (3,), (8,))})
    run.context.set_input_shape("x", (3,))
    assert tuple(run.context.get_tensor_shape("y")) == (2,)
    summed = one + "t = ArgMax<axis = 0>(x) k = Add(t, o) y, i = TopK(x, k)"
    run = make(graph("float[s] x => float[k] y", summed), {"x": ((2,), (3,), (8,))})
    run.context.set_input_shape("x", (3,))
    assert tuple(run.context.get_tensor_shape("y")) == (-1,)


def test_capture_after_a_plain_run(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=np.zeros_like(X))
    assert run.capture() is None
    assert "first run" in run.bench.log
    assert run.go()
    captured = run.capture()
    assert captured is not None
    run.bench.cudart.cudaStreamSynchronize(run.stream)
    again = -X
    run.bench.cudart.enqueue(
        run.stream, lambda: _overwrite(run.bound["x"], again)
    )  # a graph reads the memory as it is when it is launched
    run.bench.cudart.cudaGraphLaunch(captured, run.stream)
    assert (run.result("y", X) == np.maximum(again, 0)).all()
    run.bench.cudart.cudaGraphExecDestroy(captured)
    run.bind(y=np.zeros_like(X))
    assert run.capture() is None, "another address: it has to run plainly once more"


def _overwrite(address: int, value: np.ndarray) -> None:
    import ctypes

    ctypes.memmove(address, value.ctypes.data, value.nbytes)


def test_no_capture_of_what_waits_for_the_device(make: Any, tensorrt: ModuleType) -> None:
    run = make(CHOOSE)
    run.bind(x=np.ones(4, bool), y=np.zeros(8, np.int64))
    allocator = _allocator(tensorrt, lambda size: run.bound["y"])
    run.context.set_output_allocator("y", allocator)
    assert run.go()
    assert run.capture() is None
    assert "not permitted when stream is capturing" in run.bench.log


def test_scratch_memory_of_the_user(make: Any, tensorrt: ModuleType) -> None:
    run = make(ROWS, TO_4, strategy=tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)
    assert not run.go()
    assert "set_device_memory" in run.bench.log
    size = run.engine.get_device_memory_size_for_profile_v2(0)
    assert size == run.engine.device_memory_size_v2 > 0
    run.bind_scratch = run.bench.device(np.zeros(size, np.uint8))
    run.context.set_device_memory(run.bind_scratch, size - 1)
    assert not run.go()
    run.context.set_device_memory(run.bind_scratch, size)
    assert run.go()


def test_too_little_memory_gives_no_context(tensorrt: ModuleType, cudart: Cudart) -> None:
    bench = Bench(tensorrt, cudart, ROWS)
    bench.profile(x=((1, 4), (2, 4), (1 << 28, 4)))
    engine = bench.engine()
    assert engine.create_execution_context() is None
    assert "out of memory" in bench.log


def test_host_memory_is_no_device_memory(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.context.set_input_shape("x", X.shape)
    run.bind(y=X)
    address = int(run.bench.cudart.cudaHostAlloc(X.nbytes, 0)[1])
    run.context.set_tensor_address("x", address)
    with pytest.raises(Misuse, match="host memory"):
        run.go()
    run.bench.cudart.cudaFreeHost(address)
    run.bind(x=X[:1])  # 16 bytes for 32
    with pytest.raises(Misuse, match="beyond a block"):
        run.go()


def test_freed_memory_is_found_when_the_work_is_its_turn(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)
    assert run.go()
    captured = run.capture()
    run.bench.free()
    run.bench.cudart.cudaGraphLaunch(captured, run.stream)
    with pytest.raises(Misuse, match="no living block"):
        run.bench.cudart.cudaStreamSynchronize(run.stream)
    run.bench.cudart.cudaGraphExecDestroy(captured)


def test_shape_values_are_read_on_the_host(tensorrt: ModuleType, cudart: Cudart) -> None:
    bench = Bench(tensorrt, cudart, graph("float[1] x, int64[1] n => float[m] y", "y = Expand(x, n)"))
    profile = bench.builder.create_optimization_profile()
    profile.set_shape_input("n", (1,), (4,), (8,))
    bench.config.add_optimization_profile(profile)
    run = Ready(bench)
    count = np.array([3], np.int64)
    run.bind(x=np.ones(1, np.float32), y=np.zeros(8, np.float32))
    assert run.context.infer_shapes() == ["n"], "its address is what lacks"
    assert run.context.set_tensor_address("n", count.ctypes.data)
    assert run.context.infer_shapes() == []
    assert tuple(run.context.get_tensor_shape("y")) == (3,)
    assert run.go()
    assert run.result("y", np.zeros(8, np.float32)).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    count[0] = 9
    with pytest.raises(RuntimeError, match="outside the profile"):
        run.context.infer_shapes()
    run.close()


def test_weights_are_streamed_as_said_before_the_first_context(make: Any, tensorrt: ModuleType) -> None:
    model = graph("float[2,4] x, float[4,4] w => float[2,4] y", "y = MatMul(x, w)")
    plain = make(model)
    assert plain.engine.streamable_weights_size == 0
    run = make(_with_weights(model), flag=tensorrt.BuilderFlag.WEIGHT_STREAMING)
    total = run.engine.streamable_weights_size
    assert run.engine.weight_streaming_budget_v2 == total > 0
    run.engine.weight_streaming_budget_v2 = 0
    assert run.engine.weight_streaming_budget_v2 == total, "a context exists"
    run.context = None
    gc.collect()
    run.engine.weight_streaming_budget_v2 = 0
    assert run.engine.weight_streaming_budget_v2 == 0
    run.context = run.engine.create_execution_context()
    run.bind(x=X, y=X)
    assert run.go()
    assert run.capture() is None, "an engine that streams weights synchronises"


def _with_weights(model: bytes) -> bytes:
    import onnx

    made = onnx.load_model_from_string(model)
    del made.graph.input[1]
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    data: bytes = made.SerializeToString()
    return data


def test_a_context_dies_before_its_engine(make: Any) -> None:
    run = make(ROWS, TO_4)
    assert engines.violations == []
    run.engine = None
    gc.collect()
    assert engines.violations == ["an engine was destroyed before 1 of its contexts"]
    assert not run.context.execute_async_v3(run.stream)
    assert "the engine of this context was destroyed" in run.bench.log


def test_a_context_belongs_to_one_stream_at_a_time(make: Any) -> None:
    run = make(ROWS, TO_4, TO_4)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)
    other = run.bench.stream()
    assert run.go()
    assert not run.context.execute_async_v3(other)
    assert "synchronise it first" in run.bench.log
    run.bench.cudart.cudaStreamSynchronize(run.stream)
    assert run.context.execute_async_v3(other)
    run.bench.cudart.cudaStreamSynchronize(other)

    assert run.context.set_optimization_profile_async(1, other)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)  # copies and waits on the default stream only
    assert not run.go()
    run.bench.cudart.cudaStreamSynchronize(other)
    assert run.go()
    run.bench.cudart.cudaStreamDestroy(other)


@pytest.mark.parametrize(("rows", "fine"), [(3840, True), (3841, False)])
def test_too_large_a_k_fails_while_it_runs(make: Any, rows: int, fine: bool) -> None:
    text = graph("float[s] x => float[s] y", "n = Shape(x) y, i = TopK(x, n)")
    run = make(text, {"x": ((1,), (1,), (5000,))})
    run.context.set_input_shape("x", (rows,))
    values = np.arange(rows, dtype=np.float32)
    run.bind(x=values, y=values)
    assert run.go()
    if fine:
        assert (run.result("y", values) == values[::-1]).all()
    else:
        with pytest.raises(RuntimeError, match="K = 3841"):
            run.bench.cudart.cudaStreamSynchronize(run.stream)
