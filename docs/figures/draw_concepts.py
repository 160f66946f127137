"""Draws docs/figures/concepts.svg: the order-and-count contract, the two sites, the two layouts, the caches.

python docs/figures/draw_concepts.py [another.png]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

INK, FAINT, PAPER = "#20242c", "#7a828a", "#fafaf8"
KEPT, DROPPED, TEXT = "#d65d0e", "#dcdcd8", "#3b6ea5"
BOX, EDGE = "#ffffff", "#b9bec6"
HERE = Path(__file__).parent


def main(target: Path) -> None:
    """Draw everything on one page and save it under the name's own kind."""
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "foveate"})
    figure = plt.figure(figsize=(12, 9.6), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 120)
    axes.set_ylim(0, 96)
    axes.axis("off")
    draw_contract(axes, 92)
    draw_sites(axes, 67)
    draw_layouts(axes, 37)
    figure.savefig(target, dpi=110, metadata={"Date": None} if target.suffix == ".svg" else None)


def draw_contract(axes: Axes, top: float) -> None:
    """Panel 1: candidates with scores, then order and count, then what the next one gathers."""
    heading(
        axes, top, "1", "One contract: order and count", "A method only chooses; gathering is shared code."
    )
    scores = (0.10, 0.80, 0.22, 0.15, 0.95, 0.12, 0.62, 0.18)
    kept = (1, 4, 6)
    cells(axes, 5, top - 15, range(8), kept, "candidates, with scores")
    for index, score in enumerate(scores):
        color = KEPT if index in kept else EDGE
        axes.add_patch(Rectangle((5 + 3.6 * index + 0.6, top - 11.4), 2.1, 6 * score, color=color, lw=0))
    arrow(axes, 35.5, top - 13.3, 41.5)
    rest = [index for index in range(8) if index not in kept]
    cells(axes, 43, top - 15, [*kept, *rest], kept, "order: kept ones first, ascending, then the rest")
    bracket(axes, 43, 43 + 3 * 3.6 - 0.3, top - 10.6, "count = 3")
    arrow(axes, 73.5, top - 13.3, 79.5)
    cells(axes, 81, top - 15, kept, kept, "gather order[:count]")
    note = "A permutation and a number,\nfor each image or sequence:\nthe budget is a graph input."
    axes.text(96, top - 13.2, note, color=FAINT, va="center", fontsize=9, linespacing=1.45)


def draw_sites(axes: Axes, top: float) -> None:
    """Panel 2: the road of the visual tokens through both cuts, as bars that get shorter."""
    heading(
        axes, top, "2", "Two sites", "After the vision encoder, and after decoder layer L; as many as wanted."
    )
    y = top - 14
    steps = (
        (4, 13, "vision encoder"),
        (30, 13, "projector"),
        (52, 17, "decoder layers\n0 … L-1"),
        (84, 17, "layers L … end"),
    )
    for left, width, name in steps:
        box(axes, left, y, width, 7, name)
    cut(axes, 23.5, y + 3.5, "encoder cut", "CLS similarity,\nknee of the curve")
    cut(axes, 76.5, y + 3.5, "decoder@L cut", "relevance to\nthe question")
    for start, end in ((17, 21.3), (25.7, 30), (43, 52), (69, 74.3), (78.7, 84), (101, 108)):
        arrow(axes, start, y + 3.5, end)
    axes.text(108.7, y + 3.5, "tokens", va="center", color=INK)
    bar(axes, 4, y - 4.2, visual=24, text=0, label="n visual tokens")
    bar(axes, 30, y - 4.2, visual=7, text=0, label="k kept, projected")
    bar(axes, 52, y - 4.2, visual=7, text=9, label="kept + text")
    bar(axes, 84, y - 4.2, visual=3.5, text=9, label="fewer, with their old positions")


def draw_layouts(axes: Axes, top: float) -> None:
    """Panel 3: the same modules as three graphs or as four, and the caches of both."""
    heading(axes, top, "3", "Two layouts of the same modules, one weights file", "Equal tokens out of both.")
    y = top - 12.5
    label(axes, y, "fused", "CPU")
    box(axes, 18, y, 13, 6, "vision")
    box(axes, 36, y, 11, 6, "embed")
    box(axes, 52, y, 45, 6, "")
    axes.text(60.5, y + 3, "decoder", ha="center", va="center", color=INK, fontsize=9.5)
    for x, words in ((33.5, "kept rows"), (49.5, "")):
        arrow(axes, x - 2.2, y + 3, x + 2.2)
        axes.text(x, y + 4.2, words, ha="center", fontsize=7, color=FAINT)
    axes.plot((73.5, 73.5), (y + 0.6, y + 5.4), color=KEPT, lw=1.6, ls=(0, (2, 1.5)))
    axes.text(75, y + 3, "compaction inside the graph", fontsize=8, color=KEPT, va="center")
    y -= 11
    label(axes, y, "segmented", "GPU, TensorRT")
    box(axes, 18, y, 13, 6, "vision_\nsegmented")
    box(axes, 36, y, 11, 6, "embed")
    box(axes, 52, y, 16, 6, "decoder_0")
    box(axes, 79, y, 18, 6, "decoder_1")
    for start, end in ((31, 36), (47, 52), (68, 79)):
        arrow(axes, start, y + 3, end)
    hand_over = "host reads count,\npasses order[:count]"
    axes.text(73.5, y + 7.9, hand_over, ha="center", fontsize=8, color=KEPT, va="center")
    axes.text(
        33.5, y - 1.3, "no shape inside a graph depends on the data", fontsize=7.5, color=FAINT, ha="center"
    )
    y -= 7.5
    label(axes, y - 1.2, "KV caches", "in place")
    caches(axes, 52, y, 16, "group 0: layers 0 … L-1")
    caches(axes, 79, y, 12.5, "group 1: layers L … end")
    axes.text(18, y + 1.1, "one length for each group of layers:", va="center", color=INK)
    axes.text(
        18, y - 1.6, "what a cut dropped is not cached behind it", va="center", color=FAINT, fontsize=8.5
    )


