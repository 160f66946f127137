"""What the table says in words: the best beside the default, the front, and what random pruning beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.tools.eval.cells import Cell
from foveate.tools.eval.compare import Comparison, Outcome
from foveate.tools.eval.rows import DEFAULT
from foveate.tools.eval.statistics import Estimate, difference

RANDOM = {"encoder": "random", "decoder": "random@2", "both": "random random@2"}


@dataclass(frozen=True)
class Duel:
    """The best row of a budget beside the default; `gap` is the best one's lead."""

    ratio: float
    best: Outcome
    cell: Cell
    default: Cell
    gap: Estimate

    def __str__(self) -> str:
        budget, gap = f"{100 * self.ratio:g} %", self.gap
        if self.best.row.name == DEFAULT:
            return f"At {budget} the default is the best: {_percent(self.default.share)} %."
        words = "certainly better" if gap.certain else "not certainly better"
        return (
            f"At {budget} {self.best.row.name} is the best: {_percent(self.cell.share)} % against "
            f"{_percent(self.default.share)} % of the default, {100 * gap.value:+.1f} points "
            f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f}: {words}); layer averages "
            f"{_percent(self.cell.point.layer_average)} % and {_percent(self.default.point.layer_average)} %."
        )


def duels(found: Comparison) -> list[Duel]:
    """For each budget, whoever is the best beside the default; none without the default in the table."""
    own = next((each for each in found.outcomes if each.row.name == DEFAULT), None)
    questions = found.full.point.accuracy.total
    result = []
    for ratio in found.budgets:
        default = own.at(ratio) if own else None
        cells = [(each, cell) for each in found.outcomes if (cell := each.at(ratio)) is not None]
        if default is not None:
            best, cell = max(cells, key=lambda pair: pair[1].share)
            gap = difference(cell.scenes, default.scenes, questions)
            result.append(Duel(ratio, best, cell, default, gap))
    return result


def front(found: Comparison) -> list[tuple[Outcome, Cell]]:
    """Cells that no other one beats at as few tokens (layer average), from few tokens to many."""
    cells = [(each, cell) for each in found.outcomes for cell in each.cells]
    cells.sort(key=lambda pair: (pair[1].point.layer_average, -pair[1].share))
    best, kept = -1.0, []
    for outcome, cell in cells:
        if cell.share > best:
            best = cell.share
            kept.append((outcome, cell))
    return kept


def lost_to_random(found: Comparison) -> list[str]:
    """Rows with the budgets at which they are not certainly better than random pruning at the same sites."""
    by_name = {each.row.name: each for each in found.outcomes}
    questions = found.full.point.accuracy.total
    lines = []
    for each in found.outcomes:
        rival = by_name.get(RANDOM.get(each.row.site, ""))
        if rival is None or each.row.kind == "baseline":
            continue
        lost = [ratio for ratio in found.budgets if not _beats(each.at(ratio), rival.at(ratio), questions)]
        if lost and each.at(found.budgets[0]) is not None:
            lines.append(f"{each.row.name} (at {', '.join(f'{100 * ratio:g} %' for ratio in lost)})")
    return lines


def problems(found: Comparison) -> list[str]:
    """Rows that are missing, with the reason; and cells that did not do as they were asked."""
    lines = [f"{each.row.name}: {each.problem}" for each in found.outcomes if each.problem]
    for each in found.outcomes:
        off = [cell.budget for cell in each.cells if not cell.obeyed]
        if off:
            lines.append(
                f"{each.row.name}: keeps another number of tokens than asked for at {', '.join(off)}"
            )
        if each.own is not None and _idle(each.own):
            lines.append(f"{each.row.name}: its own rule pruned nothing")
    return lines


def sentences(found: Comparison) -> list[str]:
    """All of it, a sentence each."""
    lines = [str(duel) for duel in duels(found)]
    names = [
        f"{outcome.row.name} {cell.budget} ({_percent(cell.point.layer_average)} %: {_percent(cell.share)} %)"
        for outcome, cell in front(found)
    ]
    if names:
        lines.append(f"No other row is better at as few tokens (layer average: right): {', '.join(names)}.")
    lost = lost_to_random(found)
    if lost:
        lines.append(f"Not certainly better than random pruning at the same site: {', '.join(lost)}.")
    return lines


def _beats(cell: Cell | None, rival: Cell | None, questions: int) -> bool:
    if cell is None or rival is None:
        return True
    return difference(cell.scenes, rival.scenes, questions).low > 0


def _idle(cell: Cell) -> bool:
    sites: Sequence[float] = list(cell.point.sites.values())
    return bool(sites) and min(sites) >= 1


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
