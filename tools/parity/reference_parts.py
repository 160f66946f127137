"""Records and small helpers of the reference: cuts, traces, turns in flight, hooks on transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from foveate.tools.parity.choose import Budget, DecoderFacts, choose_decoder

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

    `embedded` [b, n+1, c] enters layer 0; `hidden[i]`, `query[i]`, `key[i]` [b, n+1, c] are layer i's output and
    its raw projections; `features` [b, n, c] is what LLaVA selects and `projected` [b, n, d] what the decoder reads.
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

    `rows[g]` are the rows alive in decoder segment g; `encoder_kept[j]` the patches of image j that stay;
    `decoder_order[key]` what a cut keeps, relative to the rows that entered it; `hidden[i]` [rows, d] the output of
    layer i over the rows of its segment; `embedded` [s, d], `positions` [s]; `logits` [rows of the last segment, v].
    `facts[key]` is the evidence that each cut saw.
    """

    encoder_kept: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    decoder_order: Mapping[str, tuple[int, ...]]
    embedded: Tensor
    positions: Tensor
    hidden: tuple[Tensor, ...]
    logits: Tensor
    facts: Mapping[str, DecoderFacts] = field(default_factory=dict)

    @property
    def next_position(self) -> int:
        """Position of the token after this turn: in-decoder cuts leave a gap, they do not renumber."""
        return int(self.positions[-1]) + 1


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
    rotary: tuple[Tensor, Tensor]
    scale: float


def keep_output(store: list[Tensor], index: int | None = None) -> Callable[..., None]:
    """A forward hook that appends a module's output (or one item of it) to `store`."""

    def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
        store.append(output if index is None else output[index])

    return hook


def split_heads(flat: Tensor, width: int) -> Tensor:
    """[1, s, h * head] -> [1, h, s, head]."""
    return flat.unflatten(-1, (-1, width)).transpose(1, 2)


def decide(cut: Cut, facts: DecoderFacts, budget: Budget) -> tuple[int, ...]:
    """Rows that stay behind a cut. A chunk without visual tokens passes whole."""
    if 1 not in facts.roles:
        return tuple(range(len(facts.roles)))
    return tuple(choose_decoder(cut.method, cut.params, facts, budget))


def survivors(chunks: Sequence[Chunk], segment: int) -> list[int]:
    """Rows of segment `segment` (all chunks in a row) that are alive in the next one."""
    rows: list[int] = []
    start = 0
    for chunk in chunks:
        here, there = chunk.alive[segment], set(chunk.alive[segment + 1])
        rows += [start + spot for spot, row in enumerate(here) if row in there]
        start += len(here)
    return rows
