"""SmolVLM: as Idefics3, and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

from foveate.tools.parity.families import idefics3

# What num2words says, which transformers asks for the number of frames; it need not be installed.
_WORDS = {
    1: "one",
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    7: "seven",
    8: "eight",
    21: "twenty-one",
}


class Oracle(idefics3.Oracle):
    """transformers' SmolVLM."""

    mixes_kinds = False  # its processor returns both under one name, so the videos replace the images

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        module: Any = processing_smolvlm
        if module.num2words is None:
            module.num2words = _WORDS.__getitem__
        super().__init__(checkpoint)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's text; transformers has a template of its own for conversations with videos."""
        if not any(part["type"] == "video" for message in messages for part in message["content"]):
            return super().render(messages)
        text = self.processor.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def video_processor(self, checkpoint: Path) -> Any:
        """Frames as the image processor makes them of whole pictures."""
        images: Any = AutoImageProcessor
        return _Frames(images.from_pretrained(checkpoint, backend="pil"))


class _Frames:
    """Stands for SmolVLM's video processor: every frame is one tile."""

    # The processor asks for these before it has seen a video.
    num_frames: int | None = None
    fps: float | None = None

    def __init__(self, images: Any) -> None:
        self.images = images

    def __call__(
        self, videos: Sequence[np.ndarray], *, video_metadata: Sequence[dict[str, Any]], **options: Any
    ) -> dict[str, Any]:
        made = [
            self.images([list(frames)], do_image_splitting=False, return_tensors="pt") for frames in videos
        ]
        return {
            "pixel_values": torch.cat([one["pixel_values"] for one in made]),
            "pixel_attention_mask": torch.cat([one["pixel_attention_mask"] for one in made]),
            "video_metadata": [VideoMetadata(**one) for one in video_metadata],
        }
