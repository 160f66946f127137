"""What a run did: how long each part took, and which visual tokens it kept where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from foveate.runtime.arrays import Ints
from foveate.runtime.errors import NothingPrunedError
from foveate.runtime.manifest import CutRecord, Manifest
from foveate.runtime.options import Budget, GenerateOptions

if TYPE_CHECKING:
    from foveate.runtime.chunk import PreparedPrompt
    from foveate.runtime.decoder import Selection


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
class PruningReport:
    """What was kept of one prompt; in a chat, of the new turn alone.

    Attributes:
        images: number of images.
        visual_tokens: of all images, before any pruning.
        sites: one entry per site, in the order in which they act.
        kept: visual tokens behind the last site.
        layer_average: mean over the decoder's layers of the fraction of visual tokens present; 1.0 without
            images.
        positions: position ids of the tokens that the decoder read.
        position_mode: "compact" or "original".
        grid: rows and columns of an image's patches.
        leading: visual tokens of an image before its patches (1 where the model keeps the CLS token).
        cache_reused: in a chat, whether the earlier turns came from the cache.
    """

    images: int
    visual_tokens: int
    sites: tuple[SiteReport, ...]
    kept: int
    layer_average: float
    positions: tuple[int, ...]
    position_mode: str
    grid: tuple[int, int]
    leading: int = 0
    cache_reused: bool = False


def report_rows(
    manifest: Manifest, prompt: PreparedPrompt, selections: Sequence[Selection], *, cache_reused: bool = False
) -> list[PruningReport]:
    """One report per row of a batch; `selections` are those of the decoder's cuts, in order."""
    reports, image = [], 0
    for row, images in enumerate(prompt.images):
        length = int(prompt.length[row])
        # What the decoder holds after 0, 1, ... cuts.
        present = [_Present(prompt.origin[row, :length], prompt.roles[row, :length])]
        for selection in selections:
            present.append(present[-1].after(selection.order[row, : selection.count[row]]))
        n = prompt.visual.order.shape[1]
        encoder = tuple(_tuple(prompt.visual.kept(i)) for i in range(image, image + images))
        image += images
        total = images * n
        reports.append(
            PruningReport(
                images=images,
                visual_tokens=total,
                sites=_sites(manifest, encoder, present, total, n),
                kept=present[-1].visual,
                layer_average=_layer_average(manifest, present, total),
                positions=_tuple(prompt.positions[row, :length]),
                position_mode=manifest.positions,
                grid=manifest.model.patch_grid,
                leading=manifest.model.visual_tokens_per_image - math.prod(manifest.model.patch_grid),
                cache_reused=cache_reused,
            )
        )
    return reports


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
        asked = all(budgets.get(s.site, Budget()).keeps_all(_per_image(s)) for s in report.sites)
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
    total: int,
    n: int,
) -> tuple[SiteReport, ...]:
    sites = []
    if (cut := manifest.encoder_cut) is not None:
        sites.append(SiteReport(cut.name, cut.method, total, sum(map(len, encoder)), encoder))
    for cut, before, after in zip(manifest.decoder_cuts, present, present[1:], strict=False):
        sites.append(_decoder_site(cut, before, after, len(encoder), n))
    return tuple(sites)


def _decoder_site(cut: CutRecord, before: _Present, after: _Present, images: int, n: int) -> SiteReport:
    kept = after.origin[after.origin >= 0]
    by_image = tuple(_tuple(kept[kept // n == i] % n) for i in range(images)) if n else ()
    return SiteReport(cut.name, cut.method, before.visual, after.visual, by_image, before.text, after.text)


def _layer_average(manifest: Manifest, present: Sequence[_Present], total: int) -> float:
    if not total:
        return 1.0
    groups = manifest.cache.groups
    seen = sum(len(group) * state.visual for group, state in zip(groups, present, strict=True))
    return seen / (manifest.model.num_layers * total)


def _per_image(site: SiteReport) -> int:
    """The number of tokens that a budget of this site is counted against: of an image, or of the sequence."""
    return site.total // max(1, len(site.kept_index)) if site.site == "encoder" else site.total


def _tuple(values: Ints) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
