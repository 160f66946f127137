"""What this GPU can do at most, measured on the spot: products per second, and bytes read per second.

Measured through PyTorch where it has CUDA, with events, else through ONNX Runtime's CUDA provider, whose
times have a launch and a synchronisation in them. Inputs are random: on zeros a GPU runs faster than on real
data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np

from foveate.runtime.arrays import Array
from foveate.tools.bench.schema import Ceiling

Report = Callable[[float, float], None]
Shape = tuple[int, int, int]

SHAPES: Final[Sequence[Shape]] = ((8192, 8192, 8192), (4096, 4096, 11008), (640, 4096, 11008))
"""Rows, inner, outer width: a large square, and a 7B model's widest layer with many rows and a prompt's."""
READ_BYTES: Final = 4 * 2**30  # many times what caches hold
KINDS: Final = ("fp16", "bf16", "tf32", "fp32")


@dataclass(frozen=True)
class Sizes:
    """How large, and how often: `rounds` are timed, behind `warm_up` that are not."""

    shapes: Sequence[Shape] = SHAPES
    read_bytes: int = READ_BYTES
    rounds: int = 20
    warm_up: int = 3


def measure(progress: Report, sizes: Sizes | None = None, *, way: str | None = None) -> Ceiling:
    """Medians of each kind, the best shape of each.

    `way` is `torch` or `onnxruntime`; by default what is there.

    Raises:
        MissingDependencyError: neither can use a GPU.
    """
    chosen = WAYS[way or _available()]
    return chosen(progress, sizes or Sizes())


def _available() -> str:
    from foveate.runtime.backends.cuda import INSTALL
    from foveate.runtime.errors import MissingDependencyError

    try:
        import torch

        if torch.cuda.is_available():
            return "torch"
    except ImportError:
        pass
    try:
        import onnxruntime  # type: ignore[import-untyped]

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return "onnxruntime"
    except ImportError:
        pass
    raise MissingDependencyError("nothing here can use a GPU", mend=INSTALL)


# --- PyTorch --------------------------------------------------------------------------------------------


def by_torch(progress: Report, sizes: Sizes, device: str = "cuda") -> Ceiling:
    """Products by `torch.mm`; reading by a sum, by a matrix times a vector, and by a copy (both ways)."""
    import torch

    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
    total, done = len(KINDS) + 1, 0
    gflops = {}
    for kind in KINDS:
        progress(done, total)
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        best = 0.0
        for rows, inner, outer in sizes.shapes:
            one = torch.randn(rows, inner, device=device, dtype=types[kind])
            two = torch.randn(inner, outer, device=device, dtype=types[kind])
            out = torch.empty(rows, outer, device=device, dtype=types[kind])
            seconds = _timed(partial(torch.mm, one, two, out=out), sizes, device)
            best = max(best, 2e-9 * rows * inner * outer / seconds)
        gflops[kind] = best
        done += 1
    torch.set_float32_matmul_precision("highest")
    progress(done, total)
    gbytes = _torch_reads(sizes, device)
    progress(total, total)
    return Ceiling(gflops=gflops, gbytes=gbytes)


def _torch_reads(sizes: Sizes, device: str) -> dict[str, float]:
    import torch

    width = 4096
    block = torch.randn(sizes.read_bytes // 2 // width, width, device=device, dtype=torch.float16)
    vector = torch.randn(width, device=device, dtype=torch.float16)
    held = block.numel() * block.element_size()
    ways = (lambda: block.amax(), lambda: block.float().sum() if device == "cpu" else block.sum())
    read = max(held / _timed(way, sizes, device) for way in (*ways, lambda: torch.mv(block, vector)))
    other = torch.empty_like(block)
    copied = 2 * held / _timed(lambda: other.copy_(block), sizes, device)
    return {"memory": 1e-9 * read, "copy": 1e-9 * copied}


def _timed(run: Callable[[], Any], sizes: Sizes, device: str) -> float:
    """Seconds of one run, the median."""
    import torch

    if device == "cpu":
        return _clocked(run, sizes)
    for _ in range(sizes.warm_up):
        run()
    event: Any = torch.cuda.Event  # which carries no types
    times: list[float] = []
    for _ in range(sizes.rounds):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


# --- ONNX Runtime ---------------------------------------------------------------------------------------


def by_onnxruntime(
    progress: Report, sizes: Sizes, device: str = "cuda", provider: str = "CUDAExecutionProvider"
) -> Ceiling:
    """Products of two inputs in device memory; reading by a matrix times one row."""
    kinds = {"fp16": np.float16, "fp32": np.float32}
    gflops = {}
    for done, (kind, dtype) in enumerate(kinds.items()):
        progress(done, len(kinds) + 1)
        rates = []
        for shape in sizes.shapes:
            seconds = _product(shape, dtype, device, provider, sizes)
            rates.append(2e-9 * float(np.prod(shape)) / seconds)
        gflops[kind] = max(rates)
    width = 8192
    outer = max(sizes.read_bytes // 2 // width, 1)
    seconds = _product((1, width, outer), np.float16, device, provider, sizes)
    progress(1, 1)
    return Ceiling(gflops=gflops, gbytes={"memory": 2e-9 * width * outer / seconds})


def _product(shape: Shape, dtype: type[Any], device: str, provider: str, sizes: Sizes) -> float:
    """Seconds of one product of random matrices that lie in device memory."""
    import onnxruntime

    rows, inner, outer = shape
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_graph(dtype), options, providers=[provider])
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    places = {"a": (rows, inner), "b": (inner, outer)}
    held = {name: _on_device(rng, place, dtype, device) for name, place in places.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    out = onnxruntime.OrtValue.ortvalue_from_shape_and_type([rows, outer], dtype, device, 0)
    binding.bind_ortvalue_output("y", out)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return _clocked(run, sizes)


def _on_device(rng: np.random.Generator, shape: tuple[int, int], dtype: type[Any], device: str) -> Any:
    """Random rows, drawn once and repeated: drawing gigabytes on the host would take minutes."""
    import onnxruntime

    drawn: Array = rng.standard_normal((min(shape[0], 64), shape[1]), np.float32).astype(dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.resize(drawn, shape), device, 0)


def _graph(dtype: type[Any]) -> bytes:
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [None, None]) for name in ("a", "b", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])], "ceiling", values[:2], values[2:]
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    return made


def _clocked(run: Callable[[], Any], sizes: Sizes) -> float:
    """Seconds of one run by the host's clock, the median; for runs that end before they return."""
    for _ in range(sizes.warm_up):
        run()
    times = []
    for _ in range(sizes.rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


WAYS: Final[Mapping[str, Callable[[Report, Sizes], Ceiling]]] = {
    "torch": by_torch,
    "onnxruntime": by_onnxruntime,
}
