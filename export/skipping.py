"""From the plan's word about the decoder's layers to what they are built of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.blocks.visual_skipping import Skipping
from foveate.export.families import Family
from foveate.export.methods import build_method
from foveate.pruning.plan import CutSpec, PruningPlan
from foveate.runtime.errors import UsageError


def as_planned(config: Any, plan: PruningPlan, grid: tuple[int, int] | None) -> Any:
    """A family's configuration with what the plan leaves out of the decoder's layers.

    `grid`: rows and columns of an image's visual tokens, where all images have the same.

    Raises:
        UsageError: the method asks for what the decoder does not have, or cannot be combined with.
    """
    if plan.layers is None:
        return config
    skipping = _skipping(config.text, plan.layers)
    _check(config.text, skipping, plan)
    if skipping and skipping.window and grid is None:
        raise UsageError(
            f"'{plan.layers}' cannot give visual tokens a window in this model",
            found=f"window={skipping.window}",
            wanted="images that all are one grid of visual tokens and nothing else (LLaVA-1.5)",
            mend="Use window=none.",
        )
    return replace(config, text=replace(config.text, skipping=skipping))


def token_grid(family: Family, config: Any) -> tuple[int, int] | None:
    """Rows and columns of an image's visual tokens, where all images are one such grid and nothing else."""
    grid = family.encoder_shape(config).grid
    return grid if grid and family.candidates(config) == grid[0] * grid[1] else None


def _skipping(text: DecoderConfig, cut: CutSpec) -> Skipping | None:
    """None where nothing is left out: then the graphs are those of the whole model."""
    options = build_method(cut).config
    every = (tuple(range(text.num_kv_heads)),) * text.num_layers
    groups = options.groups(text.num_layers, text.num_kv_heads)
    neurons = options.neurons(text.intermediate_size)
    if neurons == text.intermediate_size and groups == every and options.window is None:
        return None
    return Skipping(neurons, groups, options.window, options.both_ways)


def _check(text: DecoderConfig, skipping: Skipping | None, plan: PruningPlan) -> None:
    if skipping is None:
        return
    if text.masked and (skipping.window or any(len(g) < text.num_kv_heads for g in skipping.groups)):
        raise UsageError(
            f"'{plan.layers}' cannot change the attention of this decoder",
            found="attention with sliding windows or images that see themselves both ways",
            wanted="plain causal attention",
            mend="Use heads=all and window=none.",
        )
    for cut in plan.decoder:
        if not skipping.groups[(cut.layer or 1) - 1]:
            raise UsageError(
                f"'{cut}' chooses by layer {(cut.layer or 1) - 1}, where no head looks at visual tokens",
                found=f"heads={plan.layers.params.get('heads') if plan.layers else ''}",
                wanted="an active head in the layer before each cut",
            )
