"""P2: at each site the graphs keep exactly the indices that the loop-written rule keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foveate.tools.parity.compare import equal
from foveate.tools.parity.drive import Rows
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.reference_parts import TurnTrace
from foveate.tools.parity.report import Check, Place, Status


def check_indices(ladder: Ladder) -> Iterator[Check]:
    """Encoder and decoder apart: the decoder's cuts get the reference's own input."""
    if not ladder.plan:
        yield Check("no cut in this bundle", Status.NOT_APPLICABLE, "it was exported without pruning")
        return
    tested: set[str] = set()
    for prompt, budgets, trace in ladder.pruned():
        for layout in ladder.layouts:
            for site, check in _sites(ladder, layout, prompt, budgets, trace):
                tested.add(site)
                yield check
    for cut in ladder.plan:
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
        yield "encoder", _same(name, run.order, run.kept, choice.kept, total, driver.vision_stage)
    got = driver.decoder(Rows.of(trace, turn), budgets.sites)
    entering = len(trace.rows[0])
    for cut, record in zip(
        (c for c in ladder.plan if c.site == "decoder"), ladder.manifest.decoder_cuts, strict=True
    ):
        stage = driver.decoder_stage((record.layer or 1) - 1)
        wanted = trace.cuts[cut.key].kept
        yield (
            cut.key,
            _same(f"{title}: {cut.key}", got.orders[cut.key], got.cuts[cut.key], wanted, entering, stage),
        )
        entering = len(wanted)


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
