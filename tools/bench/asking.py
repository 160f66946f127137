"""Opens a bundle so that every run of a graph is noted, and asks it with a clock in hand.

Runs in a process of its own (`foveate.tools.bench.worker`), bound to its cores: processor time is of the
whole process, all threads together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from foveate.runtime.arrays import Array, Arrays, Bindings
from foveate.runtime.backend import NO_BINDINGS, Backend, BackendOptions, Runner
from foveate.runtime.backends import choose, open_backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.images import open_image
from foveate.runtime.manifest import Stage
from foveate.runtime.model import Model
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.processor import Processor
from foveate.runtime.report import PruningReport
from foveate.tools.bench.machine import rss
from foveate.tools.bench.schema import Sample, Segment, Tokens

CPU: Final = "onnxruntime"


class Moment(NamedTuple):
    """Wall and processor time, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        """The present one."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Moment) -> Moment:
        """What has passed."""
        return Moment(self.wall - start.wall, self.cpu - start.cpu)


class Noted(NamedTuple):
    """One run of a graph, the `number`-th of its stage."""

    stage: str
    number: int
    start: Moment
    end: Moment


class Notebook:
    """A backend whose runners note when they ran: `noted`. A note ends when a GPU has finished, too."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.noted: list[Noted] = []
        self.runners: dict[str, Any] = {}
        device = getattr(backend, "device", None)
        self._wait = _nothing if device is None else device.stream.synchronize

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def open(self, path: Path, name: str, stage: Stage) -> Any:
        """See `Backend.open`."""
        self.runners[name] = self._backend.open(path, name, stage)
        return _Noting(self.runners[name], name, self.noted, self._wait)


class _Noting:
    """A runner that notes when it ran."""

    def __init__(self, runner: Runner, name: str, noted: list[Noted], wait: Callable[[], None]) -> None:
        self._runner, self._name, self._noted, self._wait = runner, name, noted, wait
        self._runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, feeds: Arrays, bindings: Bindings = NO_BINDINGS) -> dict[str, Array]:
        """See `foveate.runtime.backend.Runner.run`."""
        start = Moment.now()
        try:
            found = self._runner.run(feeds, bindings)
            self._wait()
            return found
        finally:
            self._noted.append(Noted(self._name, self._runs, start, Moment.now()))
            self._runs += 1


class Answer(NamedTuple):
    """A sample without its round, and what was kept."""

    sample: Sample
    tokens: Tokens
    cache: tuple[Segment, ...]


class Asked:
    """A bundle that is open for questions.

    Raises:
        BundleError: there is no bundle, or it is broken.
        UsageError: it has no such layout.
        BackendError: a graph cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        layout: str | None,
        threads: int,
        profile: Path | None = None,
        backend: str | None = None,
    ) -> None:
        start = Moment.now()
        bundle = endless(Bundle.open(path))
        name, self.layout = choose(bundle, backend, layout)
        self.backend = Notebook(open_one(name, bundle, self.layout, threads, profile))
        self.bundle = bundle
        processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
        processor.warm_up()
        if name == CPU:
            import_engine()
        self.rss_base = rss()[0]
        noting: Any = self.backend  # which is a backend by what it passes on
        self.pipeline = Pipeline(bundle, Model(bundle, self.layout, noting), processor)
        self.load = Moment.now().since(start)

    def ask(self, image: Path, prompt: str, options: GenerateOptions, number: int) -> Answer:
        """One answer, part by part. Raises `InputError`."""
        self.backend.noted.clear()
        picture = open_image(image)  # decoding a file is nobody's stage
        start = Moment.now()
        tokenized = self.pipeline.tokenize(prompt, [picture])
        read = Moment.now()
        prepared = self.pipeline.prepare_batch([tokenized], options)
        seen = Moment.now()
        stream = self.pipeline.stream_prepared(prepared, options)
        ids = [next(stream).id]
        first = Moment.now()
        before = tuple(self.backend.noted)
        ends = [first]
        for token in stream:
            ids.append(token.id)
            ends.append(Moment.now())
        report = stream.generation.report
        later = [note for note in before if note.start.wall >= seen.wall]
        parts = {
            "preprocess": read.since(start),
            "vision": seen.since(read),
            "embed": _sum(note for note in later if note.stage == "embed"),
            "prefill": _sum(note for note in later if note.stage != "embed"),
            "ttft": first.since(start),
            "decode": ends[-1].since(first),
            "total": ends[-1].since(start),
        }
        rest = (parts[name] for name in ("preprocess", "vision", "embed", "prefill"))
        parts["host"] = Moment(
            *(a - sum(b) for a, b in zip(parts["ttft"], zip(*rest, strict=True), strict=True))
        )
        graphs: dict[str, tuple[float, float]] = {
            name: _sum(n for n in before if n.stage == name) for name in sorted({n.stage for n in before})
        }
        sample = Sample(
            round=number,
            wall={name: moment.wall for name, moment in parts.items()},
            cpu={name: moment.cpu for name, moment in parts.items()},
            graphs=graphs,
            steps=tuple(b.since(a) for a, b in pairwise(ends)),
            token_ids=tuple(ids),
        )
        return Answer(sample, kept(report), segments(report))


def open_one(name: str, bundle: Bundle, layout: str, threads: int, profile: Path | None) -> Backend:
    """A backend by its name; only that of the CPU can be profiled."""
    if name == CPU:
        from foveate.runtime.backends.onnxruntime import Backend as OnnxRuntime

        return OnnxRuntime(threads, profile=profile)
    return open_backend(name, bundle, layout, BackendOptions(threads=threads))


def _nothing() -> None:
    """A CPU has finished when it returns."""


def import_engine() -> None:
    """Load the engine's library, so that what it weighs is not taken for the weights'."""
    import onnxruntime  # type: ignore[import-untyped]

    onnxruntime.get_available_providers()


def endless(bundle: Bundle) -> Bundle:
    """The bundle, whose answers no end-of-text token ends: so all have the same length."""
    model = bundle.manifest.model.model_copy(update={"eos_token_ids": ()})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"model": model}))


def kept(report: PruningReport) -> Tokens:
    """Counts of a report."""
    return Tokens(
        visual=report.visual_tokens,
        kept={site.site: site.kept for site in report.sites},
        prompt=len(report.positions),
        layer_average=report.layer_average,
    )


def segments(report: PruningReport) -> tuple[Segment, ...]:
    """What a prompt leaves in each group of the cache."""
    return tuple(
        Segment(
            layers=tuple(range(each.layers[0], each.layers[1] + 1)),
            tokens=each.tokens,
            bytes=each.cache_bytes,
        )
        for each in report.segments
    )


def _sum(notes: Any) -> Moment:
    """Seconds of some runs together."""
    spent = [note.end.since(note.start) for note in notes]
    return Moment(sum(each.wall for each in spent), sum(each.cpu for each in spent))


def weight_bytes(bundle: Bundle, layout: str) -> int:
    """Of the files that hold a layout's graphs and weights."""
    folders = {
        (bundle.path / bundle.manifest.stages[name].file).parent for name in bundle.layout_stages(layout)
    }
    return sum(
        file.stat().st_size
        for folder in folders
        for file in folder.iterdir()
        if file.suffix != ".onnx" and file.is_file()
    )
