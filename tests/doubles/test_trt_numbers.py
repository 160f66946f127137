"""The double's reading of TensorRT's own operators against plain loops, in all types; polygraphy on it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from doubles.cudart import Cudart
from doubles.tensorrt.compute import narrow, widen
from doubles.trt_graphs import Bench, graph

B, H, G, S, T, D = 2, 4, 2, 3, 6, 16
# ONNX's name, how it lies in memory, and how far it may be away: float32 sums, or a half type's rounding.
TYPES = {
    "float": (np.dtype("float32"), 1e-5),
    "float16": (np.dtype("float16"), 3e-3),
    "bfloat16": (np.dtype("uint16"), 2e-2),
}


def _random(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return narrow(values) if kind == "bfloat16" else values.astype(TYPES[kind][0])


def _wide(values: np.ndarray) -> np.ndarray:
    return (widen(values) if values.dtype == np.uint16 else values).astype(np.float64)


def _attend(q: Any, k: Any, v: Any, sees: Any, bias: Any = None) -> np.ndarray:
    """softmax(q k) v with loops; `sees(b, i, j)`: whether row i looks at key j; NaN where it sees none."""
    out = np.zeros((B, H, S, D))
    for b, h, i in np.ndindex(B, H, S):
        keys = [j for j in range(T) if sees(b, i, j)]
        scores = [
            float(q[b, h, i] @ k[b, h // (H // G), j]) + (0 if bias is None else bias[i, j]) for j in keys
        ]
        weights = np.exp(np.array(scores) - max(scores, default=0.0))
        rows = [v[b, h // (H // G), j] for j in keys]
        out[b, h, i] = (weights / weights.sum()) @ np.array(rows) if keys else np.nan
    return out


LENGTHS = np.array([6, 4], np.int32)
KINDS: dict[str, Any] = {
    "": lambda b, i, j: True,
    "upper_left": lambda b, i, j: j <= i,
    "lower_right": lambda b, i, j: j <= i + T - S,
}


def _run(
    trt: ModuleType, cudart: Cudart, body: str, feeds: dict[str, np.ndarray], kind: str, extra: str = ""
) -> np.ndarray:
    io = f"{kind}[{B},{H},{S},{D}] q, {kind}[{B},{G},{T},{D}] k, {kind}[{B},{G},{T},{D}] v{extra}"
    bench = Bench(trt, cudart, graph(f"{io} => {kind}[{B},{H},{S},{D}] y", body))
    assert bench.parsed, bench.log.lines
    return _wide(bench.run(feeds, {"y": np.zeros((B, H, S, D), TYPES[kind][0])})["y"])


def _feeds(kind: str) -> dict[str, np.ndarray]:
    shapes = {"q": (B, H, S, D), "k": (B, G, T, D), "v": (B, G, T, D)}
    return {name: _random(shape, kind, seed) for seed, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("causal", KINDS)
def test_attention(causal: str, kind: str, tensorrt: ModuleType, cudart: Cudart) -> None:
    feeds = _feeds(kind)
    given = f'causal_kind = "{causal or "none"}", TRT_decomposable = 1'
    found = _run(tensorrt, cudart, f"y = trt.TRT_Attention<{given}>(q, k, v)", feeds, kind)
    wanted = _attend(*map(_wide, feeds.values()), KINDS[causal])
    assert np.abs(found - wanted).max() < TYPES[kind][1]


@pytest.mark.parametrize("causal", ["", "lower_right"])
def test_attention_with_lengths(causal: str, tensorrt: ModuleType, cudart: Cudart) -> None:
    """Keys from the length on do not exist, whatever lies there; lower_right ends at the last that does."""
    feeds = _feeds("float")
    wanted = _attend(
        *map(_wide, feeds.values()),
        lambda b, i, j: j < LENGTHS[b] and (not causal or j <= i + LENGTHS[b] - S),
    )
    for name in ("k", "v"):
        for b in range(B):
            feeds[name][b, :, LENGTHS[b] :] = np.nan
    given = f'causal_kind = "{causal or "none"}", TRT_decomposable = 1'
    body = f"y = trt.TRT_Attention<{given}>(q, k, v, , , n)"
    found = _run(tensorrt, cudart, body, feeds | {"n": LENGTHS}, "float", f", int32[{B}] n")
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_with_a_mask(boolean: bool, tensorrt: ModuleType, cudart: Cudart) -> None:
    feeds, rng = _feeds("float"), np.random.default_rng(9)
    sees = rng.random((S, T)) < 0.6
    sees[:, 0] = True
    bias = rng.standard_normal((S, T)).astype(np.float32)
    mask = sees if boolean else bias
    found = _run(
        tensorrt,
        cudart,
        "y = trt.TRT_Attention<TRT_decomposable = 1>(q, k, v, m)",
        feeds | {"m": mask},
        "float",
        f", {'bool' if boolean else 'float'}[{S},{T}] m",
    )
    wide = list(map(_wide, feeds.values()))
    wanted = (
        _attend(*wide, lambda b, i, j: sees[i, j]) if boolean else _attend(*wide, lambda b, i, j: True, bias)
    )
    assert np.abs(found - wanted).max() < 1e-5


def test_nothing_is_scaled_and_softmax_can_be_left_out(tensorrt: ModuleType, cudart: Cudart) -> None:
    feeds = _feeds("float")
    given = 'TRT_normalization_op = "none", TRT_decomposable = 1'
    found = _run(tensorrt, cudart, f"y = trt.TRT_Attention<{given}>(q, k, v)", feeds, "float")
    q, k, v = map(_wide, feeds.values())
    wanted = (q @ k.repeat(H // G, 1).transpose(0, 1, 3, 2)) @ v.repeat(H // G, 1)
    # Ten times the others: scores that are no weights add up to some tens, and float32 rounds those.
    assert np.abs(found - wanted).max() < 1e-4


def test_is_causal_means_upper_left(tensorrt: ModuleType, cudart: Cudart) -> None:
    """Of ONNX's Attention too: with fewer queries than keys that is not the causal mask of a decoder."""
    feeds = _feeds("float")
    body = "y = Attention<is_causal = 1, scale = 1.0, TRT_decomposable = 1>(q, k, v)"
    found = _run(tensorrt, cudart, body, feeds, "float")
    assert np.abs(found - _attend(*map(_wide, feeds.values()), KINDS["upper_left"])).max() < 1e-5


