"""One context over small graphs: what crosses between host and GPU, what stays, and what is recorded."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles.cudart import Cudart
from onnx import TensorProto, helper

from foveate.runtime.arrays import Array
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError
from foveate.runtime.tensorrt.context import Context
from foveate.runtime.tensorrt.engine import Engine
from foveate.runtime.tensorrt.graphs import Graphs
from foveate.runtime.tensorrt.library import open_library
from foveate.runtime.tensorrt.staging import Lane

Run = Callable[..., dict[str, Any]]
MOST = 64  # rows that the graphs take
# Twice a number is exact; sums are compared with numpy's, which adds float32 in another order.


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] | None = None) -> Any:
    made = helper.make_graph(nodes, "graph", inputs, outputs, constants or [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def value(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def doubling() -> Any:
    """`hidden [b, s, 4]` twice as `hidden_out`, which stays, and its sum `total [b, 4]` for the host."""
    return graph(
        [
            helper.make_node("Add", ["hidden", "hidden"], ["hidden_out"]),
            helper.make_node("ReduceSum", ["hidden", "axes"], ["total"], keepdims=0),
        ],
        [value("hidden", TensorProto.FLOAT, "b", "s", 4)],
        [
            value("hidden_out", TensorProto.FLOAT, "b", "s", 4),
            value("total", TensorProto.FLOAT, "b", 4),
        ],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )


def choosing() -> Any:
    """Of `x [n]` the positive ones, for the host as `chosen`, for the next graph as `features`."""
    return graph(
        [
            helper.make_node("Greater", ["x", "zero"], ["positive"]),
            helper.make_node("NonZero", ["positive"], ["places"]),
            helper.make_node("Reshape", ["places", "flat"], ["index"]),
            helper.make_node("Gather", ["x", "index"], ["chosen"], axis=0),
            helper.make_node("Add", ["chosen", "chosen"], ["features"]),
        ],
        [value("x", TensorProto.FLOAT, "n")],
        [value("chosen", TensorProto.FLOAT, "k"), value("features", TensorProto.FLOAT, "k")],
        [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        ],
    )


def stretching() -> Any:
    """`x [1]` as often as `times` says, which the engine reads on the host."""
    return graph(
        [helper.make_node("Expand", ["x", "times"], ["y"])],
        [value("x", TensorProto.FLOAT, 1), value("times", TensorProto.INT64, 1)],
        [value("y", TensorProto.FLOAT, "k")],
    )


def adding() -> Any:
    """`z = x + y`, all of them `[n]`."""
    ends = [value(name, TensorProto.FLOAT, "n") for name in "xyz"]
    return graph([helper.make_node("Add", ["x", "y"], ["z"])], ends[:2], ends[2:])


@pytest.fixture
def device(cudart: Cudart) -> Iterator[Device]:
    made = Device()
    yield made
    gc.collect()
    made.close()


@pytest.fixture
def make(device: Device, tensorrt: types.ModuleType, tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Contexts of graphs; closed in the end."""
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

    library, made = open_library(), []
    runtime = library.make_runtime(host_code=False)

    def context(model: Any, graphs: Graphs | None = None, **ranges: tuple[Any, Any]) -> Context:
        path = tmp_path / "graph.onnx"
        onnx.save(model, path)
        profile = Profile()
        for name, (least, most) in ranges.items():
            profile.add(name, min=least, opt=most, max=most)
        network = NetworkFromOnnxPath(str(path), strongly_typed=True)
        plan = tmp_path / "graph.plan"
        plan.write_bytes(bytes(EngineBytesFromNetwork(network, CreateConfig(profiles=[profile]))()))
        engine = Engine(library, runtime, plan, "graph", "foveate build BUNDLE")
        scratch = device.allocate((max(1, engine.scratch_bytes),), "uint8", zero=False)
        made.append((Context(engine, 0, Lane(device), scratch, graphs), engine))
        return made[-1][0]

    yield context
    for each, engine in made:
        each.close()
        engine.close()


def run(context: Context, **feeds: Array | DeviceArray) -> dict[str, Any]:
    shapes = {name: tuple(each.shape) for name, each in feeds.items()}
    if not context.is_set(shapes, ()):
        context.set(shapes, ())
    outputs = {name for name, tensor in context._tensors.items() if not tensor.is_input}
    return context.run(feeds, outputs)


def rows(*shape: int, seed: int = 0) -> Array:
    values: Array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values


@pytest.fixture
def doubled(make: Callable[..., Context]) -> Context:
    return make(doubling(), Graphs(), hidden=((1, 1, 4), (4, MOST, 4)))


