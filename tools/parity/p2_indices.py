"""P2: at each site the graphs keep exactly the indices that the loop-written rule keeps.

Rows that a method rewrites are the rule's, too. Behind a decoder cut they come out of the graphs in the
segmented layout only; the fused one is judged by the first layer that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from foveate.tools.parity.compare import close, close_rows, equal
from foveate.tools.parity.drive import Rows
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.reference_parts import TurnTrace
from foveate.tools.parity.report import Check, Place, Status


def check_indices(ladder: Ladder) -> Iterator[Check]:
    """Encoder and decoder apart: the decoder's cuts get the reference's own input."""
    if not ladder.cuts:
        yield Check("no cut in this bundle", Status.NOT_APPLICABLE, "it was exported to keep all tokens")
        return
    tested: set[str] = set()
    for prompt, budgets, trace in ladder.pruned():
        for layout in ladder.layouts:
            for site, check in _sites(ladder, layout, prompt, budgets, trace):
                tested.add(site)
                yield check
    for cut in ladder.cuts:
        if cut.key not in tested:
            yield Check.missing(f"{cut.key}: kept indices", ladder.why_untested())


def _sites(
    ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet, trace: TurnTrace
) -> Iterator[tuple[str, Check]]:
    title = f"{layout}, {prompt.name}, {budgets.name}"
    driver, turn = ladder.driver(layout), prompt.turn
    runs = driver.vision(ladder.items(prompt), turn.words, budgets.sites)
    for number, (run, choice) in enumerate(zip(runs, trace.items, strict=True)):
        name, total = f"{title}: encoder, item {number}", len(ladder.wanted_items(prompt)[number].projected)
        same = _same(name, run.order, run.kept, choice.kept, total, driver.vision_stage)
        yield "encoder", same
        if choice.features is not None and same.status is Status.PASSED:
            rows = close_rows(run.features[list(run.kept)], choice.features)
            yield "encoder", Check.of(f"{name}: merged features", rows, driver.vision_stage)
    yield from _decoder_sites(ladder, layout, prompt, budgets, trace)


def _decoder_sites(
    ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet, trace: TurnTrace
) -> Iterator[tuple[str, Check]]:
    title = f"{layout}, {prompt.name}, {budgets.name}"
    driver, rows = ladder.driver(layout), Rows.of(trace, prompt.turn)
    got = driver.decoder(rows, budgets.sites)
    inside: Mapping[int, np.ndarray] = {}
    if any(c.features is not None and key not in got.behind for key, c in trace.cuts.items()):
        inside = ladder.driver(layout, probe=True).decoder(rows, budgets.sites).layers
    entering = len(trace.rows[0])
    for cut, record in zip(
        (c for c in ladder.plan if c.site == "decoder"), ladder.manifest.decoder_cuts, strict=True
    ):
        layer = record.layer or 1
        stage, wanted = driver.decoder_stage(layer - 1), trace.cuts[cut.key]
        name = f"{title}: {cut.key}"
        same = _same(name, got.orders[cut.key], got.cuts[cut.key], wanted.kept, entering, stage)
        yield cut.key, same
        if wanted.features is not None and same.status is Status.PASSED:
            if cut.key in got.behind:
                merged = close_rows(got.behind[cut.key], wanted.features)
                yield cut.key, Check.of(f"{name}: merged features", merged, stage)
            else:
                merged = close(inside[layer], trace.hidden[layer].numpy())
                yield (
                    cut.key,
                    Check.of(f"{name}: merged features, one layer on", merged, stage, layer),
                )
        entering = len(wanted.kept)


def _same(
    name: str, order: Sequence[int], kept: Sequence[int], wanted: Sequence[int], total: int, stage: str
) -> Check:
    """The kept indices are equal, and the whole order is `kept, then the rest`, both ascending."""
    difference = equal(kept, wanted)
    if not difference.agrees:
        return Check(name, Status.FAILED, difference.problem, Place(stage, None, difference.first))
    rest = [i for i in range(total) if i not in set(wanted)]
    difference = equal(order, [*wanted, *rest])
    if not difference.agrees:
        return Check(
            name, Status.FAILED, "order: " + difference.problem, Place(stage, None, difference.first)
        )
    return Check(name, Status.PASSED, f"{len(wanted)} of {total}")
