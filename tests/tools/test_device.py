"""The GPU's side of the benchmark, where there is none: how its words are read, and ceilings on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.runtime.errors import MissingDependencyError
from foveate.tools.bench import device, device_ceilings
from foveate.tools.bench.device_ceilings import Sizes

SMALL = Sizes(shapes=((64, 96, 128), (8, 96, 128)), read_bytes=2**22, rounds=3, warm_up=1)
# What stands in for nvidia-smi: it knows a GPU, and two processes that take more and more of its memory.
SMI = """#!{python}
import sys, time
asked = " ".join(sys.argv)
if "--query-gpu=name" in asked:
    print("NVIDIA H200, 143771, 580.159.04, 9.0")
    print("something, else")
elif "--query-gpu=memory.used" in asked:
    for held in (100, 700, 300):
        print(held, flush=True)
    time.sleep(60)
else:
    for line in ("{own}, 200", "{own}, 500", "1, 90", "{own}, 400", "[N/A], [N/A]"):
        print(line, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as `nvidia-smi` tells."""
    script = tmp_path / "nvidia-smi"
    script.write_text(SMI.format(python=sys.executable, own=os.getpid()))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_the_gpus_are_those_that_the_driver_lists(smi: None) -> None:
    (found,) = device.gpus()
    assert (found.name, found.driver, found.compute_capability) == ("NVIDIA H200", "580.159.04", "9.0")
    assert found.memory_bytes == 143771 * device.MIB


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.gpus() == ()
    with device.Watch() as watch:
        pass
    assert (watch.highest, watch.peak(os.getpid())) == (0, None)


def test_a_watch_keeps_the_highest_of_each_process_and_its_children(smi: None) -> None:
    with device.Watch() as watch:
        for _ in range(600):
            if watch.highest >= 700 * device.MIB and watch.peak(os.getpid()) == 500 * device.MIB:
                break
            watch._threads[0].join(0.05)
    assert watch.highest == 700 * device.MIB
    assert watch.peak(os.getpid()) == 500 * device.MIB
    assert watch.peak(os.getppid()) == 500 * device.MIB  # it started this one
    assert watch.peak(2**22 + 1) is None
    assert all(process.poll() is not None for process in watch._processes)


def test_the_parent_of_a_process_with_an_odd_name(tmp_path: Path) -> None:
    # Spaces and brackets in the name must not shift the fields.
    name = tmp_path / "a b) S 7 ("
    name.symlink_to("/bin/sleep")
    with subprocess.Popen([str(name), "30"]) as child:
        try:
            assert device.parent(child.pid) == os.getpid()
        finally:
            child.kill()
    assert device.parent(2**22 + 1) == 0


@pytest.mark.parametrize("way", ["torch", "onnxruntime"])
def test_ceilings_by_either_way_on_the_cpu(way: str) -> None:
    told: list[tuple[float, float]] = []

    def progress(done: float, total: float) -> None:
        told.append((done, total))

    if way == "torch":
        found = device_ceilings.by_torch(progress, SMALL, "cpu")
        assert set(found.gflops) == set(device_ceilings.KINDS)
        assert set(found.gbytes) == {"memory", "copy"}
    else:
        found = device_ceilings.by_onnxruntime(progress, SMALL, "cpu", "CPUExecutionProvider")
        assert set(found.gflops) == {"fp16", "fp32"}
        assert set(found.gbytes) == {"memory"}
    # No processor does a petaflop, or reads a petabyte, in a second.
    assert all(0 < value < 1e6 for value in (*found.gflops.values(), *found.gbytes.values()))
    assert told[-1][0] == told[-1][1]


def test_where_nothing_can_use_a_gpu_there_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match="nothing here can use a GPU"):
        device_ceilings.measure(lambda done, total: None)
