"""Several turns of one conversation, with the caches kept between them.

Each turn renders and tokenises the whole conversation anew, and compares it with the tokens in the cache:

    in the cache   BOS USER : <image> \\n What ? ASSISTANT : A  cat .
    new turn       BOS USER : <image> \\n What ? ASSISTANT : A  cat . </s> USER : Where ? ASSISTANT :
                   '------------------- kept ------------------------' '------- the new chunk -------'

1. Tokens from the first difference on are taken back, as far as the latest answer reaches: the answer may
   have ended with a stop string, or the template may write it differently.
2. Otherwise everything is read again, and the report says `cache_reused=False` and in `cache_note` why:
   the difference lies further back; an earlier image is made otherwise now that there are several
   (LLaVA-OneVision); the turn before was broken off; or the budget changed, see below.

So a turn sees just the tokens that a fresh prompt of the whole conversation has. Its answer is equal to that
of a fresh prompt without pruning, and with pruning after the encoder by a method that does not read words.
Where the choice depends on what was asked, earlier turns keep what they kept when they were read: their
images are not weighed again by the new question, and `cache_note` says so. `reread=True` has them weighed.

A budget is for the images of its own turn. In a turn without images it can only be for the earlier ones: if
it differs from theirs, the caches hold other tokens than it asks for, and everything is read again.
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
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.prompt import Conversation, TokenizedPrompt, made_for, read_prompt, tokenize
from foveate.runtime.videos import Videos

_DEFAULTS = GenerateOptions()
_BROKEN_OFF = "read again: the turn before failed or was not read to its end"
_ASKED = "read again: as asked"
_BUDGET = "read again: the budget is not the one that the earlier images were read with"
_IMAGES = "read again: an earlier image is made otherwise now that there are several"
_TEMPLATE = "read again: the chat template writes the earlier turns otherwise now"
_KEPT = "earlier turns keep what was kept when they were read"


@dataclass(frozen=True)
class _Budgets:
    """All that an options object says about how much to keep."""

    sites: dict[str, Budget]
    share: str
    seed: int | None

    @classmethod
    def of(cls, options: GenerateOptions) -> _Budgets:
        return cls(options.budgets(), options.share, options.pruning_seed)

    @property
    def given(self) -> bool:
        return bool(self.sites) or self.seed is not None


@dataclass(frozen=True)
class _Memory:
    """The cache and its `token_ids [t]` (one per visual run); the first `fixed` cannot be taken back.

    `budgets` are those of the latest turn that read images.
    """

    cache: KVCache
    token_ids: Ints
    fixed: int
    next_position: int
    budgets: _Budgets

    def cut(self, back: int) -> _Memory:
        """The memory without the last `back` tokens; the cache, which is shared, is rolled back."""
        self.cache.rollback(back)
        size = len(self.token_ids) - back
        return replace(self, token_ids=self.token_ids[:size], next_position=self.next_position - back)


@dataclass(frozen=True)
class _Turn:
    """A conversation with its new turn: `whole` is its prompt, of which `shared` tokens are in the memory.

    `note` is for the report, `budgets` are those by which its images are read.
    """

    asked: Conversation
    whole: TokenizedPrompt
    shared: int
    note: str
    budgets: _Budgets


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
        reread: bool = False,
    ) -> Generation:
        """The answer to the next turn. Raises as `Pipeline.generate`."""
        return self.stream(text, images, options, videos=videos, reread=reread).generation

    def stream(
        self,
        text: str,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
        reread: bool = False,
    ) -> TokenStream:
        """The answer to the next turn, token by token. Raises as `Pipeline.generate`.

        `reread` reads the whole conversation again, so that earlier images are weighed by this question.
        """
        start = time.perf_counter()
        turn = self._turn(read_prompt(text, self._pipeline.processor.places, images, videos), options, reread)
        memory = self._memory if turn.shared else None
        back = len(memory.token_ids) - turn.shared if memory else 0
        prepared = self._pipeline.prepare_batch(
            [turn.whole.after(turn.shared)],
            options,
            first_position=memory.next_position - back if memory else 0,
            started=start,
        )
        require_room(self._pipeline.model, prepared)
        # What the user can get wrong has been looked at, so the memory may be touched.
        spare = self._memory if turn.note in (_ASKED, _BUDGET) else None
        self._memory = None  # comes back when the turn is finished
        kept = memory.cut(back) if memory else None
        run = Run(
            self._pipeline.model,
            prepared,
            options,
            self._pipeline.processor.decode,
            kept.cache if kept else None,
            cache_reused=kept is not None,
            cache_note=turn.note,
        )
        return TokenStream(
            run, at_end=lambda run: self._remember(turn, run), at_error=self._restorer(kept or spare)
        )

    def _turn(self, new: Conversation, options: GenerateOptions, reread: bool) -> _Turn:
        """The conversation with a new turn, and how much of it the memory holds."""
        asked = self._conversation.plus(new)
        # Opened once: the items stay with the conversation.
        asked = replace(asked, visuals=made_for(asked.visuals, self._pipeline.processor))
        whole = tokenize(asked, self._pipeline.processor)
        given = _Budgets.of(options)
        budgets = self._memory.budgets if self._memory and not (new.visuals or given.given) else given
        shared, note = (0, _ASKED) if reread else self._shared(whole, asked, budgets)
        begun = any(message["role"] == "assistant" for message in self._conversation.messages)
        # Whatever is read again is read with this turn's budget.
        return _Turn(asked, whole, shared, note if begun else "", budgets if shared else given)

    def _shared(self, whole: TokenizedPrompt, asked: Conversation, budgets: _Budgets) -> tuple[int, str]:
        """How many tokens of the new prompt can be taken from the memory, and what to say about it.

        0 reads everything again.
        """
        memory, seen = self._memory, self._conversation.visuals
        if memory is None:
            return 0, _BROKEN_OFF
        if not all(visual.resting for visual in asked.visuals[: len(seen)]):
            return 0, _IMAGES
        if seen and len(asked.visuals) == len(seen) and budgets != memory.budgets:
            return 0, _BUDGET
        # At least one token must be new, for its logits.
        shared = min(_common(memory.token_ids, whole.input_ids), len(whole.input_ids) - 1)
        # An answer may hold an image token, but no image.
        new = np.flatnonzero(whole.visual[memory.fixed :])
        shared = min(shared, memory.fixed + int(new[0])) if len(new) else shared
        if shared < memory.fixed:
            return 0, _TEMPLATE
        return shared, _KEPT if seen and self._depends_on_words else ""

    @property
    def _depends_on_words(self) -> bool:
        """Whether a fresh prompt of the whole conversation might keep other tokens of the earlier turns."""
        model = self._pipeline.model
        return model.reads_words or bool(model.manifest.decoder_cuts)

    def _restorer(self, memory: _Memory | None) -> Callable[[], None]:
        """What brings the memory back after a turn that failed, without the turn's own tokens."""
        lengths = list(memory.cache.lengths) if memory else []

        def restore() -> None:
            if memory is not None and self._memory is None:
                memory.cache.rollback_to(lengths)
                self._memory = memory

        return restore

    def _remember(self, turn: _Turn, run: Run) -> None:
        answer = {"role": "assistant", "content": [{"type": "text", "text": run.results()[0].text}]}
        resting = tuple(visual.at_rest() for visual in turn.asked.visuals)
        self._conversation = Conversation((*turn.asked.messages, answer), resting)
        # The last token was chosen but not fed, so it is not in the cache.
        fed = np.asarray(run.sequences[0].token_ids[: run.steps], np.int64)
        self._memory = _Memory(
            cache=run.cache,
            token_ids=np.concatenate([turn.whole.input_ids, fed]),
            fixed=len(turn.whole.input_ids),
            next_position=int(run.prompt.next_position[0]) + run.steps,
            budgets=turn.budgets,
        )


def _common(a: Ints, b: Ints) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
