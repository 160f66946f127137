"""A chunk of tokens on its way through the decoder's segments, and what a cut leaves of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.export.blocks.compaction import gather_rows
from foveate.pruning.evidence import ROLE_VISUAL
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, remap

_OF_A_CHUNK = ("query_index", "entered", "text_index", "visual_tile", "visual_near")
# Arrays of a chunk with an entry for each token, which a cut shortens all alike.
_COMPANIONS = ("position_ids", "token_role", "block", "deepstack", "embedded", "cell", "visual_place")


@dataclass(frozen=True)
class Chunk:
    """A chunk of tokens on its way through the decoder.

    Attributes:
        hidden: `[b, s, d]`.
        length: `[b]` valid tokens.
        companions: those of `_COMPANIONS` that the graph has: positions `[b, s]` or `[b, s, axes]`, roles and
            image numbers `[b, s]`, DeepStack rows `[b, s, levels * d]`, what entered the decoder `[b, s, d]`.
        query_index: `[b, t]`, rows of the text that says what is relevant; None without a cut.
        entered: `[b]`, visual tokens that entered the decoder; None where no cut asks.
        text_index: `[b, u]`, the text rows as the host gives them; None behind a cut inside the graph.
        visual_tile: `[b, n, q]` and visual_near: `[b, n, k]`, tiles of visual rows, where the graph has them.
    """

    hidden: Tensor
    length: Tensor
    companions: dict[str, Tensor]
    query_index: Tensor | None = None
    entered: Tensor | None = None
    text_index: Tensor | None = None
    visual_tile: Tensor | None = None
    visual_near: Tensor | None = None

    @staticmethod
    def of(feeds: dict[str, Tensor], hidden: Tensor) -> Chunk:
        """A graph's inputs as a chunk."""
        companions = {name: feeds[name] for name in _COMPANIONS if name in feeds}
        return Chunk(hidden, feeds["length"], companions, **{name: feeds.get(name) for name in _OF_A_CHUNK})

    def at_the_door(self, methods: Iterable[PruningMethod]) -> Chunk:
        """In the first segment: with what the methods want to remember of the decoder's input."""
        methods = tuple(methods)
        chunk = self
        if any(method.needs_embedded for method in methods):
            chunk = replace(chunk, companions={**chunk.companions, "embedded": chunk.hidden})
        if any(method.needs_entered for method in methods):
            roles = chunk.companions["token_role"]  # b s
            valid = torch.arange(roles.shape[1])[None, :] < chunk.length[:, None]
            visual = valid & (roles == ROLE_VISUAL)
            chunk = replace(chunk, entered=visual.to(torch.int64).sum(dim=1))
        return chunk

    def gather(self, kept: Tensor, selection: Selection) -> Chunk:
        """The chunk behind a cut: survivors with all that belongs to them, query rows under new numbers."""
        assert self.query_index is not None
        return Chunk(
            gather_rows(self.hidden, kept),
            selection.count,
            {name: gather_rows(value, kept) for name, value in self.companions.items()},
            remap(self.query_index, selection),
            self.entered,
            visual_tile=_remapped(self.visual_tile, selection),
            visual_near=_remapped(self.visual_near, selection),
        )


def _remapped(rows: Tensor | None, selection: Selection) -> Tensor | None:
    """Rows `[b, n, q]` under their new numbers; -1 for dropped ones."""
    if rows is None:
        return None
    b, n, q = rows.shape
    return remap(rows.reshape(b, n * q), selection).reshape(b, n, q)
