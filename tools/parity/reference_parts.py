"""The reference's records and helpers: cuts, traces, turns in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from foveate.tools.parity.facts import Budget, Choice, DecoderFacts

METHOD_BUDGET = Budget()
_ITEMS_PER_CHUNK = 1 << 16  # keeps the numbers of different chunks' items apart


@dataclass(frozen=True)
class Cut:
    """One pruning site: `layer` decoder layers run before it (None: the encoder's output).

    `adapter` are its trained weights, by the names of the method's parameters; `reads_text` whether the
    method looks at what the text model makes of the user's words.
    """

    site: str
    layer: int | None
    method: str
    params: Mapping[str, object]
    adapter: Mapping[str, np.ndarray] = field(default_factory=dict)
    reads_text: bool = False

    @property
    def key(self) -> str:
        """`encoder` or `decoder@2`: how budgets address the site."""
        return self.site if self.layer is None else f"{self.site}@{self.layer}"


@dataclass(frozen=True)
class TurnTrace:
    """One prompt through the pruned decoder; rows are counted in the unpruned prompt (`Turn.input_ids`).

    `rows[g]` are the rows alive in decoder segment g; `items[j]` the visual tokens of item j that stay;
    `cuts[key]` the rows that a cut keeps, relative to those that entered it, and `facts[key]` the evidence
    that it saw; `hidden[i]` [rows, d] the output of layer i over the rows of its segment, before any
    DeepStack rows are added; `embedded` [s, d], `positions` [s, axes], `block` [s] and `deepstack`
    [levels, s, d] are what enters the decoder; `logits` [rows of the last segment, v]; `next_position` is
    where the token after this turn stands: in-decoder cuts leave a gap, they do not renumber.
    """

    items: tuple[Choice, ...]
    rows: tuple[tuple[int, ...], ...]
    cuts: Mapping[str, Choice]
    embedded: Tensor
    positions: Tensor
    block: Tensor
    deepstack: Tensor
    hidden: tuple[Tensor, ...]
    logits: Tensor
    next_position: int
    facts: Mapping[str, DecoderFacts] = field(default_factory=dict)

    @property
    def fragile(self) -> tuple[str, ...]:
        """Sites whose decision rounding noise could turn: a prompt with any of them is no test."""
        items = ("encoder",) if any(choice.fragile for choice in self.items) else ()
        return items + tuple(key for key, choice in self.cuts.items() if choice.fragile)


@dataclass(frozen=True)
class Generated:
    """Greedy tokens, and the prefill that they follow."""

    tokens: tuple[int, ...]
    trace: TurnTrace


@dataclass
class Chunk:
    """One turn, or the tokens generated after it, ready for the decoder."""

    embedded: Tensor  # [s, d]
    positions: Tensor  # [s, axes]
    next_position: int
    roles: list[int]  # [s]
    query: list[int]
    row_names: list[int]  # [s]: row in the unpruned prompt
    block: Tensor  # [s]: which item a row shows, -1 for text
    number: Tensor  # [s]: which visual token of that item
    deepstack: Tensor  # [levels, s, d], no levels where there are no visual rows
    alive: list[list[int]]  # per decoder segment: which of the s rows live there; never changed once decided
    # Per decoder segment: what a merging cut made of the rows alive there [k, d], before the segment runs.
    rewritten: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """All chunks in a row on their way through the decoder: `hidden` [s, d] and what belongs to each row."""

    hidden: Tensor
    positions: Tensor
    block: Tensor
    number: Tensor
    deepstack: Tensor

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Flow:
        """Chunks as the earlier cuts left them: the rows alive in the first segment."""
        levels = max(len(chunk.deepstack) for chunk in chunks)
        stacks = [
            chunk.deepstack if len(chunk.deepstack) else torch.zeros(levels, *chunk.embedded.shape)
            for chunk in chunks
        ]
        blocks = [
            torch.where(chunk.block < 0, -1, chunk.block + number * _ITEMS_PER_CHUNK)
            for number, chunk in enumerate(chunks)
        ]
        return cls(
            torch.cat([chunk.embedded for chunk in chunks]),
            torch.cat([chunk.positions for chunk in chunks]),
            torch.cat(blocks),
            torch.cat([chunk.number for chunk in chunks]),
            torch.cat(stacks, dim=1),
        )

    def only(self, rows: Sequence[int]) -> Flow:
        """Some of the rows."""
        index = torch.tensor(rows, dtype=torch.long)
        return Flow(
            self.hidden[index],
            self.positions[index],
            self.block[index],
            self.number[index],
            self.deepstack[:, index],
        )

    def rewritten(self, chunks: Sequence[Chunk], segment: int) -> Flow:
        """With the rows that merging cuts wrote, where `segment` starts."""
        parts = list(torch.split(self.hidden, [len(chunk.alive[segment]) for chunk in chunks]))
        for number, chunk in enumerate(chunks):
            parts[number] = chunk.rewritten.get(segment, parts[number])
        return replace(self, hidden=torch.cat(parts))


def survivors(chunks: Sequence[Chunk], segment: int) -> list[int]:
    """Rows of segment `segment` (all chunks in a row) that are alive in the next one."""
    rows: list[int] = []
    start = 0
    for chunk in chunks:
        here, there = chunk.alive[segment], set(chunk.alive[segment + 1])
        rows += [start + spot for spot, row in enumerate(here) if row in there]
        start += len(here)
    return rows
