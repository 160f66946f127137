"""What makes a build on the double fail, and what a plan, a timing cache and a monitor are held to."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import pytest

from doubles.cudart import Cudart
from doubles.tensorrt import device
from doubles.tensorrt.expand import NotModelledError
from doubles.tensorrt.install import install
from doubles.trt_graphs import Bench, graph

ROWS = graph("float[b,4] x => float[b,4] y", "y = Relu(x)")
HALVES = "float16[1,2,s,16] q, float16[1,2,t,16] k => float16[1,2,s,16] y"
CACHE = "float[1,2,{slots},4] c, float[1,2,n,4] u, int64[1] w => float[1,2,{slots},4] {out}"


@pytest.fixture
def bench(tensorrt: ModuleType, cudart: Cudart) -> Any:
    return lambda model: Bench(tensorrt, cudart, model)


def _shapes(name: str, *sizes: int) -> dict[str, Any]:
    return {name: ((sizes,) * 3)}


def test_a_good_graph_builds(bench: Any) -> None:
    made = bench(ROWS)
    assert made.profile(x=((1, 4), (2, 4), (3, 4))) == 0
    plan = made.build()
    assert plan is not None
    assert plan.nbytes == len(bytes(plan))
    with pytest.raises(TypeError):
        len(plan)  # a buffer without a length, as in the bindings
    with pytest.raises(TypeError):
        plan[0]


def test_a_dynamic_input_needs_a_profile(bench: Any) -> None:
    made = bench(ROWS)
    assert made.build() is None
    assert "no optimization profile" in made.log


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": ((1, 4),) * 3}, "no shapes for the dynamic input x"),
        ({"x": ((1,),) * 3}, "rank 2"),
        ({"x": ((1, 5),) * 3}, "in the network"),
    ],
)
def test_a_profile_has_to_fit_the_network(bench: Any, shapes: Any, words: str) -> None:
    made = bench(ROWS)
    made.profile(**shapes)
    assert made.build() is None
    assert words in made.log


def test_a_profile_has_to_be_in_order(bench: Any, tensorrt: ModuleType) -> None:
    made = bench(ROWS)
    with pytest.raises(ValueError, match="min <= opt <= max"):
        made.profile(x=((3, 4), (2, 4), (1, 4)))
    with pytest.raises(ValueError, match="negative"):
        made.profile(x=((-1, 4),) * 3)
    empty = made.builder.create_optimization_profile()
    assert not empty
    assert made.config.add_optimization_profile(empty) == -1


def test_a_shape_tensor_needs_values_and_no_shapes(bench: Any) -> None:
    text = graph("float[4] x, int64[1] n => float[m] y", "y = Expand(x, n)")
    made = bench(text)
    assert made.network.get_input(1).is_shape_tensor
    made.profile(n=((1,),) * 3)
    assert made.build() is None
    assert "no values for the shape tensor n" in made.log
    again = bench(text)
    profile = again.builder.create_optimization_profile()
    profile.set_shape_input("n", (4,), (4,), (8,))
    again.config.add_optimization_profile(profile)
    engine = again.engine()
    assert engine.get_tensor_location("n") == again.trt.TensorLocation.HOST
    assert engine.is_shape_inference_io("n")
    assert engine.get_tensor_profile_values(0, "n") == [[4], [4], [8]]
    with pytest.raises(TypeError):
        engine.get_tensor_profile_values("n", 0)  # the bindings' names of the arguments lie


def test_a_shape_cannot_come_from_a_large_input(bench: Any) -> None:
    body = "i = Constant<value = int64[1] {0}>() a = Constant<value = int64[1] {0}>() "
    made = bench(graph("float[4] x, int64[2,2] n => float[m] y", body + "r = Reshape(n, i) y = Expand(x, r)"))
    made.profile(n=((2, 2),) * 3)
    assert made.build() is None
    assert "0 or 1 dimensions" in made.log


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        (
            CACHE.format(slots=8, out="y"),
            "z = TensorScatter(c, u, w) y = Relu(z)",
            "must be a network output",
        ),
        (CACHE.format(slots=8, out="y"), "d = Relu(c) y = TensorScatter(d, u, w)", "must be a network input"),
        (CACHE.format(slots="s", out="y"), "y = TensorScatter(c, u, w)", "must be static"),
        (CACHE.format(slots=8, out="y"), "y = TensorScatter(c, u, w)", None),
    ],
)
def test_a_cache_is_input_and_output_with_a_fixed_length(
    bench: Any, signature: str, body: str, words: str | None
) -> None:
    made = bench(graph(signature, body))
    assert made.parsed
    made.profile(u=((1, 2, 1, 4), (1, 2, 1, 4), (1, 2, 4, 4)), c=((1, 2, 8, 4),) * 3)
    plan = made.build()
    assert (plan is not None) == (words is None)
    if words:
        assert words in made.log


@pytest.mark.parametrize(
    ("kind", "head", "fused"), [("float16", 16, True), ("float16", 12, False), ("float", 16, False)]
)
def test_attention_without_a_kernel_has_to_be_decomposable(
    bench: Any, kind: str, head: int, fused: bool
) -> None:
    shape = f"{kind}[1,2,3,{head}]"
    text = graph(f"{shape} q => {shape} y", "y = Attention(q, q, q)")
    made = bench(text)
    assert (made.build() is not None) == fused
    assert ("dedicated kernel" in made.log) != fused
    again = bench(text)
    layer = again.network.get_layer(0)
    assert not hasattr(layer, "attention")  # a plain ILayer, until it is told what it is
    assert layer.type == again.trt.LayerType.ATTENTION_INPUT
    layer.__class__ = again.trt.IAttentionInputLayer
    assert layer.attention.decomposable is False
    layer.attention.decomposable = True
    assert again.build() is not None


def test_an_attribute_makes_it_decomposable_too(bench: Any) -> None:
    shape = "float[1,2,3,16]"
    assert bench(
        graph(f"{shape} q => {shape} y", "y = trt.TRT_Attention<TRT_decomposable=1>(q, q, q)")
    ).build()


def test_plans_are_for_their_version(
    bench: Any, monkeypatch: pytest.MonkeyPatch, cudart: Cudart, tensorrt: ModuleType
) -> None:
    made = bench(graph("float[4] x => float[4] y", "y = Relu(x)"))
    plain = bytes(made.build())
    made.config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    compatible = bytes(made.build())
    other = Bench(install(monkeypatch, "10.16.1.11"), cudart, ROWS)
    assert other.runtime.deserialize_cuda_engine(plain) is None
    assert "not compatible with this version" in other.log
    assert other.runtime.deserialize_cuda_engine(compatible) is None
    assert "engine_host_code_allowed" in other.log
    other.runtime.engine_host_code_allowed = True
    assert other.runtime.deserialize_cuda_engine(compatible) is not None


@pytest.mark.parametrize(
    ("level", "loads"), [("NONE", ()), ("AMPERE_PLUS", ((8, 6),)), ("SAME_COMPUTE_CAPABILITY", ())]
)
def test_plans_are_for_their_gpu(bench: Any, tensorrt: ModuleType, level: str, loads: Any) -> None:
    made = bench(graph("float[4] x => float[4] y", "y = Relu(x)"))
    made.config.hardware_compatibility_level = getattr(tensorrt.HardwareCompatibilityLevel, level)
    plan = bytes(made.build())
    for capability in ((9, 0), (8, 6), (7, 5)):
        device.set_capability(capability)
        loaded = made.runtime.deserialize_cuda_engine(plan)
        assert (loaded is not None) == (capability == (9, 0) or capability in loads), (level, capability)
    assert "incompatible device" in made.log


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_plan_is_refused(bench: Any, cut: int) -> None:
    made = bench(graph("float[4] x => float[4] y", "y = Relu(x)"))
    plan = bytes(made.build())
    assert made.runtime.deserialize_cuda_engine(plan[:cut]) is None
    changed = bytearray(plan)
    changed[-40] ^= 1
    assert made.runtime.deserialize_cuda_engine(changed) is None
    assert made.log.lines


def test_timings_are_kept_and_checked(bench: Any, tensorrt: ModuleType) -> None:
    text = graph("float[4] x => float[4] y", "y = Relu(x)")
    made = bench(text)
    cache = made.config.create_timing_cache(b"")
    assert made.config.set_timing_cache(cache, ignore_mismatch=False)
    assert made.build() is not None
    kept = bytes(made.config.get_timing_cache().serialize())

    strict = bench(text)
    strict.config.set_flag(tensorrt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    strict.config.set_timing_cache(strict.config.create_timing_cache(b""), ignore_mismatch=False)
    assert strict.build() is None
    strict.config.set_timing_cache(strict.config.create_timing_cache(kept), ignore_mismatch=False)
    assert strict.build() is not None

    device.set_capability((8, 0))
    other = bench(text).config
    assert not other.set_timing_cache(other.create_timing_cache(kept), ignore_mismatch=False)
    assert other.set_timing_cache(other.create_timing_cache(kept), ignore_mismatch=True)
    assert other.create_timing_cache(b"rubbish") is None


def test_the_monitor_is_called_from_several_threads_and_can_stop(bench: Any, tensorrt: ModuleType) -> None:
    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, go: bool) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.go, self.threads = go, set[int]()
            self.open, self.seen = list[str](), list[str]()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            assert num_steps > 0
            assert parent_phase in (None, *self.open)
            self.threads.add(threading.get_ident())
            self.open.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.seen.append(phase_name)
            return self.go

        def phase_finish(self, phase_name: str) -> None:
            self.open.remove(phase_name)

    made = bench(graph("float[4] x => float[4] y", "y = Relu(x)"))
    made.config.progress_monitor = monitor = Monitor(go=True)
    assert made.build() is not None
    assert len(monitor.threads) == 2
    assert monitor.open == []
    assert len(set(monitor.seen)) == 2
    made.config.progress_monitor = stopping = Monitor(go=False)
    assert made.build() is None
    assert "cancelled" in made.log
    assert stopping.open == []


def test_a_logger_and_an_allocator_need_their_bases_constructor(tensorrt: ModuleType) -> None:
    class Logger(tensorrt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="__init__"):
        tensorrt.Builder(Logger())
    with pytest.raises(TypeError):
        tensorrt.Builder(None)


def test_dims_are_no_tuples(tensorrt: ModuleType) -> None:
    dims = tensorrt.Dims((1, -1))
    assert dims == (1, -1)
    assert tuple(dims) == (1, -1)
    with pytest.raises(TypeError):
        hash(dims)
    with pytest.raises(TypeError):
        dims == tensorrt.Dims((1, -1))  # noqa: B015


def test_the_older_line_lacks_what_is_new(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> None:
    older = install(monkeypatch, "10.16.1.11")
    assert not hasattr(older, "CausalMaskKind")
    assert not hasattr(older.IAttention, "causal_kind")
    assert int(older.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert older.BuilderFlag.FP16
    plain = Bench(older, cudart, ROWS)
    with pytest.raises(NotModelledError, match="strongly typed"):
        plain.build()  # 10 would choose the types itself
    newer = install(monkeypatch)
    assert int(newer.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    assert not hasattr(newer.BuilderFlag, "FP16")


def test_inspector_shows_layers_if_the_build_was_detailed(bench: Any, tensorrt: ModuleType) -> None:
    text = graph("bool[4] x => int64[1,n] y", "y = NonZero(x)")
    formats = tensorrt.LayerInformationFormat
    quiet = bench(text).engine().create_engine_inspector().get_engine_information(formats.JSON)
    assert "DeviceToShapeHostCopy" not in quiet
    made = bench(text)
    made.config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    engine = made.engine()
    assert "DeviceToShapeHostCopy" in engine.create_engine_inspector().get_layer_information(0, formats.JSON)
