"""Puts kept visual tokens into a prompt: which id, role, position and feature row stands where.

One image of n = 6 visual tokens, of which the encoder's cut kept 1 and 4:

    tokenised   BOS USER: <image>     \\n  What is  it ASSISTANT:
    input_ids   BOS USER: <img> <img> \\n  What is  it ASSISTANT:
    slots       -1   -1     0     1   -1   -1   -1  -1     -1       rows of the kept features
    roles        0    0     1     1    0    2    2   2      0       1 visual, 2 question text, 0 fixed
    positions    0    1     2     3    4    5    6   7      8       compact
    positions    0    1     3     6    8    9   10  11     12       original: as if all six were there
    origin      -1   -1     1     4   -1   -1   -1  -1     -1       visual token of the image(s)
    block       -1   -1     0     0   -1   -1   -1  -1     -1       which image

Visual tokens may come in several runs with text between them; a run of which nothing was kept is gone. With
three position axes, each position is a triple; only the visual tokens' parts differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from foveate.runtime.arrays import Floats, Ints, ints
from foveate.runtime.families import VisualItem
from foveate.runtime.report import Timings

FIXED, VISUAL, QUESTION = 0, 1, 2
Positions = Literal["compact", "original"]


@dataclass(frozen=True)
class VisualTokens:
    """What the vision stage gave for some items (images and videos).

    Attributes:
        features: float32 `[r, c]`, rows in memory.
        kept_index: int64 `[k]`, the rows that are kept, item after item, ascending inside an item.
        order: int64 `[n]` of each item, kept ones first.
        count: int64 `[items]`, how many are kept.
        score: float32 `[n]` of each item, by which the method ranks; None where it gives no scores.
        reused: bool of each item, whether it came from `foveate.runtime.vision_cache`; empty: none did.
    """

    features: Floats
    kept_index: Ints
    order: tuple[Ints, ...]
    count: Ints
    score: tuple[Floats, ...] | None = None
    reused: tuple[bool, ...] = ()

    @classmethod
    def none(cls, width: int) -> VisualTokens:
        """No items."""
        return cls(np.zeros((0, width), np.float32), ints([]), (), ints([]))

    @classmethod
    def joined(cls, parts: Sequence[VisualTokens]) -> VisualTokens:
        """The items of several, one after another; there must be one at least."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0] + [len(part.features) for part in parts[:-1]])
        scores = [part.score for part in parts if part.score is not None]
        return cls(
            features=np.concatenate([part.features for part in parts]),
            kept_index=ints(
                np.concatenate([part.kept_index + at for part, at in zip(parts, starts, strict=True)])
            ),
            order=tuple(order for part in parts for order in part.order),
            count=np.concatenate([part.count for part in parts]),
            score=tuple(score for each in scores for score in each) if scores else None,
            reused=tuple(old for part in parts for old in part.reused),
        )

    def kept(self, item: int) -> Ints:
        """Which visual tokens of an item were kept, ascending."""
        return self.order[item][: self.count[item]]


@dataclass(frozen=True)
class Row:
    """One sequence, arranged; arrays `[s]`, `positions [s]` or `[s, axes]`.

    `next_position` is the position of the token after it.
    """

    input_ids: Ints
    slots: Ints
    roles: Ints
    positions: Ints
    origin: Ints
    block: Ints
    query_index: Ints
    next_position: int


@dataclass(frozen=True)
class PreparedPrompt:
    """A batch that is ready for the embed stage: rows padded on the right to `[b, s]`.

    Attributes:
        input_ids, slots, roles, origin, block: int64 `[b, s]`, see the module's docstring; `origin` counts
            visual tokens through all items of a row.
        positions: int64 `[b, s]`, or `[b, s, axes]`.
        length: int64 `[b]`, without padding.
        query_index: int64 `[b, t]`, rows of the text that says what is relevant; -1 is padding.
        next_position: int64 `[b]`, position of the first generated token.
        items: images and videos of each row.
        visual: features and the encoder's choice, items of all rows one after another.
        timings: seconds of preprocessing and vision.
    """

    input_ids: Ints
    slots: Ints
    roles: Ints
    positions: Ints
    origin: Ints
    block: Ints
    length: Ints
    query_index: Ints
    next_position: Ints
    items: tuple[tuple[VisualItem, ...], ...]
    visual: VisualTokens
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class _Run:
    """The kept tokens of one run: their numbers in the row, their positions `[k, axes]`, and its span."""

    item: int
    origin: Ints
    positions: Ints
    span: int


