"""Puts kept visual tokens into a prompt: which id, role, position and feature row stands where.

One image of n = 6 visual tokens, of which the encoder's cut kept 1 and 4:

    tokenised   BOS USER: <image>     \\n  What is  it ASSISTANT:
    input_ids   BOS USER: <img> <img> \\n  What is  it ASSISTANT:
    slots       -1   -1     0     1   -1   -1   -1  -1     -1       rows of the kept features
    roles        0    0     1     1    0    2    2   2      0       1 visual, 2 question text, 0 fixed
    positions    0    1     2     3    4    5    6   7      8       compact
    positions    0    1     3     6    8    9   10  11     12       original: as if all six were there
    origin      -1   -1     1     4   -1   -1   -1  -1     -1       visual token of the image(s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from foveate.runtime.arrays import Floats, Ints, ints
from foveate.runtime.report import Timings

FIXED, VISUAL, QUESTION = 0, 1, 2
Positions = Literal["compact", "original"]


@dataclass(frozen=True)
class VisualTokens:
    """What the vision stage gave for some images.

    Attributes:
        features: float32 `[r, c]`, rows in memory.
        kept_index: int64 `[k]`, the rows that are kept, image after image, ascending inside an image.
        order: int64 `[images, n]`, kept ones first.
        count: int64 `[images]`, how many are kept.
    """

    features: Floats
    kept_index: Ints
    order: Ints
    count: Ints

    @classmethod
    def none(cls, width: int) -> VisualTokens:
        """No images."""
        return cls(np.zeros((0, width), np.float32), ints([]), ints([]).reshape(0, 0), ints([]))

    def kept(self, image: int) -> Ints:
        """Which visual tokens of an image were kept, ascending."""
        return self.order[image, : self.count[image]]


@dataclass(frozen=True)
class Row:
    """One sequence, arranged; arrays `[s]`. `next_position` is the position of the token after it."""

    input_ids: Ints
    slots: Ints
    roles: Ints
    positions: Ints
    origin: Ints
    query_index: Ints
    next_position: int


@dataclass(frozen=True)
class PreparedPrompt:
    """A batch that is ready for the embed stage: rows padded on the right to `[b, s]`.

    Attributes:
        input_ids, slots, roles, positions, origin: int64 `[b, s]`, see the module's docstring; `origin`
            counts visual tokens through all images of a row (image * n + token).
        length: int64 `[b]`, without padding.
        query_index: int64 `[b, t]`, rows of the text that says what is relevant; -1 is padding.
        next_position: int64 `[b]`, position of the first generated token.
        images: number of images of each row.
        visual: features and the encoder's choice, images of all rows one after another.
        pixel_values: float32 `[images, 3, height, width]`.
        timings: seconds of preprocessing and vision.
    """

    input_ids: Ints
    slots: Ints
    roles: Ints
    positions: Ints
    origin: Ints
    length: Ints
    query_index: Ints
    next_position: Ints
    images: tuple[int, ...]
    visual: VisualTokens
    pixel_values: Floats
    timings: Timings = field(default_factory=Timings)


def arrange(
    input_ids: Ints,
    user_text: np.ndarray,
    kept: Sequence[Ints],
    n: int,
    *,
    image_token_id: int,
    mode: Positions = "compact",
    first_slot: int = 0,
    first_position: int = 0,
) -> Row:
    """Replace each image token of `input_ids [t]` by as many as `kept` says for that image.

    `user_text` bool `[t]` marks the user's words; `n` is the number of an image's visual tokens unpruned.
    """
    is_image = input_ids == image_token_id
    sizes = np.ones(len(input_ids), np.int64)
    sizes[is_image] = [len(index) for index in kept]
    visual = np.repeat(is_image, sizes)
    origin = np.full(len(visual), -1, np.int64)
    origin[visual] = np.concatenate([ints([])] + [i * n + index for i, index in enumerate(kept)])
    slots = np.full(len(visual), -1, np.int64)
    slots[visual] = first_slot + np.arange(np.count_nonzero(visual))
    positions, length = _positions(is_image, kept, n, mode)
    roles, query_index = _roles(visual, np.repeat(user_text & ~is_image, sizes))
    return Row(
        input_ids=np.repeat(input_ids, sizes),
        slots=slots,
        roles=roles,
        positions=first_position + positions,
        origin=origin,
        query_index=query_index,
        next_position=first_position + length,
    )


def _positions(is_image: np.ndarray, kept: Sequence[Ints], n: int, mode: Positions) -> tuple[Ints, int]:
    """Positions `[s]` from 0 on, and how many there are in all."""
    if mode == "compact":
        length = int(np.count_nonzero(~is_image)) + sum(len(index) for index in kept)
        return np.arange(length), length
    spans, images, start = [ints([])], iter(kept), 0
    for image in is_image:
        spans.append(start + next(images) if image else ints([start]))
        start += n if image else 1
    return np.concatenate(spans), start


def _roles(visual: np.ndarray, user_text: np.ndarray) -> tuple[Ints, Ints]:
    """Roles `[s]` and the query rows `[t]`.

    1. The user's text after an image is question text, but for the last token, whose logits are wanted.
    2. All text behind the first image says what is relevant, the template's words after the question too:
       a token is scored by the rows after it, and the question's last token has no others.
    """
    roles = np.where(visual, VISUAL, FIXED)
    if not visual.any():
        return roles, ints([-1])
    behind = (np.arange(len(visual)) > np.argmax(visual)) & ~visual
    question = user_text & behind
    question[-1] = False
    roles[question] = QUESTION
    query = np.flatnonzero(behind)
    return roles, query if len(query) else ints([-1])


def collate(
    rows: Sequence[Row], images: Sequence[int], visual: VisualTokens, pixel_values: Floats, timings: Timings
) -> PreparedPrompt:
    """One batch of the rows, padded on the right. `images` counts the images of each row."""
    width = max(len(row.input_ids) for row in rows)
    queries = max(len(row.query_index) for row in rows)
    return PreparedPrompt(
        input_ids=_padded([row.input_ids for row in rows], width, 0),
        slots=_padded([row.slots for row in rows], width, -1),
        roles=_padded([row.roles for row in rows], width, FIXED),
        positions=_padded([row.positions for row in rows], width, 0),
        origin=_padded([row.origin for row in rows], width, -1),
        length=ints([len(row.input_ids) for row in rows]),
        query_index=_padded([row.query_index for row in rows], queries, -1),
        next_position=ints([row.next_position for row in rows]),
        images=tuple(images),
        visual=visual,
        pixel_values=pixel_values,
        timings=timings,
    )


def _padded(rows: Sequence[Ints], width: int, value: int) -> Ints:
    out = np.full((len(rows), width), value, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
