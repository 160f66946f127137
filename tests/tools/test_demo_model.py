"""The demo model: scenes that can be trusted, a checkpoint that loads and answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.tools.demo_model import scenes
from foveate.tools.demo_model.scenes import GRID, QUESTION_KINDS, TEST_QUOTA, Scene, make_scene

CHECKPOINT = Path(scenes.__file__).with_name("checkpoint")
MEGABYTE = 2**20


def brute_force(scene: Scene, text: str) -> set[str]:
    """All right answers to a question, found again from its words and the object list."""
    words = text.rstrip("?").split()
    things = scene.objects
    digits = [thing for thing in things if thing.kind.isdigit()]
    family = {"digit": digits, "shape": [thing for thing in things if thing not in digits]}
    if text.startswith("What color is the"):
        return {thing.color for thing in things if thing.kind == words[-1]}
    if text.startswith("Where is the"):
        named = [thing for thing in things if thing.kind == words[-1]]
        return {("top" if t.row <= 3 else "bottom") + (" left" if t.column <= 3 else " right") for t in named}
    if "has the color of" in text:
        colors = {thing.color for thing in things if thing.kind == words[-1]}
        return {thing.kind for thing in family[words[1]] if thing.color in colors}
    if text.startswith("What is"):
        named = [thing for thing in family[words[-1]] if thing.color == words[-2]]
        steps = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
        down, across = steps[words[2]]
        spots = {(thing.row + down, thing.column + across) for thing in named}
        return {thing.kind for thing in things if (thing.row, thing.column) in spots}
    return {thing.kind for thing in family[words[1]] if thing.color == words[-1]}


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_answer_is_the_only_right_one(split: str) -> None:
    seen = set()
    for seed in range(60):
        scene = make_scene(seed, split)
        for question in scene.questions:
            assert brute_force(scene, question.text) == {question.answer}, question
            seen.add(question.kind)
    assert seen == set(QUESTION_KINDS)


def test_scene_depends_on_split_and_seed_alone() -> None:
    first = make_scene(5, "test")
    make_scene(6, "test")
    again = make_scene(5, "test")
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert first.ask(TEST_QUOTA, 8) == again.ask(TEST_QUOTA, 8)
    assert not np.array_equal(first.image, make_scene(5, "val").image)


def test_objects_have_cells_of_their_own() -> None:
    for seed in range(50):
        cells = [(thing.row, thing.column) for thing in make_scene(seed).objects]
        assert 6 <= len(cells) <= 8
        assert len(set(cells)) == len(cells)
        assert all(0 <= index < GRID for cell in cells for index in cell)


def test_splits_share_no_handwriting() -> None:
    drawn = {
        split: {image.tobytes() for value in scenes._handwriting(split).values() for image in value}
        for split in scenes.SPLITS
    }
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["val"]
    assert not drawn["val"] & drawn["test"]


def test_captions_state_facts() -> None:
    scene = make_scene(3, "train")
    for variant in range(5):
        pieces = scene.describe(variant)
        assert any(graded for _, graded in pieces)
        named = " ".join(text for text, _ in pieces).replace(",", " ").split()
        assert {word for word in named if word in scenes.KINDS} <= {thing.kind for thing in scene.objects}


def test_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8 * MEGABYTE


def test_checkpoint_answers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from foveate.tools.demo_model.measure import by_kind, generate_check, prepare, score

    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    exam = prepare(model, processor, "test", 10)
    assert by_kind(exam, score(exam))["all"] >= 85
    checked = generate_check(exam, processor, 8)
    assert checked["agree_with_scorer"] == checked["items"]


def test_packed_logits_are_those_of_the_checkpoint() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from foveate.tools.demo_model.measure import prepare
    from foveate.tools.demo_model.packed import IGNORED, answer_logits

    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    exam = prepare(model, processor, "test", 2)
    with torch.no_grad():
        packed = answer_logits(model, exam.features, exam.packed)
        for b, scene in enumerate(exam.scenes):
            for q, question in enumerate(exam.asked[b]):
                text = f"USER: <image>\n{question.text} ASSISTANT: {question.answer}"
                inputs = processor(images=scene.pil(), text=text, return_tensors="pt")
                due = int((exam.packed.targets[b, q] != IGNORED).sum())
                expected = model(**inputs).logits[0, -due:]
                torch.testing.assert_close(packed[b, q, :due], expected, atol=2e-4, rtol=0)
