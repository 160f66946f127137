"""Brings TensorRT in: the package, one log for the process, and what a message of its means for a user."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveate.runtime.errors import BackendError, MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt

# The first version with IKVCacheUpdateLayer.
OLDEST = (10, 15)


@dataclass(frozen=True)
class Library:
    """TensorRT as it is installed here.

    Attributes:
        version: as it calls itself, "11.4.0.106".
        log: an `ILogger` that keeps the latest errors; most failures say why only there.
    """

    version: str
    log: Any

    def make_runtime(self, *, host_code: bool) -> trt.Runtime:
        """What loads plans; `host_code` for those that bring a runtime of their own, of other versions."""
        import tensorrt as trt

        runtime = trt.Runtime(self.log)
        runtime.engine_host_code_allowed = host_code
        return runtime

    def why(self) -> str:
        """The errors since this was asked last, as one line."""
        lines = list(self.log.lines)
        self.log.lines.clear()
        return "; ".join(lines)[:600] or "TensorRT gave no reason"


def open_library() -> Library:
    """TensorRT, or an error that says how to get it.

    Raises:
        MissingDependencyError: the package is not installed, or its libraries cannot be loaded.
        BackendError: it is too old.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        missing = MissingDependencyError.of("tensorrt", "tensorrt")
        if getattr(error, "name", None) != "tensorrt":  # it is there, and something under it is not
            missing.found = str(error).split("\n")[0][:300]
        raise missing from error
    version = str(tensorrt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise BackendError(
            "this TensorRT is too old",
            found=version,
            wanted=".".join(map(str, OLDEST)) + " or newer",
            mend='pip install --upgrade "foveate[tensorrt]"',
        )
    return Library(version, _log())


@functools.cache
def _log() -> Any:
    """One for the process: TensorRT keeps to the first that it is given."""
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=8)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(msg.strip())

    return Log()
