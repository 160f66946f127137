"""ONNX Runtime's GPU backend over the doubles: whole answers, with every buffer, copy and wait looked at.

The provider is the CPU's, so this says nothing about CUDA's kernels. It says that what is fed, kept on the
device and read is the same as on the CPU, that nothing is read before it is there, and that nothing leaks.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles import ort_cuda
from doubles.cudart import Cudart
from many import Ask, add, asks, outcome, run
from onnx import TensorProto, helper

from foveate.runtime import Pipeline
from foveate.runtime.arrays import Array
from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import cuda_steps
from foveate.runtime.cache import KVCache
from foveate.runtime.cuda.blocks import Block
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray
from foveate.runtime.errors import BackendError
from foveate.runtime.manifest import CacheRecord, Stage, TensorSpec
from foveate.runtime.pipeline import load
from foveate.runtime.scheduler.engine import Engine, Limits

Bundles = dict[str, Path]
GREEDY = [ask for ask in asks("pruned") if not ask.options.temperature]


def opened(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Pipeline:
    ort_cuda.install(monkeypatch)
    return load(path, backend="cuda", threads=1, check="none", **options)


@pytest.fixture
def pipeline(bundles: Bundles, cudart: Cudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """The pruned bundle, in the backend's own layout."""
    made = opened(bundles["pruned"], monkeypatch)
    yield made
    vars(made).clear()  # pytest holds it longer than the doubles
    gc.collect()


def test_answers_are_those_of_the_cpu(pipeline: Pipeline, pipelines: Any, cudart: Cudart) -> None:
    """All kinds of requests; tokens and reports. The layout is the segmented one, unasked."""
    assert (pipeline.model.layout, pipeline.model.backend.name) == ("segmented", "cuda")
    for ask in GREEDY:
        wanted = pipelines["pruned", "segmented"].generate(*ask)
        assert outcome(pipeline.generate(*ask)) == outcome(wanted)
    assert pipeline.model.backend.notes == ()
    taken = cudart.calls.count("cudaMalloc")
    pipeline.generate(*GREEDY[0])
    assert cudart.calls.count("cudaMalloc") == taken  # blocks are used again


def test_a_batch_and_a_conversation(pipeline: Pipeline, pipelines: Any) -> None:
    some = [(ask.prompt, ask.images) for ask in GREEDY[:3]]
    on_cpu = pipelines["pruned", "segmented"]
    assert [a.token_ids for a in pipeline.generate_batch(some)] == [
        a.token_ids for a in on_cpu.generate_batch(some)
    ]
    ours, theirs = pipeline.chat(), on_cpu.chat()
    for ask in (GREEDY[0], Ask("And?", (), GREEDY[0].options)):
        mine, wanted = (chat.send(ask.prompt, ask.images, ask.options) for chat in (ours, theirs))
        assert outcome(mine) == outcome(wanted)
    assert mine.report.cache_reused


def test_the_scheduler_on_device_memory(pipeline: Pipeline, alone: Any, cudart: Cudart) -> None:
    """Caches are placed, moved and freed on the device; every answer is the one of its request alone."""
    engine = Engine(pipeline, Limits(slots=3, queue=20, rows=16))
    handles = [add(engine, ask) for ask in asks("pruned")]
    run(engine)
    for handle, wanted in zip(handles, alone(("pruned", "segmented")), strict=True):
        assert outcome(handle.result()) == outcome(wanted)
    copies = cudart.calls.count("cudaMemcpy2DAsync")
    assert copies > 20


def test_the_fused_layout_runs_and_says_that_it_is_not_recorded(
    bundles: Bundles, cudart: Cudart, monkeypatch: pytest.MonkeyPatch, pipelines: Any
) -> None:
    fused = opened(bundles["pruned"], monkeypatch, layout="fused")
    assert fused.generate(*GREEDY[0]).token_ids == pipelines["pruned", "fused"].generate(*GREEDY[0]).token_ids
    (note,) = fused.model.backend.notes
    assert note.startswith("stage 'decoder' decodes without CUDA graphs: the shapes of its outputs")


