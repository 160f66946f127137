"""The requests of a soak: of all sizes, with the answers that they get alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from foveate.runtime.manifest import Manifest
from foveate.runtime.options import ENCODER, Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline

_WORDS: Final = (
    "what",
    "where",
    "how many",
    "red",
    "small",
    "round",
    "above",
    "the picture",
    "shows",
    "is it",
)


@dataclass(frozen=True)
class Known:
    """A request, and the tokens of its answer when it is asked alone."""

    prompt: str
    images: tuple[Image.Image, ...]
    options: GenerateOptions
    token_ids: tuple[int, ...] = ()


def draw(manifest: Manifest, number: int, seed: int, most_tokens: int) -> list[Known]:
    """Requests of all sizes: up to two pictures, 1 to 24 words, answers of 1 to `most_tokens` tokens."""
    chance = random.Random(seed)
    return [_draw(manifest, chance, most_tokens) for _ in range(number)]


def _draw(manifest: Manifest, chance: random.Random, most_tokens: int) -> Known:
    images = tuple(_picture(chance) for _ in range(chance.choice((0, 1, 1, 1, 2))))
    words = " ".join(chance.choices(_WORDS, k=chance.randint(1, 24)))
    sites = [cut.name for cut in manifest.pruning if cut.site != "layers"]
    keep = {site: _budget(chance, site) for site in sites if chance.random() < 0.7}
    options = GenerateOptions(max_new_tokens=chance.randint(1, most_tokens), keep=keep, allow_unpruned=True)
    return Known(words, images, options)


def _picture(chance: random.Random) -> Image.Image:
    """Noise of a random size and coarseness."""
    noise = np.random.default_rng(chance.randrange(2**32))
    size = chance.randint(20, 400), chance.randint(20, 400)
    grid = noise.integers(0, 256, (chance.randint(2, 24), chance.randint(2, 24), 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size)


def _budget(chance: random.Random, site: str) -> Budget:
    if site == ENCODER and chance.random() < 0.5:
        return Budget(tokens=chance.randint(1, 64))
    return Budget(ratio=chance.choice((0.1, 0.25, 0.5, 1.0)))


def answered(pipeline: Pipeline, pool: Sequence[Known]) -> list[Known]:
    """The requests with their answers, asked alone."""
    out = []
    for known in pool:
        alone = pipeline.generate(known.prompt, known.images, known.options)
        out.append(Known(known.prompt, known.images, known.options, alone.token_ids))
    return out
