"""Prefill, then one token after the other.

The loop is `tokens`; it works on a batch, of which a single prompt is the smallest. Rows that are finished
keep running along unheard until the last one is, so the batch keeps its shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foveate.runtime.arrays import Arrays, Floats, Ints, ints
from foveate.runtime.budgets import decoder_feeds
from foveate.runtime.cache import Cache, KVCache
from foveate.runtime.chunk import FIXED, PreparedPrompt
from foveate.runtime.decoder import DecoderInput, DecoderOutput, Selection, present_rows
from foveate.runtime.detokenize import Detokenizer, StopFilter
from foveate.runtime.errors import FoveateError, InputError
from foveate.runtime.model import Model
from foveate.runtime.neighbours import cells
from foveate.runtime.options import GenerateOptions
from foveate.runtime.report import PruningReport, Timings, report_rows, require_pruning
from foveate.runtime.sampling import Sampler
from foveate.runtime.steps import Steps, finish

# Room in the caches for so many new tokens at once; longer answers let them grow.
_CACHE_AHEAD = 256

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token: its row in the batch, its id, and the text that is sure with it (maybe none)."""

    row: int
    id: int
    text: str


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    Attributes:
        text: without special tokens and stop strings.
        token_ids: every generated token, the end-of-text token included.
        finish_reason: "eos", "stop" (a stop string) or "length" (of the request or of the model).
        report: what was kept of the visual tokens.
        timings: seconds of each part; in a batch, of the whole batch.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    report: PruningReport
    timings: Timings


@dataclass(frozen=True)
class Prefill:
    """A prompt that was read.

    Attributes:
        logits: float32 `[b, m, v]`; m is 1 (the last token of each row) or s (all tokens of the chunk).
        present: bool `[b, s]`, tokens behind all cuts; with all logits wanted, only these rows have any.
        selections: the choice of each of the decoder's cuts.
        reports: one per row.
        cache: holds the prompt.
        timings: with preprocessing and vision.
    """

    logits: Floats
    present: np.ndarray
    selections: tuple[Selection, ...]
    reports: list[PruningReport]
    cache: KVCache
    timings: Timings


def prefill(
    model: Model,
    prompt: PreparedPrompt,
    options: GenerateOptions,
    cache: KVCache,
    *,
    logits: Literal["last", "all"] = "last",
    cache_reused: bool = False,
    cache_note: str = "",
) -> Prefill:
    """Read a prompt into the cache.

    Raises:
        InputError: the prompt leaves no room for a new token.
    """
    require_room(model, prompt)
    steps = prefill_steps(
        model, prompt, options, cache, logits=logits, cache_reused=cache_reused, cache_note=cache_note
    )
    return finish(steps)


def prefill_steps(
    model: Model,
    prompt: PreparedPrompt,
    options: GenerateOptions,
    cache: KVCache,
    *,
    logits: Literal["last", "all"] = "last",
    rows: int | None = None,
    cache_reused: bool = False,
    cache_note: str = "",
) -> Steps[Prefill]:
    """As `prefill`, with pauses: see `Decoder.steps` for these and for `rows`. Timings count pauses, too."""
    wanted = prompt.length[:, None] - 1 if logits == "last" else np.arange(prompt.input_ids.shape[1])[None, :]
    start = time.perf_counter()
    embedded_rows = model.embed(prompt.input_ids, prompt.slots, prompt.visual)
    embedded = time.perf_counter()
    yield "embed"
    chunk = DecoderInput(
        hidden=embedded_rows.hidden,
        position_ids=prompt.positions,
        token_role=prompt.roles,
        length=prompt.length,
        query_index=prompt.query_index,
        logits_index=np.broadcast_to(wanted, (len(prompt.length), wanted.shape[1])),
        budgets=decoder_feeds(model.manifest, options, len(prompt.length)),
        block=prompt.block,
        deepstack=embedded_rows.deepstack,
        cell=cells(prompt.origin, model.manifest.window.grid) if model.manifest.window else None,
        window=model.window,
    )
    out = yield from model.decoder.steps(chunk, cache, rows)
    return Prefill(
        logits=out.logits,
        present=present_rows(prompt.length, prompt.input_ids.shape[1], out.selections),
        selections=out.selections,
        reports=report_rows(
            model.manifest,
            prompt,
            out.selections,
            cache=cache,
            cache_reused=cache_reused,
            cache_note=cache_note,
        ),
        cache=cache,
        timings=prompt.timings.plus(embed=embedded - start, prefill=time.perf_counter() - embedded),
    )


def decode(model: Model, ids: Ints, positions: Ints, budgets: Arrays, cache: Cache) -> DecoderOutput:
    """Read one token of text of each row, `ids [b, 1]` at `positions [b, 1]`, into the cache."""
    batch, axes = len(ids), model.manifest.model.position_axes
    text = np.full_like(ids, -1)
    rows = model.embed(ids, text)
    chunk = DecoderInput(
        hidden=rows.hidden,
        # A text token has the same position on every axis.
        position_ids=positions if axes == 1 else np.repeat(positions[:, :, None], axes, axis=2),
        token_role=np.full_like(ids, FIXED),
        length=np.ones(batch, np.int64),
        query_index=np.full((batch, 1), -1, np.int64),
        logits_index=np.zeros((batch, 1), np.int64),
        budgets=budgets,
        block=text,
        deepstack=rows.deepstack,
        window=model.window,
    )
    return model.decoder.run(chunk, cache)


