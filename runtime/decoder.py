"""Runs the decoder's graphs. Both layouts have one interface and give equal results.

- `FusedDecoder`: one graph, which drops tokens inside.
- `SegmentedDecoder`: one graph per segment. After a cut the host reads `count` and hands the next segment the
  first `max(count)` entries of `order`; it also brings the small arrays along (positions, roles, blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Protocol

import numpy as np

from foveate.runtime.arrays import Array, Floats, Ints, ints
from foveate.runtime.backend import Runner
from foveate.runtime.cache import Cache
from foveate.runtime.chunk import VISUAL
from foveate.runtime.manifest import CutRecord, Stage
from foveate.runtime.neighbours import tile
from foveate.runtime.steps import Steps, finish

# Inputs of graphs in which a row depends on more than the rows before it and its own values.
_LOOKS_AROUND = ("block", "visual_tile", "text_index", "entered", "embedded")


@dataclass(frozen=True)
class Selection:
    """A cut's choice: `order` int64 `[b, s]`, kept ones first and ascending; `count` int64 `[b]`."""

    order: Ints
    count: Ints


@dataclass(frozen=True)
class DecoderInput:
    """A chunk of `s` tokens per row, padded on the right.

    Attributes:
        hidden: float32 `[b, s, d]`.
        position_ids: int64 `[b, s]`, or `[b, s, axes]`.
        token_role: int64 `[b, s]`.
        length: int64 `[b]`.
        query_index: int64 `[b, t]`, -1 is padding.
        logits_index: int64 `[b, m]`, rows of the chunk whose logits are wanted.
        budgets: graph inputs `keep_ratio_l2`, … `[b]`.
        block: int64 `[b, s]`, the image that a visual token belongs to, -1 for text.
        deepstack: float32 `[b, s, levels * d]`, what is added to hidden behind the first layers; None for
            models without.
        embedded: float32 `[b, s, d]`, what entered the decoder at these rows; entered: int64 `[b]`, visual
            tokens that did. Between segments only: the first graph knows them from its input.
        cell: int64 `[b, s, 3]`, image, row and column of visual tokens that see only their neighbours, and
            window: how many rows and columns these are. None where there is none.
    """

    hidden: Floats
    position_ids: Ints
    token_role: Ints
    length: Ints
    query_index: Ints
    logits_index: Ints
    budgets: Mapping[str, Array]
    block: Ints
    deepstack: Floats | None = None
    embedded: Floats | None = None
    entered: Ints | None = None
    cell: Ints | None = None
    window: int | None = None

    def feeds(self, cache: Cache) -> dict[str, Array]:
        """All of it by the graphs' names, with the lengths and positions of the caches."""
        names = [name for name in self.__dataclass_fields__ if name not in ("budgets", "window")]
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        visual = self.is_valid & ~self.is_text
        held = cache.feeds(visual=bool(visual.any()))
        return {
            **own,
            "text_index": self.text_index,
            **self._tiles(visual),
            **self.budgets,
            **held,
            # Tokens of the longest row once the chunk is there, `[1]`: some attention reads it on the host.
            **{
                f"total_length_{group}": (held[f"cache_length_{group}"] + self.length).max(keepdims=True)
                for group in range(cache.groups)
            },
        }

    def _tiles(self, visual: np.ndarray) -> dict[str, Array]:
        """Who is whose neighbour, for graphs in which visual tokens have a window."""
        if self.window is None:
            return {}
        cell = np.full((*visual.shape, 3), -1, np.int64) if self.cell is None else self.cell
        tiling = tile(cell, visual, self.window)
        return {
            "cell": cell,
            "visual_tile": tiling.query,
            "visual_near": tiling.near,
            "visual_place": tiling.place,
        }

    @cached_property
    def is_text(self) -> np.ndarray:
        """`[b, s]` bool; visual tokens and padding are not."""
        is_text: np.ndarray = self.is_valid & (self.token_role != VISUAL)
        return is_text

    @cached_property
    def is_valid(self) -> np.ndarray:
        """`[b, s]` bool, all but the padding."""
        valid: np.ndarray = np.arange(self.token_role.shape[1])[None, :] < self.length[:, None]
        return valid

    @cached_property
    def text_index(self) -> Ints:
        """int64 `[b, u]`, where the text stands, ascending; -1 is padding."""
        rows = [np.flatnonzero(row) for row in self.is_text]
        out = np.full((len(rows), max(1, *map(len, rows))), -1, np.int64)
        for row, index in zip(out, rows, strict=True):
            row[: len(index)] = index
        return out

    @property
    def first_axis(self) -> Ints:
        """`[b, s]`: the positions by which windows are measured, those of the first axis."""
        return self.position_ids if self.position_ids.ndim == 2 else self.position_ids[:, :, 0]


