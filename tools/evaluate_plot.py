"""Draws an evaluation: accuracy against the share of visual tokens that is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.tools.evaluation import METHOD, OWN_RULE, RANDOM, Evaluation, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(evaluation: Evaluation, path: Path) -> None:
    """Draw accuracy against the share of visual tokens that is left, as a PNG. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    full = next((point for point in evaluation.points if point.kept >= 1.0), None)
    for method, color in ((METHOD, "tab:blue"), (RANDOM, "tab:orange")):
        mine = [point for point in evaluation.points if point.method == method]
        points = [point for point in mine if point.budget != OWN_RULE]
        points += [full] if full is not None and method == RANDOM else []
        _draw(axes, sorted(points, key=lambda point: point.kept), method, color, "o-")
        own = [point for point in mine if point.budget == OWN_RULE]
        _draw(axes, own, f"{method}, own rule" if method == METHOD else "random, same counts", color, "*")
    axes.set_xscale("log")
    axes.set_xlabel("visual tokens behind the last site (share of all)")
    axes.set_ylabel("right answers (%)")
    axes.set_title(f"{evaluation.bundle}, site: {evaluation.site}, {evaluation.scenes} scenes, 95 % range")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(axes: Axes, points: Sequence[Point], label: str, color: str, form: str) -> None:
    if not points:
        return
    shares = [100 * point.accuracy.share for point in points]
    bounds = [point.accuracy.interval() for point in points]
    errors = [
        [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, bounds, strict=True)],
        [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, bounds, strict=True)],
    ]
    size = 13 if form == "*" else 6
    axes.errorbar(
        [p.kept for p in points],
        shares,
        errors,
        fmt=form,
        color=color,
        label=label,
        capsize=3,
        markersize=size,
    )
