"""Gemma 3: SigLIP, pooled; a text model with windows, whose images see themselves in both directions."""

from __future__ import annotations

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
    """transformers' Gemma 3."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's pixels, image by image [1, 3, height, width]."""
        every = inputs.get("pixel_values")
        return (
            [] if every is None else [{"pixel_values": every[i : i + 1].numpy()} for i in range(len(every))]
        )

    # --- vision ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image of `pixel_values` [b, 3, height, width]."""
        if "pixel_values" not in inputs:
            return []
        layers = self.tower.encoder.layers
        modules = {("query", i): layer.self_attn.q_proj for i, layer in enumerate(layers)}
        modules |= {("key", i): layer.self_attn.k_proj for i, layer in enumerate(layers)}
        modules |= {("out", i): layer for i, layer in enumerate(layers)}
        with tapped(modules) as taps:
            state = self.tower(inputs["pixel_values"]).last_hidden_state  # [b, p, w]
        projected = self.projector(state)
        traces = []
        for image in range(len(state)):
            one = slice(image, image + 1)
            # Layer outputs are tuples in some releases.
            values = {
                key: (got[0][0] if isinstance(got[0], tuple) else got[0])[one] for key, got in taps.items()
            }
            traces.append(
                ItemTrace(
                    projected=projected[image],
                    facts=self._facts(state[one], values, projected[image]),
                    layers={i: values["out", i] for i in range(len(layers))},
                )
            )
        return traces

    def _facts(
        self, state: Tensor, values: Mapping[tuple[str, int], Tensor], projected: Tensor
    ) -> EncoderFacts:
        """The encoder site's evidence for one image, of what its last layer gives behind the last norm."""
        layers = int(self.config.vision_config.num_hidden_layers)
        return EncoderFacts(
            patches=state.numpy(),
            cls=None,
            query={i: values["query", i].numpy() for i in range(layers)},
            key={i: values["key", i].numpy() for i in range(layers)},
            num_heads=int(self.config.vision_config.num_attention_heads),
            num_layers=layers,
            feature_layer=layers,
            global_layers=tuple(range(layers)),
            pool=self._pool,
            tile=np.zeros(len(projected), np.int64),
            pooled=self._pooled(state),
            projected=projected.numpy(),
        )

    def _pool(self, scores: np.ndarray) -> list[float]:
        """Scores [1, p] of patches to the mean over each square that becomes one token."""
        width, size = self.projector.patches_per_image, self.projector.kernel_size
        side = self.projector.tokens_per_side
        pooled = []
        for row in range(side):
            for column in range(side):
                total = 0.0
                for i in range(size):
                    for j in range(size):
                        total += float(scores[0, (row * size + i) * width + column * size + j])
                pooled.append(total / size**2)
        return pooled

    def _pooled(self, state: Tensor) -> np.ndarray | None:
        """What the pooling head's query looks at: [1, p], mean over heads. Most checkpoints have none."""
        if not self.config.vision_config.vision_use_head:
            return None
        head = self.tower.head
        weights = head.attention(head.probe, state, state, need_weights=True)[1]  # [1, 1, p]
        return np.asarray(weights[:, 0].numpy())

    # --- the decoder ----------------------------------------------------------------------------------------

    def rotary(self, index: int, hidden: Tensor, positions: Tensor) -> Any:
        """Windowed layers turn at another pace."""
        kind = self.text.layers[index].self_attn.layer_type
        return self.text.rotary_emb(hidden[None], positions[None, :, 0], kind)

    def sees(self, index: int, positions: Tensor, block: Tensor, *, window: bool) -> Tensor:
        """Causal, or in the same image; and nearer than the window, in positions."""
        rows = len(positions)
        seen = torch.ones(rows, rows, dtype=torch.bool).tril()
        seen = seen | ((block[:, None] == block[None, :]) & (block >= 0)[:, None])
        size = self.text.layers[index].self_attn.sliding_window
        if not window or size is None:
            return seen
        place = positions[:, 0]
        near: Tensor = place[None, :] > place[:, None] - size
        return seen & near
