"""What one product costs under each kernel: `python tests/export/kernel_cost.py [--rows 589] [--bias]`.

Products of random numbers as the exporter makes them, run by ONNX Runtime, and by OpenVINO where its Python
is given (`--openvino`), in turn. Prints processor time, medians and the range of its ratios to the first
line. One row reads other weights each time (`--copies`), as a decoding step does; many rows read the same.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from foveate.tools.precision.auto import product, product_graph

OPENVINO = """
import sys, time, numpy, openvino
core, (rows, k, threads) = openvino.Core(), map(int, sys.argv[1:4])
how = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
asks = [core.compile_model(path, "CPU", how).create_infer_request() for path in sys.argv[4:]]
x = numpy.random.default_rng(0).standard_normal((1, rows, k), numpy.float32)
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    for ask in asks:
        ask.infer([x])
    print((time.process_time() - start) / len(asks), flush=True)
"""
Once = Callable[[], float]  # seconds of one product


def onnxruntime(kernel: str, weights: list[torch.Tensor], given: argparse.Namespace) -> Once:
    """Sessions of one product each."""
    made = [product(given.target, kernel, each, given.threads, bias=given.bias) for each in weights]
    x = np.random.default_rng(0).standard_normal((1, given.rows, given.inputs), np.float32)

    def once() -> float:
        start = time.process_time()
        for session in made:
            session.run(None, {"x": x})
        return (time.process_time() - start) / len(made)

    return once


def openvino(kernel: str, weights: list[torch.Tensor], given: argparse.Namespace, folder: Path) -> Once:
    """The portable graphs in a process of another Python."""
    files = [folder / f"{kernel}-{number}.onnx" for number in range(len(weights))]
    for file, weight in zip(files, weights, strict=True):
        ir.save(product_graph("portable", kernel, weight, bias=given.bias), file)
    sizes = map(str, (given.rows, given.inputs, given.threads))
    child = subprocess.Popen(
        [given.openvino, "-c", OPENVINO, *sizes, *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    ask, hear = child.stdin, child.stdout
    if hear.readline() != "ready\n":
        raise RuntimeError("it cannot load the graph")

    def once() -> float:
        ask.write("again\n")
        ask.flush()
        return float(hear.readline())

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kernels", default="fp32,int8,int8-row,int8-block,int4-block")
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=5632)
    parser.add_argument("--rows", type=int, default=589)
    parser.add_argument("--bias", action="store_true", help="add one")
    parser.add_argument("--copies", type=int, default=12, help="weights in turn, with one row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--openvino", help="the Python of an environment with openvino")
    given = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    shape = (given.inputs, given.outputs)
    number = given.copies if given.rows == 1 else 1
    weights = [torch.randn(shape, generator=draw) for _ in range(number)]
    runs: dict[str, Once] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kernel in given.kernels.split(","):
            runs[f"onnxruntime {kernel}"] = onnxruntime(kernel, weights, given)
            if given.openvino:
                try:
                    runs[f"openvino {kernel}"] = openvino(kernel, weights, given, Path(folder))
                except RuntimeError as error:
                    print(f"openvino {kernel}: {error}", file=sys.stderr)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(given.rounds + 1):
            for name, once in runs.items():
                taken[name].append(once())
    _print(taken, given)


def _print(taken: dict[str, list[float]], given: argparse.Namespace) -> None:
    first = next(iter(taken.values()))[1:]
    for name, every in taken.items():
        seconds = every[1:]  # without the warm-up
        ratios = [one / other for one, other in zip(seconds, first, strict=True)]
        middle = statistics.median(seconds)
        rate = 2 * given.rows * given.inputs * given.outputs / middle / 1e9
        print(
            f"{name:24} {1e3 * middle:8.2f} ms {rate:6.0f} GF/s, {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}-{max(ratios):.2f}] of the first"
        )


if __name__ == "__main__":
    main()
