"""What a run did: how long each part took, and which visual tokens it kept where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from foveate.runtime.arrays import Ints
from foveate.runtime.errors import NothingPrunedError
from foveate.runtime.manifest import CutRecord, Manifest
from foveate.runtime.options import Budget, GenerateOptions

if TYPE_CHECKING:
    from foveate.runtime.cache import KVCache
    from foveate.runtime.chunk import PreparedPrompt
    from foveate.runtime.decoder import Selection
    from foveate.runtime.families import VisualItem


Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Timings:
    """Seconds of wall time. `decode` covers all steps after the first token, `steps` counts them."""

    preprocess: float = 0.0
    vision: float = 0.0
    embed: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0

    @property
    def ttft(self) -> float:
        """Time to the first token."""
        return self.preprocess + self.vision + self.embed + self.prefill

    @property
    def tokens_per_second(self) -> float:
        """Speed of the steps after the first token; 0 without any."""
        return self.steps / self.decode if self.decode > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """All fields and both derived figures."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "ttft": self.ttft, "tokens_per_second": self.tokens_per_second}

    def plus(self, **seconds: float) -> Timings:
        """A copy with some fields increased."""
        return replace(self, **{name: getattr(self, name) + value for name, value in seconds.items()})


@dataclass(frozen=True)
class SiteReport:
    """One site: visual tokens that came, that were kept, and which (`kept_index[image]`, ascending)."""

    site: str
    method: str
    total: int
    kept: int
    kept_index: tuple[tuple[int, ...], ...]
    text_total: int = 0
    text_kept: int = 0

    @property
    def removed(self) -> int:
        """How many were dropped here."""
        return self.total - self.kept


@dataclass(frozen=True)
class SegmentReport:
    """One segment of the decoder, the layers between two cuts, and its caches once the prompt was read.

    Attributes:
        layers: the first and the last one.
        tokens: in the cache, visual and text; in a chat, with those of earlier turns.
        cache_bytes: what their keys and values take in all its layers. What is reserved for them is a little
            more (`KVCache.reserved_bytes`).
    """

    layers: tuple[int, int]
    tokens: int
    cache_bytes: int


@dataclass(frozen=True)
class PruningReport:
    """What was kept of one prompt; in a chat, of the new turn alone.

    Attributes:
        images: number of images and videos.
        visual_tokens: of all of them, before any pruning.
        sites: one entry per site, in the order in which they act.
        kept: visual tokens behind the last site.
        layer_average: mean over the decoder's layers of the fraction of visual tokens present; 1.0 without
            images.
        positions: position ids of the tokens that the decoder read; triples for models with three axes.
        position_mode: "compact" or "original".
        boxes: what each visual token of each image shows: left, top, right, bottom as shares of the picture;
            None where it shows nothing of it.
        frames: which frame each visual token of each image shows; 0 for images.
        cache_reused: in a chat, whether the earlier turns came from the cache.
        cache_note: in a chat, why they did not, or in which way reused ones differ from a fresh prompt.
        vision_reused: how many images and videos did not go through the vision stage, see `VisionCache`.
        segments: the decoder's segments and their caches; the last ones are the shortest.
    """

    images: int
    visual_tokens: int
    sites: tuple[SiteReport, ...]
    kept: int
    layer_average: float
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...]
    position_mode: str
    boxes: tuple[tuple[Box | None, ...], ...]
    frames: tuple[tuple[int, ...], ...]
    cache_reused: bool = False
    cache_note: str = ""
    vision_reused: int = 0
    segments: tuple[SegmentReport, ...] = ()

    @property
    def cache_bytes(self) -> int:
        """Of the whole prompt, all segments together."""
        return sum(segment.cache_bytes for segment in self.segments)


def report_rows(
    manifest: Manifest,
    prompt: PreparedPrompt,
    selections: Sequence[Selection],
    *,
    cache: KVCache | None = None,
    cache_reused: bool = False,
    cache_note: str = "",
) -> list[PruningReport]:
    """One report per row of a batch.

    `selections` are those of the decoder's cuts, in order; `cache` holds the prompt, for its bytes.
    """
    reports, first = [], 0
    for row, items in enumerate(prompt.items):
        length = int(prompt.length[row])
        # What the decoder holds after 0, 1, ... cuts.
        present = [_Present(prompt.origin[row, :length], prompt.roles[row, :length])]
        for selection in selections:
            present.append(present[-1].after(selection.order[row, : selection.count[row]]))
        sizes = [item.visual_tokens for item in items]
        encoder = tuple(_tuple(prompt.visual.kept(first + i)) for i in range(len(items)))
        reused = sum(prompt.visual.reused[first : first + len(items)])
        first += len(items)
        total = sum(sizes)
        reports.append(
            PruningReport(
                images=len(items),
                visual_tokens=total,
                sites=_sites(manifest, encoder, present, sizes),
                kept=present[-1].visual,
                layer_average=_layer_average(manifest, present, total),
                positions=_plain(prompt.positions[row, :length]),
                position_mode=manifest.positions,
                boxes=tuple(_boxes(item) for item in items),
                frames=tuple(_tuple(item.frame) for item in items),
                cache_reused=cache_reused,
                cache_note=cache_note,
                vision_reused=reused,
                segments=() if cache is None else _segments(manifest, cache, row),
            )
        )
    return reports


