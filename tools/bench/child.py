"""A process that measures: bound to its cores, asked by lines of JSON.

A request is one line `{"verb": ..., ...}` on its standard input, an answer one line on its standard output:
`{"result": ...}`, `{"progress": [done, total]}` any number of times before it, or `{"error": {...}}`, which
is raised here again as the error that it was there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from foveate.runtime import errors
from foveate.runtime.errors import BackendError, FoveateError

Progress = Callable[[float, float], None]
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Child:
    """A running child; leaving the `with` block ends it.

    Args:
        name: for messages.
        words: its command line; None is a worker of ours.
        threads: for the thread pools of numpy's libraries.
        environment: on top of this process's.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str] | None = None,
        *,
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        # A file, not a pipe: nobody empties it while the child runs.
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            words or [sys.executable, "-m", "foveate.tools.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(_POOLS, str(threads)), **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, verb: str, *, progress: Progress | None = None, **values: Any) -> Any:
        """The result of a request.

        Raises:
            FoveateError: the error that the child met.
            BackendError: the child died, or spoke something else.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **values}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._died(verb) from error
        for line in self._process.stdout:
            answer = self._read(line)
            if "progress" in answer:
                if progress is not None:
                    progress(*answer["progress"])
                continue
            if "error" in answer:
                raise revived(answer["error"])
            return answer.get("result")
        raise self._died(verb)

    def close(self) -> None:
        """End it: politely at first."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone already
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._complaints.close()

    def _read(self, line: str) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        raise BackendError(f"the process of {self.name} spoke out of turn", found=line.strip()[:200])

    def _died(self, verb: str) -> BackendError:
        code = self._process.wait()
        self._complaints.seek(0)
        last = [line.strip() for line in self._complaints.read().splitlines() if line.strip()][-1:]
        # 137: a shell's word for killed.
        mend = (
            "it was probably killed for want of memory: measure fewer bundles at once"
            if code in (-9, 137)
            else ""
        )
        return BackendError(
            f"the process of {self.name} ended at '{verb}'",
            found="; ".join([f"exit code {code}", *last])[:400],
            mend=mend,
        )


def dumped(error: FoveateError) -> dict[str, str]:
    """An error as it travels."""
    parts = ("message", "found", "wanted", "mend")
    return {"kind": type(error).__name__, **{name: getattr(error, name) for name in parts}}


def revived(parts: Mapping[str, str]) -> FoveateError:
    """The error that travelled."""
    kind: type[FoveateError] = getattr(errors, parts["kind"], BackendError)
    return kind(parts["message"], found=parts["found"], wanted=parts["wanted"], mend=parts["mend"])
