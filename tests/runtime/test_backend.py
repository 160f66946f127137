"""The ONNX Runtime backend on graphs built by hand: names, shapes, memory in place, changing output sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.runtime.backends.onnxruntime import Backend, Runner, cpu_flags, saturates
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


def test_a_profile_has_every_run(tmp_path: Path) -> None:
    stage = Stage(file="add.onnx", inputs=(spec("x", ("n",)),), outputs=(spec("y", ("n",)),))
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], name="twice")]
    path = save(tmp_path / "add.onnx", nodes, stage)
    runner = Backend(1, profile=tmp_path / "traces").open(path, "decoder", stage)
    for size in (1, 2, 3):
        runner.run({"x": np.ones(size, np.float32)})
    trace = runner.end_profile()
    assert trace.parent == tmp_path / "traces"
    assert trace.name.startswith("decoder")
    events = json.loads(trace.read_text(encoding="utf-8"))
    assert sum(event["name"] == "twice_kernel_time" for event in events) == 3
    with pytest.raises(BackendError, match="'decoder' is not being profiled"):
        runner.end_profile()
    with pytest.raises(BackendError, match="not being profiled"):
        Backend(1).open(path, "decoder", stage).end_profile()


def test_processors_without_vnni_are_told_by_their_flags(tmp_path: Path) -> None:
    """Haswell to Skylake have AVX2 alone, Cascade Lake and Alder Lake have VNNI, ARM neither."""
    for name, text, wanted in (
        ("skylake", "processor: 0\nflags\t\t: fpu avx avx2 avx512f\nbugs\t: mds\n", True),
        ("cascade", "flags\t\t: fpu avx avx2 avx512f avx512_vnni\n", False),
        ("alder", "flags\t\t: fpu avx avx2 avx_vnni\n", False),
        ("arm", "Features\t: fp asimd asimddp\n", False),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert saturates(cpu_flags(tmp_path / name)) is wanted
    assert cpu_flags(tmp_path / "none") == frozenset()


# Not by getrusage: its peak starts at that of the process which forked this one.
PEAK = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.manifest import Stage, TensorSpec

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

x, y = (TensorSpec(name=name, dtype="float32", shape=("n", 1024)) for name in "xy")
before = peak()
runner = Backend(1).open(Path(sys.argv[1]), "decoder", Stage(file="g.onnx", inputs=(x,), outputs=(y,)))
for rows in (64, 1):
    runner.run({"x": np.ones((rows, 1024), np.float32)})
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_one_copy_of_the_weights(tmp_path: Path) -> None:
    """Weights are packed once, tensor by tensor, and the mapped ones are let go: peak memory of a process."""
    width, layers = 1024, 16
    one = width * width * 4
    graph = _weighty_graph(tmp_path, width, layers)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(graph)], capture_output=True, text=True, check=True
    )
    # The weights, one tensor in both forms while it is packed, and 16 MB of activations and code.
    assert layers * one < int(done.stdout) < (layers + 1) * one + (16 << 20)


def _weighty_graph(folder: Path, width: int, layers: int) -> Path:
    """So many different matrices one after another, in a file of their own, on page boundaries."""
    rng = np.random.default_rng(0)
    nodes, weights, size = [], [], width * width * 4
    with (folder / "weights.bin").open("wb") as file:
        for i in range(layers):
            file.write(rng.standard_normal((width, width), dtype=np.float32).tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=(width, width))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", i * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes.append(
                helper.make_node(
                    "MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}" if i + 1 < layers else "y"]
                )
            )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"
