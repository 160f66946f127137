"""Scenes of small shapes and handwritten digits, and questions whose answers follow from the object list.

A scene is an 8 x 8 grid of 16-pixel cells, one cell per patch of the demo vision encoder. Six to eight
objects sit in their own cells; everything else is textured background. `make_scene` depends on its arguments
alone. No torch in here: evaluation and the demo command run without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

GRID = 8
CELL = 16
SIZE = GRID * CELL

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
DIGITS = tuple(str(value) for value in range(10))
KINDS = SHAPES + DIGITS
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
PALETTE = {
    "red": (225, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 240),
    "yellow": (245, 220, 40),
    "purple": (185, 60, 215),
    "white": (250, 250, 250),
}
# Direction -> (row step, column step) from the named object to the answer.
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
SPLITS = ("train", "val", "test")
ONE_HOP = ("color", "shape", "digit", "where")
TWO_HOP = ("match_digit", "match_shape", "beside")
QUESTION_KINDS = ONE_HOP + TWO_HOP
# How many questions of each kind a training or test scene asks, where it has that many.
TRAIN_QUOTA = {
    "color": 1,
    "shape": 1,
    "digit": 1,
    "where": 1,
    "match_digit": 2,
    "match_shape": 2,
    "beside": 4,
}
TEST_QUOTA = {"color": 1, "shape": 1, "digit": 1, "where": 1, "match_digit": 1, "match_shape": 1, "beside": 2}
DIGITS_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class SceneObject:
    """One object: its kind (a shape name or a digit), its colour and its cell."""

    kind: str
    color: str
    row: int
    column: int

    @property
    def family(self) -> str:
        """`digit` or `shape`."""
        return "digit" if self.kind in DIGITS else "shape"

    @property
    def quarter(self) -> str:
        """The quarter of the image that holds it, e.g. `top left`."""
        vertical = "top" if self.row < GRID // 2 else "bottom"
        return f"{vertical} {'left' if self.column < GRID // 2 else 'right'}"


@dataclass(frozen=True)
class Question:
    """A question with its only right answer; `hops` counts look-ups, `about` is the first one's object."""

    kind: str
    hops: int
    text: str
    answer: str
    about: SceneObject | None = None


@dataclass(frozen=True)
class Scene:
    """One image (`uint8 [SIZE, SIZE, 3]`), what is in it, and everything that can be asked about it."""

    split: str
    seed: int
    image: np.ndarray
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]

    def pil(self) -> Image.Image:
        """The image for a processor."""
        return Image.fromarray(self.image)

    def ask(self, quota: dict[str, int], total: int | None = None) -> tuple[Question, ...]:
        """Draw questions by kind, as many as there are up to the quota; with `total`, exactly that many."""
        rng = _generator(self.split, self.seed, stream=1)
        order = [self.questions[i] for i in rng.permutation(len(self.questions))]
        chosen: list[Question] = []
        for kind, wanted in quota.items():
            chosen += [question for question in order if question.kind == kind][:wanted]
        if total is not None:
            chosen += [question for question in order if question not in chosen]
            chosen = chosen[:total]
        return tuple(chosen)

    def describe(self, variant: int, statements: int = 5, hops: int = 2) -> tuple[tuple[str, bool], ...]:
        """A caption as (text, graded) pieces: random statements about the objects, of randomly drawn styles.

        A statement names something ungraded, then grades what follows from it, sometimes in two steps; with
        `hops` 1, only what can be seen of single objects is stated.
        """
        rng = _generator(self.split, self.seed, stream=10 + variant)
        pieces: list[tuple[str, bool]] = []
        for _ in range(statements):
            options: list[tuple[tuple[str, bool], ...]] = []
            while not options:
                thing = self.objects[int(rng.integers(len(self.objects)))]
                styles = _STATEMENTS if hops > 1 else _EASY
                options = styles[int(rng.integers(len(styles)))](thing, self.objects)
            pieces += [*options[int(rng.integers(len(options)))], (",", False)]
        return tuple(pieces)


def make_scene(seed: int, split: str = "test", objects: tuple[int, int] = (6, 8)) -> Scene:
    """Build scene `seed` of a split; `objects` bounds their number (fewer make an easier curriculum)."""
    rng = _generator(split, seed, stream=0)
    count = int(rng.integers(objects[0], objects[1] + 1))
    placed = _place(rng, _choose(rng, count))
    return Scene(split, seed, _render(rng, placed, split), placed, tuple(_questions(placed)))


