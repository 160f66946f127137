"""The Llama-like text decoder, by configuration: RMSNorm, RoPE, grouped-query attention, gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.norm import RMSNorm
from foveate.export.blocks.rope import Rope, RopeConfig, inverse_frequencies
from foveate.export.config import Reader
from foveate.runtime.errors import CheckpointError

# What transformers assumes when config.json leaves a key out, where the text models differ.
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {"intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 2048},
    "mistral": {
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
    },
}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a text model; one record serves Llama, Vicuna, Mistral and Qwen2.

    `max_positions` is what the graphs are good for: the trained length, or the sliding window where the model
    has one (inside the window, windowed and full attention are the same function).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied_head: bool
    rope: RopeConfig

    @staticmethod
    def read(text: Mapping[str, Any], *, tied_head: bool = False) -> DecoderConfig:
        """Reads a text configuration.

        Raises:
            CheckpointError: the text model is not a known one, or a value is not usable.
        """
        model_type = Reader(text, "text_config").text("model_type", "llama")
        if model_type not in _DEFAULTS:
            raise CheckpointError(
                "unsupported text model", found=repr(model_type), wanted=f"one of {', '.join(_DEFAULTS)}"
            )
        reader = Reader({**_DEFAULTS[model_type], **_given(text)}, "text_config")
        width = reader.integer("hidden_size", 4096)
        heads = reader.integer("num_attention_heads", 32)
        kv_heads = reader.integer("num_key_value_heads", heads)
        reader.require_divisible("num_attention_heads", heads, "num_key_value_heads", kv_heads)
        if not text.get("head_dim"):
            reader.require_divisible("hidden_size", width, "num_attention_heads", heads)
        head_dim = reader.integer("head_dim", width // heads)
        if head_dim % 2:
            raise reader.refused("head_dim", head_dim, "an even number: RoPE turns pairs")
        trained = reader.integer("max_position_embeddings")
        attention_bias = reader.flag("attention_bias", False)
        find_activation(reader.text("hidden_act", "silu"))
        return DecoderConfig(
            hidden_size=width,
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=reader.integer("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=reader.integer("vocab_size"),
            max_positions=min(trained, _window(reader, model_type) or trained),
            rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
            activation=reader.text("hidden_act", "silu"),
            qkv_bias=model_type == "qwen2" or attention_bias,
            output_bias=attention_bias,
            mlp_bias=reader.flag("mlp_bias", False),
            tied_head=tied_head or reader.flag("tie_word_embeddings", False),
            rope=RopeConfig.read(text, head_dim, trained),
        )


def _given(text: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that are set. An explicit null means "none" for the window and "default" everywhere else."""
    return {key: value for key, value in text.items() if value is not None or key == "sliding_window"}


def _window(reader: Reader, model_type: str) -> int | None:
    if model_type == "qwen2" and not reader.flag("use_sliding_window", False):
        return None
    window = reader.section.get("sliding_window")
    return None if window is None else reader.integer("sliding_window")


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer `[b, g, capacity, head_dim]`."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class ChunkState:
    """What all layers of a segment share about the chunk that they run.

    Attributes:
        cos, sin: `[b, s, head_dim / 2]` for the chunk's positions.
        length: `[b]` valid tokens, padding on the right.
        cache_length: `[b]` tokens already in the segment's caches.
    """

    cos: Tensor
    sin: Tensor
    length: Tensor
    cache_length: Tensor


@dataclass(frozen=True)
class Projections:
    """Query `[b, s, h * head_dim]` and key `[b, s, g * head_dim]` of one layer, before and after RoPE."""

    query_plain: Tensor
    key_plain: Tensor
    query: Tensor
    key: Tensor


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, target: ModuleType) -> None:
        super().__init__()
        d, q, kv = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        self.q_proj = Linear(d, q, bias=config.qkv_bias)
        self.k_proj = Linear(d, kv, bias=config.qkv_bias)
        self.v_proj = Linear(d, kv, bias=config.qkv_bias)
        self.o_proj = Linear(q, d, bias=config.output_bias)
        self.num_heads, self.num_kv_heads, self.target = config.num_heads, config.num_kv_heads, target

    def forward(
        self, x: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache, Projections]:
        query_plain, key_plain = self.q_proj(x), self.k_proj(x)
        query = self.target.rotary(query_plain, chunk.cos, chunk.sin, self.num_heads)
        key = self.target.rotary(key_plain, chunk.cos, chunk.sin, self.num_kv_heads)
        mixed, present_key, present_value = self.target.cached_attention(
            query,
            key,
            self.v_proj(x),
            past.key,
            past.value,
            chunk.length,
            chunk.cache_length,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
        )
        present = LayerCache(present_key, present_value)
        return self.o_proj(mixed), present, Projections(query_plain, key_plain, query, key)


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(d, inner, bias=config.mlp_bias)
        self.up_proj = Linear(d, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, d, bias=config.mlp_bias)
        self.activation = find_activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig, target: ModuleType) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, target)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, chunk: ChunkState, past: LayerCache
    ) -> tuple[Tensor, LayerCache, Projections]:
        mixed, present, projections = self.self_attn(self.input_layernorm(x), chunk, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present, projections


class LanguageModel(nn.Module):
    """Layers `first..last-1` under their numbers in the checkpoint, and the norm after the last layer."""

    def __init__(self, config: DecoderConfig, target: ModuleType, first: int, last: int) -> None:
        super().__init__()
        self.rope = Rope(config.rope, inverse_frequencies(config.rope)[1])
        self.layers = nn.ModuleDict({str(i): Layer(config, target) for i in range(first, last)})
        if last == config.num_layers:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
