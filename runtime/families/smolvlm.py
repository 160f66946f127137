"""SmolVLM: pictures as Idefics3 has them; the frames of a video are whole pictures with their time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Final

import numpy as np
from PIL import Image

from foveate.runtime.errors import InputError
from foveate.runtime.families import VisualItem, idefics3
from foveate.runtime.families.tiles import named_token, square_tiles, tile_boxes, tile_runs

Facts = idefics3.Facts

_SMALL: Final[tuple[str, ...]] = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MOST_FRAMES: Final = 999
_VIDEO_TEMPLATE: Final = """\
<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:\
{{ '' if message['content'][0]['type'] == 'image' else ' ' }}\
{% for part in message['content'] %}\
{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}\
{% endfor %}<end_of_utterance>
{% endfor %}{{ 'Assistant:' if add_generation_prompt else '' }}"""


class Preprocessor(idefics3.Preprocessor):
    """The checkpoint's own image processor, and the markers that say what is where and when."""

    # Published checkpoints' own template knows no videos; transformers has this one for them.
    video_template = _VIDEO_TEMPLATE

    @cached_property
    def placeholders(self) -> Mapping[str, str]:
        """What the chat template writes."""
        return {"image": self._token, "video": named_token(self._folder, "video_token", "<video>")}

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Each frame is one tile, `[t, 3, s, s]`; the prompt says how many, and when each was."""
        if len(frames) > _MOST_FRAMES:
            raise InputError("too many frames", found=str(len(frames)), wanted=f"at most {_MOST_FRAMES}")
        out = self._processor([list(frames)], do_image_splitting=False, return_tensors="np")
        pixels = square_tiles(out["pixel_values"][0], self._facts.tile_size)
        t, grid = len(frames), self._facts.token_grid
        return VisualItem(
            kind="video",
            feeds={"pixel_values": pixels},
            text=self._video_text(t, fps),
            boxes=np.tile(tile_boxes(1, 1, grid), (t, 1)),
            frame=np.repeat(np.arange(t, dtype=np.int64), grid**2),
            **tile_runs(t, grid**2),
        )

    def _video_text(self, frames: int, fps: float) -> str:
        """What transformers writes for frames that were picked beforehand: the last one ends the video."""
        seconds = [int(i / fps) for i in range(frames)]
        intro = (
            f"You are provided the following series of {number_words(frames)} frames "
            f"from a {timedelta(seconds=seconds[-1])} [H:MM:SS] video.\n"
        )
        shown = [f"\nFrame from {second // 60:02d}:{second % 60:02d}:{self._whole}" for second in seconds]
        return intro + "".join(shown) + "\n\n"

    @cached_property
    def _marks(self) -> tuple[str, str]:
        mark = named_token(self._folder, "fake_image_token", "<fake_token_around_image>")
        return mark, named_token(self._folder, "global_image_token", "<global-img>")


def number_words(number: int) -> str:
    """A number below a thousand in English words.

    >>> number_words(64), number_words(121)
    ('sixty-four', 'one hundred and twenty-one')
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_SMALL[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")
