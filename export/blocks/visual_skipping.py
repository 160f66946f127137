"""Layers in which visual rows are worked on less than text (YOPO, arXiv 2410.06169).

A layer is two sums, over neurons and over heads. What visual rows take part in is `shared`: it runs over all
rows. The rest is `text`: it runs over the text rows, gathered, and its result is added to these rows alone.
So the work that visual rows skip is not there, no weight is stored twice, and at a decode step, where every
row is text, nothing is lost but one gather.

    rows of a chunk      s  v  v  v  v  v  v  t  t          shared neurons, shared heads: all nine
    rows gathered        s                    t  t          the others: three

Heads of `text` neither see nor keep visual rows: their caches hold text alone and have lengths of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.export.blocks.compaction import gather_rows
from foveate.pruning.evidence import ROLE_VISUAL
from foveate.pruning.selection import inverse


@dataclass(frozen=True)
class Skipping:
    """What visual rows go without.

    Attributes:
        neurons: of each MLP, how many visual rows use: the first ones.
        groups: per layer, the key-value heads (with their query heads) that visual rows take part in.
        window: how many rows and columns of its image's grid a visual row sees, itself in the middle; None
            for all visual rows before it.
        both_ways: neighbours behind a visual row are seen, too.
    """

    neurons: int
    groups: tuple[tuple[int, ...], ...]
    window: int | None = None
    both_ways: bool = True

    def text_groups(self, layer: int, num_kv_heads: int) -> tuple[int, ...]:
        """The key-value heads of a layer that hold text only."""
        return tuple(group for group in range(num_kv_heads) if group not in self.groups[layer])


@dataclass(frozen=True)
class TextRows:
    """Where a chunk's text stands.

    Attributes:
        index: `[b, u]` rows of the chunk, ascending; what lies behind `length` means nothing.
        place: `[b, s]`, where each text row stands in `index`.
        is_text: bool `[b, s]`; visual rows and padding are not.
        length: `[b]`.
        cache_length: `[b]` tokens in the segment's text-only caches.
    """

    index: Tensor
    place: Tensor
    is_text: Tensor
    length: Tensor
    cache_length: Tensor

    @staticmethod
    def of(roles: Tensor, length: Tensor, cache_length: Tensor, index: Tensor | None) -> TextRows:
        """The text rows of a chunk with `roles [b, s]`; `index` as the host gives it, -1 behind its end.

        Without one (behind a cut inside the graph) it is made here, as wide as the longest text: attention
        over caches has to know how many rows are new.
        """
        s = roles.shape[1]
        row = torch.arange(s)[None, :]  # 1 s
        is_text = (roles != ROLE_VISUAL) & (row < length[:, None])
        order = torch.sort(torch.where(is_text, row, row + s), dim=1)[1]  # b s, text first
        count = is_text.to(torch.int64).sum(dim=1)
        if index is None:
            u = count.max().item()
            torch._check(u >= 1)  # type: ignore[no-untyped-call]
            torch._check(u <= s)  # type: ignore[no-untyped-call]
            index = order[:, :u]
        return TextRows(torch.where(index < 0, 0, index), inverse(order), is_text, count, cache_length)

    def gather(self, x: Tensor) -> Tensor:
        """`[b, s, ...]` to `[b, u, ...]`."""
        return gather_rows(x, self.index)

    def spread(self, y: Tensor, other: Tensor | float = 0.0) -> Tensor:
        """`[b, u, d]` to `[b, s, d]`; `other` stands in the rows that are not text."""
        back = gather_rows(y, torch.where(self.is_text, self.place, 0))
        return torch.where(self.is_text[:, :, None], back, other)


class Halves(nn.Module):
    """A block in two parts: `shared` for all rows, `text` for text rows; checkpoints know neither name."""

    def __init__(self, shared: nn.Module | None, text: nn.Module | None) -> None:
        super().__init__()
        self.shared, self.text = shared, text


class SplitMLP(Halves):
    """The neurons that all rows use, and those of text."""

    shared: nn.Module
    text: nn.Module

    def forward(self, x: Tensor, rows: TextRows) -> Tensor:
        own: Tensor = self.text(rows.gather(x))
        y: Tensor = self.shared(x) + rows.spread(own)
        return y


def checkpoint_names(module: nn.Module) -> dict[str, str]:
    """Parameters of `Halves` in `module`, by the names that a checkpoint has for them."""
    names = [name for name, child in module.named_modules() if isinstance(child, Halves)]
    found = {}
    for parameter, _ in module.named_parameters():
        for prefix in names:
            if parameter.startswith(f"{prefix}."):
                tail = parameter.removeprefix(f"{prefix}.").partition(".")[2]
                found[parameter] = f"{prefix}.{tail}"
    return found
