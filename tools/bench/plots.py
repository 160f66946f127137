"""Pictures of a run: where the first token's time goes, and what many requests at once get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.tools.bench.schema import Level, Result
from foveate.tools.bench.statistics import percentile
from foveate.tools.bench.table import SPLIT, middle

COLORS = {
    "preprocess": "#9aa5b1",
    "vision": "#2f6fb3",
    "embed": "#c9b037",
    "prefill": "#d1495b",
    "host": "#5f6b76",
}


def draw(result: Result, folder: Path, clock: str) -> list[Path]:
    """Write `first-token.png`, and `concurrency.png` where it was measured.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    from foveate.tools.extras import needs

    with needs("export"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = [_first_token(pyplot, result, folder / "first-token.png", clock)]
    if result.levels:
        written.append(_concurrency(pyplot, result.levels, folder / "concurrency.png"))
    return written


def _first_token(pyplot: Any, result: Result, path: Path, clock: str) -> Path:
    """A bar per case, its parts stacked; rivals' whole bars below."""
    labels = [f"{case.subject}, {case.budget}" for case in result.cases]
    figure, axis = pyplot.subplots(figsize=(8, 1.4 + 0.42 * (len(labels) + len(result.rivals))))
    left = [0.0] * len(labels)
    for part in SPLIT:
        widths = [1e3 * max(middle(case, part, clock), 0.0) for case in result.cases]
        axis.barh(labels, widths, left=left, color=COLORS[part], label=part, height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for rival in result.rivals:
        taken = [each["ttft"] or 0.0 for each in (rival.wall if clock == "wall" else rival.cpu)]
        axis.barh([rival.name], [1e3 * percentile(taken, 0.5)], color="#b8bec5", height=0.62, hatch="//")
    axis.invert_yaxis()
    axis.set_xlabel(
        f"time to the first token, ms of {'wall' if clock == 'wall' else 'processor'} time, median"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=len(SPLIT), loc="upper center", bbox_to_anchor=(0.45, 1.24), frameon=False, fontsize=9)
    return _save(pyplot, figure, path)


def _concurrency(pyplot: Any, levels: Sequence[Level], path: Path) -> Path:
    """Tokens and requests per second over requests at once."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    cases = dict.fromkeys((each.subject, each.budget) for each in levels)
    steps = sorted({each.concurrency for each in levels})
    for axis, what in zip(axes, ("tokens", "requests"), strict=True):
        for subject, budget in cases:
            rates = [rate(levels, subject, budget, step, what) for step in steps]
            axis.plot(steps, rates, marker="o", label=f"{subject}, {budget}")
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(step) for step in steps])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("requests at once")
        axis.set_ylabel(f"{what} per second")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    return _save(pyplot, figure, path)


def rate(levels: Sequence[Level], subject: str, budget: str, clients: int, what: str) -> float:
    """Median of tokens or requests per second of wall time; NaN where it was not measured."""
    same = [e for e in levels if (e.subject, e.budget, e.concurrency) == (subject, budget, clients)]
    return percentile([getattr(each, what) / each.wall for each in same], 0.5)


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    draft = path.with_name(path.stem + ".part.png")
    figure.savefig(draft, dpi=140)
    pyplot.close(figure)
    return draft.replace(path)
