"""What this machine can do at most, measured on the spot: products per second, and bytes read per second.

Products are onnxruntime's own, alone in a graph, at shapes of common decoders: so a stage that reaches the
ceiling spends its time multiplying, and a stage that does not spends the rest on something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from foveate.runtime.arrays import Array
from foveate.tools.bench.schema import Ceiling
from foveate.tools.bench.trace import BLOCK4, BLOCK8, FP32, INT8

ROWS = 512
SHAPES = ((2048, 2048), (1024, 4096), (2048, 5632))
ROUNDS = 3
BLOCK = 128
SIZES = {"memory": 2**30, "cache": 2**25}
WIDTH = 2048

Report = Callable[[float, float], None]


def measure(
    threads: int,
    progress: Report,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    sizes: Mapping[str, int] = SIZES,
) -> Ceiling:
    """The best of some rounds for each kind of product and for reading. Takes seconds, and 1 GB of memory."""
    kinds = {FP32: _fp32, INT8: _int8, BLOCK8: _block(8), BLOCK4: _block(4)}
    total, done = len(kinds) * len(shapes) + 1, 0
    gflops: dict[str, float] = {}
    for kind, build in kinds.items():
        for inner, outer in shapes:
            progress(done, total)
            seconds = _seconds(_session(build(inner, outer), threads), inner)
            gflops[kind] = max(gflops.get(kind, 0.0), 2e-9 * ROWS * inner * outer / seconds)
            done += 1
    gbytes = streams(threads, sizes)
    progress(total, total)
    return Ceiling(gflops=gflops, gbytes=gbytes)


def streams(threads: int, sizes: Mapping[str, int] = SIZES) -> dict[str, float]:
    """Gigabytes per second of reading blocks of some sizes once, the best of two ways of reading.

    One is a maximum, one a product of a matrix and a vector; which one is faster differs between processors.
    """
    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, size in sizes.items():
            parts = np.array_split(np.ones((size // 4 // WIDTH, WIDTH), np.float32), threads)
            times = []
            for way in (np.max, _times_ones):
                for _ in range(ROUNDS + 1):
                    start = time.perf_counter()
                    list(pool.map(way, parts))
                    times.append(time.perf_counter() - start)
            found[name] = 1e-9 * sum(part.nbytes for part in parts) / min(times)
    return found


def _times_ones(part: Array) -> Array:
    """A product of a matrix and a vector."""
    product: Array = part @ np.ones(part.shape[1], np.float32)
    return product


def _seconds(session: Any, inner: int) -> float:
    feeds = {"x": np.random.default_rng(0).standard_normal((ROWS, inner), np.float32)}
    session.run(None, feeds)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return min(times)


def _session(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _fp32(inner: int, outer: int) -> bytes:
    weight = np.full((inner, outer), 0.01, np.float32)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, inner, outer)


def _int8(inner: int, outer: int) -> bytes:
    weights: dict[str, Array] = {
        "w": np.ones((inner, outer), np.int8),
        "scale": np.full(outer, 0.01, np.float32),
        "zero": np.zeros(outer, np.int8),
    }
    node = helper.make_node("DynamicQuantizeMatMul", ["x", *weights], ["y"], domain="com.microsoft")
    return _model([node], weights, inner, outer)


def _block(bits: int) -> Callable[[int, int], bytes]:
    """Weights of few bits with a scale for each block of rows; activations of 8 bits."""

    def build(inner: int, outer: int) -> bytes:
        weights: dict[str, Array] = {
            "w": np.full((outer, inner // BLOCK, BLOCK * bits // 8), 0x77, np.uint8),
            "scale": np.full(outer * (inner // BLOCK), 0.01, np.float32),
        }
        node = helper.make_node(
            "MatMulNBits",
            ["x", *weights],
            ["y"],
            domain="com.microsoft",
            K=inner,
            N=outer,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4,
        )
        return _model([node], weights, inner, outer)

    return build


def _model(nodes: list[Any], weights: Mapping[str, Array], inner: int, outer: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "ceiling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, outer])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made
