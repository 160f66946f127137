"""The ladder's own reading of a prompt: transformers' processor, and roles by a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

from foveate.runtime.bundle import Bundle
from foveate.tools.parity.prompts import CASES, Case, Front, draw, mark_roles

IMAGE = 9


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ids_and_pixels_are_the_llava_processors(
    case: Case, front: Front, default: tuple[Path, Bundle]
) -> None:
    processor = AutoProcessor.from_pretrained(default[0], backend="pil")
    prompt = front.prompt(case)
    made = processor(
        text=front.render(prompt.messages),
        images=list(prompt.images) or None,
        return_tensors="np",
        add_special_tokens=False,  # this template writes the beginning of text itself
    )
    assert made["input_ids"][0].tolist() == list(prompt.turn.input_ids)
    if prompt.turn.pixel_values is not None:
        assert np.array_equal(made["pixel_values"], prompt.turn.pixel_values)


def test_pictures_are_fixed_by_their_seed() -> None:
    first, again, other = draw(1, (40, 30)), draw(1, (40, 30)), draw(2, (40, 30))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.size == (40, 30)
    assert np.asarray(first).std() > 10


@pytest.mark.parametrize(
    ("ids", "user", "roles", "query"),
    [
        # The last row is never prunable: its logits are wanted.
        ([1, IMAGE, IMAGE, 5, 6, 7], [0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 0], [3, 4, 5]),
        # Text before the first image is protected, between images it is not.
        ([1, 5, IMAGE, 6, IMAGE, 7, 8], [0, 1, 0, 1, 0, 1, 0], [0, 0, 1, 2, 1, 2, 0], [3, 5, 6]),
        # All text behind the first image asks, the template's included.
        ([1, 5, IMAGE, 3, 4], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [3, 4]),
        ([1, IMAGE, 6, IMAGE, 3, 4], [0, 0, 1, 0, 0, 0], [0, 1, 2, 1, 0, 0], [2, 4, 5]),
        ([1, 5, 6], [0, 1, 1], [0, 0, 0], []),
    ],
)
def test_roles(ids: list[int], user: list[int], roles: list[int], query: list[int]) -> None:
    assert mark_roles(ids, [bool(each) for each in user], IMAGE) == (roles, query)


def test_a_later_chunk_knows_only_itself(front: Front) -> None:
    prompt = front.prompt(CASES[3])  # two images
    whole = prompt.turn
    second = max(i for i in range(1, len(whole.roles)) if whole.roles[i] == 1 and whole.roles[i - 1] != 1)
    chunk = front.turn(prompt.messages, prompt.images, second)
    assert chunk.input_ids == whole.input_ids[second:]
    assert chunk.pixel_values is not None
    assert whole.pixel_values is not None
    assert np.array_equal(chunk.pixel_values, whole.pixel_values[1:])