def heading(axes: Axes, top: float, number: str, title: str, subtitle: str) -> None:
    """Numbered title with a line of explanation beside it."""
    axes.text(4, top, number, fontsize=13, color=PAPER, fontweight="bold", va="center", ha="center",
              bbox={"boxstyle": "circle,pad=0.25", "facecolor": INK, "edgecolor": INK})  # fmt: skip
    drawn = axes.text(7, top, title, fontsize=13.5, color=INK, fontweight="bold", va="center")
    right = drawn.get_window_extent().transformed(axes.transData.inverted()).x1
    axes.text(right + 2, top - 0.15, subtitle, fontsize=10.5, color=FAINT, va="center")


def cells(
    axes: Axes, left: float, bottom: float, values: Sequence[int], kept: Sequence[int], name: str
) -> None:
    """A row of numbered squares; kept ones are filled."""
    for place, value in enumerate(values):
        chosen = value in kept
        x = left + 3.6 * place
        axes.add_patch(Rectangle((x, bottom), 3.3, 3.3, facecolor=KEPT if chosen else DROPPED, lw=0))
        axes.text(
            x + 1.65, bottom + 1.6, str(value), ha="center", va="center", color="white" if chosen else FAINT
        )
    axes.text(left, bottom - 1.9, name, color=INK, fontsize=9, va="center")


def bracket(axes: Axes, left: float, right: float, y: float, words: str) -> None:
    """A flat brace over some cells."""
    axes.plot((left, left, right, right), (y - 0.7, y, y, y - 0.7), color=INK, lw=1.1)
    axes.text((left + right) / 2, y + 1.3, words, ha="center", va="center", color=INK, fontsize=9)


def box(axes: Axes, left: float, bottom: float, width: float, height: float, words: str) -> None:
    """A rounded box with words in its middle."""
    style = "round,pad=0,rounding_size=0.9"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=BOX, edgecolor=EDGE)
    )
    axes.text(left + width / 2, bottom + height / 2, words, ha="center", va="center", color=INK, fontsize=9.5)


def cut(axes: Axes, x: float, y: float, name: str, rule: str) -> None:
    """A diamond with its name above and its rule below."""
    axes.plot(x, y, marker="D", ms=15, color=KEPT)
    axes.text(x, y + 5.4, name, ha="center", va="center", color=KEPT, fontsize=9.5, fontweight="bold")
    axes.text(x, y - 4.3, rule, ha="center", va="center", color=FAINT, fontsize=7.5, linespacing=1.3)


def bar(axes: Axes, left: float, bottom: float, visual: float, text: float, label: str) -> None:
    """Tokens as a bar: visual ones, then text."""
    axes.add_patch(Rectangle((left, bottom - 3.2), visual, 1.8, color=KEPT, lw=0))
    axes.add_patch(Rectangle((left + visual, bottom - 3.2), text, 1.8, color=TEXT, lw=0))
    axes.text(left, bottom - 5, label, color=INK, fontsize=8.5, va="center")


def caches(axes: Axes, left: float, bottom: float, width: float, name: str) -> None:
    """A cache: a bar of what was kept and text, with room behind it."""
    axes.add_patch(Rectangle((left, bottom), 18, 2.2, facecolor="none", edgecolor=EDGE, ls=(0, (2, 2))))
    axes.add_patch(Rectangle((left, bottom), width - 9, 2.2, color=KEPT, lw=0))
    axes.add_patch(Rectangle((left + width - 9, bottom), 9, 2.2, color=TEXT, lw=0))
    axes.text(left, bottom - 1.7, name, color=INK, fontsize=8.5, va="center")


def label(axes: Axes, y: float, name: str, where: str) -> None:
    """The name of a row at the left margin."""
    axes.text(3, y + 3.7, name, color=INK, fontsize=11, fontweight="bold", va="center")
    axes.text(3, y + 1.5, where, color=FAINT, fontsize=8.5, va="center")


def arrow(axes: Axes, start: float, y: float, end: float) -> None:
    """A thin arrow to the right."""
    style = {"arrowstyle": "-|>", "color": FAINT, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end, y), xytext=(start, y), arrowprops=style)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "concepts.svg")
