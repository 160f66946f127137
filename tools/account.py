"""Tells what a run did: one line for a person, a dictionary for a script, a picture of the kept tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from foveate.runtime.errors import UsageError
from foveate.tools.pictures import Panel, draw_kept

if TYPE_CHECKING:
    from foveate.runtime.generate import Generation
    from foveate.runtime.report import PruningReport, SiteReport, Timings

# Where an image processor does not say how it normalises: CLIP's own figures.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def summary(generation: Generation) -> str:
    """One line: visual tokens and what was kept at each site, layer average, time to first token, speed."""
    parts = [_kept(generation.report), _times(generation.timings)]
    if generation.timings.steps:
        parts.append(f"{generation.timings.tokens_per_second:.0f} tokens/s")
    return " · ".join(parts)


def to_json(generation: Generation) -> dict[str, Any]:
    """Everything that is known about an answer."""
    report = generation.report
    return {
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "pruning": {
            **asdict(report),
            "removed": report.visual_tokens - report.kept,
            "sites": [{**asdict(site), "removed": site.removed} for site in report.sites],
        },
        "timings": generation.timings.to_dict(),
    }


def picture(
    generation: Generation, pixel_values: np.ndarray, processor: Path, caption: str = ""
) -> Image.Image:
    """The images as the model saw them, with the tokens that each site dropped dimmed.

    Args:
        generation: of a prompt with images.
        pixel_values: float32 `[images, 3, height, width]`, what the vision stage was given.
        processor: the bundle's processor folder, which says how the pixels were normalised.
        caption: a line over everything.

    Raises:
        UsageError: there was no image, or nothing prunes.
    """
    report = generation.report
    if not report.images:
        raise UsageError("there is no image to draw on", mend="give the prompt an --image")
    if not report.sites:
        raise UsageError("this bundle prunes nowhere, so there is nothing to show")
    # With select strategy "full" the CLS token comes first; it has no place in the picture.
    extra = report.visual_tokens // report.images - report.grid[0] * report.grid[1]
    panels = [
        [Panel(_title(site), _patches(site.kept_index[image], extra)) for site in report.sites]
        for image in range(report.images)
    ]
    return draw_kept(as_seen(pixel_values, processor), panels, report.grid, caption)


def as_seen(pixel_values: np.ndarray, processor: Path) -> list[Image.Image]:
    """Normalised pixels `[b, 3, height, width]` as pictures again."""
    mean, std = _normalisation(processor)
    pixels = pixel_values * std[:, None, None] + mean[:, None, None]
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)  # b c h w -> b h w c
    return [Image.fromarray(np.ascontiguousarray(each)) for each in levels]


def _normalisation(processor: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[3]` from the image processor's file, by its old or its new name."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = processor / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        content = content.get("image_processor", content)
        if "image_mean" in content and "image_std" in content:
            return np.asarray(content["image_mean"], np.float32), np.asarray(content["image_std"], np.float32)
    return np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)


def _patches(kept: Sequence[int], extra: int) -> list[int]:
    """Places in the grid of kept visual tokens, of which the first `extra` are no patches."""
    return [index - extra for index in kept if index >= extra]


def _title(site: SiteReport) -> str:
    name, _, layer = site.site.partition("@")
    return f"after decoder layer {layer}" if layer else f"after the {name}"


def _kept(report: PruningReport) -> str:
    if not report.images:
        return "no image"
    steps = [f"visual tokens {report.visual_tokens}"]
    for site in report.sites:
        text = f"; text {site.text_total} → {site.text_kept}" if site.text_kept < site.text_total else ""
        steps.append(f"{site.kept} at {site.site} ({site.removed} removed{text})")
    if not report.sites:
        return f"{steps[0]}, none pruned"
    return f"{' → '.join(steps)} · layer average {100 * report.layer_average:.1f} %"


def _times(timings: Timings) -> str:
    parts = ", ".join(
        f"{name} {_milliseconds(seconds)}"
        for name, seconds in (
            ("preprocess", timings.preprocess),
            ("vision", timings.vision),
            ("embed", timings.embed),
            ("prefill", timings.prefill),
        )
    )
    return f"first token {_milliseconds(timings.ttft)} ms ({parts})"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"