def make_crowd(seed: int, split: str = "train", objects: tuple[int, int] = (20, 32)) -> Scene:
    """A crowded scene with nothing to ask: any kind in any colour, for teaching the vision encoder."""
    rng = _generator(split, seed, stream=2)
    cells = rng.permutation(GRID * GRID)[: int(rng.integers(objects[0], objects[1] + 1))]
    placed = tuple(
        SceneObject(
            KINDS[int(rng.integers(len(KINDS)))],
            COLORS[int(rng.integers(len(COLORS)))],
            int(cell) // GRID,
            int(cell) % GRID,
        )
        for cell in cells
    )
    return Scene(split, seed, _render(rng, placed, split), placed, ())


def _generator(split: str, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([SPLITS.index(split), stream, seed])


def _choose(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(kind, colour) pairs; kinds are distinct, colours are distinct within shapes and within digits."""
    shapes = min(count // 2 + int(rng.integers(0, 1 + count % 2)), len(SHAPES))
    pairs: list[tuple[str, str]] = []
    for names, number in ((SHAPES, shapes), (DIGITS, count - shapes)):
        kinds = rng.permutation(len(names))[:number]
        colors = rng.permutation(len(COLORS))[:number]
        pairs += [(names[k], COLORS[c]) for k, c in zip(kinds, colors, strict=True)]
    return [pairs[i] for i in rng.permutation(count)]


def _place(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[SceneObject, ...]:
    """Cells for the objects: most of them come as touching pairs, so that neighbours can be asked for."""
    free = {(row, column) for row in range(GRID) for column in range(GRID)}
    placed: list[SceneObject] = []
    for index, (kind, color) in enumerate(pairs):
        options = sorted(free)
        if index % 2 == 1:
            last = placed[-1]
            steps = [(last.row + dr, last.column + dc) for dr, dc in DIRECTIONS.values()]
            options = [cell for cell in steps if cell in free] or options
        row, column = options[int(rng.integers(len(options)))]
        free.discard((row, column))
        placed.append(SceneObject(kind, color, row, column))
    return tuple(placed)


Statements = list[tuple[tuple[str, bool], ...]]


def _say_what_it_is(thing: SceneObject, objects: tuple[SceneObject, ...]) -> Statements:
    return [
        ((f" {thing.color} {thing.family}", False), (f" {thing.kind}", True)),
        ((f" {thing.family} {thing.color}", False), (f" {thing.kind}", True)),
    ]


def _say_how_it_is(thing: SceneObject, objects: tuple[SceneObject, ...]) -> Statements:
    return [((f" {thing.kind}", False), (f" {thing.color} {thing.quarter}", True))]


def _say_what_matches(thing: SceneObject, objects: tuple[SceneObject, ...]) -> Statements:
    """The other object of its colour, with and without naming the colour on the way."""
    found: Statements = []
    for other in objects:
        if other.color == thing.color and other.family != thing.family:
            answer = (f" {other.kind}", True)
            found.append(((f" {other.family} has the color of the {thing.kind}", False), answer))
            steps = ((f" {thing.kind}", False), (f" {thing.color}", True))
            found.append((*steps, (f" {other.family}", False), answer))
    return found


def _say_what_is_beside(thing: SceneObject, objects: tuple[SceneObject, ...]) -> Statements:
    """Its neighbours, with and without naming the thing itself on the way."""
    found: Statements = []
    for direction, (dr, dc) in DIRECTIONS.items():
        for other in objects:
            if (other.row, other.column) == (thing.row + dr, thing.column + dc):
                answer = (f" {other.kind}", True)
                found.append(((f" {direction} the {thing.color} {thing.family}", False), answer))
                steps = ((f" {thing.color} {thing.family}", False), (f" {thing.kind}", True))
                found.append((*steps, (f" {direction}", False), answer))
    return found


_EASY = (_say_what_it_is, _say_how_it_is)
_STATEMENTS = (*_EASY, _say_what_matches, _say_what_is_beside, _say_what_is_beside)


def _questions(objects: tuple[SceneObject, ...]) -> Iterable[Question]:
    """Everything that can be asked; each has exactly one right answer."""
    by_cell = {(o.row, o.column): o for o in objects}
    for thing in objects:
        yield Question("color", 1, f"What color is the {thing.kind}?", thing.color, thing)
        yield Question("where", 1, f"Where is the {thing.kind}?", thing.quarter, thing)
        wanted = "What" if thing.family == "shape" else "Which"
        yield Question(thing.family, 1, f"{wanted} {thing.family} is {thing.color}?", thing.kind, thing)
        for other in objects:
            if other.color == thing.color and other.family != thing.family:
                text = f"{wanted} {thing.family} has the color of the {other.kind}?"
                yield Question(f"match_{thing.family}", 2, text, thing.kind, other)
        for name, (dr, dc) in DIRECTIONS.items():
            found = by_cell.get((thing.row + dr, thing.column + dc))
            if found is not None:
                text = f"What is {name} the {thing.color} {thing.family}?"
                yield Question("beside", 2, text, found.kind, thing)


def _render(rng: np.random.Generator, objects: tuple[SceneObject, ...], split: str) -> np.ndarray:
    """Draw the objects on a muted, textured background. Returns uint8 `[SIZE, SIZE, 3]`."""
    coarse = rng.integers(70, 135, size=(10, 10, 3), dtype=np.uint8)
    coarse = (coarse * 0.5 + coarse.mean(axis=2, keepdims=True) * 0.5).astype(np.uint8)
    canvas = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    canvas = canvas + rng.integers(-14, 15, size=(SIZE, SIZE, 1), dtype=np.int8)
    for thing in objects:
        paint = np.asarray(PALETTE[thing.color], np.float32) + rng.integers(-14, 15, size=3)
        mask = (
            _digit_mask(rng, thing.kind, split) if thing.family == "digit" else _shape_mask(rng, thing.kind)
        )
        top, left = thing.row * CELL, thing.column * CELL
        patch = canvas[top : top + CELL, left : left + CELL]
        patch += (paint - patch) * mask[:, :, None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _shape_mask(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Coverage in 0..1, float32 `[CELL, CELL]`, drawn at four times the resolution."""
    fine = 4 * CELL
    image = Image.new("L", (fine, fine), 0)
    radius = rng.uniform(5.6, 6.9) * 4
    x, y = fine / 2 + rng.uniform(-1, 1, size=2) * 4
    _OUTLINES[kind](ImageDraw.Draw(image), x, y, radius, rng.uniform(-0.2, 0.2))
    return np.asarray(image.resize((CELL, CELL), Image.Resampling.BOX), np.float32) / 255


def _polygon(draw: ImageDraw.ImageDraw, x: float, y: float, radii: np.ndarray, turn: float) -> None:
    """Fill the polygon whose corner `i` of `n` lies at angle `turn + 2 pi i / n` from straight up."""
    angles = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
    corners = zip(x + radii * np.sin(angles), y - radii * np.cos(angles), strict=True)
    draw.polygon([(float(a), float(b)) for a, b in corners], fill=255)


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=255)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), outline=255, width=int(0.38 * r))


