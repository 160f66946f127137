"""A request on its way: what was asked, how far it is, and the parts of reading its prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from foveate.runtime.cache import KVCache
from foveate.runtime.chunk import PreparedPrompt
from foveate.runtime.errors import InputError
from foveate.runtime.generate import Answer, Generation, Prefill, Token, prefill_steps, require_room
from foveate.runtime.images import Images
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.prompt import Conversation, Prompt, TokenizedPrompt, read_prompt, tokenize
from foveate.runtime.report import PruningReport, Timings, require_pruning
from foveate.runtime.scheduler.handle import Handle
from foveate.runtime.steps import Steps
from foveate.runtime.videos import Videos
from foveate.runtime.visuals import Visual

# Characters, on average over a whole prompt: several times what any language has.
_LONGEST_TOKEN = 16


@dataclass
class Job:
    """One request.

    Attributes:
        deadline: age in seconds at which it is given up; None: never.
        answer: from the first token on.
        position: of its next token.
    """

    handle: Handle
    prompt: Prompt
    images: Images
    videos: Videos
    options: GenerateOptions
    deadline: float | None = None
    timings: Timings = field(default_factory=Timings)
    answer: Answer | None = None
    report: PruningReport | None = None
    position: int = 0
    decoding_since: float = 0.0

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self.deadline is not None and self.handle.age > self.deadline

    def accept(self, logits: np.ndarray) -> bool:
        """Choose the next token from `logits [v]` and hand it on; whether it was the last one.

        Raises:
            BackendError: the logits are not numbers.
        """
        assert self.answer is not None
        token, text = self.answer.accept(logits)
        self.handle.put(Token(0, token, text))
        return self.answer.finish_reason is not None

    def generation(self) -> Generation:
        """The finished answer."""
        answer, report = self.answer, self.report
        assert answer is not None
        assert report is not None
        steps = len(answer.token_ids) - 1
        seconds = time.perf_counter() - self.decoding_since if steps else 0.0
        timings = replace(self.timings, decode=seconds, steps=steps)
        reason = answer.finish_reason or "length"
        return Generation(answer.text, tuple(answer.token_ids), reason, report, timings)


def reading(
    pipeline: Pipeline, job: Job, cache: Callable[[], KVCache], *, rows: int, capacity: int
) -> Steps[Prefill]:
    """Everything up to the first token, with pauses: one image or video, one graph, or `rows` rows of one.

    Args:
        cache: gives an empty one for one sequence.
        rows: of a graph that can be run in pieces.
        capacity: tokens of prompt and answer that a slot may hold.

    Raises:
        InputError: as `Pipeline.generate`, or the request does not fit into a slot.
    """
    tokenized = yield from _tokenized(pipeline, job, capacity)
    yield "preprocess"
    prepared = yield from pipeline.prepare_steps([tokenized], job.options, at_once=1)
    yield "vision"
    require_room(pipeline.model, prepared)
    _require_slot(prepared, capacity)
    read = yield from prefill_steps(pipeline.model, prepared, job.options, cache(), rows=rows)
    require_pruning(pipeline.manifest, read.reports, job.options)
    _begin(pipeline, job, prepared, read.reports, capacity)
    return read


def _tokenized(pipeline: Pipeline, job: Job, capacity: int) -> Steps[TokenizedPrompt]:
    """The prompt with its images and videos opened one by one."""
    processor = pipeline.processor
    asked = read_prompt(job.prompt, processor.places, job.images, job.videos)
    _require_short(asked, capacity)
    images = sum(visual.kind == "image" for visual in asked.visuals)
    made: list[Visual] = []
    for visual in asked.visuals:
        if made:
            yield "preprocess"
        made.append(processor.made(visual, images))
    return tokenize(replace(asked, visuals=tuple(made)), processor)


def _require_short(asked: Conversation, capacity: int) -> None:
    """A text that is out of all proportion must not hold everybody up while it is tokenised."""
    size = sum(len(part.get("text", "")) for message in asked.messages for part in message["content"])
    if size > _LONGEST_TOKEN * capacity:
        raise InputError(
            "the prompt is too long for a slot's cache",
            found=f"{size:,} characters",
            wanted=f"at most {_LONGEST_TOKEN * capacity:,} for {capacity:,} tokens",
            mend="shorten the text, or raise the scheduler's capacity",
        )


def _require_slot(prompt: PreparedPrompt, capacity: int) -> None:
    tokens = int(prompt.length[0])
    if tokens >= capacity:
        raise InputError(
            "the prompt does not fit into a slot's cache",
            found=f"{tokens} tokens, visual ones included",
            wanted=f"at most {capacity - 1}, so that one new token fits",
            mend="raise the scheduler's capacity, shorten the text, or use a smaller --keep-ratio",
        )


def _begin(
    pipeline: Pipeline, job: Job, prompt: PreparedPrompt, reports: Sequence[PruningReport], capacity: int
) -> None:
    """The prompt was read: what is needed to go on from it."""
    model = pipeline.manifest.model
    job.position, job.report = int(prompt.next_position[0]), reports[0]
    room = min(model.max_positions - job.position, capacity - int(prompt.length[0]))
    limit = min(room, job.options.max_new_tokens)
    job.answer = Answer(job.options, limit, model.eos_token_ids, pipeline.processor.decode)
