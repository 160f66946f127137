"""P3: the pruned model's logits, graph after graph, against the reference that prunes transformers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foveate.tools.parity.compare import close, equal
from foveate.tools.parity.drive import DecoderRun, Driver
from foveate.tools.parity.host import options_of, prepared
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.reference_parts import TurnTrace
from foveate.tools.parity.report import Check, Place, Status


def check_logits(ladder: Ladder) -> Iterator[Check]:
    """The whole road with the graphs' own intermediate results; after a failure, its first layer."""
    tested = False
    for prompt, budgets, trace in ladder.pruned():
        for layout in ladder.layouts:
            tested = True
            yield from _road(ladder, layout, prompt, budgets, trace)
            yield from _runtime(ladder, layout, prompt, budgets, trace)
    if not tested:
        yield Check.missing("pruned logits", ladder.why_untested())


def _road(
    ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet, trace: TurnTrace
) -> Iterator[Check]:
    title = f"{layout}, {prompt.name}, {budgets.name}"
    driver = ladder.driver(layout)
    run = _drive(driver, ladder, prompt, budgets)
    for cut in (cut for cut in ladder.plan if cut.site == "decoder"):
        difference = equal(run.cuts[cut.key], trace.cuts[cut.key].kept)
        if not difference.agrees:
            stage = driver.decoder_stage((cut.layer or 1) - 1)
            place = Place(stage, (cut.layer or 1) - 1, difference.first)
            yield Check(f"{title}: kept at {cut.key}", Status.FAILED, difference.problem, place)
            return
    wanted, stage = trace.logits.numpy(), driver.stage_names[-1]
    everywhere = close(run.logits, wanted)
    if not everywhere.agrees:
        yield from _layers(ladder, layout, prompt, budgets, trace)
    yield Check.of(f"{title}: logits", everywhere, stage)
    yield Check.of(
        f"{title}: logits of the next token", close(run.logits[-1:], wanted[-1:], absolute_only=True), stage
    )


def _runtime(
    ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet, trace: TurnTrace
) -> Iterator[Check]:
    """The same logits out of the runtime, at every row that is still there behind all cuts."""
    pipeline, options = ladder.pipeline(layout), options_of(ladder, budgets)
    read = pipeline.prefill(prepared(ladder, layout, prompt, options), options, logits="all")
    title = f"{layout}, {prompt.name}, {budgets.name}: runtime"
    alive = [trace.rows[0].index(row) for row in trace.rows[-1]]
    difference = equal(np.flatnonzero(read.present[0]).tolist(), alive)
    yield Check.of(f"{title}, surviving rows", difference, "runtime")
    if difference.agrees:
        yield Check.of(
            f"{title}, logits", close(read.logits[0][read.present[0]], trace.logits.numpy()), "runtime"
        )


def _layers(
    ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet, trace: TurnTrace
) -> Iterator[Check]:
    """Only after a failure: each layer, from the first one."""
    driver = ladder.driver(layout, probe=True)
    run = _drive(driver, ladder, prompt, budgets)
    for layer, got in sorted(run.layers.items()):
        name = f"{layout}, {prompt.name}, {budgets.name}: decoder layer {layer}"
        yield Check.of(name, close(got, trace.hidden[layer].numpy()), driver.decoder_stage(layer), layer)


def _drive(driver: Driver, ladder: Ladder, prompt: Prompt, budgets: BudgetSet) -> DecoderRun:
    """Vision, embed and decoder in a row, each on the one before it."""
    turn = prompt.turn
    runs = driver.vision(ladder.items(prompt), turn.words, budgets.sites)
    rows = driver.embed(turn, [run.features for run in runs], [run.kept for run in runs])
    return driver.decoder(rows, budgets.sites)
