"""Several turns of one conversation, with the caches kept between them.

Each turn renders and tokenises the whole conversation anew, and compares it with the tokens in the cache:

    in the cache   BOS USER : <image> \\n What ? ASSISTANT : A  cat .
    new turn       BOS USER : <image> \\n What ? ASSISTANT : A  cat . </s> USER : Where ? ASSISTANT :
                   '------------------- kept ------------------------' '------- the new chunk -------'

1. Tokens from the first difference on are taken back, as far as the latest answer reaches: the answer may
   have ended with a stop string, or the template may write it differently.
2. If the difference lies further back, everything is read again, and the report says `cache_reused=False`;
   so it is where an earlier image is made otherwise now that there are several (LLaVA-OneVision).

So a turn sees just the tokens that a fresh prompt of the whole conversation has, and without pruning its
answers are equal. With pruning, earlier turns keep what they kept when they were read: their images are not
weighed again by the new question. A new turn's own images are, by its own text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from foveate.runtime.arrays import Ints
from foveate.runtime.cache import KVCache
from foveate.runtime.generate import Generation, Run, TokenStream, require_room
from foveate.runtime.images import Images
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.prompt import Conversation, TokenizedPrompt, made_for, read_prompt, tokenize
from foveate.runtime.videos import Videos

_DEFAULTS = GenerateOptions()


@dataclass(frozen=True)
class _Memory:
    """The cache and its `token_ids [t]` (one per visual run); the first `fixed` cannot be taken back."""

    cache: KVCache
    token_ids: Ints
    fixed: int
    next_position: int

    def cut(self, back: int) -> _Memory:
        """The memory without the last `back` tokens; the cache, which is shared, is rolled back."""
        self.cache.rollback(back)
        size = len(self.token_ids) - back
        return _Memory(self.cache, self.token_ids[:size], self.fixed, self.next_position - back)


class Chat:
    """A conversation.

        chat = pipeline.chat()
        chat.send("What is this?", images=["cat.jpg"]).text
        chat.send("And what colour is it?").text

    A turn joins the history when it is finished. One that fails leaves history and caches as they were; a
    stream that is not read to its end leaves the history, and the next turn reads it again.
    """

    def __init__(self, pipeline: Pipeline, system: str | None = None) -> None:
        self._pipeline = pipeline
        first = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
        self._conversation = Conversation(tuple(first), ())
        self._memory: _Memory | None = None

    @property
    def messages(self) -> tuple[dict[str, object], ...]:
        """The finished turns."""
        return self._conversation.messages

    def send(
        self,
        text: str,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
    ) -> Generation:
        """The answer to the next turn. Raises as `Pipeline.generate`."""
        return self.stream(text, images, options, videos=videos).generation

    def stream(
        self,
        text: str,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
    ) -> TokenStream:
        """The answer to the next turn, token by token. Raises as `Pipeline.generate`."""
        start = time.perf_counter()
        pipeline = self._pipeline
        asked = self._conversation.plus(read_prompt(text, pipeline.processor.places, images, videos))
        # Opened once: the items stay with the conversation.
        asked = replace(asked, visuals=made_for(asked.visuals, pipeline.processor))
        whole = tokenize(asked, pipeline.processor)
        shared = self._shared(whole, asked)
        memory = self._memory if shared else None
        back = len(memory.token_ids) - shared if memory else 0
        prepared = pipeline.prepare_batch(
            [whole.after(shared)],
            options,
            first_position=memory.next_position - back if memory else 0,
            started=start,
        )
        require_room(pipeline.model, prepared)
        # What the user can get wrong has been looked at, so the memory may be touched.
        self._memory = None  # comes back when the turn is finished
        kept = memory.cut(back) if memory else None
        run = Run(
            pipeline.model,
            prepared,
            options,
            pipeline.processor.decode,
            kept.cache if kept else None,
            cache_reused=kept is not None,
        )
        return TokenStream(
            run,
            at_end=lambda run: self._remember(asked, whole, run),
            at_error=self._restorer(kept),
        )

    def _shared(self, whole: TokenizedPrompt, asked: Conversation) -> int:
        """How many tokens of the new prompt can be taken from the memory; 0 reads everything again."""
        earlier = asked.visuals[: len(self._conversation.visuals)]
        if self._memory is None or not all(visual.resting for visual in earlier):
            return 0
        # At least one token must be new, for its logits.
        shared = min(_common(self._memory.token_ids, whole.input_ids), len(whole.input_ids) - 1)
        # An answer may hold an image token, but no image.
        new = np.flatnonzero(whole.visual[self._memory.fixed :])
        shared = min(shared, self._memory.fixed + int(new[0])) if len(new) else shared
        return shared if shared >= self._memory.fixed else 0

    def _restorer(self, memory: _Memory | None) -> Callable[[], None]:
        """What brings the memory back after a turn that failed, without the turn's own tokens."""
        lengths = list(memory.cache.lengths) if memory else []

        def restore() -> None:
            if memory is not None and self._memory is None:
                memory.cache.rollback_to(lengths)
                self._memory = memory

        return restore

    def _remember(self, asked: Conversation, whole: TokenizedPrompt, run: Run) -> None:
        answer = {"role": "assistant", "content": [{"type": "text", "text": run.results()[0].text}]}
        resting = tuple(visual.at_rest() for visual in asked.visuals)
        self._conversation = Conversation((*asked.messages, answer), resting)
        # The last token was chosen but not fed, so it is not in the cache.
        fed = np.asarray(run.sequences[0].token_ids[: run.steps], np.int64)
        self._memory = _Memory(
            cache=run.cache,
            token_ids=np.concatenate([whole.input_ids, fed]),
            fixed=len(whole.input_ids),
            next_position=int(run.prompt.next_position[0]) + run.steps,
        )


def _common(a: Ints, b: Ints) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
