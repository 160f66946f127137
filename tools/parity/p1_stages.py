"""P1: each unpruned stage and layer equals transformers'.

The decoder is fed with transformers' own rows. The encoder gets the runtime's pixels of the same pictures,
the connector what the encoder made of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from foveate.tools.parity.compare import close, equal
from foveate.tools.parity.drive import Rows
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.report import Check


def check_stages(ladder: Ladder) -> Iterator[Check]:
    """Stage by stage in the order of the computation, so that the first failure is where it starts."""
    for layout in ladder.layouts:
        for prompt in ladder.prompts:
            title = f"{layout}, {prompt.name}"
            if prompt.turn.has_items:
                yield from _vision(ladder, layout, prompt, title)
            yield from _embed(ladder, layout, prompt, title)
            yield from _decoder(ladder, layout, prompt, title)
            yield from _text(ladder, layout, prompt, title)


def _vision(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    wanted, items = ladder.wanted_items(prompt), ladder.items(prompt)
    driver, probed = ladder.driver(layout), ladder.driver(layout, probe=True)
    stage, sites, words = driver.vision_stage, ladder.keep_all.sites, prompt.turn.words
    sizes = equal([item.visual_tokens for item in items], [len(trace.projected) for trace in wanted])
    yield Check.of(f"{title}: visual tokens", sizes, stage)
    inside, runs = probed.vision(items, words, sites), driver.vision(items, words, sites)
    for number, (trace, seen, run) in enumerate(zip(wanted, inside, runs, strict=True)):
        name = f"{title}: item {number}"
        for layer, hidden in sorted(trace.layers.items()):
            if layer in seen.layers:
                difference = close(seen.layers[layer], hidden.numpy())
                yield Check.of(f"{name}, encoder layer {layer}", difference, stage, layer)
        for (layer, which), got in seen.projections.items():
            computed = trace.facts.query if which == "query" else trace.facts.key
            yield Check.of(
                f"{name}, encoder layer {layer} {which}", close(got, computed[layer]), stage, layer
            )
        if trace.features is not None:
            yield Check.of(f"{name}, features", close(run.features, trace.features.numpy()), stage)


def _text(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    """What the decoder makes of the user's words, for methods that look at it."""
    if any(cut.reads_text for cut in ladder.plan):
        got = ladder.driver(layout).text_feature(prompt.turn.words)
        wanted = ladder.reference.text_feature(prompt.turn)
        yield Check.of(f"{title}: text feature", close(got, wanted), ladder.driver(layout).stage_names[-1])


def _embed(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    """The connector and the text's rows, on the graph's own features."""
    driver, turn = ladder.driver(layout), prompt.turn
    wanted = Rows.of(ladder.trace(prompt, ladder.keep_all), turn)
    runs = driver.vision(ladder.items(prompt), turn.words, ladder.keep_all.sites)
    rows = driver.embed(turn, [run.features for run in runs], [run.kept for run in runs])
    yield Check.of(f"{title}: embeddings", close(rows.hidden, wanted.hidden), "embed")
    if wanted.deepstack.size:
        yield Check.of(f"{title}: deepstack", close(rows.deepstack, wanted.deepstack), "embed")


def _decoder(ladder: Ladder, layout: str, prompt: Prompt, title: str) -> Iterator[Check]:
    trace, sites = ladder.trace(prompt, ladder.keep_all), ladder.keep_all.sites
    rows, driver = Rows.of(trace, prompt.turn), ladder.driver(layout)
    inside = ladder.driver(layout, probe=True).decoder(rows, sites)
    for layer, got in sorted(inside.layers.items()):
        difference = close(got, trace.hidden[layer].numpy())
        yield Check.of(f"{title}: decoder layer {layer}", difference, driver.decoder_stage(layer), layer)
    run = driver.decoder(rows, sites)
    yield Check.of(f"{title}: logits", close(run.logits, trace.logits.numpy()), driver.stage_names[-1])
    difference = close(run.logits[-1:], trace.logits[-1:].numpy(), absolute_only=True)
    yield Check.of(f"{title}: logits of the next token", difference, driver.stage_names[-1])
