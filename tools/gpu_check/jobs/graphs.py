"""Decoding with and without CUDA graphs: the same tokens, and what a step takes each way.

A row that recorded nothing has shown nothing: it fails, or was not run where the backend says why it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from foveate.tools.gpu_check.records import AbsentError, Job

if TYPE_CHECKING:
    from foveate.runtime.generate import Generation
    from foveate.runtime.pipeline import Pipeline

NEW_TOKENS: Final = 48
_PROMPTS: Final = ("What is in this picture?", "How many objects are there, and where?")
# Of the requests that are mixed, two at a time: when a short one ends, the next prompt is read while a long
# one is decoded, again and again.
_MIXED: Final = (NEW_TOKENS, NEW_TOKENS // 2) * 3
_ROWS: Final = 16  # of a prompt that are read between two steps


class GraphsError(AssertionError):
    """Nothing was recorded, or recorded steps gave other tokens than plain ones."""


def prove(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """One and two sequences; the backend holds replays against plain steps, bit by bit, and these must agree.

    For half precision: attention splits its work by the caches' capacity in steps that may be recorded, and
    by the length in others, so two sessions may part at a near tie. The share of equal tokens is a figure.

    Raises:
        GraphsError: see there.
        AbsentError: the backend says that it cannot record, and why.
    """
    plain = _Session(job, bundle, backend, graphs=False).batches()
    session, figures = _Session(job, bundle, backend, graphs=True), {}
    for batch, (ids, seconds) in session.batches().items():
        wanted = plain[batch][0]
        equal = [a == b for rows in zip(ids, wanted, strict=True) for a, b in zip(*rows, strict=True)]
        figures[f"batch {batch}: % of tokens as without"] = 100 * sum(equal) / len(equal)
        figures[f"batch {batch}: ms a step, plain"] = 1e3 * plain[batch][1]
        figures[f"batch {batch}: ms a step, recorded"] = 1e3 * seconds
    figures["steps recorded"] = session.require_recorded("answers")
    return figures


def compare(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """One and two sequences; then prompts that are read while others are decoded, against each one alone.

    Raises:
        GraphsError: see there.
        AbsentError: the backend says that it cannot record, and why.
    """
    plain = _Session(job, bundle, backend, graphs=False)
    wanted, figures = plain.batches(), {}
    alone = [plain.ask(number)[0].token_ids for number in range(len(_MIXED))]
    session = _Session(job, bundle, backend, graphs=True)
    for batch, (ids, seconds) in session.batches().items():
        if ids != wanted[batch][0]:
            raise GraphsError(f"batch {batch}: other tokens with CUDA graphs than without")
        figures[f"batch {batch}: ms a step, plain"] = 1e3 * wanted[batch][1]
        figures[f"batch {batch}: ms a step, recorded"] = 1e3 * seconds
    figures["steps recorded"] = session.require_recorded("answers")
    # Anew, so that what was recorded above does not count for what follows.
    session = _Session(job, bundle, backend, graphs=True)
    if (found := session.mixed()) != alone:
        other = [number for number, ids in enumerate(found) if ids != alone[number]]
        raise GraphsError(f"read beside recorded steps, requests {other} got other tokens than alone")
    figures["steps recorded, mixed"] = session.require_recorded("mixed requests")
    return figures


class _Opened:
    """A backend that remembers what it opened."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.decoders: list[Any] = []

    def open(self, path: Any, name: str, stage: Any) -> Any:
        """As of the backend."""
        runner = self._backend.open(path, name, stage)
        if any(spec.name.startswith("past_key") for spec in stage.inputs):
            self.decoders.append(runner)
        return runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _Session:
    """A bundle on a backend, whose answers no end-of-text token ends: the built-in model says two words."""

    def __init__(self, job: Job, bundle: str, backend: str, *, graphs: bool) -> None:
        from foveate.runtime.backend import BackendOptions
        from foveate.runtime.backends import choose, open_backend
        from foveate.runtime.bundle import Bundle
        from foveate.runtime.model import Model
        from foveate.runtime.pipeline import Pipeline
        from foveate.runtime.processor import Processor
        from foveate.tools.bench.asking import endless
        from foveate.tools.demo import resolve_image

        opened = endless(Bundle.open(job.work / bundle))
        name, layout = choose(opened, backend)
        self._backend: Any = _Opened(open_backend(name, opened, layout, BackendOptions(graphs=graphs)))
        processor = Processor(opened.processor_path, opened.manifest.model, opened.manifest.family)
        self._pipeline: Pipeline = Pipeline(opened, Model(opened, layout, self._backend), processor)
        self._pictures = [resolve_image(f"demo:{number}") for number in (1, 3)]

    def batches(self) -> dict[int, tuple[list[tuple[int, ...]], float]]:
        """By batch size: tokens, and the median of a step's seconds, of the second of two runs."""
        found = {}
        for batch in (1, 2):
            self.ask(*range(batch))
            answers = self.ask(*range(batch))
            steps = [each.timings.decode / each.timings.steps for each in answers]
            found[batch] = ([each.token_ids for each in answers], median(steps))
        return found

    def ask(self, *numbers: int) -> Sequence[Generation]:
        """Requests as one batch; each gets the tokens of the first."""
        requests = [self._request(number) for number in numbers]
        return self._pipeline.generate_batch(requests, self._options(numbers[0]))

    def mixed(self) -> list[tuple[int, ...]]:
        """All of `_MIXED` through the scheduler."""
        from foveate.runtime import Scheduler

        with Scheduler(self._pipeline, slots=2, rows=_ROWS) as scheduler:
            handles = []
            for number in range(len(_MIXED)):
                asked = self._request(number)
                handles.append(scheduler.submit(asked.prompt, asked.images, self._options(number)))
            return [handle.result().token_ids for handle in handles]

    def require_recorded(self, what: str) -> int:
        """How many steps are recorded, of all decoders. Raises as `compare`."""
        from foveate.runtime.backends.cuda_steps import WRONG

        notes, counts = self._backend.notes, [each.recordings for each in self._backend.decoders]
        if any(WRONG in note for note in notes):
            raise GraphsError(f"{what}: {'; '.join(notes)}")
        if notes:
            raise AbsentError(f"{what}: {'; '.join(notes)}")
        if not counts or not all(counts):
            raise GraphsError(f"{what}: the decoders have {counts} steps recorded, and nothing says why")
        return sum(counts)

    def _request(self, number: int) -> Any:
        from foveate.runtime.pipeline import Request

        return Request(_PROMPTS[number % len(_PROMPTS)], [self._pictures[number // 2 % len(self._pictures)]])

    def _options(self, number: int) -> Any:
        from foveate.runtime.options import GenerateOptions

        return GenerateOptions(max_new_tokens=_MIXED[number])
