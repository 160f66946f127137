"""What the graphs are shown while they are measured: drawn pictures, or a user's own, and plain questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from foveate.runtime.errors import InputError

# Long enough for a few hundred rows of text in all, of several kinds: questions, instructions, numbers.
QUESTIONS: Final = (
    "What is in this picture? Describe the objects, their colors and where they are.",
    "How many things are there, and which of them is the largest? Answer with a number and a word.",
    "Read all text in the image. If there is none, say so, and explain what the picture may be used for.",
    "A man bought it in 1987 for $2,450 and sold it a year later. Is anything in the image older than that?",
    "What color is the thing to the left of the circle?",
    "Is there a person in the picture? Where?",
)
_SIZES: Final = ((336, 336), (448, 320), (320, 448), (256, 256))  # width, height
MOST_PICTURES: Final = 16
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Probe:
    """A picture and a question about it."""

    question: str
    picture: Image.Image


def built_in_probes() -> tuple[Probe, ...]:
    """Drawn pictures, the same every time."""
    return tuple(Probe(QUESTIONS[i], _draw(i, size)) for i, size in enumerate(_SIZES))


def own_probes(folder: Path) -> tuple[Probe, ...]:
    """The first pictures of a folder, by name.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not files:
        raise InputError(
            f"no pictures in {folder}",
            wanted=f"a folder with files that end in {', '.join(sorted(_SUFFIXES))}",
            mend="name another folder, or leave it out: there are built-in pictures",
        )
    return tuple(
        Probe(QUESTIONS[i % len(QUESTIONS)], _read(file)) for i, file in enumerate(files[:MOST_PICTURES])
    )


def probes(folder: Path | None) -> Sequence[Probe]:
    """A user's own pictures, or the built-in ones. Raises as `own_probes`."""
    return built_in_probes() if folder is None else own_probes(folder)


def _read(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except OSError as error:
        mend = "take it out of the folder"
        raise InputError(f"{file} is not a picture that can be read", found=str(error), mend=mend) from error


def _draw(seed: int, size: tuple[int, int]) -> Image.Image:
    """A gradient under grain, stripes, discs and boxes: smooth and sharp, dark and bright."""
    rng = np.random.default_rng([518, seed])
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    canvas = np.stack([x / width, y / height, 1 - x / width], axis=2) * rng.uniform(60, 200, 3)
    canvas += rng.normal(0, 12, canvas.shape)
    canvas += 40 * (np.sin(x / rng.uniform(3, 20) + y / rng.uniform(5, 30)) > 0.6)[:, :, None]
    for number in range(8):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.04, 0.2) * min(size)
        far = np.maximum(abs(x - cx), abs(y - cy)) if number % 2 else np.hypot(x - cx, y - cy)
        canvas[far < radius] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
