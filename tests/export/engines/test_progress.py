"""Nested phases as one number that never goes back, and the way to stop the builder."""

from __future__ import annotations

import threading

import pytest

from foveate.export.engines.progress import Phases, beside


def test_a_phase_inside_a_step_moves_the_whole_by_its_share_of_that_step() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    assert phases.state() == ("build", 0.0)
    assert phases.step("build", 0)
    assert phases.state() == ("build", 0.25)
    phases.start("tactics", "build", 10)
    phases.step("tactics", 4)
    assert phases.state() == ("tactics", 0.375)
    phases.finish("tactics")
    assert phases.state() == ("build", 0.375), "it does not fall back before the step is counted"
    phases.step("build", 1)
    assert phases.state() == ("build", 0.5)
    phases.finish("build")
    assert phases.state()[1] == 0.5


def test_phases_in_two_threads() -> None:
    phases = Phases()
    phases.start("build", None, 1000)

    def work(start: int) -> None:
        for step in range(start, 1000, 2):
            phases.step("build", step)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert phases.state()[1] > 0.99


def test_a_stopped_build_is_told_so_at_its_next_step() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    assert phases.step("build", 0) is True
    phases.stop()
    assert phases.step("build", 1) is False


def test_work_beside_gives_its_result_or_its_error() -> None:
    phases, seen = Phases(), threading.Event()

    def work() -> bool:
        phases.start("build", None, 2)
        phases.step("build", 0)
        return seen.wait(60)  # until it was shown how far it is

    def show(phase: str, share: float) -> None:
        if (phase, share) == ("build", 0.5):
            seen.set()

    assert beside(work, phases, show)

    def fail() -> None:
        raise ValueError("from the other thread")

    with pytest.raises(ValueError, match="from the other thread"):
        beside(fail, Phases(), lambda *state: None)


def test_an_interrupt_waits_for_the_builder_to_stop() -> None:
    phases, stopped = Phases(), threading.Event()

    def work() -> None:
        phases.start("build", None, 1)
        while phases.step("build", 0):
            pass
        stopped.set()

    def show(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beside(work, phases, show)
    assert stopped.is_set()