class Answer:
    """One row of a batch: its tokens, its text so far, and why it ended."""

    def __init__(
        self,
        options: GenerateOptions,
        limit: int,
        eos: Sequence[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._limit = limit
        self._eos = frozenset(eos)
        self._sampler = Sampler(options)
        self._detokenizer = Detokenizer(decode)
        self._stop = StopFilter(options.stop)

    def accept(self, logits: Floats) -> tuple[int, str]:
        """Choose a token from `logits [v]`; gives its id and the text that is new."""
        token = self._sampler.pick(logits)
        self.token_ids.append(token)
        text = "" if token in self._eos else self._stop.push(self._detokenizer.push(token))
        self.finish_reason = self._why_finished(token)
        if self.finish_reason in ("eos", "length"):
            text += self._stop.push(self._detokenizer.flush())
            # The very last characters may complete a stop string.
            self.finish_reason = "stop" if self._stop.stopped else self.finish_reason
            text += self._stop.flush()
        self.text += text
        return token, text

    def _why_finished(self, token: int) -> FinishReason | None:
        if token in self._eos:
            return "eos"
        if self._stop.stopped:
            return "stop"
        return "length" if len(self.token_ids) >= self._limit else None


class Run:
    """A batch of prompts on its way from prefill to the last token."""

    def __init__(
        self,
        model: Model,
        prompt: PreparedPrompt,
        options: GenerateOptions,
        decode: Callable[[Sequence[int]], str],
        cache: KVCache | None = None,
        *,
        cache_reused: bool = False,
        cache_note: str = "",
    ) -> None:
        batch = len(prompt.length)
        self.model, self.prompt, self.options = model, prompt, options
        self.cache = cache or model.new_cache(batch)
        self.steps = 0
        self.timings = prompt.timings
        self.reports: list[PruningReport] = []
        self._cache_reused, self._cache_note = cache_reused, cache_note
        self._budgets = decoder_feeds(model.manifest, options, batch)
        room = model.manifest.model.max_positions - prompt.next_position
        limits = np.minimum(room, options.max_new_tokens)
        self._expected = int(min(limits.max(), _CACHE_AHEAD))
        eos = model.manifest.model.eos_token_ids
        self.sequences = [Answer(options, int(limit), eos, decode) for limit in limits]

    def prefill(self) -> Floats:
        """Read the prompts; gives the logits `[b, v]` of the first new tokens.

        Raises:
            InputError: a prompt is too long.
            NothingPrunedError: see `foveate.runtime.report.require_pruning`.
        """
        read = prefill(
            self.model,
            self.prompt,
            self.options,
            self.cache,
            cache_reused=self._cache_reused,
            cache_note=self._cache_note,
        )
        require_pruning(self.model.manifest, read.reports, self.options)
        self.reports, self.timings = read.reports, read.timings
        self.cache.fit(self._expected)
        return read.logits[:, 0]  # b 1 v -> b v

    def step(self) -> Floats:
        """Feed the latest token of every row; gives the logits `[b, v]` of the next ones."""
        start = time.perf_counter()
        ids = ints([[sequence.token_ids[-1]] for sequence in self.sequences])
        positions = self.prompt.next_position[:, None] + self.steps
        out = decode(self.model, ids, positions, self._budgets, self.cache)
        self.steps += 1
        self.timings = self.timings.plus(decode=time.perf_counter() - start, steps=1)
        return out.logits[:, 0]  # b 1 v -> b v

    def results(self) -> list[Generation]:
        """The answers; a row whose run was broken off counts as finished by length."""
        return [
            Generation(
                row.text, tuple(row.token_ids), row.finish_reason or "length", report, self._row_timings(row)
            )
            for row, report in zip(self.sequences, self.reports, strict=True)
        ]

    def _row_timings(self, row: Answer) -> Timings:
        return replace(self.timings, steps=max(0, len(row.token_ids) - 1))


def tokens(run: Run) -> Iterator[Token]:
    """The tokens of all rows, as they come."""
    logits = run.prefill()
    while True:
        for row, sequence in enumerate(run.sequences):
            if sequence.finish_reason is None:
                yield Token(row, *sequence.accept(logits[row]))
        if all(sequence.finish_reason for sequence in run.sequences):
            return
        logits = run.step()


class TokenStream(Iterator[Token]):
    """Iterates over tokens while they are made; `generation` is the whole answer.

    stream = pipeline.stream("What is this?", images=["cat.jpg"])
    for token in stream:
        print(token.text, end="", flush=True)
    print(stream.generation.report.kept)
    """

    def __init__(
        self,
        run: Run,
        at_end: Callable[[Run], None] = lambda run: None,
        at_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._tokens = tokens(run)
        self._at_end = at_end
        self._at_error = at_error
        self._ended = False

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except StopIteration:
            if not self._ended:
                self._ended = True
                self._at_end(self._run)
            raise
        except FoveateError:
            self._at_error()
            raise

    @property
    def generations(self) -> list[Generation]:
        """The answers of all rows; runs to the end first."""
        for _ in self:
            pass
        return self._run.results()

    @property
    def generation(self) -> Generation:
        """The answer of the only (or first) row; runs to the end first."""
        return self.generations[0]


def require_room(model: Model, prompt: PreparedPrompt) -> None:
    """Raises `InputError` when a prompt leaves no position for a new token."""
    limit = model.manifest.model.max_positions
    longest = int(prompt.next_position.max())
    if longest >= limit:
        raise InputError(
            "the prompt is too long for the model",
            found=f"{longest} positions with the visual tokens",
            wanted=f"at most {limit - 1}, so that one new token fits",
            mend="shorten the text, or use fewer images or a smaller --keep-ratio",
        )
