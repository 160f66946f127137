"""The double of CUDA: its names and signatures are the real module's, and it fails where CUDA does harm."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foveate.runtime.cuda
from doubles import cudart_names as names
from doubles.cudart import Cudart, Misuse
from doubles.cudart_names import cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode

OK = cudaError_t.cudaSuccess
UP, DOWN, ACROSS = (
    cudaMemcpyKind.cudaMemcpyHostToDevice,
    cudaMemcpyKind.cudaMemcpyDeviceToHost,
    cudaMemcpyKind.cudaMemcpyDeviceToDevice,
)
CODE = Path(foveate.runtime.cuda.__file__).parent
# In a process of its own: here the double may stand in its place.
REAL = """
import inspect, json
from cuda.bindings import runtime as real
out = {}
for name in dir(real):
    if name.startswith("cuda"):
        value = getattr(real, name)
        if isinstance(value, type):
            out[name] = {m.name: int(m) for m in value} if hasattr(value, "__members__") else "class"
        elif callable(value):
            out[name] = list(inspect.signature(value).parameters)
        elif isinstance(value, int):
            out[name] = value
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def real() -> dict[str, object]:
    import json

    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_names_signatures_and_numbers_are_the_real_ones(real: dict[str, object]) -> None:
    functions = [name for name in dir(Cudart) if name.startswith("cuda")]
    assert len(functions) > 25
    for name in functions:
        mine = [p for p in inspect.signature(getattr(Cudart, name)).parameters if p != "self"]
        assert mine == real[name], name
    for name, value in vars(names).items():
        if name.startswith("cuda"):
            if isinstance(value, int):
                assert value == real[name], name
            elif hasattr(value, "__members__"):
                theirs = real[name]
                assert isinstance(theirs, dict)
                assert {m.name: m.value for m in value}.items() <= theirs.items(), name
            else:
                assert real[name] == "class"


def test_whatever_the_runtime_calls_is_in_both(real: dict[str, object]) -> None:
    """Found in the code itself: every text and attribute that begins as CUDA's names do."""
    used = set()
    for path in CODE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and str(node.value).startswith("cuda")
                and str(node.value).isalnum()
            ):
                used.add(str(node.value))
            elif isinstance(node, ast.Attribute) and node.attr.startswith("cuda"):
                used.add(node.attr)
    members = {member for each in real.values() if isinstance(each, dict) for member in each}
    mine = Cudart()
    assert {"cudaMalloc", "cudaMemcpy2DAsync", "cudaGraphLaunch"} <= used
    for name in used:
        assert name in real or name in members, f"the real module has no {name}"
        known = any(hasattr(value, name) for value in vars(names).values())
        assert known or hasattr(mine, name), f"the double has no {name}"


# --- misuse -------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> Cudart:
    return Cudart(memory=1 << 20)


def block(cuda: Cudart, size: int = 64) -> int:
    return int(cuda.cudaMalloc(size)[1])


def stream(cuda: Cudart) -> int:
    return int(cuda.cudaStreamCreateWithFlags(1)[1])


def test_bounds_directions_and_dead_blocks(cuda: Cudart) -> None:
    device, other, host = block(cuda), block(cuda), np.zeros(64, np.uint8)
    pinned = int(cuda.cudaHostAlloc(64, 0)[1])
    with pytest.raises(Misuse, match="beyond a block of 64"):
        cuda.cudaMemcpyAsync(device, host.ctypes.data, 65, UP, 0)
    with pytest.raises(Misuse, match="beyond"):
        cuda.cudaMemcpy2DAsync(device, 40, other, 32, 32, 2, ACROSS, 0)
    with pytest.raises(Misuse, match="no living block"):
        cuda.cudaMemcpyAsync(device, host.ctypes.data, 8, ACROSS, 0)
    with pytest.raises(Misuse, match="device memory, not host"):
        cuda.cudaMemcpyAsync(device, other, 8, UP, 0)
    with pytest.raises(Misuse, match="host memory, not device"):
        cuda.cudaMemcpyAsync(device, pinned, 8, ACROSS, 0)
    with pytest.raises(Misuse, match="overlap"):
        cuda.cudaMemcpyAsync(device + 8, device, 16, ACROSS, 0)
    with pytest.raises(Misuse, match="beyond"):
        cuda.cudaMemsetAsync(device + 60, 0, 8, 0)
    with pytest.raises(TypeError, match="cudaMemcpyKind"):
        cuda.cudaMemcpyAsync(device, other, 8, 3, 0)
    assert cuda.cudaMemcpy2DAsync(device, 8, other, 8, 16, 2, ACROSS, 0) == (
        cudaError_t.cudaErrorInvalidPitchValue,
    )
    assert cuda.cudaFree(device) == (OK,)
    assert cuda.cudaFree(device) == (cudaError_t.cudaErrorInvalidValue,)
    assert cuda.cudaFreeHost(other) == (cudaError_t.cudaErrorInvalidValue,)
    with pytest.raises(Misuse, match="no living block"):
        cuda.cudaMemcpyAsync(other, device, 8, ACROSS, 0)


