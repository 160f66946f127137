"""The ONNX Runtime backend on graphs built by hand: names, shapes, memory in place, changing output sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.runtime.backends.onnxruntime import Backend, Runner
from foveate.runtime.errors import BackendError
from foveate.runtime.manifest import Stage, TensorSpec


def save(path: Path, nodes: list[onnx.NodeProto], stage: Stage) -> Path:
    """A graph with the inputs and outputs of the stage."""
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    values = [
        [helper.make_tensor_value_info(s.name, types[s.dtype], s.shape) for s in specs]
        for specs in (stage.inputs, stage.outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "test", *values), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def spec(name: str, shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]


@pytest.fixture
def nonzero(tmp_path: Path) -> Runner:
    """`index` has as many columns as `x` has non-zero entries; `twice` is 2 x."""
    stage = Stage(
        file="nonzero.onnx",
        inputs=(spec("x", ("n", 2)),),
        outputs=(spec("index", (2, "k"), "int64"), spec("twice", ("n", 2))),
    )
    nodes = [helper.make_node("NonZero", ["x"], ["index"]), helper.make_node("Add", ["x", "x"], ["twice"])]
    return Backend(1).open(save(tmp_path / "nonzero.onnx", nodes, stage), "nonzero", stage)


@pytest.fixture
def counter(tmp_path: Path) -> Runner:
    """`present` is `past` + `step`; `total` is the sum of `step`."""
    stage = Stage(
        file="counter.onnx",
        inputs=(spec("step", ("n",)), spec("past", ("n",))),
        outputs=(spec("total", ()), spec("present", ("n",))),
    )
    nodes = [
        helper.make_node("ReduceSum", ["step"], ["total"], keepdims=0),
        helper.make_node("Add", ["past", "step"], ["present"]),
    ]
    return Backend(1).open(save(tmp_path / "counter.onnx", nodes, stage), "counter", stage)


def test_output_sizes_may_change_from_run_to_run(nonzero: Runner) -> None:
    for count in (3, 1, 4, 0, 2):
        x = np.zeros((2, 2), np.float32)
        x.flat[:count] = 1
        out = nonzero.run({"x": x})
        assert out["index"].shape == (2, count)
        np.testing.assert_array_equal(out["twice"], 2 * x)


def test_results_stay_when_the_next_run_comes(nonzero: Runner) -> None:
    first = nonzero.run({"x": np.eye(2, dtype=np.float32)})
    nonzero.run({"x": np.zeros((2, 2), np.float32)})
    np.testing.assert_array_equal(first["index"], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(first["twice"], 2 * np.eye(2))


def test_empty_arrays(nonzero: Runner) -> None:
    assert nonzero.run({"x": np.zeros((0, 2), np.float32)})["index"].shape == (2, 0)


def test_bound_memory_is_read_and_written_in_place(counter: Runner) -> None:
    memory = Backend().allocate((3,), "float32")
    other = Backend().allocate((2,), "float32")
    bindings, others = {"past": memory, "present": memory}, {"past": other, "present": other}
    step = np.array([1, 2, 3], np.float32)
    for _ in range(3):
        assert counter.run({"step": step}, bindings) == {"total": 6}
    assert memory.tolist() == [3, 6, 9]
    # Another sequence in between, of another size, must not disturb the first.
    assert counter.run({"step": step[:2]}, others) == {"total": 3}
    assert counter.run({"step": step}, bindings) == {"total": 6}
    assert (memory.tolist(), other.tolist()) == ([4, 8, 12], [1, 2])
    # Without bindings, the same names are ordinary inputs and outputs.
    out = counter.run({"step": step, "past": step})
    assert out["present"].tolist() == [2, 4, 6]
    assert memory.tolist() == [4, 8, 12]


def test_feeds_are_converted_and_surplus_ones_ignored(counter: Runner) -> None:
    step = np.arange(6, dtype=np.float64)[::2]  # wrong dtype, not contiguous
    out = counter.run({"step": step, "past": np.zeros(3, np.float32), "surplus": step})
    assert out["present"].tolist() == [0, 2, 4]


def test_wrong_feeds(nonzero: Runner, counter: Runner) -> None:
    with pytest.raises(BackendError, match="'nonzero' lacks input 'x'"):
        nonzero.run({})
    with pytest.raises(BackendError, match=r"input 'x' is misshapen.*\[2, 3\].*'n', 2"):
        nonzero.run({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(BackendError, match="misshapen"):
        nonzero.run({"x": np.zeros(2, np.float32)})
    with pytest.raises(BackendError, match=r"'counter' failed.*step \[3\], past \[2\]"):
        counter.run({"step": np.zeros(3, np.float32), "past": np.zeros(2, np.float32)})


def test_unloadable_graph(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    stage = Stage(file="bad.onnx", inputs=(), outputs=())
    with pytest.raises(BackendError, match="stage 'vision' cannot be loaded"):
        Backend().open(tmp_path / "bad.onnx", "vision", stage)
