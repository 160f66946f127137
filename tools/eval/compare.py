"""Fills the table: every row at every budget, through the real runtime, cell by cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import FoveateError
from foveate.runtime.generate import Generation
from foveate.runtime.manifest import Manifest
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline, load
from foveate.tools import flops
from foveate.tools.cache import sources_hash
from foveate.tools.demo import CHECKPOINT
from foveate.tools.eval.bundles import Made, NoAdapterError, bundle_of
from foveate.tools.eval.cells import Cell, Store, looks_of, right_by_scene
from foveate.tools.eval.rows import Row, unpruned
from foveate.tools.eval.speed import Speed, measure
from foveate.tools.eval.work import count_work
from foveate.tools.evaluate import Exam, answer, summarise, token_cuts
from foveate.tools.evaluation import OWN_RULE

COUNTED = 4  # prompts whose arithmetic is counted
PROBED = 2  # scenes that tell whether a method follows budgets
# What answers depend on besides the bundle: a change of these files makes stored cells stale.
_SOURCES = (
    "runtime",
    "tools/evaluate.py",
    "tools/evaluation.py",
    "tools/demo_model/scenes.py",
    "tools/flops.py",
)
_OWN = ("tools/eval/cells.py", "tools/eval/compare.py", "tools/eval/speed.py", "tools/eval/work.py")

Progress = Callable[[str, float, float], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """A row with its cells, or why it has none."""

    row: Row
    cells: tuple[Cell, ...] = ()
    problem: str = ""
    broken: bool = False

    def at(self, ratio: float) -> Cell | None:
        """The cell of a budget, near enough: 11 % and 1/9 are the same seven tokens of 64."""
        given = [cell for cell in self.cells if cell.ratio is not None]
        return next((cell for cell in given if abs((cell.ratio or 0) - ratio) < 0.005), None)

    @property
    def own(self) -> Cell | None:
        """The cell of the method's own rule."""
        return next((cell for cell in self.cells if cell.budget == OWN_RULE), None)


@dataclass(frozen=True)
class Comparison:
    """The whole table; `full` is the unpruned model's only cell."""

    full: Cell
    outcomes: tuple[Outcome, ...]
    budgets: tuple[float, ...]
    exam: Exam
    tokens: int
    threads: int


