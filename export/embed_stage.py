"""The embed graph of any family: token ids and kept feature rows become the decoder's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.families import Family
from foveate.export.stage import Stage, StageModule, TensorSpec


class TokenEmbedding(nn.Module):
    """A table `[v, d]`, times a factor where the text model has one (Gemma: the root of the width)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size), requires_grad=False)
        self.scale = config.embedding_scale

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.weight)
        return rows if self.scale == 1.0 else rows * self.scale


class TextInput(nn.Module):
    """Holds the table under the name that it has in all graphs."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config)


class Embed(StageModule):
    """Token ids and kept visual features to the decoder's input.

    Before: `ids = BOS USER : <image> <image> <image> What ...`, `slot = -1 -1 -1 0 1 2 -1 ...`
    After: the projected features stand where their slots are. Only kept rows are projected.

    With DeepStack, the connector gives `d` numbers more for each level; they leave as `deepstack`, zero for
    text.
    """

    def __init__(
        self, family: Family, config: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(inputs, outputs)
        self.connector = family.Connector(config)
        self.language_model = TextInput(config.text)
        self.width = config.text.hidden_size

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        slot = feeds["slot"]
        b, s = slot.shape
        visual = self.connector(feeds["features"].index_select(0, feeds["kept_index"]))  # k (1+levels)*d
        # One row of zeros behind the visual ones is what text slots read, so nothing reads out of range.
        visual = nn.functional.pad(visual, (0, 0, 0, 1))
        rows = torch.where(slot < 0, visual.shape[0] - 1, slot)
        placed = visual.index_select(0, rows.reshape(-1)).reshape(b, s, visual.shape[1])  # (b s) d -> b s d
        text = self.language_model.embed_tokens(feeds["input_ids"])
        hidden = torch.where((slot < 0)[:, :, None], text, placed[:, :, : self.width])
        if "deepstack" not in self.output_names:
            return {"hidden": hidden}
        return {"hidden": hidden, "deepstack": placed[:, :, self.width :]}


def embed_stage(family: Family, config: Any) -> Stage:
    """The stage `embed`, the same in both layouts."""
    d, levels = config.text.hidden_size, config.text.deepstack_levels
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("slot", "int64", ("batch", "sequence")),
        TensorSpec("features", "float32", ("rows", config.feature_width)),
        TensorSpec("kept_index", "int64", ("kept",)),
    )
    outputs = (
        TensorSpec("hidden", "float32", ("batch", "sequence", d)),
        *((TensorSpec("deepstack", "float32", ("batch", "sequence", levels * d)),) if levels else ()),
    )
    return Stage("embed", inputs, outputs, lambda: Embed(family, config, inputs, outputs))
