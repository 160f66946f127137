"""The demo's tour: export the built-in model, ask it, draw what it kept, verify it, measure its accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.tools import account, demo
from foveate.tools.extras import needs

if TYPE_CHECKING:
    from foveate.runtime.generate import Generation
    from foveate.runtime.pipeline import Pipeline
    from foveate.tools.evaluate import Evaluation, Progress
    from foveate.tools.parity.report import ParityReport

SCENES = (0, 1, 2, 3)  # the first ones of the test split, not chosen
# How many questions of which kind to ask about each scene.
KINDS = {"color": 1, "digit": 1, "match_shape": 1}


@dataclass(frozen=True)
class Answered:
    """A question about a scene, what the pruned model said, and what is right."""

    scene: int
    question: str
    answer: str
    expected: str
    generation: Generation

    @property
    def right(self) -> bool:
        """Whether the answer is the only right one."""
        return self.answer == self.expected

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        own = {"image": f"{demo.WORD}:{self.scene}", "question": self.question, "expected": self.expected}
        return {**own, "right": self.right, **account.to_json(self.generation)}


@dataclass
class Clock:
    """Seconds of each part of the tour."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Time the block under this name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(time.perf_counter() - start, 3)


def export(out: Path, progress: demo.Report) -> Path:
    """The built-in model as a fresh bundle in `out`, in both layouts. Raises as `demo.export_demo`."""
    bundle = out / "bundle"
    demo.export_demo(bundle, progress=progress, overwrite=True)
    return bundle


def ask(pipeline: Pipeline, out: Path, show: Callable[[Answered], None]) -> tuple[list[Answered], list[Path]]:
    """Ask some questions about each scene; draws what was kept for the first of them into `out`."""
    from foveate.runtime.options import GenerateOptions
    from foveate.tools.demo_model.scenes import make_scene

    options = GenerateOptions(max_new_tokens=8)
    answers, pictures = [], []
    for number in SCENES:
        scene = make_scene(number, "test")
        for index, question in enumerate(scene.ask(KINDS)):
            generation = pipeline.generate(question.text, [scene.pil()], options)
            answer = Answered(number, question.text, generation.text.strip(), question.answer, generation)
            answers.append(answer)
            show(answer)
            if index == 0:
                caption = f"{answer.question}\n{answer.answer}"
                pictures.append(out / f"kept-{number}.png")
                account.picture(generation, [[scene.pil()]], caption).save(pictures[-1])
    return answers, pictures


def verify(bundle: Path, say: Callable[[str], None]) -> ParityReport:
    """The parity ladder of a bundle of the built-in model; the bundle remembers it."""
    with needs("export"):
        from foveate.tools.parity.verify import verify

        return verify(bundle, demo.resolve_checkpoint(demo.WORD), say=say)


def measure(bundle: Path, scenes: int, progress: Progress) -> Evaluation:
    """Accuracy with all tokens, with the method's own rule, and with as many random tokens."""
    with needs("export"):  # random pruning has a bundle of its own
        from foveate.tools.evaluate import evaluate

        return evaluate(bundle, [1.0], scenes=scenes, progress=progress)
