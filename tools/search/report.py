"""What a search leaves behind: a schedule, a table of all that it tried, a picture of the trade-off."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.pruning.schedule import CutSchedule
from foveate.tools.search.bench import Score
from foveate.tools.search.rates import Depth, Rates

METHOD = "layer-rank"


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        rule: ``g-search`` or ``p-sigmoid``.
        model: the checkpoint's name.
        depth: where cuts could be made.
        rates: the schedule.
        parameter: what was searched besides: the loss that G-Search allowed, P-Sigmoid's steepness.
        flat: one cut at the first place, of the same budget: what the search is worth.
        scores: every schedule that was measured.
        budget: of the layer average; None where only a loss was given.
        query: the rows that rank.
    """

    rule: str
    model: str
    depth: Depth
    rates: Rates
    parameter: float
    flat: Rates
    scores: Mapping[Rates, Score]
    budget: float | None
    query: str = "text"

    @property
    def full(self) -> Score:
        """All tokens."""
        return self.scores[tuple(1.0 for _ in self.depth.places)]

    @property
    def score(self) -> Score:
        """Of the schedule."""
        return self.scores[self.rates]

    def schedule(self) -> CutSchedule:
        """For the exporter, with what was measured."""
        options: dict[str, object] = {} if self.query == "text" else {"query": self.query}
        cuts = tuple((layer, {"share": rate, **options}) for layer, rate in self.depth.cuts(self.rates))
        return CutSchedule(METHOD, cuts, self.depth.num_layers, {"search": self.figures()})

    def figures(self) -> dict[str, object]:
        """The search in plain numbers."""
        name = "loss_allowed" if self.rule == "g-search" else "steepness"
        budget = {} if self.budget is None else {"budget": self.budget}
        return {
            "rule": self.rule,
            "model": self.model,
            **budget,
            "layer_average": round(self.score.average, 4),
            "right_percent": _percent(self.score),
            "right_percent_all_tokens": _percent(self.full),
            "right_percent_one_cut": _percent(self.scores[self.flat]),
            name: round(self.parameter, 6),
            "ranked_by": self.query,
            "questions": self.score.total,
            "schedules_measured": len(self.scores),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**self.figures(), "cuts": [{"layer": k, "share": r} for k, r in self.depth.cuts(self.rates)]}

    def role(self, rates: Rates) -> str:
        """What a measured schedule is in this search."""
        roles = {self.flat: "one cut", tuple(1.0 for _ in rates): "all tokens", self.rates: "found"}
        return roles.get(rates, "tried")


def write_table(found: Found, path: Path) -> None:
    """All schedules that were measured, by rising layer average, as CSV."""
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        shares = [f"share@{place}" for place in found.depth.places]
        writer.writerow(["role", "layer_average", "right_percent", "low", "high", "right", "total", *shares])
        for rates, score in sorted(found.scores.items(), key=lambda pair: (pair[1].average, pair[0])):
            low, high = score.tally.interval()
            figures = [f"{score.average:.4f}", _percent(score), f"{100 * low:.2f}", f"{100 * high:.2f}"]
            writer.writerow([found.role(rates), *figures, score.right, score.total, *rates])
    os.replace(draft, path)


def draw(found: Found, path: Path) -> None:
    """Right answers against the layer average: all schedules tried, the best at each average, the found one.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    points = [(score.average, 100 * score.tally.share) for score in found.scores.values()]
    axes.plot([x for x, _ in points], [y for _, y in points], "o", ms=4, color="0.7", label="tried")
    front = _front(points)
    axes.plot([x for x, _ in front], [y for _, y in front], color="tab:blue", label="best within an average")
    for rates, color in ((found.flat, "tab:orange"), (found.rates, "tab:green")):
        score = found.scores[rates]
        low, high = score.tally.interval()
        share = 100 * score.tally.share
        axes.errorbar(
            [score.average], [share], [[share - 100 * low], [100 * high - share]],
            fmt="*", markersize=13, capsize=3, color=color, label=found.role(rates),
        )  # fmt: skip
    axes.axhline(100 * found.full.tally.share, color="0.4", linestyle=":", label="all tokens")
    axes.set_xlabel("visual tokens, mean over the decoder's layers (share of those that entered)")
    axes.set_ylabel("right answers (%)")
    axes.set_title(f"{found.rule} on {found.model}, {found.score.total} questions, 95 % range")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats at the same or a smaller average."""
    best, front = -1.0, []
    for average, share in sorted(points, key=lambda point: (point[0], -point[1])):
        if share > best:
            best = share
            front.append((average, share))
    return front


def _percent(score: Score) -> float:
    return round(100 * score.tally.share, 2)
