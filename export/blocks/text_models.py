"""What `config.json` says about a text model, as one record for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.rope import RopeConfig, inverse_frequencies
from foveate.export.blocks.visual_skipping import Skipping
from foveate.export.config import Reader
from foveate.runtime.errors import CheckpointError

_QWEN2_VL: Final[Mapping[str, Any]] = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
}
_QWEN3: Final[Mapping[str, Any]] = {
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "head_dim": 128,
}

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
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3": _QWEN3,
    "qwen3_vl_text": {**_QWEN3, "max_position_embeddings": 128000},
    "gemma3_text": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
}
TEXT_MODELS: Final = tuple(_DEFAULTS)


@dataclass(frozen=True)
class _Traits:
    """What belongs to the kind of a text model and stands in no config.json.

    `qkv_bias` None follows `attention_bias`. `window_flag`: the sliding window holds only where
    `use_sliding_window` says so. `gemma` is the whole set: norms around both halves of a layer with weights
    counted from 1, scaled embeddings, layers of two kinds, images that see themselves in both directions.
    """

    qkv_bias: bool | None = None
    qk_norm: bool = False
    rope_axes: int = 1
    rope_interleaved: bool = False
    window_flag: bool = False
    gemma: bool = False


_QWEN2_TRAITS: Final = _Traits(qkv_bias=True, window_flag=True)
_TRAITS: Final[Mapping[str, _Traits]] = {
    "llama": _Traits(),
    "mistral": _Traits(),
    "qwen2": _QWEN2_TRAITS,
    "qwen2_vl_text": _Traits(qkv_bias=True, window_flag=True, rope_axes=3),
    "qwen2_5_vl_text": _Traits(qkv_bias=True, window_flag=True, rope_axes=3),
    "qwen3": _Traits(qk_norm=True, window_flag=True),
    "qwen3_vl_text": _Traits(qk_norm=True, window_flag=True, rope_axes=3, rope_interleaved=True),
    "gemma3_text": _Traits(qk_norm=True, gemma=True),
}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a text model; one record serves all of `TEXT_MODELS`.

    Attributes:
        max_positions: what the graphs are good for: the trained length, or the sliding window where the model
            has one in all layers (inside the window, windowed and full attention are the same function).
        windows: per layer, how many positions back a query sees; empty: no layer has a window.
        local_rope: RoPE of the layers with a window, where it is another one.
        attention_scale: softmax scale.
        offset_norm: RMSNorm multiplies by 1 + weight.
        sandwich_norm: attention and MLP are normalised again before they join the residual.
        bidirectional_images: tokens of one image see each other in both directions.
        deepstack_levels: visual rows get something added after each of so many first layers.
        skipping: what visual rows go without in the layers; None for nothing. Of the export, not of the
            checkpoint.
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
    attention_scale: float
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    local_rope: RopeConfig | None = None
    embedding_scale: float = 1.0
    offset_norm: bool = False
    sandwich_norm: bool = False
    bidirectional_images: bool = False
    deepstack_levels: int = 0
    skipping: Skipping | None = None

    def text_heads(self, layer: int) -> int:
        """Key-value heads of a layer that hold text only."""
        return len(self.skipping.text_groups(layer, self.num_kv_heads)) if self.skipping else 0

    @property
    def has_text_heads(self) -> bool:
        """Whether any layer has them."""
        return any(self.text_heads(layer) for layer in range(self.num_layers))

    @property
    def window(self) -> int | None:
        """Of visual rows among visual rows, see `Skipping`."""
        return self.skipping.window if self.skipping else None

    @property
    def masked(self) -> bool:
        """Whether attention needs a mask of its own: more than "everything before me"."""
        return bool(self.windows) or self.bidirectional_images

    @staticmethod
    def read(text: Mapping[str, Any], *, tied_head: bool = False, deepstack_levels: int = 0) -> DecoderConfig:
        """Reads a text configuration.

        Raises:
            CheckpointError: the text model is not a known one, or a value is not usable.
        """
        model_type = Reader(text, "text_config").text("model_type", "llama")
        if model_type not in _DEFAULTS:
            raise CheckpointError(
                "unsupported text model", found=repr(model_type), wanted=f"one of {', '.join(_DEFAULTS)}"
            )
        traits = _TRAITS[model_type]
        reader = Reader({**_DEFAULTS[model_type], **_given(text)}, "text_config")
        width, heads, kv_heads, head_dim = _heads(reader, text)
        trained = reader.integer("max_position_embeddings")
        attention_bias = reader.flag("attention_bias", False)
        activation = reader.text("hidden_activation", reader.text("hidden_act", "silu"))
        find_activation(activation)
        return DecoderConfig(
            hidden_size=width,
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=reader.integer("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=reader.integer("vocab_size"),
            max_positions=trained if traits.gemma else min(trained, _window(reader, traits) or trained),
            rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
            activation=activation,
            qkv_bias=attention_bias if traits.qkv_bias is None else traits.qkv_bias,
            output_bias=attention_bias,
            mlp_bias=reader.flag("mlp_bias", False),
            tied_head=tied_head or reader.flag("tie_word_embeddings", traits.gemma),
            qk_norm=traits.qk_norm,
            deepstack_levels=deepstack_levels,
            **(
                _gemma(reader, text, head_dim, trained)
                if traits.gemma
                else _plain(text, head_dim, trained, traits)
            ),
        )


def _heads(reader: Reader, text: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Width, query heads, key-value heads, head width."""
    width = reader.integer("hidden_size", 4096)
    heads = reader.integer("num_attention_heads", 32)
    kv_heads = reader.integer("num_key_value_heads", heads)
    reader.require_divisible("num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if not reader.section.get("head_dim"):
        reader.require_divisible("hidden_size", width, "num_attention_heads", heads)
    head_dim = reader.integer("head_dim", width // heads)
    if head_dim % 2:
        raise reader.refused("head_dim", head_dim, "an even number: RoPE turns pairs")
    return width, heads, kv_heads, head_dim


def _plain(text: Mapping[str, Any], head_dim: int, trained: int, traits: _Traits) -> dict[str, Any]:
    rope = RopeConfig.read(
        text, head_dim, trained, axes=traits.rope_axes, interleaved=traits.rope_interleaved
    )
    return {"rope": rope, "attention_scale": head_dim**-0.5}


def _gemma(reader: Reader, text: Mapping[str, Any], head_dim: int, trained: int) -> dict[str, Any]:
    if reader.section.get("attn_logit_softcapping") is not None:
        raise reader.refused("attn_logit_softcapping", reader.section["attn_logit_softcapping"], "none")
    if reader.flag("use_bidirectional_attention", False):
        raise reader.refused("use_bidirectional_attention", True, "false: text is read from left to right")
    window = reader.integer("sliding_window")
    kinds = _layer_kinds(reader)
    rope = {**_legacy_rope(text, "full_attention", "rope_theta", 1e6)}
    local = {**_legacy_rope(text, "sliding_attention", "rope_local_base_freq", 1e4)}
    return {
        "rope": RopeConfig.read(rope, head_dim, trained),
        "local_rope": RopeConfig.read(local, head_dim, trained),
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
        "attention_scale": reader.positive("query_pre_attn_scalar") ** -0.5,
        "embedding_scale": reader.integer("hidden_size") ** 0.5,
        "offset_norm": True,
        "sandwich_norm": True,
        "bidirectional_images": True,
    }


def _layer_kinds(reader: Reader) -> list[str]:
    layers, given = reader.integer("num_hidden_layers"), reader.section.get("layer_types")
    if given is None:
        pattern = reader.integer("sliding_window_pattern", 6)
        return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(given, list) or len(given) != layers or any(kind not in known for kind in given):
        raise reader.refused("layer_types", given, f"{layers} of {' and '.join(known)}")
    return given


def _legacy_rope(text: Mapping[str, Any], kind: str, key: str, theta: float) -> dict[str, Any]:
    """One layer kind's RoPE as a text section of its own, from the current or the older spelling."""
    given = Reader(text, "text_config").section_of("rope_parameters", {})
    if isinstance(given.get(kind), Mapping):
        return {"rope_parameters": {"rope_theta": theta, **given[kind]}}
    # Only the layers without a window are stretched.
    scaling = text.get("rope_scaling") if kind == "full_attention" else None
    return {"rope_theta": text.get(key) or theta, "rope_scaling": scaling or {}}


def _given(text: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that are set. An explicit null means "none" for the window and "default" everywhere else."""
    return {key: value for key, value in text.items() if value is not None or key == "sliding_window"}


def _window(reader: Reader, traits: _Traits) -> int | None:
    if traits.window_flag and not reader.flag("use_sliding_window", False):
        return None
    window = reader.section.get("sliding_window")
    return None if window is None else reader.integer("sliding_window")


def tied_weights(config: DecoderConfig) -> dict[str, str]:
    """Parameters that share another one's tensor, by their names in the graphs."""
    return {"lm_head.weight": "language_model.embed_tokens.weight"} if config.tied_head else {}


def rope_constants(config: DecoderConfig) -> dict[str, Tensor]:
    """The parameters of the decoder that are computed, by their names in the graphs."""
    found = {"language_model.rope.inverse_frequency": inverse_frequencies(config.rope)[0]}
    if config.local_rope is not None:
        found["language_model.local_rope.inverse_frequency"] = inverse_frequencies(config.local_rope)[0]
    return found
