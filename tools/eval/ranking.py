"""Our order of methods beside the published one: LLaVA-1.5-7B at 192, 128 and 64 of its 576 visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.tools.eval.compare import Comparison, Outcome
from foveate.tools.eval.statistics import Estimate, agreement

TOKENS = 576
BUDGETS = (192, 128, 64)
FEWEST = 3  # methods that make an order

COMMON = "table that papers of 2025 and 2026 copy from one another"


@dataclass(frozen=True)
class Published:
    """A method's mean over benchmarks in percent of the unpruned model's, by tokens; and whose figures."""

    source: str
    at: dict[int, float]


# Benchmarks and their number (8 to 10) differ between sources, so gaps of a point say little.
PUBLISHED = {
    "fastv": Published(COMMON, {192: 90.4, 128: 85.4, 64: 76.7}),
    "sparsevlm": Published(COMMON, {192: 96.1, 128: 93.8, 64: 87.3}),
    "pyramiddrop": Published(f"{COMMON}; at 64 another table has 86.6", {192: 97.2, 128: 96.2, 64: 77.5}),
    "visionzip": Published("arXiv 2412.04467", {192: 98.1, 128: 97.2, 64: 94.5}),
    "dart": Published("arXiv 2502.11494", {192: 98.5, 128: 97.5, 64: 93.9}),
    "divprune": Published(COMMON, {192: 98.0, 128: 96.9, 64: 94.8}),
    "cdpruner": Published("arXiv 2506.10967", {128: 99.0, 64: 97.0}),
    "vtc-cls": Published("arXiv 2412.05819: 60.5 and 58.4 of 62.1", {128: 97.4, 64: 94.0}),
    "prumerge:plus=true": Published(
        "PruMerge+ in arXiv 2412.05819: 58.6 and 56.3 of 62.1", {128: 94.4, 64: 90.7}
    ),
}


@dataclass(frozen=True)
class Entry:
    """One method in both orders; `place` counts from 1, the best; percentages of the unpruned model."""

    row: str
    source: str
    published: float
    ours: float
    published_place: int
    place: int


@dataclass(frozen=True)
class Ranking:
    """One budget: the methods in the published order, and the rank correlation.

    `before` is the correlation among methods that cut before the decoder; None for fewer than three.
    """

    tokens: int
    ours: int
    entries: tuple[Entry, ...]
    rho: Estimate
    before: Estimate | None


def wanted_ratios(name: str, budgets: Sequence[float]) -> list[float]:
    """Budgets that a row needs for the comparison, besides those that it has."""
    known = PUBLISHED[name].at if name in PUBLISHED else {}
    ratios = [tokens / TOKENS for tokens in known]
    return [ratio for ratio in ratios if all(abs(ratio - each) >= 0.005 for each in budgets)]


def rank(found: Comparison) -> tuple[Ranking, ...]:
    """A ranking for each published budget that at least three of the rows have."""
    rankings = []
    for tokens in BUDGETS:
        rows = [each for each in found.outcomes if _has(each, tokens)]
        if len(rows) >= FEWEST:
            rankings.append(_ranking(found, rows, tokens))
    return tuple(rankings)


def _has(outcome: Outcome, tokens: int) -> bool:
    known = PUBLISHED.get(outcome.row.name)
    return known is not None and tokens in known.at and outcome.at(tokens / TOKENS) is not None


def _ranking(found: Comparison, rows: list[Outcome], tokens: int) -> Ranking:
    rows = sorted(rows, key=lambda each: -PUBLISHED[each.row.name].at[tokens])
    before = [each for each in rows if each.row.site == "encoder"]
    theirs = [PUBLISHED[each.row.name].at[tokens] for each in rows]
    ours = [100 * _share(each, tokens) / max(found.full.share, 1e-9) for each in rows]
    entries = tuple(
        Entry(
            each.row.name,
            PUBLISHED[each.row.name].source,
            their,
            own,
            _place(their, theirs),
            _place(own, ours),
        )
        for each, their, own in zip(rows, theirs, ours, strict=True)
    )
    left = max(1, int(found.tokens * tokens / TOKENS + 0.5))
    return Ranking(
        tokens,
        left,
        entries,
        _agreement(rows, tokens),
        _agreement(before, tokens) if len(before) >= FEWEST else None,
    )


def _agreement(rows: list[Outcome], tokens: int) -> Estimate:
    cells = [each.at(tokens / TOKENS) for each in rows]
    return agreement(
        [PUBLISHED[each.row.name].at[tokens] for each in rows], [cell.scenes for cell in cells if cell]
    )


def _share(outcome: Outcome, tokens: int) -> float:
    cell = outcome.at(tokens / TOKENS)
    return cell.share if cell else 0.0


def _place(value: float, values: Sequence[float]) -> int:
    return 1 + sum(other > value for other in values)
