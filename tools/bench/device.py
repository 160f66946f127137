"""The GPUs of this machine, and how much of their memory each process takes, by `nvidia-smi`.

A process's own count would miss what CUDA, cuBLAS and an arena hold; the driver's has all of it. It is
sampled beside the measurement, a few times a second: allocators keep what they took, so that short peaks stay
seen.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict

MIB = 2**20
_FACTS = "name,memory.total,driver_version,compute_cap"


class Gpu(BaseModel):
    """One GPU as the driver tells it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str


def gpus() -> tuple[Gpu, ...]:
    """The GPUs; none where there is no driver, or it does not answer."""
    try:
        run = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_FACTS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(run.stdout) if run.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Lines of `nvidia-smi --query-gpu`; one that is not understood is left out.

    >>> parse_gpus("NVIDIA H200, 143771, 580.159.04, 9.0")[0].memory_bytes // 2**20
    143771
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with contextlib.suppress(ValueError):
            name, memory, driver, capability = parts
            found.append(
                Gpu(
                    name=name,
                    memory_bytes=int(memory) * MIB,
                    driver=driver,
                    compute_capability=capability,
                )
            )
    return tuple(found)


class Watch:
    """Peaks of device memory by process, while the `with` block runs.

    `peak(pid)` counts the process and its descendants; None where the driver lists none of them, as inside
    some containers. `highest` is of the whole device, whoever holds it; 0 without a GPU.
    """

    def __init__(self, milliseconds: int = 250) -> None:
        self._milliseconds = milliseconds
        self._peaks: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self.highest = 0

    def __enter__(self) -> Watch:
        if gpus():
            self._start("--query-compute-apps=pid,used_memory", self.note_process)
            self._start("--query-gpu=memory.used", self.note_device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        for thread in self._threads:
            thread.join(timeout=5)

    def peak(self, pid: int) -> int | None:
        """Bytes at most of a process and what it started."""
        own = [held for other, held in self._peaks.items() if pid in self._line(other)]
        return max(own) if own else None

    def note_process(self, line: str) -> None:
        """A line `1234, 560`: a process, and the MiB that it holds."""
        with contextlib.suppress(ValueError):
            pid, held = (int(part) for part in line.split(","))
            self._peaks[pid] = max(self._peaks.get(pid, 0), held * MIB)
            self._line(pid)  # while it lives

    def note_device(self, line: str) -> None:
        """A line `560`: the MiB that are taken."""
        with contextlib.suppress(ValueError):
            self.highest = max(self.highest, int(line) * MIB)

    def _line(self, pid: int) -> Sequence[int]:
        """A process and its forebears."""
        found = [pid]
        while found[-1] > 1 and len(found) < 64:
            if found[-1] not in self._parents:
                self._parents[found[-1]] = parent(found[-1])
            found.append(self._parents[found[-1]])
        return found

    def _start(self, query: str, note: Callable[[str], None]) -> None:
        words = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--loop-ms={self._milliseconds}"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        thread = threading.Thread(target=_drain, args=(process, note), daemon=True)
        thread.start()
        self._processes.append(process)
        self._threads.append(thread)


def parent(pid: int) -> int:
    """The process that started another one; 0 where that cannot be told."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])


def _drain(process: subprocess.Popen[str], note: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        note(line)
