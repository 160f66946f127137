"""Other engines in the same rounds: started beside the bundles, and asked in turn with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from foveate.runtime.errors import FoveateError
from foveate.tools.bench import rivals
from foveate.tools.bench.device import Watch
from foveate.tools.bench.order import Order, Report
from foveate.tools.bench.schema import Rival


class Contestant:
    """One rival while it is measured; what it could not tell is None."""

    def __init__(self, name: str, engine: rivals.Rival, question: rivals.Question) -> None:
        self.name = name
        self._engine = engine
        self._question = question
        self._answers: list[rivals.Answer] = []
        self._started: rivals.Started | None = None
        self._pid = 0

    def start(self) -> None:
        """Load. Raises `FoveateError` when it is absent or fails."""
        self._started = self._engine.start()
        self._pid = self._engine.pid

    def ask(self, number: int) -> None:
        """One answer; those before round 0 warm up."""
        answer = self._engine.ask(self._question)
        if number >= 0:
            self._answers.append(answer)

    def stop(self) -> None:
        """End its process."""
        self._engine.stop()

    def result(self, watch: Watch) -> Rival:
        """What came out; `watch` saw its GPU memory."""
        assert self._started is not None
        last = self._answers[-1]
        return Rival(
            name=self.name,
            versions=self._started.versions,
            settings={name: str(value) for name, value in self._started.settings.items()},
            load=(self._started.load_seconds, self._started.load_cpu),
            rss_peak=max(answer.peak_rss for answer in self._answers),
            device_peak=watch.peak(self._pid),
            prompt_tokens=last.prompt_tokens,
            new_tokens=last.new_tokens,
            wall=tuple(asdict(answer.wall) for answer in self._answers),
            cpu=tuple(asdict(answer.cpu) for answer in self._answers),
            text=last.text,
        )


def starting(order: Order, image: Path, remark: Callable[[str], None], report: Report) -> list[Contestant]:
    """The rivals that could be started; of each other one a loud line."""
    found = []
    question = rivals.Question(image, order.prompt, order.new_tokens)
    for done, (label, model) in enumerate(order.rivals.items()):
        report("starting rivals", done, len(order.rivals))
        name = engine_of(label)
        assert order.checkpoint is not None
        options = dict(order.options.get(label, {}))
        settings = rivals.RivalSettings(order.threads, order.cores, order.pythons.get(name), model, options)
        contestant = Contestant(label, rivals.make(name, order.checkpoint, settings), question)
        try:
            contestant.start()
        except FoveateError as error:
            remark(f"NOT MEASURED: {error}" if label == name else f"NOT MEASURED: {label}: {error}")
            continue
        found.append(contestant)
    report("starting rivals", 1, 1)
    return found


def engine_of(label: str) -> str:
    """`openvino-genai:int8` is the engine openvino-genai under a name of its own."""
    return label.partition(":")[0]