@dataclass(frozen=True)
class DecoderOutput:
    """`logits` float32 `[b, m, v]`, and the choice of each cut, relative to the tokens that it was given.

    `final_hidden` float32 `[b, m, d]` is what the head read, of bundles whose graphs give it.
    """

    logits: Floats
    selections: tuple[Selection, ...]
    final_hidden: Floats | None = None


class Decoder(Protocol):
    """Runs a chunk through all layers, and adds it to the cache."""

    def run(self, chunk: DecoderInput, cache: Cache) -> DecoderOutput:
        """Raises `BackendError` when a graph fails."""
        ...

    def steps(self, chunk: DecoderInput, cache: Cache, rows: int | None = None) -> Steps[DecoderOutput]:
        """As `run`, with pauses between the graphs, and where a graph can, after each `rows` rows of one.

        For one sequence. Only logits of the last rows are given, no more than `rows` of them.
        """
        ...


class FusedDecoder:
    """All layers in one graph."""

    def __init__(self, runner: Runner, cuts: Sequence[CutRecord]) -> None:
        self._runner = runner
        self._cuts = cuts

    def steps(self, chunk: DecoderInput, cache: Cache, rows: int | None = None) -> Steps[DecoderOutput]:
        """See `Decoder.steps`. A cut inside the graph has to see all rows: then there is no pause."""
        if self._cuts:
            return self.run(chunk, cache)
        return (yield from SegmentedDecoder([self._runner], ()).steps(chunk, cache, rows))

    def run(self, chunk: DecoderInput, cache: Cache) -> DecoderOutput:
        """See `Decoder.run`."""
        text = chunk.is_text
        for group in range(cache.groups):
            # How many tokens will get past the cuts is not known yet: at most all of them.
            cache.reserve(group, chunk.hidden.shape[1], int(text.sum(axis=1).max()))
        out = self._runner.run(chunk.feeds(cache), cache.all_bindings())
        selections = tuple(_selection(out, cut) for cut in self._cuts)
        positions = chunk.first_axis
        cache.advance(0, chunk.length, text, positions)
        for group, selection in enumerate(selections, start=1):
            positions = np.take_along_axis(positions, selection.order, axis=1)
            text = np.take_along_axis(text, selection.order, axis=1)
            cache.advance(group, selection.count, text, positions)
        return DecoderOutput(out["logits"], selections, out.get("final_hidden"))


class SegmentedDecoder:
    """One graph per segment, the host between them."""

    def __init__(self, runners: Sequence[Runner], cuts: Sequence[CutRecord]) -> None:
        self._runners = runners
        self._cuts = cuts

    def run(self, chunk: DecoderInput, cache: Cache) -> DecoderOutput:
        """See `Decoder.run`."""
        return finish(self.steps(chunk, cache))

    def steps(self, chunk: DecoderInput, cache: Cache, rows: int | None = None) -> Steps[DecoderOutput]:
        """See `Decoder.steps`. Segments with a cut behind them run whole, for it has to see all rows."""
        selections: list[Selection] = []
        kept: Ints | None = None
        chunk = replace(chunk, entered=chunk.length - _count(chunk.is_text))
        if any(runner.stage.has_input("embedded") for runner in self._runners):
            chunk = replace(chunk, embedded=chunk.hidden)
        for group, (runner, cut) in enumerate(zip_longest(self._runners, self._cuts)):
            cache.reserve(group, chunk.position_ids.shape[1], int(_count(chunk.is_text).max()))
            splits = rows is not None and cut is None and can_split(runner.stage)
            for number, (piece, index) in enumerate(_pieces(chunk, kept, rows if splits else None)):
                if group or number:
                    yield "prefill"
                feeds = piece.feeds(cache)
                if index is not None:
                    feeds["kept_index"] = index
                out = runner.run(feeds, cache.bindings(group))
                cache.advance(group, piece.length, piece.is_text, piece.first_axis)
            if cut is not None:
                selections.append(_selection(out, cut))
                chunk, kept = _compacted(replace(chunk, hidden=out["hidden_out"]), selections[-1])
        return DecoderOutput(out["logits"], tuple(selections), out.get("final_hidden"))