def _segments(manifest: Manifest, cache: KVCache, row: int) -> tuple[SegmentReport, ...]:
    groups = zip(manifest.cache.groups, cache.held(row), strict=True)
    return tuple(SegmentReport((group[0], group[-1]), tokens, size) for group, (tokens, size) in groups)


def require_pruning(manifest: Manifest, reports: Sequence[PruningReport], options: GenerateOptions) -> None:
    """A pruned run that pruned nothing is an error: its figures would be taken for those of pruning.

    Excused: no image, `allow_unpruned`, or budgets that ask in so many words to keep all at every site.

    Raises:
        NothingPrunedError: as said.
    """
    if not manifest.pruning or options.allow_unpruned:
        return
    budgets = options.budgets()
    for row, report in enumerate(reports):
        asked = all(
            budgets.get(site.site, Budget()).keeps_all(_counted(site, report, options))
            for site in report.sites
        )
        if report.images and report.kept == report.visual_tokens and not asked:
            sites = ", ".join(f"{site.method} at {site.site}" for site in report.sites)
            where = f" of prompt {row + 1}" if len(reports) > 1 else ""
            raise NothingPrunedError(
                f"nothing{where} was pruned: all {report.visual_tokens} visual tokens were kept ({sites})",
                mend="ask for a budget (--keep-ratio 0.5), or accept it with --allow-unpruned",
            )


@dataclass(frozen=True)
class _Present:
    """Origins and roles of the tokens that a segment of the decoder sees."""

    origin: Ints
    roles: Ints

    @property
    def visual(self) -> int:
        return int(np.count_nonzero(self.origin >= 0))

    @property
    def text(self) -> int:
        return len(self.origin) - self.visual

    def after(self, kept: Ints) -> _Present:
        return _Present(self.origin[kept], self.roles[kept])


def _sites(
    manifest: Manifest,
    encoder: tuple[tuple[int, ...], ...],
    present: Sequence[_Present],
    sizes: Sequence[int],
) -> tuple[SiteReport, ...]:
    sites = []
    if (cut := manifest.encoder_cut) is not None:
        sites.append(SiteReport(cut.name, cut.method, sum(sizes), sum(map(len, encoder)), encoder))
    for cut, before, after in zip(manifest.decoder_cuts, present, present[1:], strict=False):
        sites.append(_decoder_site(cut, before, after, sizes))
    return tuple(sites)


def _decoder_site(cut: CutRecord, before: _Present, after: _Present, sizes: Sequence[int]) -> SiteReport:
    kept = after.origin[after.origin >= 0]
    starts = np.cumsum([0, *sizes])
    by_image = tuple(_tuple(kept[(kept >= start) & (kept < end)] - start) for start, end in pairwise(starts))
    return SiteReport(cut.name, cut.method, before.visual, after.visual, by_image, before.text, after.text)


def _layer_average(manifest: Manifest, present: Sequence[_Present], total: int) -> float:
    if not total:
        return 1.0
    groups = manifest.cache.groups
    seen = sum(len(group) * state.visual for group, state in zip(groups, present, strict=True))
    return seen / (manifest.model.num_layers * total)


def _counted(site: SiteReport, report: PruningReport, options: GenerateOptions) -> int:
    """How many tokens a budget has to allow to keep all: of the largest image, or of the whole sequence."""
    if site.site == "encoder" and options.share == "each":
        return max((len(boxes) for boxes in report.boxes), default=0)
    return site.total


def _boxes(item: VisualItem) -> tuple[Box | None, ...]:
    """Rounded to what a picture of 100000 pixels a side can show."""
    rows = np.round(item.boxes.astype(np.float64), 5).tolist()
    return tuple(None if row[0] != row[0] else tuple(row) for row in rows)


def _plain(positions: Ints) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    return _tuple(positions) if positions.ndim == 1 else tuple(_tuple(row) for row in positions)


def _tuple(values: Ints) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
