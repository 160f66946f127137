"""The rows, in their order: what the machine is, what needs no GPU, ONNX Runtime on CUDA, TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from foveate.tools.families import family_names
from foveate.tools.gpu_check.records import Row

_CUDA: Final = ("gpu", "ort-cuda", "torch")
_TRT: Final = ("gpu", "cuda-bindings", "tensorrt")
_ATTENTION: Final = ("portable", "native")
# Target and type of what ONNX Runtime's CUDA provider runs; its attention operator has no float32.
_ON_CUDA: Final = (("cuda", "fp16"), ("cuda", "bf16"), ("portable", "fp32"))
_DTYPES: Final = ("fp16", "fp32", "bf16", "int8", "int4", "fp8")
_ENGINES: Final = {
    "fp16": ("native", "portable"),
    "fp32": ("native", "portable"),
    **dict.fromkeys(("bf16", "int8", "int4", "fp8"), ("native",)),
}
_SHAPE: Final = "LLaVA-1.5-7B shape, random weights"
_GRAPHS: Final = "CUDA graphs: recorded, and the same tokens, beside prompts that are read, too"
LADDER_PROFILE: Final = "batch=32,images=2"
"""The ladder asks up to 32 questions at once (P5), and about two pictures."""
SHAPE_PROFILE: Final = "batch=1,prompt=1024,new=128"


def _facts() -> Iterator[Row]:
    yield Row("doctor", "foveate doctor", "facts:doctor", 15)
    yield Row("memory", "our memory, stream and captured graph", "facts:memory", 15, ("gpu", "cuda-bindings"))
    yield Row("ceilings", "what this GPU can do at most", "facts:ceilings", 30, ("gpu",))


def _export(bundle: str, target: str, dtype: str) -> Row:
    options = {"bundle": bundle, "target": target, "dtype": dtype}
    title = f"the built-in model for {target}, {dtype}"
    return Row(f"export-{bundle}", title, "bundles:export", 30, ("torch",), (), bundle, options, 590)


def _checks() -> Iterator[Row]:
    """What TensorRT would say of our graphs: needs no GPU."""
    for dtype in _DTYPES:
        yield _export(f"demo-tensorrt-{dtype}", "tensorrt", dtype)
        for attention in _ATTENTION:
            yield Row(
                f"check-{dtype}-{attention}",
                f"foveate check, {dtype}, attention {attention}",
                "bundles:check",
                10,
                after=(f"export-demo-tensorrt-{dtype}",),
                options={"bundle": f"demo-tensorrt-{dtype}", "attention": attention},
            )


def _cuda() -> Iterator[Row]:
    """ONNX Runtime's CUDA provider: the ladder in each type, then families, load and speed."""
    for target, dtype in _ON_CUDA:
        bundle = f"demo-{target}-{dtype}"
        yield _export(bundle, target, dtype)
        yield Row(
            f"ladder-cuda-{dtype}",
            f"P0 to P5 on CUDA, built-in model, {dtype}",
            "bundles:ladder",
            60,
            _CUDA,
            (f"export-{bundle}",),
            options={"bundle": bundle, "backend": "cuda"},
            limit=560,
        )
    # In float32: below it, requests that share a call may end a near tie otherwise than alone.
    asked = {"bundle": "demo-portable-fp32", "backend": "cuda", "minutes": 1.0}
    exact = ("export-demo-portable-fp32",)
    title = "a minute of mixed requests at once, fp32"
    yield Row("soak-cuda", title, "bundles:soak", 90, _CUDA, exact, options=asked)
    options = {"bundle": "demo-portable-fp32", "backend": "cuda"}
    yield Row("graphs-cuda", _GRAPHS, "graphs:compare", 60, _CUDA, exact, options=options)
    after, title = ("export-demo-cuda-fp16",), "CUDA graphs, fp16: recorded, and replays equal to plain steps"
    options = {"bundle": "demo-cuda-fp16", "backend": "cuda"}
    yield Row("graphs-cuda-fp16", title, "graphs:prove", 40, _CUDA, after, options=options)
    asked = {"bundles": {"demo": "demo-cuda-fp16"}, "backend": "cuda"}
    yield Row("bench-cuda", "speed of the built-in model", "speed:bench", 45, _CUDA, after, options=asked)


def _families() -> Iterator[Row]:
    """Every family's tiny checkpoint on CUDA."""
    for family in family_names():
        for target, dtype in _ON_CUDA:
            options = {"family": family, "target": target, "dtype": dtype, "backend": "cuda"}
            yield Row(
                f"family-{family}-{dtype}",
                f"P0 to P4 on CUDA, tiny {family}, {dtype}",
                "bundles:family",
                40,
                (*_CUDA, "repository"),
                options=options,
            )


