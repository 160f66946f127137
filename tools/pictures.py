"""Pictures of the visual tokens that a run kept: dropped patches dimmed, a panel for each site. PIL only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Grid = tuple[int, int]  # rows, columns of patches

PANEL = 360  # pixels; smaller images are enlarged to about this, by a whole factor, so that they stay crisp
MARGIN = 24
PAPER = (250, 250, 248)
INK = (32, 36, 44)
FAINT = (122, 128, 138)
ACCENT = (214, 93, 14)
# A dropped patch keeps this much of its own look: enough to see what was there, too little to pass for kept.
DIM = 0.34
TINT = 0.5


@dataclass(frozen=True)
class Panel:
    """One site: its title, and the raster indices of one image's patches that are still there after it."""

    title: str
    kept: Sequence[int]


def draw_kept(
    images: Sequence[Image.Image],
    panels: Sequence[Sequence[Panel]],
    grid: Grid,
    caption: str = "",
) -> Image.Image:
    """One row for each image: the image as the model sees it, then one panel for each site.

    Args:
        images: what the vision encoder sees, after resizing and cropping.
        panels: for each image, its sites in order.
        grid: an index of a panel addresses its patches in raster order.
        caption: a line over everything, e.g. the question and the answer.

    Raises:
        ValueError: if there is not one list of panels for each image, or an index is outside the grid.
    """
    if len(images) != len(panels):
        raise ValueError(f"{len(images)} images, but panels for {len(panels)}")
    rows = []
    for image, sites in zip(map(_enlarged, images), panels, strict=True):
        row = [_titled(image, "the image", f"{grid[0] * grid[1]} visual tokens", FAINT)]
        row += [_titled(_dimmed(image, s.kept, grid), s.title, _count(s, grid), ACCENT) for s in sites]
        rows.append(row)
    head = _caption(caption, max(sum(cell.width + MARGIN for cell in row) for row in rows) - MARGIN)
    return _stack([head, *(_beside(row) for row in rows)] if head else [_beside(row) for row in rows])


def _enlarged(image: Image.Image) -> Image.Image:
    """By a whole factor, without smoothing, up to about `PANEL` pixels; larger images are reduced to it."""
    image = image.convert("RGB")
    longest = max(image.size)
    if longest > 2 * PANEL:
        return image.resize(
            (image.width * PANEL // longest, image.height * PANEL // longest), Image.Resampling.LANCZOS
        )
    factor = max(1, round(PANEL / longest))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _dimmed(image: Image.Image, kept: Sequence[int], grid: Grid) -> Image.Image:
    """The image with every patch outside `kept` muted and pale, and the kept regions outlined."""
    inside = {int(index) for index in kept}
    if inside and not (min(inside) >= 0 and max(inside) < grid[0] * grid[1]):
        raise ValueError(f"kept patches {sorted(inside)} do not fit a grid of {grid[0]} x {grid[1]}")
    muted = Image.blend(image.convert("L").convert("RGB"), image, TINT)
    pale = Image.blend(Image.new("RGB", image.size, (236, 236, 234)), muted, DIM)
    mask = Image.new("L", image.size, 0)
    fill = ImageDraw.Draw(mask)
    for index in inside:
        left, top, right, bottom = _box(index, grid, image.size)
        fill.rectangle((left, top, right - 1, bottom - 1), fill=255)
    result = Image.composite(image, pale, mask)
    _outline(ImageDraw.Draw(result), inside, grid, image.size)
    return result


def _outline(draw: ImageDraw.ImageDraw, inside: set[int], grid: Grid, size: tuple[int, int]) -> None:
    """A line wherever a kept patch touches a dropped one or the border."""
    rows, columns = grid
    thickness = 2 if min(size[0] // columns, size[1] // rows) >= 24 else 1
    for index in inside:
        row, column = divmod(index, columns)
        left, top, right, bottom = _box(index, grid, size)
        sides = {
            (row - 1, column): (left, top, right - 1, top),
            (row + 1, column): (left, bottom - 1, right - 1, bottom - 1),
            (row, column - 1): (left, top, left, bottom - 1),
            (row, column + 1): (right - 1, top, right - 1, bottom - 1),
        }
        for (r, c), line in sides.items():
            outside = not (0 <= r < rows and 0 <= c < columns)
            if outside or r * columns + c not in inside:
                draw.line(line, fill=ACCENT, width=thickness)


def _box(index: int, grid: Grid, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixel box (left, top, right, bottom) of a patch; integer arithmetic leaves no seams between patches."""
    row, column = divmod(index, grid[1])
    width, height = size
    left, right = column * width // grid[1], (column + 1) * width // grid[1]
    top, bottom = row * height // grid[0], (row + 1) * height // grid[0]
    return left, top, right, bottom


def _count(panel: Panel, grid: Grid) -> str:
    kept, total = len(panel.kept), grid[0] * grid[1]
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
