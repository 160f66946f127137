"""The vision graph of any family: encoder, choice, and in the fused layout the gathering of the kept rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foveate.export.blocks.compaction import kept_rows
from foveate.export.embed_stage import TextInput
from foveate.export.families import Family
from foveate.export.methods import build_method
from foveate.export.stage import Stage, StageModule, TensorSpec, budget_inputs
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence, ModelShape
from foveate.pruning.plan import CutSpec, PruningPlan
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError


def vision_stage(family: Family, config: Any, plan: PruningPlan, *, gather: bool) -> Stage:
    """The stage `vision` (`gather`: the kept rows only, fused layout) or `vision_segmented`.

    Raises:
        UsageError: the encoder's method asks for something that the family's encoder does not have.
    """
    cut = plan.encoder
    inputs = (*family.vision_inputs(config), *(_method_inputs(family, config, cut) if cut else ()))
    outputs = _outputs(family, config, cut, gather)
    if cut is not None:
        _check_encoder(family, config, cut)
    name = "vision" if gather else "vision_segmented"
    return Stage(
        name,
        inputs,
        outputs,
        lambda: VisionStage(family, config, cut, inputs, outputs, gather=gather),
    )


def model_shape(family: Family, config: Any) -> ModelShape:
    """The sizes that a method with weights of its own is built for."""
    n, shape = family.candidates(config), family.encoder_shape(config)
    return ModelShape(
        encoder=shape,
        encoder_width=getattr(config.vision, "hidden_size", config.feature_width),
        feature_width=config.feature_width,
        hidden_size=config.text.hidden_size,
        num_layers=config.text.num_layers,
        candidates=n - getattr(config, "keep_cls", False) if isinstance(n, int) else None,
    )


def _check_encoder(family: Family, config: Any, cut: CutSpec) -> None:
    """Raises UsageError when the encoder cannot give what the method reads, before anything is traced."""
    shape = family.encoder_shape(config)
    with FakeTensorMode():
        method = build_method(cut, model_shape(family, config))
        wants = bool(method.hidden_layers(shape)) or method.extra_tokens() is not None
    method.layers(shape)
    if wants and not shape.has_taps:
        raise UsageError(
            f"Method '{cut.method}' reads deeper into the vision encoder than this family lets it.",
            found="no hidden states of single layers, no extra tokens",
            wanted="a CLIP encoder on one square picture: llava or vipllava",
            mend="Use a method that works on the encoder's output; see `foveate methods`.",
        )


def _axis(family: Family, config: Any) -> int | str:
    """The items of one call: many where all items have one size, else one."""
    axis = family.vision_inputs(config)[0].shape[0]
    return "batch" if axis == "batch" else 1


def _method_inputs(family: Family, config: Any, cut: CutSpec) -> tuple[TensorSpec, ...]:
    axis, method = _axis(family, config), build_method(cut)
    words = TensorSpec("prompt_ids", "int64", (axis, "text"))
    text = TensorSpec("text_feature", "float32", (axis, config.text.hidden_size))
    return (
        *budget_inputs(cut, axis=axis),
        *((words,) if method.needs_prompt else ()),
        *((text,) if method.needs_text else ()),
    )


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
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        gather: bool,
    ) -> None:
        super().__init__(inputs, outputs)
        self.gather, self.width = gather, config.text.hidden_size
        method = build_method(cut, model_shape(family, config)) if cut else None
        # By the name of the site: what a trained method's weights are called in every graph.
        self.cuts = nn.ModuleDict({} if method is None else {"encoder": method})
        shape = family.encoder_shape(config)
        taps = () if method is None else method.hidden_layers(shape)
        layers = () if method is None else method.layers(shape)
        self.vision = family.Vision(
            config,
            layers,
            pooled=method is not None and method.needs_pooled,
            **({"taps": taps} if taps else {}),
        )
        if method is not None and (method.needs_prompt or method.needs_projected):
            self.connector: nn.Module = family.Connector(config)
        if method is not None and method.needs_prompt:
            self.language_model = TextInput(config.text)

    @property
    def method(self) -> Any:
        """The encoder's method; None without a cut."""
        return self.cuts["encoder"] if "encoder" in self.cuts else None  # noqa: SIM401  # has no `get`

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        evidence = self._evidence(feeds)
        selection = self._select(evidence, feeds)
        features = evidence.features if selection.features is None else selection.features
        if evidence.leading is not None:
            features, selection = _after_leading(evidence.leading, features, selection)
        if self.gather:
            features = kept_rows(features, selection)
        results = {"features": features, "order": selection.order, "count": selection.count}
        return results | ({} if selection.score is None else {"score": selection.score})

    def _evidence(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        """What the encoder shows, and what else the method asked for."""
        method = self.method
        if method is None:
            bare: EncoderEvidence = self.vision(feeds)
            return bare
        extra = method.extra_tokens()
        evidence: EncoderEvidence = self.vision(feeds, *(() if extra is None else (extra,)))
        if method.needs_prompt:
            evidence = evidence._replace(prompt=self._words(feeds["prompt_ids"]))
        if method.needs_prompt or method.needs_projected:
            b, n, c = evidence.features.shape
            rows = self.connector(evidence.features.reshape(b * n, c))[:, : self.width]
            evidence = evidence._replace(projected=rows.reshape(b, n, self.width))  # (b n) d -> b n d
        return evidence._replace(text=feeds["text_feature"]) if method.needs_text else evidence

    def _words(self, ids: Tensor) -> Tensor:
        """Mean embedding `[b, d]` of the words `ids [b, t]`, -1 is padding."""
        asked = (ids >= 0).to(torch.float32)[:, :, None]  # b t 1
        words = self.language_model.embed_tokens(torch.where(ids < 0, 0, ids)) * asked  # b t d
        # A prompt without words has a zero mean, which is alike to nothing.
        mean: Tensor = words.sum(dim=1) / torch.maximum(asked.sum(dim=1), torch.ones_like(asked[:, 0]))
        return mean

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
