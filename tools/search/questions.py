"""What a search asks: pictures with questions and their answers, the built-in model's or a folder's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.runtime.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "questions.jsonl"
FORM = '{"image": "cat.jpg", "question": "What is this?", "answer": "a cat"} on each line'


@dataclass(frozen=True)
class Question:
    """A question about one picture (a file, or one in memory) and the answers that count as right."""

    image: Path | Image
    text: str
    answers: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """Whether an answer is one of the right ones, up to case, space and a final full stop."""
        return _plain(answer) in map(_plain, self.answers)


def require_data(demo: bool, data: Path | None) -> None:
    """Raises UsageError when there is nothing to ask: only the built-in model has questions of its own."""
    if data is None and not demo:
        raise UsageError(
            "there are no questions for this model",
            wanted=f"--data FOLDER with {FILE}: {FORM}",
            mend="write a few hundred questions with their answers, of the kind that the model is for",
        )


def demo_questions(scenes: int) -> tuple[Question, ...]:
    """Eight questions about each of the first scenes of the validation split: no search sees a test scene."""
    from foveate.tools.demo_model.scenes import TEST_QUOTA, make_scene

    made = []
    for seed in range(scenes):
        scene = make_scene(seed, "val")
        picture = scene.pil()
        made += [Question(picture, each.text, (each.answer,)) for each in scene.ask(TEST_QUOTA, 8)]
    return _not_empty(made, f"{scenes} scenes")


def read_questions(folder: Path) -> tuple[Question, ...]:
    """The questions in ``questions.jsonl`` of a folder; images are named relative to it.

    Raises:
        UsageError: no such file, nothing in it, or a line that is no question.
    """
    path = folder / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the calibration set {folder} cannot be read",
            found=str(error),
            wanted=f"a folder with {FILE}: {FORM}",
        ) from error
    made = [
        _question(folder, line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return _not_empty(made, str(path))


def fingerprint(questions: Sequence[Question]) -> str:
    """sha256 over all questions, answers and pictures."""
    digest = hashlib.sha256()
    pictures: dict[int, bytes] = {}
    for question in questions:
        key = id(question.image)
        if key not in pictures:
            image = question.image
            content = image.read_bytes() if isinstance(image, Path) else image.tobytes()
            pictures[key] = hashlib.sha256(content).digest()
        digest.update(pictures[key])
        digest.update(json.dumps([question.text, question.answers]).encode())
    return digest.hexdigest()


def _question(folder: Path, line: str, where: str) -> Question:
    try:
        found: Any = json.loads(line)
        image, text, answers = folder / found["image"], found["question"], found["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("a line is no question", found=f"{where}: {line[:120]}", wanted=FORM) from error
    answers = (answers,) if isinstance(answers, str) else tuple(answers or ())
    if not isinstance(text, str) or not answers or not all(isinstance(each, str) for each in answers):
        raise UsageError("a line is no question", found=f"{where}: {line[:120]}", wanted=FORM)
    if not image.is_file():
        raise UsageError("a picture is missing", found=f"{where}: {image}", wanted="a file in the folder")
    return Question(image, text, answers)


def _not_empty(made: list[Question], where: str) -> tuple[Question, ...]:
    if not made:
        raise UsageError(
            "the calibration set is empty",
            found=where,
            wanted="a hundred questions and more: a search can see no loss that is smaller than one answer",
            mend=f"put questions into {FILE}, or raise --scenes",
        )
    return tuple(made)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()
