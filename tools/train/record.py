"""What a training run leaves besides the weights: a table of its checks and a picture of the curve."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, float]
"""One check: ``step``, ``loss``, ``cpu_seconds`` and the trainer's figures."""


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the checks as CSV, whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    table = csv.DictWriter(out, names, lineterminator="\n")
    table.writeheader()
    table.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(out.getvalue(), encoding="utf-8")
    os.replace(fresh, path)


def draw_curve(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw the first figure of the checks, and the loss, against the step, as a PNG. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    steps = [row["step"] for row in rows]
    name = next(each for each in rows[-1] if each not in ("step", "loss", "cpu_seconds"))
    left.plot(steps, [row[name] for row in rows], "o-", color="tab:blue", markersize=3)
    left.set_xlabel("step")
    left.set_ylabel(f"{name.replace('_', ' ')} (validation)", color="tab:blue")
    right = left.twinx()
    right.plot(steps, [row["loss"] for row in rows], color="tab:orange", alpha=0.7)
    right.set_ylabel("training loss", color="tab:orange")
    left.set_title(title)
    left.grid(alpha=0.3)
    fresh = path.with_name(f".{path.name}.new")
    figure.savefig(fresh, dpi=130, format="png")
    pyplot.close(figure)
    os.replace(fresh, path)
