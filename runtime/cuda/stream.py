"""The stream that all work of a backend goes through in order, and recordings of such work to be replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from foveate.runtime.cuda.driver import api, call
from foveate.runtime.errors import BackendError


class Graph:
    """Recorded work. It pins addresses and shapes: whoever changes these records anew."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable: Any = executable
        self._stream = stream

    def launch(self) -> None:
        """Enqueue all of it. Raises `BackendError` when CUDA refuses, or after `close`."""
        if self._executable is None:
            raise BackendError("a CUDA graph was launched after it was closed")
        call("cudaGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        """Give it back; may be called twice."""
        executable, self._executable = self._executable, None
        if executable is not None:
            call("cudaGraphExecDestroy", executable)

    def __del__(self) -> None:
        # As the process ends, CUDA may be gone before this is.
        with contextlib.suppress(Exception):
            self.close()


class Capture:
    """What a recording gives: `graph`, once it has ended well."""

    def __init__(self) -> None:
        self.graph: Graph | None = None

    def taken(self) -> Graph:
        """The graph; `BackendError` if there is none."""
        if self.graph is None:
            raise BackendError("nothing was recorded")
        return self.graph


class Stream:
    """A stream of its own: nothing waits for CUDA's default stream, nor that for it."""

    def __init__(self) -> None:
        self._made: Any = call("cudaStreamCreateWithFlags", api().cudaStreamNonBlocking)
        self.handle = int(self._made)
        self.capturing = False

    def synchronize(self) -> None:
        """Wait until everything that was enqueued is done. Raises `BackendError` if some of it failed."""
        call("cudaStreamSynchronize", self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Capture]:
        """Record what is enqueued inside instead of running it.

        Only calls that enqueue are allowed: no memory may be taken or given back, nothing waited for. What is
        recorded must have run once before, since libraries take memory on the first run.

        Raises:
            BackendError: something that cannot be recorded was called; the stream can be used on.
        """
        mode = api().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self.handle, mode)
        self.capturing = True
        captured = Capture()
        try:
            yield captured
        except BaseException:
            self._end(broken=True)
            raise
        graph = self._end(broken=False)
        try:
            captured.graph = Graph(call("cudaGraphInstantiate", graph, 0), self)
        finally:
            call("cudaGraphDestroy", graph)

    def _end(self, *, broken: bool) -> Any:
        self.capturing = False
        try:
            graph = call("cudaStreamEndCapture", self.handle)
        except BackendError:
            if broken:  # the first error says more
                return None
            raise
        if broken and graph is not None:
            call("cudaGraphDestroy", graph)
        return graph

    def close(self) -> None:
        """Give it back; the work in it must be done."""
        made, self._made = self._made, None
        if made is not None:
            call("cudaStreamDestroy", made)
