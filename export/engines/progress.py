"""How far the builder is: its nested phases as one number, and the way to stop it.

TensorRT calls the monitor from threads of its own, while the thread that builds sits inside the library. So
the build runs beside the main thread, which shows how far it is and notices Ctrl-C; the monitor then tells
the builder to stop, which it does at the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_PAUSE = 0.1  # seconds between two looks


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Phases of a build, each inside a step of its parent. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0
        self.stopped = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> bool:
        """Step number `step` of a phase is done; gives whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            return not self.stopped

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(name, None)

    def stop(self) -> None:
        """Ask the builder to stop."""
        self.stopped = True

    def state(self) -> tuple[str, float]:
        """The innermost phase, and how much of the whole is done; that never goes back."""
        with self._lock:
            share = max((self._share(name) for name in self._phases), default=0.0)
            self._reached = max(self._reached, min(share, 1.0))
            return next(reversed(self._phases), ""), self._reached

    def _share(self, name: str) -> float:
        """Where a phase stands in the whole: its parents' shares, each cut into steps."""
        chain = [self._phases[name]]
        while chain[-1].parent in self._phases and len(chain) <= len(self._phases):
            chain.append(self._phases[chain[-1].parent or ""])
        share = 0.0
        for phase in chain:  # from the inside out
            share = min(phase.done + share, phase.steps) / phase.steps
        return share


def make_monitor(trt: Any, phases: Phases) -> Any:
    """An `IProgressMonitor` that tells `phases`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def beside(work: Callable[[], _Result], phases: Phases, show: Callable[[str, float], None]) -> _Result:
    """Runs `work` in a thread of its own; `show` is called with `phases.state()` meanwhile.

    Raises:
        KeyboardInterrupt: on Ctrl-C, when the builder has stopped; a second one does not wait for that.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="builder", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_PAUSE)
            show(*phases.state())
    except KeyboardInterrupt:
        phases.stop()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
