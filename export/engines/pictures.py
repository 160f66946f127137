"""What a bundle's processor makes of pictures: the shapes that its vision graph is fed.

Where every picture has as many visual tokens, there is nothing to measure. Elsewhere tiles, lines and windows
follow from a picture's size by rules that each family has for itself; so pictures of many sizes are put
through the processor, and the shapes are read off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import InputError, UsageError
from foveate.runtime.families import VisualItem
from foveate.runtime.manifest import Manifest
from foveate.runtime.processor import Processor
from foveate.runtime.videos import Video
from foveate.runtime.visuals import Visual

# Longer sides in pixels, and how much longer they are than the other.
_SIDES: Final = (32, 112, 224, 336, 448, 672, 896, 1120, 1344)
_PROPORTIONS: Final = (1.0, 4 / 3, 2.0, 4.0)
_TYPICAL: Final = (1024, 768)
_FRAME: Final = (336, 336)
_KNOWN_AXES: Final = ("batch", "text")  # of several pictures, and of the words that come with them


@dataclass(frozen=True)
class Sample:
    """One picture or video: its visual tokens, and the shape of each input of the vision graph."""

    tokens: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Samples:
    """Pictures of many sizes, and one of a usual size."""

    typical: Sample
    every: tuple[Sample, ...]

    @property
    def most_tokens(self) -> int:
        """Visual tokens of the largest."""
        return max(sample.tokens for sample in self.every)

    def with_video(self, bundle: Bundle, frames: int) -> Samples:
        """And a video of so many frames. Raises `UsageError`: the model takes no videos."""
        video = Visual("video", Video([Image.new("RGB", _FRAME)] * frames, max_frames=frames))
        return replace(self, every=(*self.every, _sample(_processor(bundle), video)))

    def within(self, visual: int) -> Samples:
        """Those of at most so many visual tokens.

        Raises:
            UsageError: there is none.
        """
        some = tuple(sample for sample in self.every if sample.tokens <= visual)
        if not some:
            fewest = min(sample.tokens for sample in self.every)
            raise UsageError(
                "--profile visual is smaller than any picture",
                found=str(visual),
                wanted=f"{fewest} or more visual tokens",
            )
        usual = self.typical if self.typical.tokens <= visual else max(some, key=lambda each: each.tokens)
        return Samples(usual, some)


def vision_stage(manifest: Manifest) -> str:
    """The name of the vision graph of the segmented layout."""
    return manifest.layouts["segmented"][0]


def sizes_vary(manifest: Manifest) -> bool:
    """Whether the vision graph's inputs depend on a picture's size."""
    specs = manifest.stages[vision_stage(manifest)].inputs
    axes = {axis for spec in specs for axis in spec.shape if isinstance(axis, str)}
    return bool(axes.difference(_KNOWN_AXES))


def measure(bundle: Bundle) -> Samples | None:
    """The shapes of pictures; None where all pictures have one.

    Raises:
        BundleError: the bundle's processor cannot be loaded.
    """
    return sample_pictures(_processor(bundle)) if sizes_vary(bundle.manifest) else None


def sample_pictures(processor: Processor) -> Samples:
    """What a processor makes of pictures of many sizes."""
    return Samples(_sample(processor, _picture(_TYPICAL)), tuple(_pictures(processor)))


def _processor(bundle: Bundle) -> Processor:
    return Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)


def _pictures(processor: Processor) -> Iterator[Sample]:
    for side in _SIDES:
        for proportion in _PROPORTIONS:
            other = max(1, round(side / proportion))
            for size in {(side, other), (other, side)}:
                yield _sample(processor, _picture(size))


def _picture(size: tuple[int, int]) -> Visual:
    return Visual("image", Image.new("RGB", size))


def _sample(processor: Processor, visual: Visual) -> Sample:
    try:
        item = processor.made(visual).item
    except InputError as error:
        if visual.kind == "image":
            raise
        raise UsageError("--profile frames is for models that take videos", found=str(error)) from error
    assert isinstance(item, VisualItem)
    return Sample(item.visual_tokens, {name: tuple(value.shape) for name, value in item.feeds.items()})