def _shape() -> Iterator[Row]:
    """The figures of a full size, beside transformers in the same rounds."""
    needs = ("gpu", "ort-cuda", "torch-cuda")
    yield Row(
        "7b-checkpoint",
        f"{_SHAPE}: drawn",
        "speed:checkpoint",
        90,
        ("gpu", "torch"),
        makes="llava-7b",
        limit=500,
    )
    yield Row(
        "7b-export",
        f"{_SHAPE}: exported for cuda, fp16",
        "bundles:export",
        180,
        ("gpu", "torch"),
        ("7b-checkpoint",),
        "7b-cuda-fp16",
        {"bundle": "7b-cuda-fp16", "target": "cuda", "dtype": "fp16", "checkpoint": "llava-7b"},
        limit=580,
    )
    options = {"bundle": "7b-cuda-fp16", "backend": "cuda"}
    yield Row(
        "7b-first-token",
        f"{_SHAPE}: first token and decoding, all and pruned, beside transformers",
        "speed:first_token",
        240,
        needs,
        ("7b-export", "ceilings"),
        options=options,
        limit=580,
    )
    yield Row(
        "7b-concurrency",
        f"{_SHAPE}: 1 to 32 requests at once",
        "speed:concurrency",
        180,
        needs,
        ("7b-export",),
        options=options,
        limit=580,
    )


def _first_tests() -> Iterator[Row]:
    """What to ask TensorRT first, in this order."""
    asked = (
        ("trt-1-decomposable", "TensorScatter and Attention, two layers, decomposable", "scatter", True),
        ("trt-1-fused", "the same, not decomposable", "scatter", False),
        ("trt-2-native", "TRT_KVCacheUpdate and TRT_Attention, lower right", "native", None),
        ("trt-3-nonzero", "a length that only the data tells, by an output allocator", "nonzero", None),
        ("trt-4-topk", "TopK with K from a shape; is it captured?", "top_k", None),
        ("trt-5-carrier", "two segments, the second's length from an input's shape", "carrier", None),
        ("trt-6-capture", "a captured step, lengths per group of layers", "capture", None),
    )
    for name, title, function, flag in asked:
        options = {} if flag is None else {"decomposable": flag}
        yield Row(name, title, f"first_tests:{function}", 60, _TRT, options=options)


def _tensorrt() -> Iterator[Row]:
    """Engines of the built-in model, the ladder on them, and the full size."""
    for dtype, attentions in _ENGINES.items():
        bundle = f"demo-tensorrt-{dtype}"
        for attention in attentions:
            built, place = f"build-{dtype}-{attention}", f"demo-engines-{dtype}-{attention}"
            options = {"bundle": bundle, "attention": attention, "into": place, "profile": LADDER_PROFILE}
            after = (f"export-{bundle}",)
            title = f"engines of the built-in model, {dtype}, attention {attention}"
            yield Row(built, title, "bundles:build", 120, _TRT, after, place, options, 540)
            yield Row(
                f"ladder-tensorrt-{dtype}-{attention}",
                f"P0 to P5 on TensorRT, {dtype}, attention {attention}",
                "bundles:ladder",
                90,
                (*_TRT, "torch"),
                (built,),
                options={"bundle": place, "backend": "tensorrt"},
                limit=560,
            )
    yield Row(
        "graphs-tensorrt",
        _GRAPHS,
        "graphs:compare",
        60,
        _TRT,
        ("build-fp32-native",),
        options={"bundle": "demo-engines-fp32-native", "backend": "tensorrt"},
    )
    yield Row(
        "bench-tensorrt",
        "speed of the built-in model",
        "speed:bench",
        60,
        _TRT,
        ("build-fp16-native",),
        options={"bundles": {"demo": "demo-engines-fp16-native"}, "backend": "tensorrt"},
    )
    yield Row(
        "ladder-tensorrt-provider",
        "P0 to P5 on ONNX Runtime's TensorRT provider, fp32",
        "bundles:ladder",
        240,
        ("gpu", "ort-tensorrt", "torch"),
        ("export-demo-tensorrt-fp32",),
        options={"bundle": "demo-tensorrt-fp32", "backend": "tensorrt-provider"},
        limit=580,
    )
    yield from _shape_tensorrt()


def _shape_tensorrt() -> Iterator[Row]:
    bundle = "7b-tensorrt-fp16"
    made = {"bundle": bundle, "target": "tensorrt", "dtype": "fp16", "checkpoint": "llava-7b"}
    yield Row(
        "7b-export-tensorrt",
        f"{_SHAPE}: exported for tensorrt, fp16",
        "bundles:export",
        180,
        (*_TRT, "torch"),
        ("7b-checkpoint",),
        bundle,
        made,
        limit=580,
    )
    yield Row(
        "7b-build",
        f"{_SHAPE}: engines",
        "bundles:build",
        400,
        _TRT,
        ("7b-export-tensorrt",),
        options={"bundle": bundle, "attention": "native", "profile": SHAPE_PROFILE},
        limit=590,
    )
    yield Row(
        "7b-first-token-tensorrt",
        f"{_SHAPE}: first token and decoding on TensorRT, beside transformers",
        "speed:first_token",
        240,
        (*_TRT, "torch-cuda"),
        ("7b-build", "ceilings"),
        options={"bundle": bundle, "backend": "tensorrt"},
        limit=580,
    )


ROWS: Final[tuple[Row, ...]] = (
    *_facts(),
    *_first_tests(),
    *_cuda(),
    *_shape(),
    *_checks(),
    *_tensorrt(),
    *_families(),
)
"""In the order in which they run: what costs little and tells most comes first."""
