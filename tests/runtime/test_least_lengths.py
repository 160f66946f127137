"""What is said of a prompt's rows before anything is looked at is never more than what then comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import many
import numpy as np
import pytest

from foveate.runtime import Budget, GenerateOptions, Pipeline
from foveate.runtime.budgets import least_lengths
from foveate.runtime.manifest import CutRecord

ENCODER = CutRecord(site="encoder", method="cls-knee")
LATER = CutRecord(site="decoder", layer=2, method="fastv")
TRAINED = CutRecord(site="encoder", method="quecc", adapter="0" * 64)
SIZES = [10, 30]


def least(cuts: tuple[CutRecord, ...], **options: Any) -> list[int]:
    manifest: Any = SimpleNamespace(
        encoder_cut=next((cut for cut in cuts if cut.site == "encoder"), None),
        decoder_cuts=tuple(cut for cut in cuts if cut.site == "decoder"),
    )
    return least_lengths(manifest, GenerateOptions(**options), 5, SIZES)


@pytest.mark.parametrize(
    ("cuts", "options", "lengths"),
    [
        ((), {}, [45]),
        ((ENCODER,), {}, [5]),
        ((ENCODER,), {"keep_ratio": 0.5}, [5]),
        ((ENCODER,), {"keep_ratio": 1.0}, [45]),
        ((ENCODER,), {"keep_tokens": 20}, [5 + 10 + 20]),
        ((ENCODER,), {"keep_tokens": 20, "share": "proportional"}, [25]),
        ((ENCODER,), {"keep_tokens": 90, "share": "saliency"}, [45]),
        ((TRAINED,), {"keep_tokens": 20}, [5]),
        ((TRAINED,), {"keep_ratio": 1.0}, [45]),
        ((LATER,), {}, [45, 5]),
        ((LATER,), {"keep": {"decoder@2": Budget(tokens=12)}}, [45, 17]),
        ((ENCODER, LATER), {"keep_tokens": 4, "keep": {"decoder@2": Budget(tokens=12)}}, [13, 13]),
        ((ENCODER, LATER), {"keep": {"decoder@2": Budget(tokens=12)}}, [5, 5]),
    ],
)
def test_what_is_certain(cuts: tuple[CutRecord, ...], options: dict[str, Any], lengths: list[int]) -> None:
    assert least(cuts, **options) == lengths


FIXED = GenerateOptions(
    keep={"encoder": Budget(tokens=7), "decoder@1": Budget(ratio=1.0), "decoder@3": Budget(tokens=3)}
)


@pytest.mark.parametrize("name", ["plain", "pruned"])
def test_no_more_than_what_comes(name: str, pipelines: dict[tuple[str, str], Pipeline]) -> None:
    """The caches of each group hold what reached it."""
    pipeline = pipelines[name, "segmented"]
    asks = many.asks(name) + ([] if name == "plain" else [many.Ask("What?", many.IMAGES[:2], FIXED)])
    exact = 0
    for ask in asks:
        tokenized = pipeline.tokenize(ask.prompt, ask.images)
        text = int(np.count_nonzero(~tokenized.visual))
        sizes = [item.visual_tokens for item in tokenized.items]
        said = least_lengths(pipeline.manifest, ask.options, text, sizes)
        read = pipeline.prefill(pipeline.prepare_batch([tokenized], ask.options), ask.options)
        came = [int(length[0]) for length in read.cache.lengths]
        assert all(low <= length for low, length in zip(said, came, strict=True)), ask
        assert said[-1] >= text
        exact += said == came
        if name == "plain" or ask.options is FIXED or not ask.images:
            assert said == came, ask
    assert exact
