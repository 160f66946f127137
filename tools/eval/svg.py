"""Drawings of the report, as SVG text: curves over a logarithmic share, and scenes with dropped patches."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 52, 230, 30, 46
COLORS = (
    *("#0b6fb8", "#d65d0e", "#2e8b57", "#8e44ad", "#c0392b", "#008b8b"),
    *("#b8860b", "#d6418f", "#4b5d67", "#6b8e23", "#5b6ee1", "#a0522d"),
)
GREY = "#9aa0a6"


@dataclass(frozen=True)
class Dot:
    """A point: share on the x axis, accuracy with its interval, and what it says under the mouse."""

    x: float
    y: float
    low: float
    high: float
    text: str
    star: bool = False


@dataclass(frozen=True)
class Curve:
    """A method's points; baselines are grey and dashed."""

    name: str
    dots: tuple[Dot, ...]
    baseline: bool = False


def chart(title: str, axis: str, curves: Sequence[Curve]) -> str:
    """Accuracy (0..1) over a share (0..1, logarithmic), one curve for each method, names at the side."""
    dots = [dot for curve in curves for dot in curve.dots]
    frame = _Frame(
        0.9 * min((dot.x for dot in dots), default=0.1),
        1.05 * max([1.0, *(dot.x for dot in dots)]),
        math.floor(10 * min((dot.low for dot in dots), default=0)) / 10,
    )
    parts = [*_axes(frame, title, axis)]
    palette = iter(COLORS * (1 + len(curves) // len(COLORS)))
    for number, curve in enumerate(curves):
        color = GREY if curve.baseline else next(palette)
        parts += _curve(frame, curve, color, TOP + 12 + 19 * number)
    height = max(HEIGHT, TOP + 30 + 19 * len(curves))
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" class="chart" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


@dataclass(frozen=True)
class _Frame:
    """From shares and accuracies to pixels."""

    first: float
    last: float
    bottom: float

    def x(self, share: float) -> float:
        span = math.log(self.last / self.first)
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(max(share, self.first) / self.first) / span

    def y(self, accuracy: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (accuracy - self.bottom) / (1 - self.bottom))


def _axes(frame: _Frame, title: str, axis: str) -> Iterable[str]:
    yield _text(LEFT, 17, title, "start", "title")
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for step in range(round(10 * frame.bottom), 11):
        y = frame.y(step / 10)
        yield _line((LEFT, y), (right, y), 'class="grid"')
        yield _text(LEFT - 7, y + 4, f"{10 * step}", "end")
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0):
        if frame.first <= share <= frame.last:
            x = frame.x(share)
            yield _line((x, TOP), (x, floor), 'class="grid"')
            yield _text(x, floor + 17, f"{100 * share:g}", "middle")
    yield _text((LEFT + right) / 2, HEIGHT - 9, axis, "middle")
    middle = (TOP + floor) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    yield f'<text x="14" y="{middle}" text-anchor="middle" {turned}>right answers, %</text>'


def _curve(frame: _Frame, curve: Curve, color: str, legend: float) -> Iterable[str]:
    dash = ' stroke-dasharray="5 4"' if curve.baseline else ""
    line = sorted((dot for dot in curve.dots if not dot.star), key=lambda dot: dot.x)
    if len(line) > 1:
        points = " ".join(f"{frame.x(dot.x):.1f},{frame.y(dot.y):.1f}" for dot in line)
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>'
    for dot in curve.dots:
        x, y = frame.x(dot.x), frame.y(dot.y)
        low, high = frame.y(dot.low), frame.y(dot.high)
        yield _line((x, low), (x, high), f'stroke="{color}" opacity=".35"')
        shape = (
            f'<path d="{_star(x, y)}" fill="#fff" stroke="{color}" stroke-width="1.6">'
            if dot.star
            else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{color}">'
        )
        end = "path" if dot.star else "circle"
        yield f"{shape}<title>{escape(curve.name)}: {escape(dot.text)}</title></{end}>"
    x = WIDTH - RIGHT + 16
    yield _line((x, legend), (x + 20, legend), f'stroke="{color}" stroke-width="2.4"{dash}')
    yield _text(x + 26, legend + 4, curve.name, "start")


def _line(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    return f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" {style}/>'


def _star(x: float, y: float) -> str:
    corners = []
    for i in range(10):
        radius, angle = (6.5 if i % 2 == 0 else 2.8), math.pi * i / 5
        corners.append(f"{x + radius * math.sin(angle):.1f} {y - radius * math.cos(angle):.1f}")
    return "M" + "L".join(corners) + "Z"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def scene_symbols(images: Sequence[np.ndarray]) -> str:
    """Hidden drawing that holds each picture once, as `scene0`, ...: `kept_patches` refers to them."""
    parts = []
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f'<image id="scene{number}" width="8" height="8" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{data}"/>'
        )
    return f'<svg width="0" height="0" class="hidden"><defs>{"".join(parts)}</defs></svg>'


def kept_patches(scene: int, kept: Iterable[int], tokens: int, label: str) -> str:
    """A scene whose dropped patches are veiled, for `tokens` patches in a square raster."""
    side = math.isqrt(tokens)
    size, there = 8 / side, set(kept)
    gone = [index for index in range(side * side) if index not in there]
    path = "".join(f"M{i % side * size:g} {i // side * size:g}h{size:g}v{size:g}h-{size:g}z" for i in gone)
    return (
        f'<svg viewBox="0 0 8 8" class="patches" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>"
        f'<use href="#scene{scene}"/><path d="{path}" class="veil"/></svg>'
    )
