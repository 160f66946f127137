"""The Llama-like text decoder, by configuration: RMSNorm, RoPE, grouped-query attention, gated MLP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.attention_ops import masked_attention
from foveate.export.blocks.linear import Linear, Piece
from foveate.export.blocks.neighbours import Sight
from foveate.export.blocks.norm import RMSNorm
from foveate.export.blocks.rope import Rope, RopeConfig, inverse_frequencies
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.blocks.visual_skipping import Halves, SplitMLP, TextRows


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer `[b, g, capacity, head_dim]`.

    Heads that hold text only have memory of their own; each is None where a layer has no such heads.
    """

    key: Tensor | None
    value: Tensor | None
    text_key: Tensor | None = None
    text_value: Tensor | None = None


@dataclass(frozen=True)
class ChunkState:
    """What all layers of a segment share about the chunk that they run.

    Attributes:
        rotation: cosines and sines `[b, s, head_dim / 2]` for the chunk's positions.
        local_rotation: the same for layers with a window, where they turn at another pace.
        length: `[b]` valid tokens, padding on the right.
        cache_length: `[b]` tokens already in the segment's caches.
        masks: per window (None: no window) which slots `[b, s, capacity]` a query sees; empty where "all
            before me" says it.
        text: where the text stands, for layers that visual rows skip a part of; else None.
        sight: who sees what, where visual rows see their neighbours only; else None.
        longest: int32 `[1]`, tokens of the longest row with its cache, where the graph is given it.
    """

    rotation: tuple[Tensor, Tensor]
    local_rotation: tuple[Tensor, Tensor]
    length: Tensor
    cache_length: Tensor
    masks: dict[int | None, Tensor]
    text: TextRows | None = None
    sight: Sight | None = None
    longest: Tensor | None = None

    def of_text(self) -> ChunkState:
        """The same about the text rows alone."""
        assert self.text is not None
        cos, sin = self.rotation
        rotation = self.text.gather(cos), self.text.gather(sin)
        return ChunkState(rotation, rotation, self.text.length, self.text.cache_length, {})


@dataclass(frozen=True)
class Projections:
    """Query `[b, s, h * head_dim]` and key `[b, s, g * head_dim]` of one layer, before and after RoPE.

    Of the heads that visual rows take part in.
    """

    query_plain: Tensor
    key_plain: Tensor
    query: Tensor
    key: Tensor


class Attention(nn.Module):
    """All of a layer's heads, or those of some key-value heads (`groups`)."""

    def __init__(
        self,
        config: DecoderConfig,
        target: ModuleType,
        window: int | None,
        groups: tuple[int, ...] | None = None,
        *,
        output_bias: bool | None = None,
    ) -> None:
        super().__init__()
        d, each = config.hidden_size, config.num_heads // config.num_kv_heads
        self.num_kv_heads = config.num_kv_heads if groups is None else len(groups)
        self.num_heads = self.num_kv_heads * each
        queries, keys = self.num_heads * config.head_dim, self.num_kv_heads * config.head_dim
        own = {name: _heads_of(config, groups, *at) for name, at in _HEAD_AXES.items()}
        self.q_proj = Linear(d, queries, bias=config.qkv_bias, piece=own["q_proj"])
        self.k_proj = Linear(d, keys, bias=config.qkv_bias, piece=own["k_proj"])
        self.v_proj = Linear(d, keys, bias=config.qkv_bias, piece=own["v_proj"])
        bias = config.output_bias if output_bias is None else output_bias
        self.o_proj = Linear(queries, d, bias=bias, piece=own["o_proj"])
        if config.qk_norm:
            self.q_norm = _norm(config, config.head_dim)
            self.k_norm = _norm(config, config.head_dim)
        self.config, self.target, self.window = config, target, window

    def forward(
        self, x: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache, Projections]:
        config = self.config
        query_plain, key_plain = self.q_proj(x), self.k_proj(x)
        if config.qk_norm:
            query_plain = _normed_heads(self.q_norm, query_plain, self.num_heads)
            key_plain = _normed_heads(self.k_norm, key_plain, self.num_kv_heads)
        cos, sin = chunk.rotation if self.window is None else chunk.local_rotation
        query = self.target.rotary(query_plain, cos, sin, self.num_heads)
        key = self.target.rotary(key_plain, cos, sin, self.num_kv_heads)
        mixed, present = self.mix(query, key, self.v_proj(x), chunk, past)
        return self.o_proj(mixed), present, Projections(query_plain, key_plain, query, key)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        """The values that each row sees, mixed `[b, s, h * head_dim]`, and the caches."""
        mixed, present_key, present_value = self.target.cached_attention(
            query,
            key,
            value,
            past.key,
            past.value,
            chunk.length,
            chunk.cache_length,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            scale=self.config.attention_scale,
            visible=chunk.masks.get(self.window),
            longest=chunk.longest,
        )
        return mixed, LayerCache(present_key, present_value)