def _square(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    _polygon(draw, x, y, np.full(4, 1.25 * r), turn + np.pi / 4)


def _triangle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    _polygon(draw, x, y + 0.15 * r, np.full(3, 1.15 * r), turn)


def _star(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    _polygon(draw, x, y, np.tile([1.15 * r, 0.45 * r], 5), turn)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float) -> None:
    for quarter in (0.0, np.pi / 2):
        wide = np.arctan(0.3)
        angles = turn + quarter + np.array([-wide, wide, np.pi - wide, np.pi + wide])
        corners = zip(x + 1.05 * r * np.sin(angles), y - 1.05 * r * np.cos(angles), strict=True)
        draw.polygon([(float(a), float(b)) for a, b in corners], fill=255)


_OUTLINES: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float, float], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


@functools.cache
def _handwriting(split: str) -> dict[str, np.ndarray]:
    """Handwritten digits of one split, per value: uint8 `[m, 8, 8]` in 0..16. No image is in two splits."""
    with np.load(DIGITS_FILE) as stored:
        images, labels = stored["images"], stored["labels"]
    order = np.random.default_rng(2026).permutation(len(labels))
    bounds = {"train": (0, 1300), "val": (1300, 1500), "test": (1500, len(labels))}[split]
    chosen = order[bounds[0] : bounds[1]]
    return {name: images[chosen][labels[chosen] == int(name)] for name in DIGITS}


def _digit_mask(rng: np.random.Generator, kind: str, split: str) -> np.ndarray:
    """Coverage in 0..1, float32 `[CELL, CELL]`, of a handwritten digit, slightly turned, scaled and moved."""
    samples = _handwriting(split)[kind]
    strokes = Image.fromarray((samples[int(rng.integers(len(samples)))] * 15.9).astype(np.uint8))
    size = int(rng.integers(13, 16))
    strokes = strokes.resize((size, size), Image.Resampling.BICUBIC)
    strokes = strokes.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    mask = np.zeros((CELL, CELL), np.float32)
    top, left = rng.integers(0, CELL - size + 1, size=2)
    mask[top : top + size, left : left + size] = np.minimum(np.asarray(strokes, np.float32) / 200, 1)
    return mask
