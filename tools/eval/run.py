"""From a list of methods to the files of a finished comparison."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from foveate.tools.demo import CHECKPOINT
from foveate.tools.eval.bundles import bundle_of, needs_export
from foveate.tools.eval.cells import Store
from foveate.tools.eval.compare import Comparison, Contestants, Progress, Say
from foveate.tools.eval.ranking import wanted_ratios
from foveate.tools.eval.report import report
from foveate.tools.eval.rows import Row, parse_rows, unpruned
from foveate.tools.eval.table import cells_csv, to_json
from foveate.tools.evaluate import Exam, checked_budgets

BUDGETS = (0.5, 0.25, 0.11)
SCENES = 100
PAIRS = 15
FILES = ("report.html", "table.csv", "results.json")


@dataclass(frozen=True)
class Order:
    """What to compare, and how thoroughly.

    Attributes:
        methods: plans as of `parse_rows`.
        budgets: ratios; 1 is always there.
        scenes: of the test split, eight questions each.
        pairs: of speed measurements for each cell; 0 leaves them out.
        threads: of ONNX Runtime.
        jobs: bundles that are exported at the same time.
    """

    methods: tuple[str, ...]
    budgets: tuple[float, ...] = BUDGETS
    scenes: int = SCENES
    pairs: int = PAIRS
    threads: int = 1
    jobs: int = 1


def compare_methods(order: Order, out: Path, progress: Progress, say: Say) -> Comparison:
    """Export, ask, count and time every row; finished cells in `out` are taken as they are.

    Raises:
        UsageError: a plan or a budget that there is not.
    """
    budgets = tuple(ratio for ratio in checked_budgets(order.budgets) if ratio < 1)
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    rows = parse_rows(order.methods, config["text_config"]["num_hidden_layers"])
    export_all([unpruned(), *rows], order.jobs, progress)
    contestants = Contestants(
        exam=Exam.draw(order.scenes),
        budgets=budgets,
        store=Store(out / "cells"),
        threads=order.threads,
        pairs=order.pairs,
        more={row.name: wanted_ratios(row.name, budgets) for row in rows} if budgets else {},
        progress=progress,
        say=say,
    )
    return contestants.compare(rows)


def export_all(rows: Sequence[Row], jobs: int, progress: Progress) -> None:
    """Export what is not in the cache, several at a time; what does not go is told when its turn comes."""
    missing = [row for row in rows if needs_export(row)]
    if jobs < 2 or len(missing) < 2:
        return
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(jobs, context, initializer=_one_thread) as pool:
        futures: list[Future[object]] = [pool.submit(_export, row) for row in missing]
        for number, future in enumerate(futures):
            progress("export", number, len(missing))
            future.exception()  # waits
        progress("export", len(missing), len(missing))


def write(found: Comparison, out: Path) -> list[Path]:
    """The report, the CSV and the JSON; gives their names."""
    out.mkdir(parents=True, exist_ok=True)
    texts = (report(found), cells_csv(found), json.dumps(to_json(found), indent=2) + "\n")
    paths = [out / name for name in FILES]
    for path, text in zip(paths, texts, strict=True):
        fresh = path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    return paths


def _export(row: Row) -> None:
    bundle_of(row, lambda what, done, total: None)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
