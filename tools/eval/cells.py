"""What is known about one row of the table at one budget, and how it is stored for the next run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.runtime.generate import Generation
from foveate.tools.demo_model.scenes import TWO_HOP
from foveate.tools.eval.speed import Speed
from foveate.tools.eval.work import Work
from foveate.tools.evaluate import Exam, is_right
from foveate.tools.evaluation import OWN_RULE, Point, Tally

PICTURES = 4  # scenes that the report draws


@dataclass(frozen=True)
class Look:
    """One answer for the report's pictures: what was left of the scene's patches behind the last cut."""

    scene: int
    question: str
    answer: str
    right: bool
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One row at one budget.

    Attributes:
        point: accuracy, and what was kept.
        asked: tokens that were asked for, by site; empty for the own rule.
        obeyed: whether each site kept exactly as many as were asked for.
        scenes: right answers of each scene.
        looks: answers for the pictures.
        work: operations of a prefill, counted in the graphs.
        formula: the same by `foveate.tools.flops`, without the cost of choosing.
        speed: time to the first token; None where it was not measured.
        fixed: of an own rule: whether budgets change nothing.
    """

    point: Point
    asked: Mapping[str, int]
    obeyed: bool
    scenes: tuple[int, ...]
    looks: tuple[Look, ...]
    work: Work
    formula: float
    speed: Speed | None = None
    fixed: bool = False

    @property
    def budget(self) -> str:
        """A ratio as text, or the own rule."""
        return self.point.budget

    @property
    def ratio(self) -> float | None:
        """The budget as a number; None for the own rule."""
        return None if self.budget == OWN_RULE else float(self.budget)

    @property
    def share(self) -> float:
        """Accuracy in 0..1."""
        return self.point.accuracy.share

    def to_json(self) -> dict[str, Any]:
        """Plain values, all that `from_json` needs."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cell:
        """What `to_json` gave."""
        point = dict(stored["point"])
        point["accuracy"] = Tally(**point["accuracy"])
        point["kinds"] = {kind: Tally(**tally) for kind, tally in point["kinds"].items()}
        point["counts"] = tuple(point["counts"])
        looks = tuple(Look(**{**look, "kept": tuple(look["kept"])}) for look in stored["looks"])
        speed = stored["speed"]
        own = {
            "point": Point(**point),
            "scenes": tuple(stored["scenes"]),
            "looks": looks,
            "work": Work(**stored["work"]),
            "speed": None if speed is None else Speed(**speed),
        }
        return cls(**{**stored, **own})


class Store:
    """Finished cells in a folder, a file for each: a run that was interrupted goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Cell | None:
        """The cell of a key; None when it has to be measured."""
        try:
            return Cell.from_json(json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, or of an older version

    def put(self, key: str, cell: Cell) -> Cell:
        """Keep a cell; whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{key}.json"
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(cell.to_json()), encoding="utf-8")
        os.replace(fresh, path)
        return cell


def right_by_scene(exam: Exam, made: Sequence[Generation]) -> tuple[int, ...]:
    """Right answers of each scene; `made` is scene by scene."""
    answers = iter(made)
    return tuple(sum(is_right(question, next(answers)) for question in asked) for asked in exam.asked)


def looks_of(exam: Exam, made: Sequence[Generation]) -> tuple[Look, ...]:
    """For the first scenes, the first question that takes two look-ups."""
    looks, first = [], 0
    for number, asked in enumerate(exam.asked[:PICTURES]):
        own = made[first : first + len(asked)]
        place = next((i for i, question in enumerate(asked) if question.kind in TWO_HOP), 0)
        sites = own[place].report.sites
        kept = sites[-1].kept_index[0] if sites else tuple(range(own[place].report.visual_tokens))
        right = is_right(asked[place], own[place])
        looks.append(Look(number, asked[place].text, own[place].text.strip(), right, kept))
        first += len(asked)
    return tuple(looks)