def test_closing_gives_everything_back_sessions_before_the_stream(
    bundles: Bundles, cudart: Cudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(bundles["pruned"], monkeypatch) as made:
        made.generate(*GREEDY[0])
        sessions = [weakref.ref(runner.session) for runner in runners(made)]
        assert sessions
        assert all(each() is not None for each in sessions)
        order: list[bool] = []
        monkeypatch.setattr(
            type(cudart), "cudaStreamDestroy", _noting(type(cudart).cudaStreamDestroy, sessions, order)
        )
    assert order == [True]
    assert cudart.live() == []
    made.close()


def _noting(usual: Any, sessions: list[Any], order: list[bool]) -> Any:
    def destroy(self: Any, stream: Any) -> Any:
        order.append(all(each() is None for each in sessions))
        return usual(self, stream)

    return destroy


# --- steps that are recorded --------------------------------------------------------------------------------


def runners(pipeline: Pipeline) -> list[ort_cuda.CpuRunner]:
    return list(pipeline.model.decoder._runners)  # type: ignore[attr-defined]


def test_steps_are_recorded_after_a_while_proven_twice_and_replayed(pipeline: Pipeline) -> None:
    """Twelve tokens are a prefill and eleven steps: four plain, one recording, two proofs, four replays."""
    answer = pipeline.generate(*GREEDY[0])
    steps = len(answer.token_ids) - 1
    assert steps > cuda_steps.WARM + cuda_steps.PROOFS + 1
    for runner in runners(pipeline):
        assert runner.recorded == steps - cuda_steps.WARM
        (plan,) = runner._steps._plans.values()
        assert (plan.used, plan.proven) == (steps, cuda_steps.PROOFS)


def test_the_next_answer_finds_the_recordings_of_the_one_before(pipeline: Pipeline) -> None:
    """Its caches lie where the former ones lay."""
    for _ in range(4):
        pipeline.generate(*GREEDY[0])
    for runner in runners(pipeline):
        assert len(runner._steps._plans) <= 2  # the very first caches may lie in another order
        assert runner._steps._recorded == len(runner._steps._plans)


def test_a_wrong_replay_is_found_and_steps_go_on_plainly(
    pipeline: Pipeline, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that leaves its outputs as they were: what a recording with frozen addresses would do."""
    usual = ort_cuda.CpuRunner.execute

    def execute(self: Any, io: Any, options: Any, values: Any) -> None:
        if options is self.plain_options:
            usual(self, io, options, values)

    monkeypatch.setattr(ort_cuda.CpuRunner, "execute", execute)
    # The recording run is one that works: only what comes after it is wrong.
    record = cuda_steps.Steps._record

    def recording(self: Any, plan: Any, values: Any) -> None:
        monkeypatch.setattr(ort_cuda.CpuRunner, "execute", usual)
        record(self, plan, values)
        monkeypatch.setattr(ort_cuda.CpuRunner, "execute", execute)

    monkeypatch.setattr(cuda_steps.Steps, "_record", recording)
    answer = pipeline.generate(*GREEDY[0])
    assert answer.token_ids == pipelines["pruned", "segmented"].generate(*GREEDY[0]).token_ids
    assert all(
        "a replayed step gave other numbers than a plain one" in n for n in pipeline.model.backend.notes
    )
    assert len(pipeline.model.backend.notes) == len(runners(pipeline))


def test_a_failing_recording_is_announced_and_off_means_off(
    bundles: Bundles, cudart: Cudart, monkeypatch: pytest.MonkeyPatch, pipelines: Any
) -> None:
    wanted = pipelines["pruned", "segmented"].generate(*GREEDY[0]).token_ids
    off = opened(bundles["pruned"], monkeypatch, graphs=False)
    assert off.generate(*GREEDY[0]).token_ids == wanted
    assert off.model.backend.notes == ()
    assert not any(runner.recorded for runner in runners(off))

    usual = ort_cuda.CpuRunner.execute

    def execute(self: Any, io: Any, options: Any, values: Any) -> None:
        if options is not self.plain_options:
            raise BackendError("no", found="operation not permitted when stream is capturing")
        usual(self, io, options, values)

    monkeypatch.setattr(ort_cuda.CpuRunner, "execute", execute)
    broken = opened(bundles["pruned"], monkeypatch)
    assert broken.generate(*GREEDY[0]).token_ids == wanted
    assert all("recording failed: operation not permitted" in note for note in broken.model.backend.notes)
    assert broken.model.backend.notes


# --- single graphs ------------------------------------------------------------------------------------------

HALF = CacheRecord(dtype="bfloat16", num_kv_heads=1, head_dim=2, groups=((0,),))


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]


@pytest.fixture
def runner(tmp_path: Path, cudart: Cudart) -> Iterator[ort_cuda.CpuRunner]:
    """`present = past + past` in bfloat16 by way of float32; `twice` is twice the hidden rows."""
    memory = ("b", 1, "slots", 2)
    stage = Stage(
        file="g.onnx",
        inputs=(spec("hidden", "float32", "b", "s", 2), spec("past_key_0", "bfloat16", *memory)),
        outputs=(spec("hidden_out", "float32", "b", "s", 2), spec("present_key_0", "bfloat16", *memory)),
    )
    kinds = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}
    ends = [
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], s.shape) for s in specs]
        for specs in (stage.inputs, stage.outputs)
    ]
    nodes = [
        helper.make_node("Add", ["hidden", "hidden"], ["hidden_out"]),
        helper.make_node("Cast", ["past_key_0"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["present_key_0"], to=TensorProto.BFLOAT16),
    ]
    graph = helper.make_graph(nodes, "g", *ends)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "g.onnx",
    )
    backend = ort_cuda.CpuBackend(Device(), BackendOptions(threads=1))
    made = backend.open(tmp_path / "g.onnx", "decoder_0", stage)
    yield made
    backend.device.close()
    vars(made).clear()


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32) >> 16)


def test_bfloat16_caches_in_place(runner: ort_cuda.CpuRunner) -> None:
    """The host sees their bits only; outputs between graphs stay, views of them are fed again."""
    cache = KVCache(HALF, 1, runner.device.allocate, runner._backend.capacity)
    cache.reserve(0, 3, 3)
    assert cache.capacity(0) == 128
    cache.memory(0)["key_0"][...] = np.full((1, 1, 128, 2), bits(1.5), np.uint16)
    bindings = {name: m for name, m in cache.bindings(0).items() if "key" in name}
    rows = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    out = runner.run({"hidden": rows}, bindings)
    stays: Any = out["hidden_out"]
    assert isinstance(stays, DeviceArray)
    assert isinstance(stays.owner, Block)  # ours: a recorded step may write over onnxruntime's
    assert (np.asarray(cache.memory(0)["key_0"]) == bits(3.0)).all()
    again = runner.run({"hidden": stays[:, 1:]}, bindings)
    assert np.asarray(again["hidden_out"]).tolist() == (4 * rows[:, 1:]).tolist()
    assert (np.asarray(cache.memory(0)["key_0"]) == bits(6.0)).all()
    assert cache.held(0)[0][1] == 0  # nothing was advanced; and the size of bfloat16 is known


def test_columns_of_device_memory_are_packed(runner: ort_cuda.CpuRunner) -> None:
    cache = {"past_key_0": runner.device.allocate((2, 1, 4, 2), "bfloat16")}
    cache["present_key_0"] = cache["past_key_0"]
    wide = runner.device.upload(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    out = runner.run({"hidden": wide[:, 1:, 1:3]}, cache)  # type: ignore[dict-item]
    wanted: Array = 2 * np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, 1:, 1:3]
    assert np.array_equal(np.asarray(out["hidden_out"]), wanted)


def test_wrong_feeds_are_named(runner: ort_cuda.CpuRunner) -> None:
    memory = runner.device.allocate((1, 1, 4, 2), "bfloat16")
    cache = {"past_key_0": memory, "present_key_0": memory}
    with pytest.raises(BackendError, match="'decoder_0' lacks input 'hidden'"):
        runner.run({}, cache)
    with pytest.raises(BackendError, match=r"misshapen.*\[1, 2\] of float32"):
        runner.run({"hidden": np.zeros((1, 2), np.float32)}, cache)
    half: Any = runner.device.allocate((1, 2, 2), "float16")
    with pytest.raises(BackendError, match=r"misshapen.*\[1, 2, 2\] of float16"):
        runner.run({"hidden": half}, cache)
    short = {"past_key_0": memory, "present_key_0": runner.device.allocate((1, 1, 3, 2), "bfloat16")}
    with pytest.raises(BackendError, match=r"'decoder_0' failed.*hidden \[1, 2, 2\]"):
        runner.run({"hidden": np.zeros((1, 2, 2), np.float32)}, short)


def test_shapes_of_outputs_follow_from_inputs_or_are_unknown() -> None:
    stage = Stage(
        file="g", inputs=(spec("x", "float32", "b", "s", 4), spec("y", "int64", "b", "m")), outputs=()
    )
    shapes = {"x": (2, 1, 4), "y": (2, 5)}
    assert cuda_steps.shape_of(stage, ("b", "m", 7), shapes) == (2, 5, 7)
    assert cuda_steps.shape_of(stage, (), shapes) == ()
    assert cuda_steps.shape_of(stage, ("b", "kept"), shapes) is None
