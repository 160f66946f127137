"""Time to the first token, pruned and unpruned in turn, so that whatever else the machine does hits both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.tools.evaluate import Exam

WARM_UP = 2


@dataclass(frozen=True)
class Speed:
    """Medians in seconds over so many pairs of single prompts, each with its image."""

    full: float
    pruned: float
    pairs: int

    @property
    def ratio(self) -> float:
        """Below 1 the pruned model is faster."""
        return self.pruned / self.full


def measure(full: Pipeline, pruned: Pipeline, exam: Exam, keep: Mapping[str, Budget], pairs: int) -> Speed:
    """Ask both about the first scenes, one prompt after the other."""
    options = GenerateOptions(max_new_tokens=1, allow_unpruned=True)
    budgeted = replace(options, keep=keep)
    taken: list[tuple[float, float]] = []
    for turn in range(-WARM_UP, pairs):
        number = turn % len(exam.scenes)
        image, text = exam.scenes[number].pil(), exam.asked[number][0].text
        times = (
            full.generate(text, [image], options).timings.ttft,
            pruned.generate(text, [image], budgeted).timings.ttft,
        )
        if turn >= 0:
            taken.append(times)
    return Speed(median(each for each, _ in taken), median(each for _, each in taken), pairs)
