"""The vision graph of any family: encoder, choice, and in the fused layout the gathering of the kept rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.export.blocks.compaction import kept_rows
from foveate.export.embed_stage import TextInput
from foveate.export.families import Family
from foveate.export.methods import build_method
from foveate.export.stage import Stage, StageModule, TensorSpec, budget_inputs
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence
from foveate.pruning.plan import CutSpec, PruningPlan
from foveate.pruning.selection import Selection


def vision_stage(family: Family, config: Any, plan: PruningPlan, *, gather: bool) -> Stage:
    """The stage `vision` (`gather`: the kept rows only, fused layout) or `vision_segmented`.

    Raises:
        UsageError: the encoder's method asks for something that the family's encoder does not have.
    """
    cut = plan.encoder
    inputs = (*family.vision_inputs(config), *(_method_inputs(cut, _axis(family, config)) if cut else ()))
    outputs = _outputs(family, config, cut, gather)
    layers: tuple[int, ...] = ()
    if cut is not None:
        layers = build_method(cut).layers(family.encoder_shape(config))
    name = "vision" if gather else "vision_segmented"
    return Stage(
        name,
        inputs,
        outputs,
        lambda: VisionStage(family, config, cut, layers, inputs, outputs, gather=gather),
    )


def _axis(family: Family, config: Any) -> int | str:
    """The items of one call: many where all items have one size, else one."""
    axis = family.vision_inputs(config)[0].shape[0]
    return "batch" if axis == "batch" else 1


def _method_inputs(cut: CutSpec, axis: int | str) -> tuple[TensorSpec, ...]:
    words = (TensorSpec("prompt_ids", "int64", (axis, "text")),) if build_method(cut).needs_prompt else ()
    return (*budget_inputs(cut, axis=axis), *words)


def _outputs(family: Family, config: Any, cut: CutSpec | None, gather: bool) -> tuple[TensorSpec, ...]:
    items, n = _axis(family, config), family.candidates(config)
    rows: tuple[int | str, ...] = ("kept",) if gather else (items, n)
    score = cut is not None and build_method(cut).ranks
    return (
        TensorSpec("features", "float32", (*rows, config.feature_width)),
        TensorSpec("order", "int64", (items, n)),
        TensorSpec("count", "int64", (items,)),
        *((TensorSpec("score", "float32", (items, n)),) if score else ()),
    )


class VisionStage(StageModule):
    """Pixels to features `[b, n, c]` (gathered: `[k, c]`), `order [b, n]`, `count [b]`; maybe `score`."""

    def __init__(
        self,
        family: Family,
        config: Any,
        cut: CutSpec | None,
        layers: tuple[int, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        gather: bool,
    ) -> None:
        super().__init__(inputs, outputs)
        self.gather, self.width = gather, config.text.hidden_size
        self.method = build_method(cut) if cut else None
        pooled = self.method is not None and self.method.needs_pooled
        self.vision = family.Vision(config, layers, pooled=pooled)
        if self.method is not None and self.method.needs_prompt:
            self.connector: nn.Module = family.Connector(config)
            self.language_model = TextInput(config.text)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        evidence = self.vision(feeds)
        selection = self._select(self._with_prompt(evidence, feeds), feeds)
        features = evidence.features
        if evidence.leading is not None:
            features, selection = _after_leading(evidence.leading, features, selection)
        if self.gather:
            features = kept_rows(features, selection)
        results = {"features": features, "order": selection.order, "count": selection.count}
        return results | ({} if selection.score is None else {"score": selection.score})

    def _with_prompt(self, evidence: EncoderEvidence, feeds: dict[str, Tensor]) -> EncoderEvidence:
        """The evidence with the words' mean embedding and the projected candidates, where they are read."""
        if self.method is None or not self.method.needs_prompt:
            return evidence
        ids = feeds["prompt_ids"]
        asked = (ids >= 0).to(torch.float32)[:, :, None]  # b t 1
        words = self.language_model.embed_tokens(torch.where(ids < 0, 0, ids)) * asked  # b t d
        # A prompt without words has a zero mean, which is alike to nothing.
        mean = words.sum(dim=1) / torch.maximum(asked.sum(dim=1), torch.ones_like(asked[:, 0]))
        b, n, c = evidence.features.shape
        rows = self.connector(evidence.features.reshape(b * n, c))[:, : self.width]
        return evidence._replace(prompt=mean, projected=rows.reshape(b, n, self.width))  # (b n) d -> b n d

    def _select(self, evidence: EncoderEvidence, feeds: dict[str, Tensor]) -> Selection:
        b, n = evidence.features.shape[:2]
        if self.method is None:
            everyone = torch.arange(n).expand(b, -1)
            return Selection(everyone, torch.zeros_like(everyone[:, 0]) + n)
        budget = Budget(feeds["keep_ratio"], feeds["keep_tokens"])
        chosen: Selection = self.method(evidence, budget, feeds.get("seed"))
        return chosen


def _after_leading(leading: Tensor, features: Tensor, selection: Selection) -> tuple[Tensor, Selection]:
    """Puts the rows that always stay before the candidates; their score is above every other."""
    m = leading.shape[1]
    order, score = selection.order, selection.score
    first = torch.arange(m).expand(order.shape[0], -1)  # b m
    if score is not None:
        best = score.max(dim=1, keepdim=True).values
        score = torch.cat([best.expand(-1, m), score], dim=1)
    chosen = Selection(torch.cat([first, order + m], dim=1), selection.count + m, score)
    return torch.cat([leading, features], dim=1), chosen
