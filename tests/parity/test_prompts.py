"""The ladder's own reading of a prompt: transformers' processor, and roles by a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

from foveate.runtime.bundle import Bundle
from foveate.tools.parity.families.base import TextOracle
from foveate.tools.parity.prompts import CASES, Case, Front, Turn, draw, film, mark_roles

PICTURES = [case for case in CASES if not case.videos]


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
def test_ids_and_pixels_are_the_llava_processors(
    case: Case, front: Front, default: tuple[Path, Bundle]
) -> None:
    processor = AutoProcessor.from_pretrained(default[0], backend="pil")
    prompt = front.prompt(case)
    made = processor(
        text=processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True),
        images=list(prompt.images) or None,
        return_tensors="np",
        add_special_tokens=False,  # this template writes the beginning of text itself
    )
    assert made["input_ids"][0].tolist() == list(prompt.turn.input_ids)
    source = prompt.turn.source
    assert source is not None
    if prompt.images:
        assert np.array_equal(made["pixel_values"], source.inputs["pixel_values"])
    assert source.kinds == ("image",) * len(prompt.images)
    assert set(prompt.turn.item) - {-1} == set(range(len(prompt.images)))


def test_cases_are_those_that_the_family_reads(front: Front) -> None:
    assert not front.oracle.takes_videos
    assert list(front.cases(CASES)) == PICTURES


def test_a_checkpoint_without_a_template_reads_like_llava_15(oracle: TextOracle) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    ours, theirs = oracle.processor.chat_template, oracle.tokenizer.chat_template
    try:
        oracle.processor.chat_template = oracle.tokenizer.chat_template = None
        assert oracle.render(messages) == "USER: <image>\nWhat is it? ASSISTANT:"
    finally:
        oracle.processor.chat_template, oracle.tokenizer.chat_template = ours, theirs


def test_pictures_are_fixed_by_their_seed() -> None:
    first, again, other = draw(1, (40, 30)), draw(1, (40, 30)), draw(2, (40, 30))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.size == (40, 30)
    assert np.asarray(first).std() > 10


def test_frames_of_a_film_differ() -> None:
    frames, fps = film(1, 4, (40, 30), 2.0)
    assert ([frame.size for frame in frames], fps) == ([(40, 30)] * 4, 2.0)
    assert len({frame.tobytes() for frame in frames}) == 4


@pytest.mark.parametrize(
    ("item", "user", "roles", "query"),
    [
        # The last row is never prunable: its logits are wanted.
        ([-1, 0, 0, -1, -1, -1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 0], [3, 4, 5]),
        # Text before the first image is protected, between images it is not.
        ([-1, -1, 0, -1, 1, -1, -1], [0, 1, 0, 1, 0, 1, 0], [0, 0, 1, 2, 1, 2, 0], [3, 5, 6]),
        # All text behind the first image asks, the template's included.
        ([-1, -1, 0, -1, -1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [3, 4]),
        ([-1, 0, -1, 1, -1, -1], [0, 0, 1, 0, 0, 0], [0, 1, 2, 1, 0, 0], [2, 4, 5]),
        ([-1, -1, -1], [0, 1, 1], [0, 0, 0], []),
        # What stands between the parts of one image (row ends, tile markers) does not ask.
        ([0, -1, 0, -1, 1, -1, -1, 1, -1], [0] * 9, [1, 0, 1, 0, 1, 0, 0, 1, 0], [3, 8]),
    ],
)
def test_roles(item: list[int], user: list[int], roles: list[int], query: list[int]) -> None:
    assert mark_roles(item, [bool(each) for each in user]) == (roles, query)


def test_a_later_chunk_knows_only_itself(front: Front) -> None:
    prompt = front.prompt(next(case for case in CASES if case.name == "two images"))
    whole = prompt.turn
    second = whole.item.index(1)
    chunk = front.turn(prompt.messages, prompt.images, (), second)
    assert chunk.input_ids == whole.input_ids[second:]
    assert chunk.item == tuple(number - 1 if number >= 0 else -1 for number in whole.item[second:])
    assert chunk.first_item == 1
    assert chunk.positions[:, 0].tolist() == list(range(len(chunk.input_ids)))


def test_plain_text_counts_on_all_axes() -> None:
    turn = Turn.plain([5, 6, 7], 3)
    assert turn.positions.tolist() == [[0] * 3, [1] * 3, [2] * 3]
    assert not turn.has_items