@dataclass
class Contestants:
    """What all rows share: the exam, the unpruned model, where cells are kept.

    Attributes:
        budgets: ratios below 1, falling; every row that follows budgets gets them.
        more: further ratios by row name.
        pairs: of speed measurements; 0 leaves them out.
    """

    exam: Exam
    budgets: tuple[float, ...]
    store: Store
    threads: int = 1
    pairs: int = 15
    more: Mapping[str, Sequence[float]] = field(default_factory=dict)
    progress: Progress = lambda what, done, total: None
    say: Say = lambda text: None

    @cached_property
    def full(self) -> Opened:
        """The unpruned model."""
        return Opened(self, unpruned(), bundle_of(unpruned(), self.progress))

    @cached_property
    def sizes(self) -> flops.Sizes:
        """The built-in model's."""
        return flops.Sizes.read(json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8")))

    @cached_property
    def key(self) -> str:
        """Changes with everything but the bundle that cells depend on."""
        content = (sources_hash(*_SOURCES, *_OWN), len(self.exam.scenes), self.threads, self.pairs)
        return repr(content)

    def compare(self, rows: Sequence[Row]) -> Comparison:
        """All rows; one that cannot be had says why and stops nothing."""
        full = self.full.cell("1", {})
        outcomes = []
        for number, row in enumerate(rows):
            self.progress("table", number, len(rows))
            outcomes.append(self.outcome(row))
            self.say(told(outcomes[-1]))
        self.progress("table", len(rows), len(rows))
        tokens = self.full.tokens
        return Comparison(full, tuple(outcomes), self.budgets, self.exam, tokens, self.threads)

    def outcome(self, row: Row) -> Outcome:
        """One row."""
        try:
            opened = Opened(self, row, bundle_of(row, self.progress))
            return Outcome(row, tuple(self._cells(opened)))
        except NoAdapterError as error:
            return Outcome(row, problem=str(error))
        except FoveateError as error:
            return Outcome(row, problem=str(error), broken=True)
        except Exception as error:  # a bug in one method must not cost the table of all others
            return Outcome(row, problem=f"{type(error).__name__}: {error}"[:400], broken=True)

    def _cells(self, opened: Opened) -> list[Cell]:
        own = opened.cell(OWN_RULE, {})
        if own.fixed:
            return [own]
        ratios = sorted({*self.budgets, *self.more.get(opened.row.name, ())}, reverse=True)
        return [own, *(opened.cell(f"{ratio:.3g}", opened.keep(ratio)) for ratio in ratios)]


class Opened:
    """A row's bundle; its graphs are loaded when a cell is not in the store."""

    def __init__(self, shared: Contestants, row: Row, made: Made) -> None:
        self.shared, self.row, self.made = shared, row, made
        self.manifest: Manifest = Bundle.open(made.path, check="none").manifest

    @cached_property
    def pipeline(self) -> Pipeline:
        """Loaded."""
        return load(self.made.path, threads=self.shared.threads, check="none")

    @property
    def tokens(self) -> int:
        """Visual tokens of a scene."""
        return self.manifest.model.visual_tokens or 0

    def keep(self, ratio: float) -> dict[str, int]:
        """Tokens of each of `m` cuts: cut `k` leaves `ratio^(k/m)` of all visual tokens."""
        cuts = token_cuts(self.manifest)
        shares = [ratio ** ((k + 1) / len(cuts)) for k in range(len(cuts))]
        return {
            cut.name: max(1, int(self.tokens * share + 0.5)) for cut, share in zip(cuts, shares, strict=True)
        }

    def cell(self, budget: str, asked: Mapping[str, int]) -> Cell:
        """The cell of a budget: from the store, or measured."""
        content = repr((self.made.key, self.shared.full.made.key, sorted(asked.items()), self.shared.key))
        key = hashlib.sha256(content.encode()).hexdigest()[:20]
        found = self.shared.store.get(key)
        if found is None:
            found = self.shared.store.put(key, self._measured(budget, asked))
        return replace(found, point=replace(found.point, method=self.row.name, budget=budget))

    def _measured(self, budget: str, asked: Mapping[str, int]) -> Cell:
        shared, exam = self.shared, self.shared.exam
        keep = _budgets(asked)
        made = answer(self.pipeline, exam, keep, f"ask {self.row.name} {budget}", shared.progress)
        options = GenerateOptions(max_new_tokens=1, keep=keep, allow_unpruned=True)
        counted = range(min(COUNTED, len(exam.scenes)))
        questions = [(exam.scenes[i], exam.asked[i][0].text) for i in counted]
        starts = np.cumsum([0, *map(len, exam.asked)])
        return Cell(
            point=summarise((self.row.name, budget), made, exam),
            asked=dict(asked),
            obeyed=all(_obeys(generation, asked) for generation in made),
            scenes=right_by_scene(exam, made),
            looks=looks_of(exam, made),
            work=count_work(self.made.path, questions, options),
            formula=sum(self._formula(made[starts[i]]) for i in counted) / len(counted),
            speed=self._speed(keep),
            fixed=budget == OWN_RULE and self._is_fixed(made),
        )

    def _speed(self, keep: Mapping[str, Budget]) -> Speed | None:
        shared = self.shared
        if not shared.pairs:
            return None
        return measure(shared.full.pipeline, self.pipeline, shared.exam, keep, shared.pairs)

    def _is_fixed(self, own: Sequence[Generation]) -> bool:
        """Whether the largest and the smallest budget leave what the own rule leaves, so that none counts."""
        if not token_cuts(self.manifest):
            return True
        exam = Exam(self.shared.exam.scenes[:PROBED], self.shared.exam.asked[:PROBED])
        expected = [_kept(generation) for generation in own[: sum(map(len, exam.asked))]]
        ratios = (max(self.shared.budgets, default=0.5), min(self.shared.budgets, default=0.1))
        return all(
            [_kept(each) for each in answer(self.pipeline, exam, _budgets(self.keep(ratio)), "probe")]
            == expected
            for ratio in ratios
        )

    def _formula(self, generation: Generation) -> float:
        """Operations of one prompt by formula, from what its report says was there."""
        report, layers = generation.report, self.manifest.model.num_layers
        entered = next((site.kept for site in report.sites if site.site == "encoder"), report.visual_tokens)
        present = [entered] * layers
        for cut, site in zip(self.manifest.pruning, report.sites, strict=False):
            if cut.layer is not None:
                present[cut.layer :] = [site.kept] * (layers - cut.layer)
        text = len(report.positions) - entered
        return flops.prefill(self.shared.sizes, entered, present, text).total


def told(outcome: Outcome) -> str:
    """One line about a finished row."""
    if outcome.problem:
        return f"{outcome.row.name}: {outcome.problem}"
    shares = [f"{cell.budget} {100 * cell.share:.1f} %" for cell in outcome.cells]
    return f"{outcome.row.name}: {' · '.join(shares)}"


def _budgets(asked: Mapping[str, int]) -> dict[str, Budget]:
    return {site: Budget(tokens=tokens) for site, tokens in asked.items()}


def _kept(generation: Generation) -> list[tuple[str, int]]:
    return [(site.site, site.kept) for site in generation.report.sites]


def _obeys(generation: Generation, asked: Mapping[str, int]) -> bool:
    sites = {site.site: site for site in generation.report.sites}
    return all(sites[name].kept == min(tokens, sites[name].total) for name, tokens in asked.items())
