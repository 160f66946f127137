"""Test prompts: deterministic pictures and questions, their ids and roles by way of transformers alone.

`Front` lets an `Oracle` render, tokenise and preprocess with transformers' own processor, and marks roles by
a loop over character offsets. Nothing comes from `foveate.runtime`: what the runtime makes of the same
messages is compared with this (rung P4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from foveate.tools.parity.families import Encoded, Oracle, Video

FIXED, VISUAL, TEXT = 0, 1, 2
IMAGE, VIDEO = "<image>", "<video>"  # the marks in `Case.parts`, whatever the model's own placeholders are


@dataclass(frozen=True, eq=False)
class Turn:
    """One chunk of a conversation, every visual token written out.

    `input_ids`, `roles` and `item` have `s` items (roles: 0 protected, 1 visual, 2 question text; item: which
    image or video of this chunk a row shows, -1 for text); `positions` int64 [s, axes] are transformers' own
    of the unpruned chunk, from 0; `query` are the rows that say what is relevant, `words` the ids of the
    user's words. `source` is the whole conversation as encoded, None without images; `first_item` of its
    items is this chunk's first.
    """

    input_ids: tuple[int, ...]
    roles: tuple[int, ...]
    query: tuple[int, ...]
    item: tuple[int, ...]
    positions: np.ndarray
    words: tuple[int, ...] = ()
    source: Encoded | None = None
    first_item: int = 0

    @classmethod
    def plain(cls, ids: Sequence[int], axes: int = 1) -> Turn:
        """Text that nothing may prune."""
        count = len(ids)
        positions = np.arange(count)[:, None].repeat(axes, axis=1)
        return cls(tuple(ids), (FIXED,) * count, (), (-1,) * count, positions)

    @property
    def has_items(self) -> bool:
        """Whether it shows anything."""
        return any(number >= 0 for number in self.item)


@dataclass(frozen=True)
class Case:
    """A user turn by name: texts, image and video marks in order; (width, height) of each picture, and
    (frames, width, height, frames a second) of each video.
    """

    name: str
    parts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    videos: tuple[tuple[int, int, int, float], ...] = ()


CASES = (
    Case("image first", (IMAGE, "What is to the left of the red circle?"), ((90, 70),)),
    Case("image in the middle", ("Look closely.", IMAGE, "Where is the digit?"), ((50, 140),)),
    Case("image last", ("Describe this picture in a few words:", IMAGE), ((64, 64),)),
    Case("two images", (IMAGE, "This one is old.", IMAGE, "What has changed in it?"), ((120, 60), (33, 97))),
    Case(
        "three images",
        (IMAGE, IMAGE, "These came first.", IMAGE, "Which of them is the widest?"),
        ((190, 45), (71, 70), (40, 131)),
    ),
    Case("text only", ("Name three colors.",)),
    Case("video", ("Watch this.", VIDEO, "Who moves?"), (), ((5, 75, 60, 2.0),)),
    Case(
        "image and video",
        (VIDEO, "A film, and a poster.", IMAGE, "Do they match?"),
        ((60, 85),),
        ((4, 58, 64, 1.0),),
    ),
)


@dataclass(frozen=True)
class Prompt:
    """A case made concrete: messages and pictures for the runtime, the same as a turn for the reference."""

    name: str
    messages: tuple[Mapping[str, Any], ...]
    images: tuple[Image.Image, ...]
    videos: tuple[Video, ...]
    turn: Turn


def draw(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of soft blobs and hard discs on grey, fixed by its seed; `size` is (width, height)."""
    rng = np.random.default_rng([2409, seed])
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    canvas = np.full((height, width, 3), 110.0)
    for _ in range(7):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.06, 0.25) * min(size)
        distance = np.hypot(x - cx, y - cy) / radius
        blob = np.exp(-(distance**2)) if rng.random() < 0.6 else (distance < 1.0).astype(float)
        canvas += blob[:, :, None] * rng.uniform(-150, 150, size=3)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def film(seed: int, frames: int, size: tuple[int, int], fps: float) -> Video:
    """A picture that slides by: every frame is another one."""
    width, height = size
    wide = draw(seed, (width + 9 * frames, height))
    return [wide.crop((9 * i, 0, 9 * i + width, height)) for i in range(frames)], fps


