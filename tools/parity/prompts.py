"""Test prompts: deterministic pictures and questions, their ids and roles by way of transformers alone.

`Front` renders, tokenises and preprocesses with transformers' own processor, and marks roles by a loop over
character offsets. Nothing comes from `foveate.runtime`: what the runtime makes of the same messages is
compared with this (rung P4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

FIXED, VISUAL, TEXT = 0, 1, 2
IMAGE = "<image>"  # the mark in `Case.parts`, whatever the model's own placeholder is

# What a checkpoint without any chat template gets: LLaVA-1.5's.
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for p in m['content'] if p['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
    "{% endfor %}ASSISTANT:"
)


@dataclass(frozen=True)
class Turn:
    """One chunk of a conversation, every visual token written out.

    `input_ids` and `roles` have `s` items (roles: 0 protected, 1 visual, 2 question text); `query` are the
    rows that say what is relevant; `pixel_values` [b, 3, height, width] are its images, None without any.
    """

    input_ids: tuple[int, ...]
    roles: tuple[int, ...]
    query: tuple[int, ...]
    pixel_values: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """A user turn by name: texts and image marks in order, and the (width, height) of each picture."""

    name: str
    parts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()


CASES = (
    Case("image first", (IMAGE, "What is to the left of the red circle?"), ((90, 70),)),
    Case("image in the middle", ("Look closely.", IMAGE, "Where is the digit?"), ((50, 140),)),
    Case("image last", ("Describe this picture in a few words:", IMAGE), ((64, 64),)),
    Case("two images", (IMAGE, "This one is old.", IMAGE, "What has changed in it?"), ((120, 60), (33, 97))),
    Case("text only", ("Name three colors.",)),
)


@dataclass(frozen=True)
class Prompt:
    """A case made concrete: messages and pictures for the runtime, the same as a turn for the reference."""

    name: str
    messages: tuple[Mapping[str, Any], ...]
    images: tuple[Image.Image, ...]
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


class Front:
    """transformers' tokenizer, chat template and image processor of a checkpoint."""

    def __init__(self, checkpoint: Path, image_token_id: int, visual_tokens: int) -> None:
        """`visual_tokens` is how many rows an image takes in the unpruned prompt."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, use_fast=True)
        # Pillow on both sides: torchvision's resampling gives other pixels, which is not what is judged here.
        factory: Any = AutoImageProcessor
        self._pictures: Any = factory.from_pretrained(checkpoint, backend="pil")
        self._template = _read_template(checkpoint, self._tokenizer)
        self._image_token_id, self._visual_tokens = image_token_id, visual_tokens
        self._image_token = str(self._tokenizer.convert_ids_to_tokens(image_token_id))

    def prompt(self, case: Case, attempt: int = 0) -> Prompt:
        """The case with pictures drawn from `attempt`."""
        content = [
            {"type": "image"} if part == IMAGE else {"type": "text", "text": part} for part in case.parts
        ]
        number = sum(map(ord, case.name))
        images = tuple(draw(1000 * attempt + number + i, size) for i, size in enumerate(case.sizes))
        messages = ({"role": "user", "content": content},)
        return Prompt(case.name, messages, images, self.turn(messages, images))

    def turn(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], start: int = 0
    ) -> Turn:
        """A conversation as one chunk, from row `start` on; rows before are cached and have no say."""
        ids, of_user = self.ids(messages)
        roles, query = mark_roles(ids[start:], of_user[start:], self._image_token_id)
        seen = sum(token == self._image_token_id for token in ids[:start]) // self._visual_tokens
        pixels = None
        if images[seen:]:
            pixels = np.asarray(
                self._pictures(list(images[seen:]), return_tensors="np")["pixel_values"], np.float32
            )
        return Turn(tuple(ids[start:]), tuple(roles), tuple(query), pixels)

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """Ids with every visual token written out, and which of them hold a user's words."""
        text = self.render(messages)
        parts = [(m["role"], p["text"]) for m in messages for p in m["content"] if p["type"] == "text"]
        return self._encode(text, _spans(text, parts))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's text, up to where the model answers."""
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._template.replace("IMAGE", self._image_token),
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(text)

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids with every visual token written out, and which of them hold a user's words."""
        starts_itself = bool(self._tokenizer.bos_token) and text.startswith(self._tokenizer.bos_token)
        coded = self._tokenizer(text, add_special_tokens=not starts_itself, return_offsets_mapping=True)
        ids: list[int] = []
        of_user: list[bool] = []
        for token, (start, stop) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
            copies = self._visual_tokens if token == self._image_token_id else 1
            ids += [int(token)] * copies
            of_user += [any(start < last and stop > first for first, last in spans)] * copies
        return ids, of_user

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def mark_roles(ids: Sequence[int], of_user: Sequence[bool], image_token: int) -> tuple[list[int], list[int]]:
    """The roles of a prompt's rows and its query rows, by the rules that the paper's second stage needs.

    Protected: everything that the template wrote, everything before the first image (no question row can
    see less of it than of what follows, so its score is not comparable), and the last row, whose logits are
    wanted. The user's words after an image are question text. The query is all text behind the first image,
    the template's included: a row is scored by those after it, and the question's last row has no others.
    """
    places = [row for row, token in enumerate(ids) if token == image_token]
    if not places:
        return [FIXED] * len(ids), []
    roles, query = [], []
    for row, token in enumerate(ids):
        if token == image_token:
            roles.append(VISUAL)
        elif of_user[row] and row > places[0] and row < len(ids) - 1:
            roles.append(TEXT)
        else:
            roles.append(FIXED)
        if row > places[0] and token != image_token:
            query.append(row)
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


def _read_template(checkpoint: Path, tokenizer: Any) -> str:
    """The processor's template, else the tokenizer's, else LLaVA-1.5's."""
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    legacy = checkpoint / "chat_template.json"
    if legacy.is_file():
        import json

        return str(json.loads(legacy.read_text(encoding="utf-8"))["chat_template"])
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else _TEMPLATE