class NearAttention(Attention):
    """Visual rows see their neighbours and the text before them; text sees everything before it."""

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        text, sight, scale = chunk.text, chunk.sight, self.config.attention_scale
        assert text is not None
        assert sight is not None
        assert past.key is not None
        assert past.value is not None
        own, present_key, present_value = masked_attention(
            text.gather(query),
            key,
            value,
            past.key,
            past.value,
            chunk.cache_length,
            visible=sight.text_sees,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            scale=scale,
        )
        near = sight.mix(query, key, value, (present_key, present_value), scale)
        return text.spread(own, near), LayerCache(present_key, present_value)


class SplitAttention(Halves):
    """Heads that visual rows take part in, and heads among text alone (either may have none)."""

    shared: Attention | None
    text: Attention | None

    def __init__(
        self, config: DecoderConfig, target: ModuleType, groups: tuple[int, ...], others: tuple[int, ...]
    ) -> None:
        shared = _whole(config)(config, target, None, groups) if groups else None
        # The output's bias belongs to the layer, not to a head: it is added once.
        bias = config.output_bias and not groups
        super().__init__(
            shared, Attention(config, target, None, others, output_bias=bias) if others else None
        )
        self.window: int | None = None

    def forward(
        self, x: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache, Projections | None]:
        present, projections = past, None
        mixed: Tensor | float = 0.0
        if self.shared is not None:
            mixed, held, projections = self.shared(x, chunk, LayerCache(past.key, past.value))
            present = replace(present, key=held.key, value=held.value)
        if self.text is not None:
            rows = chunk.text
            assert rows is not None
            memory = LayerCache(past.text_key, past.text_value)
            own, held, _ = self.text(rows.gather(x), chunk.of_text(), memory)
            present = replace(present, text_key=held.key, text_value=held.value)
            bias = self.text.o_proj.bias
            mixed = mixed + rows.spread(own, 0.0 if bias is None else bias)
        assert isinstance(mixed, Tensor)
        return mixed, present, projections


# Which axis of a checkpoint's weight counts heads, and whether these are query heads.
_HEAD_AXES: Final = {"q_proj": (0, True), "k_proj": (0, False), "v_proj": (0, False), "o_proj": (1, True)}


