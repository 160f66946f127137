"""The reference's records and helpers: cuts, traces, turns in flight, hooks on transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from foveate.tools.parity.choose import Budget, Choice, DecoderFacts

METHOD_BUDGET = Budget()


@dataclass(frozen=True)
class Cut:
    """One pruning site: `layer` decoder layers run before it (None: the encoder's output)."""

    site: str
    layer: int | None
    method: str
    params: Mapping[str, object]

    @property
    def key(self) -> str:
        """`encoder` or `decoder@2`: how budgets address the site."""
        return self.site if self.layer is None else f"{self.site}@{self.layer}"


@dataclass(frozen=True)
class VisionTrace:
    """What transformers' vision tower computes for `b` images of `n` patches.

    `embedded` [b, n+1, c] enters layer 0; `hidden[i]`, `query[i]`, `key[i]` [b, n+1, c] are layer i's
    output and its raw projections; `features` [b, n, c] is what LLaVA selects and `projected` [b, n, d]
    what the decoder reads.
    """

    embedded: Tensor
    hidden: tuple[Tensor, ...]
    query: tuple[Tensor, ...]
    key: tuple[Tensor, ...]
    features: Tensor
    projected: Tensor


@dataclass(frozen=True)
class TurnTrace:
    """One prompt through the pruned decoder; rows are counted in the unpruned prompt (`Turn.input_ids`).

    `rows[g]` are the rows alive in decoder segment g; `images[j]` the patches of image j that stay;
    `cuts[key]` the rows that a cut keeps, relative to those that entered it, and `facts[key]` the evidence
    that it saw; `hidden[i]` [rows, d] the output of layer i over the rows of its segment; `embedded` [s,
    d], `positions` [s]; `logits` [rows of the last segment, v].
    """

    images: tuple[Choice, ...]
    rows: tuple[tuple[int, ...], ...]
    cuts: Mapping[str, Choice]
    embedded: Tensor
    positions: Tensor
    hidden: tuple[Tensor, ...]
    logits: Tensor
    facts: Mapping[str, DecoderFacts] = field(default_factory=dict)

    @property
    def fragile(self) -> tuple[str, ...]:
        """Sites whose decision rounding noise could turn: a prompt with any of them is no test."""
        images = ("encoder",) if any(choice.fragile for choice in self.images) else ()
        return images + tuple(key for key, choice in self.cuts.items() if choice.fragile)

    @property
    def next_position(self) -> int:
        """Position of the token after this turn: in-decoder cuts leave a gap, they do not renumber."""
        return int(self.positions[-1]) + 1


@dataclass(frozen=True)
class Generated:
    """Greedy tokens, and the prefill that they follow."""

    tokens: tuple[int, ...]
    trace: TurnTrace


@dataclass
class Chunk:
    """One turn, or the tokens generated after it, ready for the decoder."""

    embedded: Tensor  # [s, d]
    positions: Tensor  # [s]
    roles: list[int]  # [s]
    query: list[int]
    row_names: list[int]  # [s]: row in the unpruned prompt
    alive: list[list[int]]  # per decoder segment: which of the s rows live there; never changed once decided


@dataclass(frozen=True)
class Probe:
    """What a layer's attention did: probabilities [h, s, s], projections before RoPE [1, h or g, s, head]."""

    attention: Tensor
    query: Tensor
    key: Tensor
    scale: float


def keep_output(store: list[Tensor], index: int | None = None) -> Callable[..., None]:
    """A forward hook that appends a module's output (or one item of it) to `store`."""

    def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
        store.append(output if index is None else output[index])

    return hook


def split_heads(flat: Tensor, width: int) -> Tensor:
    """[1, s, h * head] -> [1, h, s, head]."""
    b, s, total = flat.shape
    return flat.reshape(b, s, total // width, width).transpose(1, 2)  # b s (h e) -> b h s e


def survivors(chunks: Sequence[Chunk], segment: int) -> list[int]:
    """Rows of segment `segment` (all chunks in a row) that are alive in the next one."""
    rows: list[int] = []
    start = 0
    for chunk in chunks:
        here, there = chunk.alive[segment], set(chunk.alive[segment + 1])
        rows += [start + spot for spot, row in enumerate(here) if row in there]
        start += len(here)
    return rows
