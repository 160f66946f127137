"""LLaVA-1.5 (arXiv 2310.03744): CLIP tower, MLP projector, Llama-like text model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.clip import ClipConfig, ClipTrace, ClipVision
from foveate.export.blocks.compaction import kept_rows
from foveate.export.blocks.decoder import DecoderConfig
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.rope import inverse_frequencies
from foveate.export.config import Reader
from foveate.export.decoder_stages import budget_inputs, fused_stage, plan_segments, segment_stages
from foveate.export.methods import build_method
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence
from foveate.pruning.plan import PruningPlan
from foveate.pruning.selection import Selection
from foveate.runtime.errors import CheckpointError, UsageError

# transformers' defaults for a LLaVA without a vision_config: CLIP ViT-L/14 at 336 px.
_DEFAULT_VISION: Final[Mapping[str, Any]] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_DEFAULT_EOS: Final[Mapping[Any, int]] = {None: 2, "llama": 2, "mistral": 2}
_STRATEGIES: Final = ("default", "full")


@dataclass(frozen=True)
class Config:
    """A LLaVA checkpoint's configuration.

    `feature_layers` count like transformers' `hidden_states` (0 = input of the first layer), made positive.
    `keep_cls` is select strategy "full": the CLS token joins the visual tokens, and is never dropped.
    """

    vision: ClipConfig
    text: DecoderConfig
    feature_layers: tuple[int, ...]
    keep_cls: bool
    image_token_id: int
    projector_activation: str
    projector_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        vision_json = reader.section_of("vision_config", _DEFAULT_VISION)
        kind = Reader(vision_json, "vision_config").text("model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            raise CheckpointError(
                "unsupported vision tower for family llava", found=repr(kind), wanted="clip_vision_model"
            )
        text_json = reader.section_of("text_config", {"model_type": "llama"})
        text_reader = Reader(text_json, "text_config")
        vision = ClipConfig.read(vision_json)
        tied = reader.flag("tie_word_embeddings", False)
        strategy = reader.text("vision_feature_select_strategy", "default")
        if strategy not in _STRATEGIES:
            raise reader.refused(
                "vision_feature_select_strategy", strategy, f"one of {', '.join(_STRATEGIES)}"
            )
        text = DecoderConfig.read(text_json, tied_head=tied)
        image_token_id = reader.integer("image_token_index", config.get("image_token_id") or 32000)
        if image_token_id >= text.vocab_size:
            raise reader.refused("image_token_index", image_token_id, f"below vocab_size ({text.vocab_size})")
        return Config(
            vision=vision,
            text=text,
            feature_layers=_feature_layers(reader, vision.num_layers),
            keep_cls=strategy == "full",
            image_token_id=image_token_id,
            projector_activation=reader.text("projector_hidden_act", "gelu"),
            projector_bias=reader.flag("multimodal_projector_bias", True),
            bos_token_id=next(iter(text_reader.token_ids("bos_token_id", None)), None),
            eos_token_ids=text_reader.token_ids(
                "eos_token_id", _DEFAULT_EOS.get(text_json.get("model_type"))
            ),
            pad_token_id=next(
                iter(Reader({**text_json, **config}, "config").token_ids("pad_token_id", None)), None
            ),
        )

    @property
    def visual_tokens(self) -> int:
        return self.vision.num_patches + self.keep_cls

    @property
    def feature_width(self) -> int:
        return self.vision.hidden_size * len(self.feature_layers)


def _feature_layers(reader: Reader, num_layers: int) -> tuple[int, ...]:
    given = reader.section.get("vision_feature_layer", -2)
    layers = given if isinstance(given, list) and given else [given]
    for layer in layers:
        if (
            isinstance(layer, bool)
            or not isinstance(layer, int)
            or not -num_layers - 1 <= layer <= num_layers
        ):
            raise reader.refused(
                "vision_feature_layer", given, f"layer numbers from {-num_layers - 1} to {num_layers}"
            )
    return tuple(layer % (num_layers + 1) for layer in layers)


class Vision(StageModule):
    """Pixels to features, order and count; `gather` returns the kept rows only (fused layout)."""

    def __init__(
        self,
        config: Config,
        plan: PruningPlan,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        gather: bool,
    ) -> None:
        super().__init__(inputs, outputs)
        self.config, self.gather = config, gather
        self.method = build_method(plan.encoder) if plan.encoder else None
        attention_at: tuple[int, ...] = ()
        if self.method is not None:
            attention_at = self.method.layers(config.vision.num_layers, config.feature_layers[-1])
        self.vision_tower = ClipVision(config.vision, config.feature_layers, attention_at)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = self.vision_tower(feeds["pixel_values"])
        hidden = torch.cat([trace.hidden[i] for i in self.config.feature_layers], dim=2)  # b n+1 c
        selection = self._select(trace, feeds)
        features = hidden if self.config.keep_cls else hidden[:, 1:]
        if self.gather:
            features = kept_rows(features, selection)
        return {"features": features, "order": selection.order, "count": selection.count}

    def _select(self, trace: ClipTrace, feeds: dict[str, Tensor]) -> Selection:
        last = trace.hidden[self.config.feature_layers[-1]]
        patches, cls = last[:, 1:], last[:, 0]
        b, n = patches.shape[:2]
        if self.method is None:
            everyone = torch.arange(n + self.config.keep_cls).expand(b, -1)
            return Selection(everyone, torch.full_like(everyone[:, 0], n + self.config.keep_cls))
        evidence = EncoderEvidence(patches, cls, trace.query, trace.key, self.config.vision.num_heads)
        budget = Budget(feeds["keep_ratio"], feeds["keep_tokens"])
        order, count = self.method(evidence, budget, feeds.get("seed"))
        if self.config.keep_cls:  # the CLS token is row 0 of the features and always stays
            order, count = torch.cat([torch.zeros_like(order[:, :1]), order + 1], dim=1), count + 1
        return Selection(order, count)


class Projector(nn.Module):
    """Two linear layers with an activation between: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.text.hidden_size
        self.linear_1 = Linear(config.feature_width, d, bias=config.projector_bias)
        self.linear_2 = Linear(d, d, bias=config.projector_bias)
        self.activation = find_activation(config.projector_activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return y


class TokenEmbedding(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)


class TextInput(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)


class Embed(StageModule):
    """Token ids and kept visual features to the decoder's input.

    Before: `ids = BOS USER : <image> <image> <image> What ...`, `slot = -1 -1 -1 0 1 2 -1 ...`
    After: the projected features stand where their slots are. Only kept rows are projected.
    """

    def __init__(
        self, config: Config, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(inputs, outputs)
        self.multi_modal_projector = Projector(config)
        self.language_model = TextInput(config.text)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        slot = feeds["slot"]
        b, s = slot.shape
        visual = self.multi_modal_projector(feeds["features"].index_select(0, feeds["kept_index"]))  # k d
        # One row of zeros behind the visual ones is what text slots read, so nothing reads out of range.
        visual = torch.nn.functional.pad(visual, (0, 0, 0, 1))
        rows = torch.where(slot < 0, visual.shape[0] - 1, slot)
        placed = visual.index_select(0, rows.reshape(-1)).reshape(b, s, visual.shape[1])  # (b s) d -> b s d
        text = self.language_model.embed_tokens(feeds["input_ids"])
        return {"hidden": torch.where((slot < 0)[:, :, None], text, placed)}


def stages(config: Config, plan: PruningPlan, target: ModuleType) -> dict[str, tuple[Stage, ...]]:
    """The graphs of each layout, in the order in which they run.

    Raises:
        UsageError: a cut lies outside the decoder.
    """
    _check_cuts(config, plan)
    segments = plan_segments(config.text.num_layers, plan.decoder)
    embed = _embed_stage(config)
    return {
        "fused": (
            _vision_stage(config, plan, "vision", gather=True),
            embed,
            fused_stage(config.text, segments, target),
        ),
        "segmented": (
            _vision_stage(config, plan, "vision_segmented", gather=False),
            embed,
            *segment_stages(config.text, segments, target),
        ),
    }


def _check_cuts(config: Config, plan: PruningPlan) -> None:
    for cut in plan.decoder:
        if not 1 <= (cut.layer or 0) < config.text.num_layers:
            raise UsageError(
                f"{cut.method}@{cut.layer} does not lie inside the decoder",
                found=f"layer {cut.layer} of {config.text.num_layers}",
                wanted=f"1 to {config.text.num_layers - 1}: the cut acts after that many layers",
            )


def _vision_stage(config: Config, plan: PruningPlan, name: str, *, gather: bool) -> Stage:
    size, n = config.vision.image_size, config.visual_tokens
    inputs = (
        TensorSpec("pixel_values", "float32", ("batch", config.vision.num_channels, size, size)),
        *(budget_inputs(plan.encoder) if plan.encoder else ()),
    )
    rows: tuple[int | str, ...] = ("kept",) if gather else ("batch", n)
    outputs = (
        TensorSpec("features", "float32", (*rows, config.feature_width)),
        TensorSpec("order", "int64", ("batch", n)),
        TensorSpec("count", "int64", ("batch",)),
    )
    return Stage(name, inputs, outputs, lambda: Vision(config, plan, inputs, outputs, gather=gather))


def _embed_stage(config: Config) -> Stage:
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("slot", "int64", ("batch", "sequence")),
        TensorSpec("features", "float32", ("rows", config.feature_width)),
        TensorSpec("kept_index", "int64", ("kept",)),
    )
    outputs = (TensorSpec("hidden", "float32", ("batch", "sequence", config.text.hidden_size)),)
    return Stage("embed", inputs, outputs, lambda: Embed(config, inputs, outputs))


# --- weights ------------------------------------------------------------------------------------------------

# Prefixes by which releases of transformers and LLaVA have called the same tensors; first match wins.
_PREFIXES: Final = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "language_model."),
    (r"^model\.language_model\.model\.", "language_model."),
    (r"^model\.(language_model|vision_tower|multi_modal_projector)\.", r"\1."),
)


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    for pattern, replacement in _PREFIXES:
        name, hits = re.subn(pattern, replacement, name, count=1)
        if hits:
            break
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)


def is_unused(config: Config, name: str) -> bool:
    """Whether a renamed tensor belongs to the model but not to the graphs: buffers, unread layers."""
    layer = re.match(
        r"vision_tower\.encoder\.layers\.(\d+)\."
        r"(?:self_attn\.(?:q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(?:weight|bias)$",
        name,
    )
    if layer:
        return int(layer.group(1)) < config.vision.num_layers
    return bool(
        re.match(
            r"vision_tower\.post_layernorm\.(weight|bias)$"
            r"|vision_tower\.embeddings\.position_ids$"
            r"|language_model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$",
            name,
        )
    )


def tied_weights(config: Config) -> dict[str, str]:
    """Parameters that share another one's tensor."""
    return {"lm_head.weight": "language_model.embed_tokens.weight"} if config.text.tied_head else {}


def constants(config: Config) -> dict[str, Tensor]:
    """Parameters that are computed, not stored."""
    return {"language_model.rope.inverse_frequency": inverse_frequencies(config.text.rope)[0]}
