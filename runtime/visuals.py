"""The images and videos of a prompt, from what the user gave to what the model gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from foveate.runtime.images import open_image
from foveate.runtime.videos import Video, as_video, open_video

if TYPE_CHECKING:
    from PIL import Image

    from foveate.runtime.families import Preprocessor, VisualItem

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video of a prompt.

    Attributes:
        kind: "image" or "video".
        source: what the user gave; opened when it is needed.
        item: what the model gets of it; None before it was opened.
        of: how many images its prompt had when the item was made.
    """

    kind: Kind
    source: Any
    item: VisualItem | None = None
    of: int = 1

    @classmethod
    def given(cls, kind: Kind, source: Any) -> Visual:
        """Of what a user gave; one that was made before is taken as it is."""
        if isinstance(source, Visual):
            return source
        return cls(kind, as_video(source) if kind == "video" else source)

    def pictures(self) -> list[Image.Image]:
        """The image, or the frames of the video that the model looks at. Raises `InputError`."""
        return self._frames()[0]

    @property
    def resting(self) -> bool:
        """Whether it was read in an earlier turn: it stays as it was then."""
        return self.item is not None and not self.item.feeds

    def made(self, preprocessor: Preprocessor, of: int | None = None) -> Visual:
        """With its item, feeds included, as one of `of` images of a prompt; None: of as many as before.

        What is there already is not made again. Raises `InputError`.
        """
        of = self.of if of is None or self.kind == "video" else of
        if self.item is not None and self.item.feeds and of == self.of:
            return self
        pictures, fps = self._frames()
        if self.kind == "image":
            return replace(self, item=preprocessor.image(pictures[0], of), of=of)
        return replace(self, item=preprocessor.video(pictures, fps))

    def at_rest(self) -> Visual:
        """Without the feeds, which are large: all that an earlier turn of a chat needs."""
        return self if self.item is None else replace(self, item=replace(self.item, feeds={}))

    def _frames(self) -> tuple[list[Image.Image], float]:
        if isinstance(self.source, Video):
            return open_video(self.source)
        return [open_image(self.source)], 0.0