class Front:
    """Cases and conversations as turns: ids, roles, positions and pixels of an oracle."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def cases(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """Those that the family can read."""
        return tuple(case for case in cases if self.reads(len(case.sizes), len(case.videos)))

    def reads(self, images: int, videos: int) -> bool:
        """Whether the family reads a conversation with so many images and videos."""
        return not videos or (self.oracle.takes_videos and (not images or self.oracle.mixes_kinds))

    def prompt(self, case: Case, attempt: int = 0) -> Prompt:
        """The case with pictures drawn from `attempt`."""
        kinds = {IMAGE: "image", VIDEO: "video"}
        content = [
            {"type": kinds[part]} if part in kinds else {"type": "text", "text": part} for part in case.parts
        ]
        number = sum(map(ord, case.name)) + 1000 * attempt
        images = tuple(draw(number + i, size) for i, size in enumerate(case.sizes))
        videos = tuple(
            film(number + 500 + i, frames, (width, height), fps)
            for i, (frames, width, height, fps) in enumerate(case.videos)
        )
        messages = ({"role": "user", "content": content},)
        return Prompt(case.name, messages, images, videos, self.turn(messages, images, videos))

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        videos: Sequence[Video] = (),
    ) -> Encoded:
        """A conversation as transformers reads it."""
        return self.oracle.encode(messages, images, videos)

    def turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        videos: Sequence[Video] = (),
        start: int = 0,
    ) -> Turn:
        """A conversation as one chunk, from row `start` on; rows before are cached and have no say."""
        encoded = self.encode(messages, images, videos)
        positions = self.oracle.positions(encoded)
        before = 0 if start == 0 else int(positions[start - 1].max()) + 1
        first_item = max(encoded.item[:start], default=-1) + 1
        item = [number - first_item if number >= 0 else -1 for number in encoded.item[start:]]
        of_user = self._of_user(encoded, messages)[start:]
        roles, query = mark_roles(item, of_user)
        ids = encoded.input_ids[start:]
        words = [token for token, mine in zip(ids, of_user, strict=True) if mine]
        return Turn(
            input_ids=tuple(ids),
            roles=tuple(roles),
            query=tuple(query),
            item=tuple(item),
            positions=positions[start:] - before,
            words=tuple(words),
            source=encoded,
            first_item=first_item,
        )

    def _of_user(self, encoded: Encoded, messages: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which rows hold a user's words."""
        parts = [(m["role"], p["text"]) for m in messages for p in m["content"] if p["type"] == "text"]
        spans = _spans(encoded.text, parts)
        return [
            not visual and any(start < last and stop > first for first, last in spans)
            for visual, (start, stop) in zip(encoded.visual, encoded.offsets, strict=True)
        ]

    def token(self, number: int) -> str:
        """The text of one token."""
        return self.oracle.token(number)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids."""
        return self.oracle.decode(ids)


def mark_roles(item: Sequence[int], of_user: Sequence[bool]) -> tuple[list[int], list[int]]:
    """The roles of a prompt's rows and its query rows, by the rules that the paper's second stage needs.

    `item` says which image or video a row shows, -1 for text. Protected: everything that the template wrote,
    everything before the end of the first image (no question row can see less of it than of what follows, so
    its score is not comparable), what stands between the parts of one image, and the last row, whose logits
    are wanted. The user's words elsewhere are question text. The query is all text behind the first image,
    the template's included, but for what stands between the parts of one image: a row is scored by those
    after it, and the question's last row has no others.
    """
    ends: dict[int, tuple[int, int]] = {}
    for row, number in enumerate(item):
        if number >= 0:
            ends[number] = (ends[number][0] if number in ends else row, row)
    if not ends:
        return [FIXED] * len(item), []
    behind = min(ends.values())[1]
    roles, query = [], []
    for row, number in enumerate(item):
        inside = any(first < row < last for first, last in ends.values())
        asks = number < 0 and row > behind and not inside
        if asks:
            query.append(row)
        if number >= 0:
            roles.append(VISUAL)
        elif asks and of_user[row] and row < len(item) - 1:
            roles.append(TEXT)
        else:
            roles.append(FIXED)
    return roles, query


def _spans(text: str, parts: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Where the user's texts stand, each behind the one before. No template holds the cases' texts."""
    spans, cursor = [], 0
    for role, part in parts:
        start = text.index(part.strip(), cursor)
        cursor = start + len(part.strip())
        if role == "user":
            spans.append((start, cursor))
    return spans