def test_work_waits_for_its_stream_and_fresh_memory_is_no_number(cuda: Cudart) -> None:
    queue, device = stream(cuda), block(cuda)
    pinned = int(cuda.cudaHostAlloc(64, 0)[1])
    import ctypes

    landing = np.frombuffer((ctypes.c_uint8 * 64).from_address(pinned), np.float32)
    landing[...] = 7
    cuda.cudaMemcpyAsync(pinned, device, 64, DOWN, queue)
    assert (landing == 7).all()  # who does not wait reads what was there
    assert cuda.cudaStreamSynchronize(queue) == (OK,)
    assert np.isnan(landing).all()
    landing[...] = 1
    cuda.cudaMemcpyAsync(device, pinned, 64, UP, queue)
    landing[...] = 2  # too early: page-locked memory is read when it is the copy's turn
    cuda.cudaStreamSynchronize(queue)
    cuda.cudaMemcpyAsync(pinned, device, 64, DOWN, queue)
    cuda.cudaStreamSynchronize(queue)
    assert (landing == 2).all()


def test_recordings_allow_no_waiting_and_no_allocation(cuda: Cudart) -> None:
    mode = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    queue, device, host = stream(cuda), block(cuda), np.zeros(64, np.uint8)
    for forbidden in (
        lambda: cuda.cudaMalloc(8),
        lambda: cuda.cudaFree(device),
        lambda: cuda.cudaStreamSynchronize(queue),
        lambda: cuda.cudaMemcpyAsync(device, host.ctypes.data, 8, UP, queue),  # pageable
    ):
        assert cuda.cudaStreamBeginCapture(queue, mode) == (OK,)
        assert forbidden()[0] == cudaError_t.cudaErrorStreamCaptureUnsupported
        assert cuda.cudaStreamEndCapture(queue) == (cudaError_t.cudaErrorStreamCaptureInvalidated, None)
    assert cuda.cudaStreamEndCapture(queue)[0] == cudaError_t.cudaErrorStreamCaptureUnmatched
    assert cuda.cudaStreamBeginCapture(0, mode)[0] == cudaError_t.cudaErrorStreamCaptureUnsupported
    assert cuda.cudaGraphLaunch(12345, queue)[0] == cudaError_t.cudaErrorInvalidValue


def test_a_recording_over_memory_that_has_gone_is_found(cuda: Cudart) -> None:
    mode = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    queue, device = stream(cuda), block(cuda)
    cuda.cudaStreamBeginCapture(queue, mode)
    cuda.cudaMemsetAsync(device, 0, 64, queue)
    graph = cuda.cudaStreamEndCapture(queue)[1]
    ready = cuda.cudaGraphInstantiate(graph, 0)[1]
    cuda.cudaFree(device)
    cuda.cudaGraphLaunch(ready, queue)
    with pytest.raises(Misuse, match="no living block"):
        cuda.cudaStreamSynchronize(queue)


def test_leaks_and_writes_behind_a_block_are_found_at_the_end(cuda: Cudart) -> None:
    import ctypes

    device, queue = block(cuda), stream(cuda)
    with pytest.raises(Misuse, match=f"device memory of 64 bytes, stream {queue}"):
        cuda.close()
    ctypes.memset(device + 64, 0, 1)
    with pytest.raises(Misuse, match="behind a block of 64 bytes"):
        cuda.close()


def test_there_is_no_more_memory_than_there_is(cuda: Cudart) -> None:
    held = block(cuda, 1 << 19)
    assert cuda.cudaMalloc((1 << 19) + 1) == (cudaError_t.cudaErrorMemoryAllocation, None)
    cuda.cudaFree(held)
    assert cuda.cudaMalloc(1 << 20)[0] == OK
    assert cuda.cudaMemGetInfo() == (OK, 0, 1 << 20)
