"""What rows need of a machine, each found out once and in a process of its own: a probe may crash.

A need is a name and a few lines of Python that end quietly where it is met, and otherwise raise: the message
is the reason in the report, with the mend where one is known.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from foveate.runtime.backends import cuda, tensorrt_provider
from foveate.runtime.cuda import driver

SECONDS: Final = 120
_ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Need:
    """`what` it is; `probe` is Python that raises where it is missing; `mend` is what to do then."""

    what: str
    probe: str
    mend: str


NEEDS: Final[Mapping[str, Need]] = {
    "gpu": Need(
        "an NVIDIA GPU with a driver",
        "import subprocess\n"
        "out = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=60)\n"
        "assert out.returncode == 0 and 'GPU 0' in out.stdout, (out.stdout + out.stderr).strip()[:200]",
        "run this on a machine with one: nvidia-smi -L has to list it",
    ),
    "cuda-bindings": Need(
        "cuda.bindings with a working driver",
        "from cuda.bindings import runtime\n"
        "error, count = runtime.cudaGetDeviceCount()\n"
        "assert int(error) == 0 and count > 0, f'cudaGetDeviceCount gives {error}'",
        driver.INSTALL,
    ),
    "ort-cuda": Need(
        "ONNX Runtime's CUDA provider",
        "import numpy, onnx, onnxruntime\n"
        "from onnx import helper as h\n"
        "getattr(onnxruntime, 'preload_dlls', lambda: None)()\n"
        "v = [h.make_tensor_value_info(n, 1, [2]) for n in 'xy']\n"
        "g = h.make_graph([h.make_node('Add', ['x', 'x'], ['y'])], 'probe', v[:1], v[1:])\n"
        "m = h.make_model(g, opset_imports=[h.make_opsetid('', 20)], ir_version=10).SerializeToString()\n"
        "s = onnxruntime.InferenceSession(m, providers=['CUDAExecutionProvider'])\n"
        "assert s.get_providers()[0] == 'CUDAExecutionProvider', f'only {s.get_providers()}'\n"
        "assert s.run(None, {'x': numpy.ones(2, numpy.float32)})[0].tolist() == [2, 2]",
        cuda.INSTALL,
    ),
    "ort-tensorrt": Need(
        "ONNX Runtime's TensorRT provider, and the libraries that it was built for",
        # From pip, TensorRT's libraries are on no search path: its package loads them.
        "import contextlib, onnxruntime\n"
        "with contextlib.suppress(ImportError):\n    import tensorrt\n"
        "getattr(onnxruntime, 'preload_dlls', lambda: None)()\n"
        "from onnx import helper as h\n"
        "v = [h.make_tensor_value_info(n, 1, [2]) for n in 'xy']\n"
        "g = h.make_graph([h.make_node('Add', ['x', 'x'], ['y'])], 'probe', v[:1], v[1:])\n"
        "m = h.make_model(g, opset_imports=[h.make_opsetid('', 20)], ir_version=10).SerializeToString()\n"
        "s = onnxruntime.InferenceSession(m, providers=['TensorrtExecutionProvider'])\n"
        "assert s.get_providers()[0] == 'TensorrtExecutionProvider', f'only {s.get_providers()}'",
        f"{tensorrt_provider.INSTALL}; see docs/cuda.md: the published onnxruntime-gpu wants TensorRT 10",
    ),
    "tensorrt": Need(
        "TensorRT that can make a builder",
        "import tensorrt\nassert tensorrt.Builder(tensorrt.Logger()), 'no builder'\nimport polygraphy",
        f'pip install "foveate[tensorrt]" && {cuda.INSTALL}',
    ),
    "torch-cuda": Need(
        "PyTorch with CUDA",
        "import torch\nassert torch.cuda.is_available(), f'torch {torch.__version__} sees no GPU'",
        "install PyTorch's CUDA build",
    ),
    "torch": Need(
        "what exports and verifies", "import torch, transformers, onnxscript", 'pip install "foveate[export]"'
    ),
    "repository": Need(
        "a checkout with its tests",
        f"import pathlib\nassert pathlib.Path({str(_ROOT / 'tests' / 'tiny')!r}).is_dir(), 'no tests/tiny'",
        "run it in a clone of the repository",
    ),
}

Probe = Callable[[str], str]


@cache
def missing(name: str) -> str:
    """What the probe said where a need is not met; empty where it is."""
    need = NEEDS[name]
    try:
        run = subprocess.run(
            [sys.executable, "-c", need.probe], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the probe did not end within {SECONDS} s"
    if run.returncode == 0:
        return ""
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    return lines[-1][:240] if lines else f"the probe ended with {run.returncode}"