def test_nonpad_lengths_are_ignored_without_a_word(tensorrt: ModuleType, cudart: Cudart) -> None:
    feeds = _feeds("float")
    lengths = LENGTHS.astype(np.int64)
    body = "y = Attention<scale = 1.0, TRT_decomposable = 1>(q, k, v, , , , n)"
    found = _run(tensorrt, cudart, body, feeds | {"n": lengths}, "float", f", int64[{B}] n")
    everything = _attend(*map(_wide, feeds.values()), KINDS[""])
    meant = _attend(*map(_wide, feeds.values()), lambda b, i, j: j < LENGTHS[b])
    assert np.abs(found - everything).max() < 1e-5
    assert np.abs(found - meant).max() > 0.1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", ["TensorScatter", "trt.TRT_KVCacheUpdate"])
@pytest.mark.parametrize("first", [(0, 3), (2, 5), None])
def test_cache_update(op: str, kind: str, first: Any, tensorrt: ModuleType, cudart: Cudart) -> None:
    cache, update = _random((B, G, T, D), kind, 1), _random((B, G, 2, D), kind, 2)
    wanted = cache.copy()
    for b, start in enumerate(first or (0, 0)):
        for row in range(2):
            if start + row < T:  # beyond the last slot: dropped
                wanted[b, :, start + row] = update[b, :, row]
    extra = "" if first is None else ", w"
    io = f"{kind}[{B},{G},{T},{D}] c, {kind}[{B},{G},2,{D}] u"
    text = graph(f"{io}, int32[{B}] w => {kind}[{B},{G},{T},{D}] y", f"y = {op}(c, u{extra})")
    bench = Bench(tensorrt, cudart, text)
    assert bench.parsed, bench.log.lines
    feeds = {"c": cache, "u": update, "w": np.array(first or (0, 0), np.int32)}
    assert (bench.run(feeds, {"y": cache})["y"] == wanted).all()


def test_bfloat16_is_rounded_as_others_round_it() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    wanted = values.astype(ml_dtypes.bfloat16)
    assert (narrow(values) == wanted.view(np.uint16)).all()
    assert (widen(narrow(values)) == wanted.astype(np.float32)).all()


def test_bfloat16_is_rounded_after_every_operator(tensorrt: ModuleType, cudart: Cudart) -> None:
    half = ml_dtypes.bfloat16
    x = np.array([1.0, 3.0, 257.0, 0.1], np.float32).astype(half)
    signature = "bfloat16[4] x => bfloat16[4] y, float[4] z"
    body = "a = Add(x, x) b = Mul(a, x) y = Add(b, x) z = Cast<to = 1>(b)"
    bench = Bench(tensorrt, cudart, graph(signature, body))
    like = {"y": np.zeros(4, np.uint16), "z": np.zeros(4, np.float32)}
    found = bench.run({"x": x.view(np.uint16)}, like)
    wanted = (x + x) * x
    assert (found["z"] == wanted.astype(np.float32)).all()
    assert (found["y"].view(half) == wanted + x).all()


def test_polygraphy_builds_on_it(tensorrt: ModuleType, cudart: Cudart, tmp_path: Any) -> None:
    """Its loaders as they are: parse, mark attentions, configure, build, timing cache, load, inspect."""
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        EngineFromBytes,
        NetworkFromOnnxPath,
        Profile,
        SetDecomposableAttentions,
    )
    from polygraphy.exception import PolygraphyException

    path = tmp_path / "m.onnx"
    path.write_bytes(graph("float[b,2,3,8] q => float[b,2,3,8] y", "y = Attention(q, q, q)"))
    profile = Profile().add("q", (1, 2, 3, 8), (2, 2, 3, 8), (4, 2, 3, 8))
    config = CreateConfig(
        profiles=[profile],
        tf32=True,
        memory_pool_limits={tensorrt.MemoryPoolType.WORKSPACE: 1 << 30},
        builder_optimization_level=4,
        hardware_compatibility_level=tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS,
        version_compatible=True,
        weight_streaming=True,
        refittable=True,
        max_aux_streams=0,
        profiling_verbosity=tensorrt.ProfilingVerbosity.DETAILED,
    )
    network = NetworkFromOnnxPath(str(path), strongly_typed=True)
    with pytest.raises(PolygraphyException, match="Invalid Engine"):
        EngineBytesFromNetwork(network, config)()
    timings = tmp_path / "timings"
    marked = SetDecomposableAttentions(network)
    plan = EngineBytesFromNetwork(marked, config, save_timing_cache=str(timings))()
    assert timings.stat().st_size > 9
    engine = EngineFromBytes(bytes(plan))()
    assert engine.refittable
    assert engine.hardware_compatibility_level == tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert tuple(engine.get_tensor_profile_shape("q", 0)[2]) == (4, 2, 3, 8)
    path.write_bytes(graph("bool[4] q => bool[4] y", "y = Mul(q, q)"))
    with pytest.raises(PolygraphyException, match="Could not parse"):
        EngineBytesFromNetwork(NetworkFromOnnxPath(str(path)), config)()