def can_split(stage: Stage) -> bool:
    """Whether a graph gives the same for the pieces of a sequence as for the whole.

    Not if its visual rows see rows behind them or near them, or text rows are told from others by place.
    """
    return not any(stage.has_input(name) for name in _LOOKS_AROUND)


def present_rows(length: Ints, width: int, selections: Sequence[Selection]) -> np.ndarray:
    """Which tokens of a chunk are still there behind all cuts, so that they have logits: bool `[b, s]`."""
    alive = np.arange(width)[None, :] < length[:, None]
    for row in range(len(length)):
        rows = np.arange(width)
        for selection in selections:
            rows = rows[selection.order[row, : selection.count[row]]]
        alive[row] &= np.isin(np.arange(width), rows)
    return alive


def _pieces(
    chunk: DecoderInput, kept: Ints | None, rows: int | None
) -> Iterator[tuple[DecoderInput, Ints | None]]:
    """The chunk in pieces of so many rows, and their parts of the kept index; or all of it as one piece."""
    width = chunk.position_ids.shape[1]
    if rows is None or rows >= width or len(chunk.length) > 1:
        yield chunk, kept
        return
    for start in range(0, width, rows):
        part = slice(start, min(start + rows, width))
        piece = replace(
            chunk,
            # A graph behind a cut takes its rows out of all those before the cut.
            hidden=chunk.hidden[:, part] if kept is None else chunk.hidden,
            position_ids=chunk.position_ids[:, part],
            token_role=chunk.token_role[:, part],
            block=chunk.block[:, part],
            deepstack=None if chunk.deepstack is None else chunk.deepstack[:, part],
            length=ints([part.stop - part.start]),
            query_index=np.full_like(chunk.query_index, -1),
            # Of the last piece these are the wanted ones; those of the others nobody looks at.
            logits_index=np.clip(chunk.logits_index - start, 0, part.stop - start - 1),
        )
        yield piece, None if kept is None else np.ascontiguousarray(kept[:, part])


def _count(rows: np.ndarray) -> Ints:
    """How many of the rows `[b, s]` are marked: `[b]`."""
    return ints(rows.sum(axis=1))


def _selection(out: Mapping[str, Array], cut: CutRecord) -> Selection:
    return Selection(out[f"order_l{cut.layer}"], out[f"count_l{cut.layer}"])


def _compacted(chunk: DecoderInput, selection: Selection) -> tuple[DecoderInput, Ints]:
    """The chunk behind a cut, and the kept index `[b, k]`; `hidden` is left for the next graph to gather."""
    order, count = selection.order, selection.count
    if order.shape[1] == 1:  # a decoding step: one token of text in every row, which no cut drops
        return chunk, np.zeros_like(order)
    kept = np.ascontiguousarray(order[:, : int(count.max())])
    return replace(
        chunk,
        position_ids=_gathered(chunk.position_ids, kept),
        token_role=_gathered(chunk.token_role, kept),
        block=_gathered(chunk.block, kept),
        deepstack=None if chunk.deepstack is None else _gathered(chunk.deepstack, kept),
        embedded=None if chunk.embedded is None else _gathered(chunk.embedded, kept),
        cell=None if chunk.cell is None else _gathered(chunk.cell, kept),
        length=count,
        query_index=_remapped(chunk.query_index, selection),
        # A row whose token was dropped has no logits; row 0 stands in for it.
        logits_index=np.maximum(_remapped(chunk.logits_index, selection), 0),
    ), kept


def _gathered(values: Array, kept: Ints) -> Array:
    """Rows `[b, k, ...]` of `values [b, s, ...]`."""
    values = np.asarray(values)  # it may have stayed on a GPU
    return np.take_along_axis(values, kept.reshape(*kept.shape, *[1] * (values.ndim - 2)), axis=1)


def _remapped(index: Ints, selection: Selection) -> Ints:
    """New places of rows `[b, m]` behind a cut; -1 for dropped ones and for -1."""
    rank = np.argsort(selection.order, axis=1)
    place = np.take_along_axis(rank, np.maximum(index, 0), axis=1)
    gone = (index < 0) | (place >= selection.count[:, None])
    return ints(np.where(gone, -1, place))
