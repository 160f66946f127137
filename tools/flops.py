"""How much arithmetic a prefill takes, by formula: multiply-adds of matrix products, two operations each.

Counted are convolution, linear layers, attention (the whole square, as papers count it, though half of it is
masked) and the head for one row. Norms, activations and the choice of tokens are left out; what a graph
really does besides is counted by `foveate.tools.eval.work`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionSizes:
    """A CLIP tower: `layers` that run, `width`, `mlp`, `patches` with `patch_values` numbers each."""

    layers: int
    width: int
    mlp: int
    patches: int
    patch_values: int


@dataclass(frozen=True)
class DecoderSizes:
    """A Llama-like decoder; `query` and `key` are widths over all heads."""

    layers: int
    width: int
    query: int
    key: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True)
class Sizes:
    """What the formulas need to know about a LLaVA."""

    vision: VisionSizes
    decoder: DecoderSizes

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Sizes:
        """Of a LLaVA's `config.json`."""
        vision, text = config["vision_config"], config["text_config"]
        layer = config.get("vision_feature_layer", -2)
        side = vision["image_size"] // vision["patch_size"]
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return cls(
            VisionSizes(
                layers=layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer,
                width=vision["hidden_size"],
                mlp=vision["intermediate_size"],
                patches=side * side,
                patch_values=vision.get("num_channels", 3) * vision["patch_size"] ** 2,
            ),
            DecoderSizes(
                layers=text["num_hidden_layers"],
                width=text["hidden_size"],
                query=text["num_attention_heads"] * head,
                key=text["num_key_value_heads"] * head,
                mlp=text["intermediate_size"],
                vocabulary=text["vocab_size"],
            ),
        )


@dataclass(frozen=True)
class Prefill:
    """Operations of each stage of one prompt's prefill."""

    vision: float
    connector: float
    decoder: float

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.vision + self.connector + self.decoder


def prefill(sizes: Sizes, entered: float, present: Sequence[float], text: float) -> Prefill:
    """Operations of a prompt with one image.

    Args:
        sizes: the model's.
        entered: visual tokens that go through the connector.
        present: visual tokens in each layer of the decoder.
        text: tokens of text, in all layers.
    """
    return Prefill(
        vision=vision_flops(sizes.vision),
        connector=connector_flops(sizes, entered),
        decoder=sum(layer_flops(sizes.decoder, count + text) for count in present)
        + 2 * sizes.decoder.width * sizes.decoder.vocabulary,
    )


def vision_flops(sizes: VisionSizes) -> float:
    """The patch embedding, and the layers up to the one that gives the features, with CLS."""
    rows, w = sizes.patches + 1, sizes.width
    layer = 2 * rows * (4 * w * w + 2 * w * sizes.mlp) + 4 * rows * rows * w
    return 2 * sizes.patches * sizes.patch_values * w + sizes.layers * layer


def connector_flops(sizes: Sizes, rows: float) -> float:
    """LLaVA's two linear layers."""
    c, d = sizes.vision.width, sizes.decoder.width
    return 2 * rows * (c * d + d * d)


def layer_flops(sizes: DecoderSizes, rows: float) -> float:
    """One decoder layer that reads `rows` tokens: projections, attention, gated MLP."""
    d = sizes.width
    linear = d * (2 * sizes.query + 2 * sizes.key) + 3 * d * sizes.mlp
    return 2 * rows * linear + 4 * rows * rows * sizes.query
