"""Measures schedules on one bundle: cuts at all places, budgets as inputs, no export per candidate."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from foveate.runtime.chunk import PreparedPrompt
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.visuals import Visual
from foveate.tools.evaluation import Tally
from foveate.tools.search.questions import Question
from foveate.tools.search.rates import Depth, Rates, tokens_of

BATCH = 32
KEEP_ALL = Budget(ratio=1.0)

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Score:
    """Right answers under a schedule; ``average``: mean share of visual tokens over layers and questions."""

    right: int
    total: int
    average: float

    @property
    def tally(self) -> Tally:
        """For shares and intervals."""
        return Tally(self.right, self.total)


@dataclass(frozen=True)
class Batch:
    """Questions that are asked together: all with as many visual tokens."""

    prompt: PreparedPrompt
    questions: tuple[Question, ...]
    entered: int


class Bench:
    """Asks all questions under a schedule; what was measured once is remembered, also between runs.

    The vision stage sees each question's picture once, before the first schedule.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        depth: Depth,
        questions: Sequence[Question],
        memory: Memory,
        *,
        new_tokens: int,
        progress: Progress,
    ) -> None:
        self.depth, self.memory = depth, memory
        self._pipeline, self._progress, self._new_tokens = pipeline, progress, new_tokens
        self._batches = _prepare(pipeline, questions, progress)

    def share(self, rates: Rates) -> float:
        """Share of right answers."""
        return self.score(rates).tally.share

    def score(self, rates: Rates) -> Score:
        """Right answers and what was kept."""
        known = self.memory.scores.get(rates)
        if known is None:
            known = self._measure(rates)
            self.memory.keep(rates, known)
        return known

    def _measure(self, rates: Rates) -> Score:
        label = f"schedule {len(self.memory.scores) + 1}"
        right, total, average = 0, 0, 0.0
        for number, batch in enumerate(self._batches):
            self._progress(label, number, len(self._batches))
            answers = self._pipeline.stream_prepared(
                batch.prompt, self._options(rates, batch.entered)
            ).generations
            right += sum(q.is_right(a.text) for q, a in zip(batch.questions, answers, strict=True))
            average += sum(answer.report.layer_average for answer in answers)
            total += len(answers)
        self._progress(label, len(self._batches), len(self._batches))
        return Score(right, total, average / total)

    def _options(self, rates: Rates, entered: int) -> GenerateOptions:
        keep = {f"decoder@{place}": KEEP_ALL for place in self.depth.places}
        for place, rate in self.depth.cuts(rates):
            keep[f"decoder@{place}"] = Budget(tokens=tokens_of(rate, entered))
        return GenerateOptions(max_new_tokens=self._new_tokens, keep=keep, allow_unpruned=True)


def _prepare(pipeline: Pipeline, questions: Sequence[Question], progress: Progress) -> tuple[Batch, ...]:
    """All questions, tokenised and looked at, in batches of equal numbers of visual tokens.

    Pixels are dropped as soon as they were looked at: a large set would not fit into memory otherwise.
    """
    opened: dict[object, Visual] = {}
    asked = []
    for question in questions:
        image = question.image
        key = image if isinstance(image, Path) else id(image)
        if key not in opened:
            opened[key] = pipeline.open(image).at_rest()
        tokenized = pipeline.tokenize(question.text, [opened[key]])
        asked.append((sum(item.visual_tokens for item in tokenized.items), tokenized, question))
    asked.sort(key=lambda each: each[0])
    batches: list[Batch] = []
    for entered, group in groupby(asked, key=lambda each: each[0]):
        members = list(group)
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            progress("looking", len(batches) * BATCH, max(len(asked), 1))
            prompt = pipeline.prepare_batch([tokenized for _, tokenized, _ in part], _UNPRUNED)
            items = tuple(tuple(replace(item, feeds={}) for item in row) for row in prompt.items)
            batches.append(
                Batch(replace(prompt, items=items), tuple(question for _, _, question in part), entered)
            )
    progress("looking", len(asked), len(asked))
    return tuple(batches)


_UNPRUNED = GenerateOptions(allow_unpruned=True)


class Memory:
    """Scores by schedule, in a file that is written after each of them; another search begins it anew."""

    def __init__(self, path: Path, facts: Mapping[str, object]) -> None:
        self._path = path
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.scores: dict[Rates, Score] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] == self._key:
                self.scores = {tuple(entry["rates"]): Score(**entry["score"]) for entry in found["scores"]}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or torn by hand: measured again
        self.resumed = len(self.scores)

    def keep(self, rates: Rates, score: Score) -> None:
        """Remember a score, on disk too."""
        self.scores[rates] = score
        entries = [{"rates": list(each), "score": asdict(found)} for each, found in self.scores.items()]
        draft = self._path.with_name(self._path.name + ".part")
        draft.write_text(json.dumps({"key": self._key, "scores": entries}), encoding="utf-8")
        os.replace(draft, self._path)
