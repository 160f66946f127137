"""The child process of a rival: `python serve.py ENGINE.py`, asked by lines of JSON as `bench/child.py` says.

Standard library only: it runs in the rival's own environment, where Foveate is not installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

PARTS = ("preprocess", "vision", "prefill", "decode")
_ERROR = ("message", "found", "wanted", "mend")


class Clock:
    """Wall and processor seconds between marks; a mark ends the part of its name, the first time."""

    def __init__(self) -> None:
        self._marks = [("", self._now())]

    def mark(self, name: str) -> None:
        """`name` ends here."""
        if all(name != each for each, _ in self._marks):
            self._marks.append((name, self._now()))

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def split(self, column: int, told: dict[str, float]) -> dict[str, float | None]:
        """The parts by wall (0) or processor time (1); `told` are parts that the engine measured itself."""
        times = [(name, moment[column]) for name, moment in self._marks]
        start, end = times[0][1], times[-1][1]
        parts: dict[str, float | None] = dict.fromkeys(PARTS)
        first = end
        for (_, before), (name, moment) in itertools.pairwise(times):
            parts[name] = moment - before
            first = moment if name == "prefill" else first
        for name, seconds in told.items():
            parts[name] = seconds
            parts["prefill"] = (parts["prefill"] or 0.0) - seconds
        return {**parts, "ttft": first - start, "total": end - start}


class Server:
    """What the child does; every method without an underscore is a verb."""

    def __init__(self, file: ModuleType) -> None:
        self._file = file
        self._engine: Any = None

    def open(
        self, model: str, checkpoint: str, threads: int, cores: list[int], options: dict[str, str]
    ) -> dict[str, Any]:
        """Bind to the cores and load the model."""
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        wall, cpu = time.perf_counter(), time.process_time()
        self._engine = self._file.Engine(model, checkpoint, threads, options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        now, peak = rss()
        forget_peak()
        return {
            "load_seconds": wall,
            "load_cpu": cpu,
            "rss_bytes": now,
            "load_peak_rss": peak,
            "versions": versions(self._file.DISTRIBUTIONS),
            "settings": {name: str(value) for name, value in self._engine.settings.items()},
        }

    def ask(self, image: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        """One answer; an engine marks the ends of the parts that it can tell apart."""
        from PIL import Image

        with Image.open(image) as opened:
            picture = opened.convert("RGB")  # decoding a file is nobody's part
        clock = Clock()
        given = self._engine.ask(picture, prompt, new_tokens, clock.mark)
        clock.mark("decode")
        now, peak = rss()
        return {
            "wall": clock.split(0, given.pop("told", {})),
            "cpu": clock.split(1, {}),
            **given,
            "rss": now,
            "peak_rss": peak,
        }


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Of Python and the packages whose code is measured."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def rss() -> tuple[int, int]:
    """Resident bytes now and at most; zeros where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, max(now, peak)


def forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def answer(server: Server, line: str) -> dict[str, Any]:
    """The reply to one request, an error included."""
    request = json.loads(line)
    verb = str(request.pop("verb"))
    try:
        return {"result": getattr(server, verb)(**request)}
    except ModuleNotFoundError as error:
        return failure("MissingDependencyError", f"the package '{error.name}' is not installed")
    except ImportError as error:
        return failure("MissingDependencyError", " ".join(str(error).split())[:200])
    except MemoryError:
        return failure("BackendError", "there is not enough memory", mend="free some, or use a smaller model")
    except Exception as error:  # whatever a rival raises is data here
        if all(hasattr(error, part) for part in _ERROR):  # one of our own
            return {"error": {"kind": type(error).__name__, **{p: str(getattr(error, p)) for p in _ERROR}}}
        kind = "InputError" if type(error).__name__ == "UnidentifiedImageError" else "BackendError"
        return failure(kind, f"it failed at '{verb}'", found=f"{type(error).__name__}: {error}"[:400])


def failure(kind: str, message: str, found: str = "", mend: str = "") -> dict[str, Any]:
    """An error as it travels."""
    return {"error": {"kind": kind, "message": message, "found": found, "wanted": "", "mend": mend}}


def load(path: str) -> ModuleType:
    """The engine's file, under another name: `transformers.py` must not hide the package transformers."""
    spec = importlib.util.spec_from_file_location("rival_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Speak on standard output alone: what engines print there goes to standard error."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != here]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = Server(load(sys.argv[1]))
    for line in sys.stdin:
        out.write(json.dumps(answer(server, line)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
