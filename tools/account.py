"""Tells what a run did: one line for a person, a dictionary for a script, a picture of the kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foveate.runtime.errors import UsageError
from foveate.tools.cli.output import size
from foveate.tools.pictures import Panel, Shown, draw_kept

if TYPE_CHECKING:
    from PIL import Image

    from foveate.runtime.generate import Generation
    from foveate.runtime.report import PruningReport, SiteReport, Timings


def summary(generation: Generation) -> str:
    """One line: visual tokens and what was kept at each site, layer average, time to first token, speed.

    Then the caches of the prompt, segment by segment, and what a chat says about those of earlier turns.
    """
    parts = [_kept(generation.report), _times(generation.timings)]
    if generation.report.vision_reused:
        parts.append(f"vision reused for {generation.report.vision_reused} of {generation.report.images}")
    if generation.timings.steps:
        parts.append(f"{generation.timings.tokens_per_second:.0f} tokens/s")
    if generation.report.segments:
        parts.append(_caches(generation.report))
    if generation.report.cache_note:
        parts.append(generation.report.cache_note)
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
            "cache_bytes": report.cache_bytes,
            "sites": [{**asdict(site), "removed": site.removed} for site in report.sites],
        },
        "timings": generation.timings.to_dict(),
    }


def picture(
    generation: Generation, pictures: Sequence[Sequence[Image.Image]], caption: str = ""
) -> Image.Image:
    """The images (or the frames of videos) with what each site dropped dimmed.

    Args:
        generation: of a prompt with images.
        pictures: of each image or video, `Visual.pictures()`.
        caption: a line over everything.

    Raises:
        UsageError: there was no image, or nothing prunes.
    """
    report = generation.report
    if not report.images:
        raise UsageError("there is no image to draw on", mend="give the prompt an --image")
    if not report.sites:
        raise UsageError("this bundle prunes nowhere, so there is nothing to show")
    shown = [
        Shown(
            each,
            report.boxes[number],
            report.frames[number],
            [Panel(_title(site), site.kept_index[number]) for site in report.sites],
        )
        for number, each in enumerate(pictures)
    ]
    return draw_kept(shown, caption)


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


def _caches(report: PruningReport) -> str:
    """`cache 1.9 MB (layers 0-1: 1.2 MB of 77 tokens, 2-5: 0.7 MB of 41)`."""
    segments = [
        f"{first}{f'-{last}' if last > first else ''}: {size(segment.cache_bytes)} of {segment.tokens} tokens"
        for segment in report.segments
        for first, last in [segment.layers]
    ]
    return f"cache {size(report.cache_bytes)} (layers {', '.join(segments)})"


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
