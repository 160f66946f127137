"""The table as a CSV of all cells, as plain values, and as the short lines that a terminal shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from foveate.tools.demo_model.scenes import QUESTION_KINDS
from foveate.tools.eval.cells import Cell
from foveate.tools.eval.compare import Comparison, Outcome
from foveate.tools.eval.findings import duels, front, problems
from foveate.tools.eval.ranking import rank
from foveate.tools.eval.rows import unpruned
from foveate.tools.eval.statistics import difference
from foveate.tools.evaluation import Tally

MIDDLE = 0.25  # rows are in the order of the budget next to this one


def middle(budgets: Sequence[float]) -> float | None:
    """The budget by which rows are ordered, drawn and timed; None without any."""
    return min(budgets, key=lambda ratio: abs(ratio - MIDDLE), default=None)


def shown_cell(outcome: Outcome, budgets: Sequence[float]) -> Cell | None:
    """The cell that stands for a row: of the middle budget, or of its own rule where that is all it has."""
    ratio = middle(budgets)
    given = None if ratio is None else outcome.at(ratio)
    return given or outcome.own


def ordered(found: Comparison) -> list[Outcome]:
    """Best rows first; those without a cell last."""

    def worth(outcome: Outcome) -> tuple[bool, float]:
        cell = shown_cell(outcome, found.budgets)
        return (cell is None, -cell.share if cell else 0.0)

    return sorted(found.outcomes, key=worth)


def cells_csv(found: Comparison) -> str:
    """A line for each cell; rows that could not be had are there, with the reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lines = [_record(found, Outcome(unpruned()), found.full)]
    for outcome in ordered(found):
        lines += [_record(found, outcome, cell) for cell in outcome.cells] or [_record(found, outcome, None)]
    writer.writerow(lines[0])
    writer.writerows(line.values() for line in lines)
    return text.getvalue()


def to_json(found: Comparison) -> dict[str, Any]:
    """Everything, for scripts and for `--json`."""
    return {
        "scenes": len(found.exam.scenes),
        "questions": found.full.point.accuracy.total,
        "visual_tokens": found.tokens,
        "budgets": list(found.budgets),
        "threads": found.threads,
        "all_tokens": _record(found, Outcome(unpruned()), found.full),
        "rows": [
            {
                **asdict(outcome.row),
                "problem": outcome.problem,
                "follows_budgets": not (outcome.own and outcome.own.fixed),
                "cells": [_record(found, outcome, cell) for cell in outcome.cells],
            }
            for outcome in ordered(found)
        ],
        "best": [
            {"budget": duel.ratio, "row": duel.best.row.name, "lead_over_default": asdict(duel.gap)}
            for duel in duels(found)
        ],
        "front": [{"row": outcome.row.name, "budget": cell.budget} for outcome, cell in front(found)],
        "ranking": [asdict(each) for each in rank(found)],
        "problems": problems(found),
    }


def short_lines(found: Comparison) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows for a terminal: accuracy at the own rule and at each budget, and what it saves.

    Behind the own rule's accuracy is what it keeps; the last three columns, in percent of the unpruned model
    (visual tokens by layer, operations, time), are those of `shown_cell`.
    """
    columns = ["plan", "own rule", *(f"{100 * each:g} %" for each in found.budgets)]
    columns += ["layers", "FLOPs", "TTFT"]
    blank = ("",) * len(found.budgets)
    rows: list[tuple[str, ...]] = [("all tokens", _figure(found.full), *blank, "100", "100", "100")]
    for outcome in ordered(found):
        name, cell = outcome.row.name, shown_cell(outcome, found.budgets)
        if cell is None:
            rows.append((name, outcome.problem.partition(":")[0][:40], *blank, "", "", ""))
            continue
        own = outcome.own
        shown = f"{100 * own.share:.1f} ({100 * own.point.kept:.0f} %)" if own else ""
        given = (_figure(outcome.at(each)) for each in found.budgets)
        rows.append((name, shown, *given, *_savings(found, cell)))
    return columns, rows


def interval(tally: Tally) -> str:
    """Wilson's, in percent."""
    return " to ".join(f"{100 * bound:.1f}" for bound in tally.interval())


def _figure(cell: Cell | None) -> str:
    """Accuracy with half the width of its interval."""
    if cell is None:
        return "-"
    low, high = cell.point.accuracy.interval()
    return f"{100 * cell.share:.1f} ±{50 * (high - low):.1f}"


def _savings(found: Comparison, cell: Cell) -> tuple[str, str, str]:
    return (
        f"{100 * cell.point.layer_average:.0f}",
        f"{100 * cell.work.total / found.full.work.total:.0f}",
        "" if cell.speed is None else f"{100 * cell.speed.ratio:.0f}",
    )


def _record(found: Comparison, outcome: Outcome, cell: Cell | None) -> dict[str, Any]:
    """One line of the CSV."""
    row = outcome.row
    about = {"plan": row.name, "method": row.title, "kind": row.kind, "site": row.site}
    if cell is None:
        return {**dict.fromkeys(_record(found, outcome, found.full), ""), **about, "problem": outcome.problem}
    point, full = cell.point, found.full
    gap = difference(cell.scenes, full.scenes, point.accuracy.total)
    low, high = point.accuracy.interval()
    kinds = {kind: point.kinds.get(kind, Tally()) for kind in QUESTION_KINDS}
    speed = cell.speed
    return {
        **about,
        "budget": cell.budget,
        "asked": " ".join(f"{site}={tokens}" for site, tokens in cell.asked.items()),
        "obeyed": cell.obeyed,
        "kept_by_site": " ".join(f"{site}={share:.4f}" for site, share in point.sites.items()),
        "kept": round(point.kept, 4),
        "layer_average": round(point.layer_average, 4),
        "right_percent": round(100 * cell.share, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
        "questions": point.accuracy.total,
        "change": round(100 * gap.value, 2),
        "change_low": round(100 * gap.low, 2),
        "change_high": round(100 * gap.high, 2),
        **{f"{kind}_percent": round(100 * tally.share, 2) for kind, tally in kinds.items()},
        "prefill_mflops": round(cell.work.total / 1e6, 3),
        "prefill_share": round(cell.work.total / full.work.total, 4),
        "vision_mflops": round(cell.work.vision / 1e6, 3),
        "decoder_mflops": round(cell.work.decoder / 1e6, 3),
        "formula_mflops": round(cell.formula / 1e6, 3),
        "ttft_ms": "" if speed is None else round(1000 * speed.pruned, 3),
        "ttft_full_ms": "" if speed is None else round(1000 * speed.full, 3),
        "ttft_ratio": "" if speed is None else round(speed.ratio, 3),
        "problem": "",
    }
