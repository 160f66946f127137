"""Pictures of the visual tokens that a run kept: dropped parts dimmed, a panel for each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture

FRAME = 150  # pixels; a frame of a video
PANEL = 360  # pixels; smaller images are enlarged to about this, by a whole factor, so that they stay crisp
MARGIN = 24
PAPER = (250, 250, 248)
INK = (32, 36, 44)
FAINT = (122, 128, 138)
ACCENT = (214, 93, 14)
# A dropped part keeps this much of its own look: enough to see what was there, too little to pass for kept.
DIM = 0.34
TINT = 0.5


@dataclass(frozen=True)
class Panel:
    """One site: its title, and which visual tokens of one image or video are still there after it."""

    title: str
    kept: Sequence[int]


@dataclass(frozen=True)
class Shown:
    """One image or video: its picture or frames, what each visual token shows of which, and its sites.

    A token without a box shows nothing.
    """

    pictures: Sequence[Image.Image]
    boxes: Sequence[Box | None]
    frames: Sequence[int]
    panels: Sequence[Panel]


def draw_kept(shown: Sequence[Shown], caption: str = "") -> Image.Image:
    """One row for each image: the image, then one panel for each site; for a video, strips of its frames.

    Args:
        shown: images and videos in order.
        caption: a line over everything, e.g. the question and the answer.

    Raises:
        ValueError: a kept token or a frame is not there.
    """
    rows = [row for each in shown for row in _rows(each)]
    head = _caption(caption, max(row.width for row in rows))
    return _stack([head, *rows] if head else rows)


def _rows(shown: Shown) -> list[Image.Image]:
    """An image beside its panels; a video's strips one under the other."""
    total = len(shown.boxes)
    titles = [("the image" if len(shown.pictures) == 1 else "the video", f"{total} visual tokens", FAINT)]
    titles += [(panel.title, _count(panel, total), ACCENT) for panel in shown.panels]
    views = [_original(shown), *(_after(shown, panel) for panel in shown.panels)]
    cells = [_titled(view, *title) for view, title in zip(views, titles, strict=True)]
    return [_beside(cells)] if len(shown.pictures) == 1 else cells


def _original(shown: Shown) -> Image.Image:
    return _strip([_sized(shown.pictures[frame], len(shown.pictures)) for frame in _looked_at(shown)])


def _after(shown: Shown, panel: Panel) -> Image.Image:
    """The image, or the frames in a strip, with what `panel` has lost dimmed."""
    wrong = [index for index in panel.kept if not 0 <= index < len(shown.boxes)]
    if wrong:
        raise ValueError(f"kept tokens {wrong} are not among the {len(shown.boxes)} of the picture")
    return _strip(
        [
            _dimmed(
                _sized(shown.pictures[frame], len(shown.pictures)),
                [box for i in panel.kept if shown.frames[i] == frame and (box := shown.boxes[i]) is not None],
            )
            for frame in _looked_at(shown)
        ]
    )


def _looked_at(shown: Shown) -> list[int]:
    """The frames that any token shows: where two frames make one token, it stands for the first."""
    frames = sorted(set(shown.frames)) or [0]
    if frames[-1] >= len(shown.pictures):
        raise ValueError(f"a token shows frame {frames[-1]} of {len(shown.pictures)}")
    return frames


def _sized(image: Image.Image, frames: int) -> Image.Image:
    """By a whole factor, without smoothing, up to about `PANEL` pixels; larger ones are reduced to it."""
    image = image.convert("RGB")
    goal, longest = (PANEL, max(image.size)) if frames == 1 else (FRAME, max(image.size))
    if longest > (2 * goal if frames == 1 else goal):
        size = (max(1, image.width * goal // longest), max(1, image.height * goal // longest))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, round(goal / longest))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _dimmed(image: Image.Image, kept: Sequence[Box]) -> Image.Image:
    """The image with everything outside the `kept` boxes muted and pale, and the kept regions outlined."""
    muted = Image.blend(image.convert("L").convert("RGB"), image, TINT)
    pale = Image.blend(Image.new("RGB", image.size, (236, 236, 234)), muted, DIM)
    mask = np.zeros((image.height, image.width), bool)
    narrowest = min(image.size)
    for box in kept:
        # Rounded alike on both sides of a line, so that there are no seams between neighbours.
        left, right = (round(x * image.width) for x in box[::2])
        top, bottom = (round(y * image.height) for y in box[1::2])
        mask[top:bottom, left:right] = True
        narrowest = min(narrowest, right - left, bottom - top)
    result = np.where(mask[:, :, None], np.asarray(image), np.asarray(pale))
    result[_edge(mask, 2 if narrowest >= 24 else 1)] = ACCENT
    return Image.fromarray(result)


def _edge(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels inside the mask that are near its outside or the picture's border."""
    inner = mask
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = (
            padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    edge: np.ndarray = mask & ~inner
    return edge


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames beside one another, a thin line between them."""
    starts = np.cumsum([0, *(frame.width + 2 for frame in frames)]).tolist()
    strip = Image.new("RGB", (starts[-1] - 2, max(frame.height for frame in frames)), PAPER)
    for frame, (left, _) in zip(frames, pairwise(starts), strict=True):
        strip.paste(frame, (left, 0))
    return strip


def _count(panel: Panel, total: int) -> str:
    kept = len(panel.kept)
    return f"{kept} of {total} kept ({100 * kept / total:.0f} %), {total - kept} removed"


def _titled(image: Image.Image, title: str, detail: str, color: tuple[int, int, int]) -> Image.Image:
    """The image under two lines of text, the second one in `color`."""
    heading, small = _font(17), _font(13)
    width = max(image.width, int(heading.getlength(title)), int(small.getlength(detail)))
    cell = Image.new("RGB", (width, image.height + 48), PAPER)
    draw = ImageDraw.Draw(cell)
    draw.text((0, 0), title, font=heading, fill=INK)
    draw.text((0, 24), detail, font=small, fill=color)
    cell.paste(image, (0, 48))
    return cell


def _caption(text: str, width: int) -> Image.Image | None:
    """The caption, broken into lines that fit."""
    if not text:
        return None
    font = _font(20)
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    strip = Image.new("RGB", (width, 28 * len(lines)), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((0, 28 * number), line, font=font, fill=INK)
    return strip


def _beside(cells: Sequence[Image.Image]) -> Image.Image:
    row = Image.new(
        "RGB", (sum(c.width + MARGIN for c in cells) - MARGIN, max(c.height for c in cells)), PAPER
    )
    left = 0
    for cell in cells:
        row.paste(cell, (left, 0))
        left += cell.width + MARGIN
    return row


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    """The rows under one another, with a margin around everything."""
    width = max(row.width for row in rows) + 2 * MARGIN
    page = Image.new("RGB", (width, sum(row.height + MARGIN for row in rows) + MARGIN), PAPER)
    top = MARGIN
    for row in rows:
        page.paste(row, (MARGIN, top))
        top += row.height + MARGIN
    return page


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in face; an old build without FreeType has only its bitmap font."""
    return ImageFont.load_default(size)
