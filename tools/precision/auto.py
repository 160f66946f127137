"""`auto`: which precision fits this machine, by what its kernels take and by its memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]
import torch

from foveate.export.precision import AUTO, STAGES, LinearLayer
from foveate.export.precision.forms import find_forms
from foveate.export.precision.rewrite import rewrite
from foveate.export.precision.storage import store
from foveate.export.weights import Parameter

_SIZE: Final = 2048  # of the square weight that is timed: 16 MB, more than a core's cache has
_ROWS: Final = 128
_ROUNDS: Final = 7
# Below this a quantised graph is not worth its error.
WORTH: Final = 1.2
# Weights may fill so much of the memory that is free now; caches and activations need the rest.
FILL: Final = 0.8
_BITS: Final[Mapping[str, float]] = {"fp32": 32, "int8": 8, "int4": 4.5}


@dataclass(frozen=True)
class Machine:
    """How much faster a kernel is here than fp32 (`rows`: with 128 rows, `row`: with one), and free bytes.

    `memory` is None where the system does not say.
    """

    rows: Mapping[str, float]
    row: Mapping[str, float]
    memory: int | None


def resolve(
    words: Mapping[str, str], layers: Sequence[LinearLayer], machine: Machine
) -> tuple[dict[str, str], str]:
    """The words with a precision in place of each `auto`, and why, in a sentence."""
    stages = [stage for stage in STAGES if words.get(stage) == AUTO]
    if not stages:
        return dict(words), ""
    count = {s: sum(x.inputs * x.outputs for x in layers if x.stage == s) for s in STAGES}
    rows, row = machine.rows["int8"], machine.row["int8"]
    speed = f"8-bit products are {rows:.1f} times as fast as fp32 here with {_ROWS} rows, {row:.1f} with one"
    chosen = "int8" if max(rows, row) >= WORTH and min(rows, row) >= 0.9 else "fp32"
    made = {**words, **dict.fromkeys(stages, chosen)}
    reason = f"{chosen}: {speed}"
    if machine.memory is None:
        return made, reason + "; the system does not say how much memory is free"
    room = FILL * machine.memory
    decoder = {"decoder": "int4"} if "decoder" in stages else {}
    for tighter in ({}, dict.fromkeys(stages, "int8"), decoder):
        made |= tighter
        if _bytes(made, count) <= room:
            break
    need, free = _bytes(made, count) / 2**30, machine.memory / 2**30
    whole = _bytes(dict.fromkeys(STAGES, "fp32"), count) / 2**30
    fits = f"{need:.1f} GiB of weights ({whole:.1f} in fp32), {free:.1f} GiB of memory free"
    if made["decoder"] == "int4" and "decoder" in stages:
        reason = f"int4 in the decoder, because 8 bits would not fit; else {reason}"
    elif chosen == "fp32" and "int8" in (made[stage] for stage in stages):
        reason = f"int8, because fp32 would not fit; {speed}"
    return made, f"{reason}; {fits}"


def measure_machine(target: str, threads: int | None = None) -> Machine:
    """Times one product under each kernel, interleaved; about half a second."""
    weight = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    sessions = {kernel: product(target, kernel, weight, threads) for kernel in ("fp32", "int8")}
    rng = np.random.default_rng(0)
    gains = []
    for rows in (_ROWS, 1):
        x = rng.standard_normal((1, rows, _SIZE), np.float32)
        best = dict.fromkeys(sessions, float("inf"))
        for _ in range(_ROUNDS):
            for kernel, session in sessions.items():
                repeats = 1 if rows > 1 else 4
                start = time.perf_counter()
                for _ in range(repeats):
                    session.run(None, {"x": x})
                best[kernel] = min(best[kernel], (time.perf_counter() - start) / repeats)
        gains.append({kernel: best["fp32"] / took for kernel, took in best.items()})
    return Machine(gains[0], gains[1], free_memory())


def free_memory() -> int | None:
    """Bytes that programs could take now; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _bytes(words: Mapping[str, str], count: Mapping[str, int]) -> float:
    """Of the linear layers; a precision that is not chosen here counts as fp32."""
    return sum(count[stage] * _BITS.get(words.get(stage, "fp32"), 32) / 8 for stage in STAGES)


def product(
    target: str, kernel: str, weight: torch.Tensor, threads: int | None = None, *, bias: bool = False
) -> onnxruntime.InferenceSession:
    """A session that gives `y = x W` for `x [1, rows, k]` and a `weight [k, n]`, by a target's kernel."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    data = ir.to_proto(product_graph(target, kernel, weight, bias=bias)).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def product_graph(target: str, kernel: str, weight: torch.Tensor, *, bias: bool = False) -> ir.Model:
    """The graph of `product`; with a `bias`, one of ones is added."""
    name, (k, n) = "layer.weight", weight.shape
    stored = ir.Value(name=name, shape=ir.Shape((k, n)), type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", shape=ir.Shape((1, "rows", k)), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, own = [ir.node("MatMul", [x, stored], name="layer")], [stored]
    if bias:
        ones = ir.tensor(np.ones(n, np.float32), name="layer.bias")
        added = ir.Value(name="layer.bias", shape=ir.Shape((n,)), const_value=ones)
        added.type = nodes[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        own.append(added)
        nodes.append(ir.node("Add", [nodes[0].outputs[0], added], name="layer.Add"))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, initializers=own, opset_imports={"": 21}, name="product")
    model = ir.Model(graph, ir_version=10)
    forms = {} if kernel == "fp32" else {name: find_forms(target)[kernel]}
    parameters = {name: Parameter((k, n), transposed=False)}
    _, loaders = store(parameters, {name: lambda: weight}, forms, half_table=None)
    rewrite(model, forms)
    for value in graph.initializers.values():
        if value.const_value is None:
            found = loaders[str(value.name)]().contiguous().numpy()
            value.const_value = ir.tensor(found, name=value.name)
    return model