def _heads_of(
    config: DecoderConfig, groups: tuple[int, ...] | None, axis: int, queries: bool
) -> Piece | None:
    """Where the rows of some key-value heads, or of the query heads that read them, stand in a weight."""
    if groups is None:
        return None
    each = config.head_dim * (config.num_heads // config.num_kv_heads if queries else 1)
    spans = tuple((group * each, (group + 1) * each) for group in groups)
    return Piece(axis, spans, config.num_kv_heads * each)


def _norm(config: DecoderConfig, width: int) -> RMSNorm:
    return RMSNorm(width, config.rms_norm_eps, offset=config.offset_norm)


def _normed_heads(norm: nn.Module, x: Tensor, heads: int) -> Tensor:
    b, s, width = x.shape
    # Three axes, not four: torch asks of four whether channels come last; an unknown length has no answer.
    normed: Tensor = norm(x.reshape(b, s * heads, width // heads))  # b s (h e) -> b (s h) e
    return normed.reshape(b, s, width)


class MLP(nn.Module):
    """All neurons, or those from `first` to `last`; the output's bias comes with the first one."""

    def __init__(self, config: DecoderConfig, first: int = 0, last: int | None = None) -> None:
        super().__init__()
        d, size = config.hidden_size, config.intermediate_size
        last = size if last is None else last
        some = last - first < size
        outputs, inputs = (Piece(axis, ((first, last),), size) if some else None for axis in (0, 1))
        self.gate_proj = Linear(d, last - first, bias=config.mlp_bias, piece=outputs)
        self.up_proj = Linear(d, last - first, bias=config.mlp_bias, piece=outputs)
        self.down_proj = Linear(last - first, d, bias=config.mlp_bias and first == 0, piece=inputs)
        self.activation = find_activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """Attention and MLP around a residual; a sandwich normalises what joins it, too."""

    def __init__(self, config: DecoderConfig, target: ModuleType, index: int) -> None:
        super().__init__()
        d = config.hidden_size
        window = config.windows[index] if config.windows else None
        self.input_layernorm = _norm(config, d)
        self.self_attn = _attention(config, target, window, index)
        self.post_attention_layernorm = _norm(config, d)
        self.mlp = _mlp(config)
        self.sandwich = config.sandwich_norm
        if self.sandwich:
            self.pre_feedforward_layernorm = _norm(config, d)
            self.post_feedforward_layernorm = _norm(config, d)

    def forward(
        self, x: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache, Projections | None]:
        mixed, present, projections = self.self_attn(self.input_layernorm(x), chunk, past)
        if not self.sandwich:
            x = x + mixed
            return x + self._feed(self.post_attention_layernorm(x), chunk), present, projections
        x = x + self.post_attention_layernorm(mixed)
        fed = self._feed(self.pre_feedforward_layernorm(x), chunk)
        return x + self.post_feedforward_layernorm(fed), present, projections

    def _feed(self, x: Tensor, chunk: ChunkState) -> Tensor:
        y: Tensor
        if isinstance(self.mlp, SplitMLP):
            assert chunk.text is not None
            y = self.mlp(x, chunk.text)
        else:
            y = self.mlp(x)
        return y


def _attention(
    config: DecoderConfig, target: ModuleType, window: int | None, index: int
) -> Attention | SplitAttention:
    skipping = config.skipping
    others = skipping.text_groups(index, config.num_kv_heads) if skipping else ()
    if skipping and others:
        return SplitAttention(config, target, skipping.groups[index], others)
    return _whole(config)(config, target, window)


def _whole(config: DecoderConfig) -> type[Attention]:
    """Attention of heads that see visual rows."""
    return NearAttention if config.skipping and config.skipping.window else Attention


def _mlp(config: DecoderConfig) -> MLP | SplitMLP:
    size = config.intermediate_size
    neurons = config.skipping.neurons if config.skipping else size
    if neurons == size:
        return MLP(config)
    return SplitMLP(MLP(config, 0, neurons), MLP(config, neurons, size))


class LanguageModel(nn.Module):
    """Layers `first..last-1` under their numbers in the checkpoint, and the norm after the last layer."""

    def __init__(self, config: DecoderConfig, target: ModuleType, first: int, last: int) -> None:
        super().__init__()
        self.rope = _rope(config.rope)
        if config.local_rope is not None:
            self.local_rope = _rope(config.local_rope)
        self.config = config
        self.layers = nn.ModuleDict({str(i): Layer(config, target, i) for i in range(first, last)})
        if last == config.num_layers:
            self.norm = _norm(config, config.hidden_size)

    def state(
        self,
        position_ids: Tensor,
        length: Tensor,
        cache_length: Tensor,
        masks: dict[int | None, Tensor],
        text: TextRows | None = None,
        sight: Sight | None = None,
        longest: Tensor | None = None,
    ) -> ChunkState:
        """What the layers share about a chunk at `position_ids` `[b, s]` or `[b, s, axes]`."""
        rotation = self.rope(position_ids)
        local = rotation if self.config.local_rope is None else self.local_rope(position_ids)
        return ChunkState(rotation, local, length, cache_length, masks, text, sight, longest)


def _rope(config: RopeConfig) -> Rope:
    return Rope(config, inverse_frequencies(config)[1])


@dataclass(frozen=True)
class Neighbourhood:
    """What masks are made of: positions and image numbers of a chunk, and the positions behind the cache.

    Attributes:
        position: `[b, s]` of the chunk's tokens.
        block: `[b, s]`, the number of the image that a token belongs to, -1 for text.
        past_position: `[b, capacity]`, positions of the cached tokens; what lies behind `cache_length` means
            nothing.
    """

    position: Tensor
    block: Tensor
    past_position: Tensor


def attention_masks(
    near: Neighbourhood, length: Tensor, cache_length: Tensor, windows: set[int | None]
) -> dict[int | None, Tensor]:
    """Per window, which cache slots each query sees: bool `[b, s, capacity]`.

    A query sees every slot before its own, and in its own image also those behind; a window takes away what
    lies `window` or more *positions* back, so that tokens which survived a cut keep their distances.
    """
    s, capacity = near.position.shape[1], near.past_position.shape[1]
    slot = torch.arange(capacity)[None, :]  # 1 capacity
    row = slot - cache_length[:, None]  # b capacity: row of the chunk that a slot holds
    inside = (row >= 0) & (row < length[:, None])
    source = torch.where(inside, row, 0)
    key_position = torch.where(inside, torch.gather(near.position, 1, source), near.past_position)
    key_block = torch.where(inside, torch.gather(near.block, 1, source), -1)
    own = (torch.arange(s)[None, :] + cache_length[:, None])[:, :, None]  # b s 1: the query's own slot
    together = (key_block[:, None, :] == near.block[:, :, None]) & (key_block >= 0)[:, None, :]
    filled = (slot < (cache_length + length)[:, None])[:, None, :]
    visible = ((slot[:, None, :] <= own) | together) & filled  # b s capacity
    distance = near.position[:, :, None] - key_position[:, None, :]
    return {w: visible if w is None else visible & (distance < w) for w in windows}
