"""P1: each unpruned stage and layer equals transformers', each fed with transformers' own input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foveate.tools.parity.compare import close
from foveate.tools.parity.drive import Driver
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.report import Check


def check_stages(ladder: Ladder) -> Iterator[Check]:
    """Stage by stage in the order of the computation, so that the first failure is where it starts."""
    for layout in ladder.layouts:
        for prompt in ladder.prompts:
            title = f"{layout}, {prompt.name}"
            yield from _vision(ladder, layout, prompt, title)
            yield from _embed(ladder, layout, prompt, title)
            yield from _decoder(ladder, layout, prompt, title)


def _vision(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    wanted, pixels = ladder.vision(prompt), prompt.turn.pixel_values
    if wanted is None or pixels is None:
        return
    driver, probed = ladder.driver(layout), ladder.driver(layout, probe=True)
    stage = driver.vision_stage
    inside = probed.vision(pixels, ladder.keep_all.sites)
    # The graph stops at the layer whose output is selected; of later layers it has the projections at most.
    for layer in range(ladder.reference.last_vision_layer + 1):
        if layer in inside.layers:
            got, name = inside.layers[layer], f"{title}: encoder layer {layer}"
            yield Check.of(name, close(got, wanted.hidden[layer].numpy()), stage, layer)
    for (layer, which), got in inside.projections.items():
        computed = (wanted.query if which == "query" else wanted.key)[layer].numpy()
        yield Check.of(f"{title}: encoder layer {layer} {which}", close(got, computed), stage, layer)
    run = driver.vision(pixels, ladder.keep_all.sites)
    yield Check.of(f"{title}: features", close(run.features, wanted.features.numpy()), stage)


def _embed(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    if layout != ladder.layouts[0]:
        return  # the stage is the same file in every layout
    turn, trace, vision = prompt.turn, ladder.trace(prompt, ladder.keep_all), ladder.vision(prompt)
    width = ladder.manifest.model.vision_width
    features = np.zeros((0, 0, width), np.float32) if vision is None else vision.features.numpy()
    patches = [range(features.shape[1])] * features.shape[0]
    hidden = ladder.driver(layout).embed(turn, features, patches)
    yield Check.of(f"{title}: embeddings", close(hidden, trace.embedded.numpy()), "embed")


def _decoder(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    turn, trace = prompt.turn, ladder.trace(prompt, ladder.keep_all)
    inputs = (trace.embedded.numpy(), trace.positions.tolist(), turn.roles, turn.query, ladder.keep_all.sites)
    driver: Driver = ladder.driver(layout)
    inside = ladder.driver(layout, probe=True).decoder(*inputs)
    for layer, got in sorted(inside.layers.items()):
        difference = close(got, trace.hidden[layer].numpy())
        yield Check.of(f"{title}: decoder layer {layer}", difference, driver.decoder_stage(layer), layer)
    run = driver.decoder(*inputs)
    yield Check.of(f"{title}: logits", close(run.logits, trace.logits.numpy()), driver.stage_names[-1])
    difference = close(run.logits[-1:], trace.logits[-1:].numpy(), absolute_only=True)
    yield Check.of(f"{title}: logits of the next token", difference, driver.stage_names[-1])
