"""Running on the double: shapes, addresses, profiles, aliases."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from doubles.trt_graphs import graph

ROWS = graph("float[b,4] x => float[b,4] y", "y = Relu(x)")
X = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)


TO_4 = {"x": ((1, 4), (2, 4), (4, 4))}
FROM_8 = {"x": ((8, 4), (8, 4), (9, 4))}


def test_it_computes(make: Any) -> None:
    run = make(ROWS, TO_4)
    assert run.context.infer_shapes() == ["x"]
    assert tuple(run.context.get_tensor_shape("y")) == (-1, 4)
    assert run.context.get_max_output_size("y") == -1
    assert run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)
    assert run.context.infer_shapes() == []
    assert tuple(run.context.get_tensor_shape("y")) == X.shape
    assert run.context.get_max_output_size("y") == X.nbytes
    assert run.go()
    assert (run.result("y", X) == np.maximum(X, 0)).all()


def test_results_are_there_after_a_synchronisation_only(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=np.zeros_like(X))
    assert run.go()
    assert not (run.bench.read(run.bound["y"], X) == np.maximum(X, 0)).all()
    assert (run.result("y", X) == np.maximum(X, 0)).all()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x", (5, 4), "does not satisfy"),
        ("x", (0, 4), "does not satisfy"),
        ("x", (2, 5), "wants (-1, 4)"),
        ("x", (2,), "wants (-1, 4)"),
        ("y", (2, 4), "not an input"),
        ("nobody", (2, 4), "not an input"),
    ],
)
def test_shapes_are_refused(make: Any, name: str, shape: Any, words: str) -> None:
    run = make(ROWS, TO_4)
    assert run.context.set_input_shape(name, shape) is False
    assert words in run.bench.log


def test_the_shape_of_a_static_input_cannot_be_set(make: Any) -> None:
    run = make(graph("float[2,4] x => float[2,4] y", "y = Relu(x)"))
    assert not run.context.set_input_shape("x", (2, 4))
    assert "static shape" in run.bench.log
    run.bind(x=X, y=X)
    assert run.go()


def test_nothing_runs_without_shapes_and_addresses(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.bind(x=X, y=X)
    assert not run.go()
    assert "not specified: x" in run.bench.log
    other = make(ROWS, TO_4)
    other.context.set_input_shape("x", X.shape)
    other.bind(x=X)
    assert not other.go()
    assert "no address for y" in other.bench.log
    assert not other.context.set_tensor_address("nobody", 256)


def test_addresses_are_aligned(make: Any) -> None:
    run = make(ROWS, TO_4)
    run.context.set_input_shape("x", (1, 4))
    run.bind(x=X, y=X)
    assert run.context.set_tensor_address("x", run.bound["x"] + 16)
    assert not run.go()
    assert "not aligned" in run.bench.log


def test_another_profile_clears_shapes_and_addresses(make: Any) -> None:
    run = make(ROWS, TO_4, FROM_8)
    run.context.set_input_shape("x", X.shape)
    run.bind(x=X, y=X)
    assert run.go()
    assert not run.context.set_optimization_profile_async(2, run.stream)
    assert run.context.set_optimization_profile_async(1, run.stream)
    assert run.context.active_optimization_profile == 1
    assert run.context.infer_shapes() == ["x"]
    assert not run.go()
    assert not run.context.set_input_shape("x", X.shape), "2 rows are the first profile's"
    assert run.context.set_input_shape("x", (8, 4))
    assert not run.go()
    assert "no address" in run.bench.log
    assert [tuple(shape) for shape in run.engine.get_tensor_profile_shape("x", 1)] == list(FROM_8["x"])


def test_equal_names_are_equal_lengths(make: Any) -> None:
    model = graph("float[b,4] x, float[b,4] z => float[b,4] y", "y = Add(x, z)")
    run = make(model, {"x": TO_4["x"], "z": TO_4["x"]})
    run.context.set_input_shape("x", (2, 4))
    run.context.set_input_shape("z", (3, 4))
    with pytest.raises(RuntimeError, match="axis b"):
        run.context.infer_shapes()
    run.bind(x=X, z=X, y=X)
    assert not run.go()


CACHE = graph(
    "float[1,1,4,2] c, float[1,1,n,2] u, int32[1] w => float[1,1,4,2] d",
    "d = trt.TRT_KVCacheUpdate(c, u, w)",
)
NEW = {"u": ((1, 1, 1, 2), (1, 1, 1, 2), (1, 1, 4, 2))}


def test_a_cache_is_written_where_it_lies(make: Any) -> None:
    run = make(CACHE, NEW)
    assert run.engine.get_aliased_input_tensor("d") == "c"
    assert run.engine.get_aliased_input_tensor("c") is None
    cache = np.zeros((1, 1, 4, 2), np.float32)
    run.context.set_input_shape("u", (1, 1, 2, 2))
    run.bind(c=cache, u=np.ones((1, 1, 2, 2), np.float32), w=np.array([3], np.int32), d=cache)
    assert not run.go()
    assert "must have its address" in run.bench.log
    run.context.set_tensor_address("d", run.bound["c"])
    assert run.go()
    # The second of two rows lies beyond the last slot: dropped without a word.
    assert run.result("c", cache)[0, 0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]


def test_no_allocator_for_an_aliased_output(make: Any, tensorrt: ModuleType) -> None:
    run = make(CACHE, NEW)
    allocator = tensorrt.IOutputAllocator()
    assert not run.context.set_output_allocator("d", allocator)
    assert not run.context.set_output_allocator("c", allocator)
    assert "aliased" in run.bench.log
