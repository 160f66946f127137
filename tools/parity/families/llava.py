"""LLaVA-1.5: CLIP, a projector, a Llama-like text model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.tools.parity.facts import EncoderFacts
from foveate.tools.parity.families import ItemTrace
from foveate.tools.parity.families.base import TextOracle, tapped


class Oracle(TextOracle):
    """transformers' LLaVA."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.tower = self.model.model.vision_tower
        if self.processor.patch_size is None:
            # Early checkpoints have no processor_config.json: the model says what the processor has to know.
            self.processor.patch_size = self.config.vision_config.patch_size
            self.processor.vision_feature_select_strategy = "full" if self.keeps_cls else "default"
            self.processor.num_additional_image_tokens = 1

    @property
    def keeps_cls(self) -> bool:
        """Whether CLS is among the visual tokens, as their first."""
        return bool(self.config.vision_feature_select_strategy == "full")

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's pixels, image by image [1, 3, height, width]."""
        every = inputs.get("pixel_values")
        return (
            [] if every is None else [{"pixel_values": every[i : i + 1].numpy()} for i in range(len(every))]
        )

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image of `pixel_values` [b, 3, height, width]."""
        if "pixel_values" not in inputs:
            return []
        layers = self.tower.encoder.layers
        modules = {("query", i): layer.self_attn.q_proj for i, layer in enumerate(layers)}
        modules |= {("key", i): layer.self_attn.k_proj for i, layer in enumerate(layers)}
        with tapped(modules) as taps:
            hidden = self.tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        chosen = self.config.vision_feature_layer
        numbers = [chosen] if isinstance(chosen, int) else list(chosen)
        start = 0 if self.keeps_cls else 1
        features = torch.cat([hidden[number][:, start:] for number in numbers], dim=-1)  # [b, n, c * layers]
        projected = self.model.model.multi_modal_projector(features)
        evidence = {which: [taps[which, i][0] for i in range(len(layers))] for which in ("query", "key")}
        return [
            ItemTrace(
                projected=projected[i],
                facts=self._facts(hidden, evidence, features[i], projected[i], i),
                # What follows the layer that is selected is not in the graph.
                layers={n: hidden[n + 1][i : i + 1] for n in range(self._feature_layer)},
                features=features[i],
            )
            for i in range(len(projected))
        ]

    @property
    def _feature_layer(self) -> int:
        """Hidden state that LLaVA selects (the last one of several), 0 are the embeddings."""
        chosen = self.config.vision_feature_layer
        last = int(chosen if isinstance(chosen, int) else chosen[-1])
        return last % (int(self.config.vision_config.num_hidden_layers) + 1)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Rows [k, c] by the projector: [k, d]."""
        rows: Tensor = self.model.model.multi_modal_projector(features[None])[0]
        return rows

    @torch.no_grad()
    def beside(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Tokens [m, w] through the layers below the features, next to an image's embedded rows [r, w].

        transformers' own layers over all rows at once, under a mask: the tokens see everything, the image's
        rows see only each other.
        """
        rows = torch.cat([image, self.tower.pre_layrnorm(tokens)])
        seen = torch.zeros(len(rows), len(rows))
        seen[: len(image), len(image) :] = torch.finfo(torch.float32).min
        state = rows[None]
        for layer in self.tower.encoder.layers[: self._feature_layer]:
            state = layer(state, attention_mask=seen[None, None])
        return state[0, len(image) :]

    def _facts(
        self,
        hidden: tuple[Tensor, ...],
        evidence: dict[str, list[Tensor]],
        features: Tensor,
        projected: Tensor,
        image: int,
    ) -> EncoderFacts:
        """The encoder site's evidence for one image: patches and CLS of the (last) selected hidden state."""
        state = hidden[self._feature_layer][image : image + 1]  # [1, p + 1, w]
        one = slice(image, image + 1)
        layers = int(self.config.vision_config.num_hidden_layers)
        leading = int(self.keeps_cls)  # CLS is no candidate, it stays
        side = math.isqrt(state.shape[1] - 1)
        return EncoderFacts(
            patches=state[:, 1:].numpy(),
            cls=state[:, 0].numpy(),
            query={i: layer[one].numpy() for i, layer in enumerate(evidence["query"])},
            key={i: layer[one].numpy() for i, layer in enumerate(evidence["key"])},
            num_heads=int(self.config.vision_config.num_attention_heads),
            num_layers=layers,
            feature_layer=self._feature_layer,
            global_layers=tuple(range(layers)),
            pool=lambda scores: scores[0],
            tile=np.zeros(state.shape[1] - 1, np.int64),
            pooled=None,
            projected=projected[leading:].numpy(),
            features=features[leading:].numpy(),
            hidden={i: rows[one].numpy() for i, rows in enumerate(hidden)},
            extra=lambda tokens: self.beside(
                hidden[0][image], torch.tensor(np.array(tokens, np.float32))
            ).numpy(),
            grid=(side, side),
        )