def test_a_refused_shape_leaves_no_half_set_context(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run has the shapes of the one before, of which one input is set otherwise by now."""
    context = make(adding(), x=((1,), (8,)), y=((1,), (8,)))
    two, five = rows(2), rows(5)
    run(context, x=two, y=two)
    takes = context._context.set_input_shape
    with monkeypatch.context() as patch:
        patch.setattr(context._context, "set_input_shape", lambda name, to: name != "y" and takes(name, to))
        with pytest.raises(BackendError, match="take 'y' as"):
            run(context, x=five, y=five)
    np.testing.assert_array_equal(run(context, x=two, y=two)["z"], two + two)


# --- what stays and what crosses ----------------------------------------------------------------------------


def test_between_graphs_it_stays_on_the_gpu(doubled: Context) -> None:
    hidden = rows(2, 3, 4)
    out = run(doubled, hidden=hidden)
    assert isinstance(out["hidden_out"], DeviceArray)
    np.testing.assert_array_equal(np.asarray(out["hidden_out"]), 2 * hidden)
    np.testing.assert_allclose(out["total"], hidden.sum(axis=1), rtol=1e-5)


def test_what_is_on_the_gpu_is_read_where_it_is(doubled: Context, device: Device, cudart: Cudart) -> None:
    hidden = device.upload(rows(1, 3, 4))
    cudart.calls.clear()
    out = run(doubled, hidden=hidden)
    np.testing.assert_array_equal(np.asarray(out["hidden_out"]), 2 * np.asarray(hidden))
    # One copy, of the total, and two of this test's.
    assert cudart.calls.count("cudaMemcpyAsync") == 3


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param((slice(None), slice(1, 3)), id="with gaps"),
        pytest.param((slice(0, 1), slice(1, 3)), id="at an odd address"),
    ],
)
def test_views_that_an_engine_cannot_read_are_copied(doubled: Context, device: Device, cut: Any) -> None:
    whole = rows(2, 5, 4)
    out = run(doubled, hidden=device.upload(whole)[cut])
    np.testing.assert_array_equal(np.asarray(out["hidden_out"]), 2 * whole[cut])


def test_what_somebody_holds_is_not_written_over(doubled: Context) -> None:
    first = run(doubled, hidden=rows(1, 2, 4, seed=1))["hidden_out"]
    view = first[:, 1:]
    del first
    run(doubled, hidden=rows(1, 2, 4, seed=2))
    np.testing.assert_array_equal(np.asarray(view), 2 * rows(1, 2, 4, seed=1)[:, 1:])


def test_what_nobody_holds_is(doubled: Context) -> None:
    """So that addresses stay, and with them the recording of the next graph."""
    first = run(doubled, hidden=rows(1, 2, 4))["hidden_out"].address
    assert run(doubled, hidden=rows(1, 2, 4))["hidden_out"].address == first


def test_results_of_the_host_are_its_own(doubled: Context) -> None:
    first = run(doubled, hidden=rows(1, 2, 4, seed=1))["total"]
    kept = first.copy()
    run(doubled, hidden=rows(1, 2, 4, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_shapes_may_change_in_any_order(doubled: Context) -> None:
    for seed, shape in enumerate([(1, 1, 4), (4, MOST, 4), (2, 7, 4), (4, MOST, 4), (1, 1, 4)]):
        hidden = rows(*shape, seed=seed)
        out = run(doubled, hidden=hidden)
        np.testing.assert_array_equal(np.asarray(out["hidden_out"]), 2 * hidden)
        np.testing.assert_allclose(out["total"], hidden.sum(axis=1), rtol=1e-4, atol=1e-5)


def test_several_runs_without_a_pause_between_them(make: Callable[..., Context]) -> None:
    """Page-locked memory is not written while a copy out of it is still to come."""
    model = doubling()
    del model.graph.output[1], model.graph.node[1]  # nothing for the host: nobody waits
    context = make(model, hidden=((1, 1, 4), (1, MOST, 4)))
    outs = [run(context, hidden=rows(1, 3, 4, seed=seed))["hidden_out"] for seed in range(3)]
    for seed, out in enumerate(outs):
        np.testing.assert_array_equal(np.asarray(out), 2 * rows(1, 3, 4, seed=seed))


# --- recording ----------------------------------------------------------------------------------------------


def test_a_graph_is_recorded_when_nothing_has_changed(doubled: Context, cudart: Cudart) -> None:
    for step in range(4):
        hidden = rows(1, 1, 4, seed=step)
        out = run(doubled, hidden=hidden)
        np.testing.assert_allclose(out["total"], hidden.sum(axis=1), rtol=1e-5)
        del out
    assert cudart.calls.count("cudaStreamBeginCapture") == 1
    assert cudart.launches == 3


def test_another_shape_or_address_drops_it(doubled: Context, device: Device, cudart: Cudart) -> None:
    for _ in range(3):
        run(doubled, hidden=rows(1, 1, 4))
    assert cudart.launches == 2
    run(doubled, hidden=rows(2, 1, 4))
    assert cudart.launches == 2, "another shape"
    elsewhere = device.upload(rows(2, 1, 4))
    run(doubled, hidden=elsewhere)
    assert cudart.launches == 2, "another address"
    run(doubled, hidden=elsewhere)
    assert cudart.launches == 3


def test_after_one_failure_nothing_is_recorded_any_more(doubled: Context, cudart: Cudart) -> None:
    graphs = doubled._graphs
    assert graphs is not None
    graphs.on, recorded = False, cudart.calls.count("cudaStreamBeginCapture")
    for _ in range(3):
        run(doubled, hidden=rows(1, 1, 4))
    assert cudart.calls.count("cudaStreamBeginCapture") == recorded


# --- lengths that only the engine knows ---------------------------------------------------------------------


@pytest.mark.parametrize("positive", [0, 1, 9, MOST])
def test_outputs_of_unknown_length(make: Callable[..., Context], positive: int) -> None:
    context = make(choosing(), x=((1,), (MOST,)))
    x = -np.abs(rows(MOST))
    x[:positive] *= -1
    np.random.default_rng(1).shuffle(x)
    for _ in range(2):
        out = run(context, x=x)
        np.testing.assert_array_equal(out["chosen"], x[x > 0])
        assert isinstance(out["features"], DeviceArray)
        np.testing.assert_array_equal(np.asarray(out["features"]), 2 * x[x > 0])


def test_they_are_never_recorded(make: Callable[..., Context], cudart: Cudart) -> None:
    graphs = Graphs()
    context = make(choosing(), graphs, x=((1,), (MOST,)))
    for _ in range(4):
        run(context, x=rows(8))
    assert cudart.calls.count("cudaStreamBeginCapture") == 0
    assert graphs.on, "that is no failure"


def test_what_came_before_is_kept(make: Callable[..., Context]) -> None:
    context = make(choosing(), x=((1,), (MOST,)))
    first = run(context, x=np.arange(8, dtype=np.float32))["features"]
    run(context, x=np.ones(MOST, np.float32))
    np.testing.assert_array_equal(np.asarray(first), 2 * np.arange(1, 8))


def test_numbers_that_are_read_on_the_host(make: Callable[..., Context]) -> None:
    context = make(stretching(), Graphs(), times=((1,), (MOST,)))
    assert context._tensors["times"].on_host
    for times in (3, 17, 17, 17, 3):
        out = run(context, x=np.full(1, 5, np.float32), times=np.array([times]))
        np.testing.assert_array_equal(out["y"], np.full(times, 5, np.float32))


# --- types ------------------------------------------------------------------------------------------------


def half() -> Any:
    """`x` of bfloat16, and `ids` of int32, as engines have them and the host has not."""
    return graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["wide", "ids"], ["rows"], axis=0),
            helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [value("x", TensorProto.BFLOAT16, "n"), value("ids", TensorProto.INT32, "k")],
        [value("y", TensorProto.BFLOAT16, "k")],
    )


def test_types_are_those_of_the_engine(make: Callable[..., Context]) -> None:
    """bfloat16 crosses as its bits."""
    context = make(half(), x=((1,), (MOST,)), ids=((1,), (MOST,)))
    assert {name: tensor.dtype for name, tensor in context._tensors.items()} == {
        "x": "bfloat16",
        "ids": "int32",
        "y": "bfloat16",
    }
    bits = (rows(5).view(np.uint32) >> 16).astype(np.uint16)
    out = run(context, x=bits, ids=np.array([4, 0], np.int32))
    np.testing.assert_array_equal(out["y"], bits[[4, 0]])
    assert out["y"].dtype == np.uint16


# --- failures -----------------------------------------------------------------------------------------------


def test_a_shape_that_the_profile_does_not_hold(doubled: Context) -> None:
    with pytest.raises(BackendError, match=r"did not take 'hidden' as \[1, 65, 4\].*profile 0"):
        run(doubled, hidden=rows(1, MOST + 1, 4))


def test_inputs_that_contradict_one_another(make: Callable[..., Context]) -> None:
    model = graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        [value("a", TensorProto.FLOAT, "n"), value("b", TensorProto.FLOAT, "n")],
        [value("c", TensorProto.FLOAT, "n")],
    )
    context = make(model, a=((1,), (MOST,)), b=((1,), (MOST,)))
    np.testing.assert_array_equal(run(context, a=rows(3), b=-rows(3))["c"], np.zeros(3))
    with pytest.raises(BackendError, match=r"fed nonsense.*axis n"):
        run(context, a=rows(3), b=rows(4))


def test_a_run_that_fails_says_why(doubled: Context, device: Device) -> None:
    doubled._context.set_device_memory(0, 0)
    with pytest.raises(BackendError, match=r"did not run in stage 'graph'.*set_device_memory"):
        run(doubled, hidden=rows(1, 2, 4))
