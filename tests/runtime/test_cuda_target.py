"""Target cuda over the doubles: nothing it computes on the GPU is read on the host while it runs.

Its operators run here with the CPU's half-precision kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from doubles import ort_cuda
from doubles.cudart import Cudart
from many import add, asks, outcome, run

from foveate.runtime import Pipeline
from foveate.runtime.backends import cuda_steps
from foveate.runtime.bundle import Bundle
from foveate.runtime.pipeline import load
from foveate.runtime.scheduler.engine import Engine, Limits

GREEDY = [ask for ask in asks("pruned") if not ask.options.temperature]
# Inputs that CUDA's kernels of ONNX Runtime want in the host's memory (their registrations' "CPU input").
ON_HOST = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "GroupQueryAttention": (6,),
    "If": (0,),
    "Loop": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "ReduceMax": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
}


@pytest.fixture
def on_cpu(cuda_bundle: Path) -> Pipeline:
    return load(cuda_bundle, backend="onnxruntime", layout="segmented", threads=1, check="none")


@pytest.fixture
def pipeline(cuda_bundle: Path, cudart: Cudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    ort_cuda.install(monkeypatch)
    with load(cuda_bundle, threads=1, check="none") as made:
        yield made


def waits(path: Path) -> set[str]:
    """Operators of a graph that would wait for a value from the GPU."""
    graph = ir.load(path).graph
    free: dict[ir.Value, bool] = {}

    def known(value: ir.Value) -> bool:
        """Without the GPU: from shapes, literals and what the host gives."""
        if value not in free:
            node = value.producer()
            given = value.name in graph.initializers or str(value.name).startswith("total_length_")
            own = given if node is None else node.op_type in ("Shape", "Size", "Constant")
            free[value] = own or (node is not None and all(known(v) for v in node.inputs if v is not None))
        return free[value]

    return {
        node.op_type
        for node in graph
        for place in ON_HOST.get(node.op_type, ())
        if place < len(node.inputs) and (value := node.inputs[place]) is not None and not known(value)
    }


def test_a_step_waits_for_nothing(cuda_bundle: Path, bundles: dict[str, Path]) -> None:
    graphs = Bundle.open(cuda_bundle).manifest.layouts["segmented"]
    decoders = [name for name in graphs if name.startswith("decoder")]
    assert len(decoders) == 3
    for name in decoders:
        assert waits(Bundle.open(cuda_bundle).stage_path(name)) == set()
        # The CPU's target works the longest row out in the graph.
        assert waits(Bundle.open(bundles["pruned"]).stage_path(name)) == {"GroupQueryAttention"}


def test_recorded_steps_are_told_the_capacity_and_answer_as_the_cpu_does(
    pipeline: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[dict[str, Any], set[int]]] = []
    usual = cuda_steps.capacities

    def noted(stage: Any, names: Any, bindings: Any) -> dict[str, Any]:
        found = usual(stage, names, bindings)
        told.append((found, {memory.shape[2] for memory in bindings.values()}))
        return found

    monkeypatch.setattr(cuda_steps, "capacities", noted)
    for ask in GREEDY:
        assert outcome(pipeline.generate(*ask)) == outcome(on_cpu.generate(*ask))
    assert pipeline.model.backend.notes == ()
    runners: list[Any] = list(pipeline.model.decoder._runners)  # type: ignore[attr-defined]
    assert runners
    assert all(runner.recorded for runner in runners)
    assert {name for found, _ in told for name in found} == {f"total_length_{i}" for i in range(3)}
    for found, slots in told:
        (value,) = found.values()
        assert (value.dtype, value.shape, {int(value[0])}) == (np.int32, (1,), slots)


def test_batches_and_the_scheduler(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    """Rows of unlike lengths; the longest row's is one number for all of them."""
    some = [(ask.prompt, ask.images) for ask in GREEDY[:3]]
    alone = [on_cpu.generate(*ask) for ask in GREEDY]
    assert [a.token_ids for a in pipeline.generate_batch(some)] == [
        a.token_ids for a in on_cpu.generate_batch(some)
    ]
    engine = Engine(pipeline, Limits(slots=3, queue=20))
    handles = [add(engine, ask) for ask in GREEDY]
    run(engine)
    assert [outcome(handle.result()) for handle in handles] == [outcome(answer) for answer in alone]