def arrange(
    input_ids: Ints,
    user_text: np.ndarray,
    items: Sequence[VisualItem],
    kept: Sequence[Ints],
    *,
    visual_ids: Collection[int],
    mode: Positions = "compact",
    axes: int = 1,
    first_slot: int = 0,
    first_position: int = 0,
) -> Row:
    """Replace each visual token of `input_ids [t]` by as many as were kept of its run.

    Args:
        input_ids: with one of `visual_ids` for each run of each item, in order.
        user_text: bool `[t]` marks the user's words.
        items: images and videos, in order.
        kept: which visual tokens of each item are kept, ascending.
        visual_ids: ids that stand for runs of visual tokens.
        mode: of positions, see the module's docstring.
        axes: of positions; 1 gives `positions [s]`, more `[s, axes]`.
        first_slot: number of the first kept feature row.
        first_position: position of the first token.
    """
    is_run = np.isin(input_ids, list(visual_ids))
    runs = _runs(items, kept)
    sizes, steps = np.ones(len(input_ids), np.int64), np.ones(len(input_ids), np.int64)
    sizes[is_run] = [len(run.origin) for run in runs]
    steps[is_run] = [run.span for run in runs] if mode == "original" else sizes[is_run]
    visual = np.repeat(is_run, sizes)
    origin, block, slots = (np.full(len(visual), -1, np.int64) for _ in range(3))
    origin[visual] = np.concatenate([ints([]), *(run.origin for run in runs)])
    block[visual] = np.repeat([run.item for run in runs], sizes[is_run])
    slots[visual] = first_slot + np.arange(np.count_nonzero(visual))
    positions = np.repeat(np.cumsum(steps) - steps, sizes)[:, None] + np.zeros((1, axes), np.int64)
    positions[visual] += _offsets(runs, mode)
    asks = np.repeat(_asks(is_run, [run.item for run in runs]), sizes)
    roles, query_index = _roles(visual, asks, np.repeat(user_text, sizes))
    return Row(
        input_ids=np.repeat(input_ids, sizes),
        slots=slots,
        roles=roles,
        positions=first_position + (positions[:, 0] if axes == 1 else positions),
        origin=origin,
        block=block,
        query_index=query_index,
        next_position=first_position + int(steps.sum()),
    )


def _runs(items: Sequence[VisualItem], kept: Sequence[Ints]) -> list[_Run]:
    runs, before = [], 0
    for number, (item, index) in enumerate(zip(items, kept, strict=True)):
        ends = np.cumsum(item.runs)
        for end, size, span in zip(ends, item.runs, item.spans, strict=True):
            own = index[(index >= end - size) & (index < end)]
            runs.append(_Run(number, before + own, item.positions[own], int(span)))
        before += item.visual_tokens
    return runs


def _offsets(runs: Sequence[_Run], mode: Positions) -> Ints:
    """Positions `[k, axes]` of all kept visual tokens, relative to the start of their runs."""
    if mode == "original":
        return np.concatenate([run.positions for run in runs]) if runs else ints(0)
    return np.concatenate([ints([]), *(np.arange(len(run.origin)) for run in runs)])[:, None]


def _asks(is_run: np.ndarray, items: Sequence[int]) -> np.ndarray:
    """Which tokens of a prompt say what is relevant: bool `[t]`.

    All text behind the first image, the template's words too: a token is scored by the rows after it, and the
    question's last token has no others. What stands between the runs of one image (line ends, tile markers)
    says nothing, whatever was kept of these runs. `items` tells whose each run is.
    """
    places = np.flatnonzero(is_run)
    if not len(places):
        return np.zeros(len(is_run), bool)
    asks: np.ndarray = (np.arange(len(is_run)) > places[0]) & ~is_run
    for (place, after), (item, other) in zip(pairwise(places), pairwise(items), strict=True):
        if item == other:
            asks[place:after] = False
    return asks


def _roles(visual: np.ndarray, asks: np.ndarray, user_text: np.ndarray) -> tuple[Ints, Ints]:
    """Roles `[s]` and the query rows `[t]`.

    The user's text that asks is question text, but for the last token, whose logits are wanted.
    """
    roles = np.where(visual, VISUAL, FIXED)
    question = user_text & asks
    question[-1] = False
    roles[question] = QUESTION
    query = np.flatnonzero(asks)
    return roles, query if len(query) else ints([-1])


def collate(
    rows: Sequence[Row],
    items: Sequence[Sequence[VisualItem]],
    visual: VisualTokens,
    timings: Timings,
) -> PreparedPrompt:
    """One batch of the rows, padded on the right. `items` are the images and videos of each row."""
    width = max(len(row.input_ids) for row in rows)
    queries = max(len(row.query_index) for row in rows)
    return PreparedPrompt(
        input_ids=_padded([row.input_ids for row in rows], width, 0),
        slots=_padded([row.slots for row in rows], width, -1),
        roles=_padded([row.roles for row in rows], width, FIXED),
        positions=_padded([row.positions for row in rows], width, 0),
        origin=_padded([row.origin for row in rows], width, -1),
        block=_padded([row.block for row in rows], width, -1),
        length=ints([len(row.input_ids) for row in rows]),
        query_index=_padded([row.query_index for row in rows], queries, -1),
        next_position=ints([row.next_position for row in rows]),
        items=tuple(tuple(each) for each in items),
        visual=visual,
        timings=timings,
    )


def _padded(rows: Sequence[Ints], width: int, value: int) -> Ints:
    out = np.full((len(rows), width, *rows[0].shape[1:]), value, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
