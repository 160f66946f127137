"""The ladder for bundles below fp32: the same comparisons, with distances instead of equality.

A quantised model is another model, so nothing is equal to the checkpoint: rungs P1 to P5 ask how far it is,
against limits that are stated for each precision (`tolerances.LOWER`). What arithmetic has no part in stays
exact: the graphs (P0), and the prompts. A fault such as a wrong scale, packing, position or row is of the
size of the numbers themselves, far beyond every limit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.export.precision import PRECISIONS
from foveate.runtime.manifest import PrecisionRecord
from foveate.tools.parity.drive import Rows
from foveate.tools.parity.host import options_of, prepared, request_of
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.p4_tokens import recomputed, runtime_tokens, same_prompts
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.report import Check, Place, Status
from foveate.tools.parity.tolerances import LOWER, LowerLimits


def loosest(record: PrecisionRecord) -> str:
    """The lowest precision of any stage; `fp32` where there is none."""
    order = list(PRECISIONS)  # from the exact to the coarse
    return max(record.stages.values(), key=order.index, default="fp32")


def limits_of(ladder: Ladder) -> LowerLimits:
    """What is allowed to the bundle of a ladder."""
    return LOWER[loosest(ladder.manifest.precision)]


@dataclass
class Agreement:
    """Pairs that were compared, and the sum of how far each agreed (0 to 1)."""

    total: int = 0
    agreed: float = 0.0

    def add(self, share: float) -> None:
        """One more pair."""
        self.total, self.agreed = self.total + 1, self.agreed + share

    def check(self, name: str, least: float, stage: str) -> Check:
        """Whether the mean is at least `least`. Nothing compared could not run."""
        if not self.total:
            return Check.missing(name, "nothing could be compared")
        mean = self.agreed / self.total
        text = f"{100 * mean:.1f} % agree over {self.total} pairs, at least {100 * least:g} % are asked for"
        if mean >= least:
            return Check(name, Status.PASSED, text)
        return Check(name, Status.FAILED, text, Place(stage))


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over that of `wanted`; infinite for other shapes and for what is no number.

    Of zeros, nothing but zeros is near.
    """
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    off = float(np.linalg.norm(got.astype(np.float64) - wanted))
    size = float(np.linalg.norm(wanted.astype(np.float64)))
    if not size:
        return float("inf") if off else 0.0
    return off / size


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits `[..., v]` without the constant that changes no probability."""
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True))


def overlap(got: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of the kept indices in common, of the longer list."""
    return len(set(got) & set(wanted)) / max(len(got), len(wanted)) if got or wanted else 1.0


def same_start(got: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of tokens before the first difference; behind it, two answers are about different things."""
    pairs = list(zip(got, wanted, strict=False))
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return equal / max(len(got), len(wanted)) if got or wanted else 1.0


def check_stages(ladder: Ladder) -> Iterator[Check]:
    """P1: vision and decoder on the reference's own input, the connector on what vision made; all kept."""
    words = ladder.manifest.precision.stages
    vision, embed = (LOWER[words.get(name, "fp32")].stage for name in ("vision", "projector"))
    limit = limits_of(ladder).stage
    sites = ladder.keep_all.sites
    for layout in ladder.layouts:
        driver = ladder.driver(layout)
        for prompt in ladder.prompts:
            title, turn = f"{layout}, {prompt.name}", prompt.turn
            runs = driver.vision(ladder.items(prompt), turn.words, sites) if turn.has_items else []
            for number, (run, wanted) in enumerate(zip(runs, ladder.wanted_items(prompt), strict=True)):
                if wanted.features is not None:
                    off = relative(run.features, wanted.features.numpy())
                    yield _near(f"{title}: item {number}, features", off, vision, driver.vision_stage)
            trace = ladder.trace(prompt, ladder.keep_all)
            rows = Rows.of(trace, turn)
            embedded = driver.embed(turn, [run.features for run in runs], [run.kept for run in runs])
            yield _near(
                f"{title}: embeddings", relative(embedded.hidden, rows.hidden), vision + embed, "embed"
            )
            logits = driver.decoder(rows, sites).logits
            off = relative(centred(logits), centred(trace.logits.numpy()))
            yield _near(f"{title}: logits", off, limit, driver.stage_names[-1])


def check_indices(ladder: Ladder) -> Iterator[Check]:
    """P2: what each cut keeps of the reference's own input, on average over prompts and budgets."""
    if not ladder.cuts:
        yield Check("no cut in this bundle", Status.NOT_APPLICABLE, "it was exported to keep all tokens")
        return
    for layout in ladder.layouts:
        driver = ladder.driver(layout)
        found = {cut.key: Agreement() for cut in ladder.cuts}
        for prompt, budgets, trace in ladder.pruned():
            runs = driver.vision(ladder.items(prompt), prompt.turn.words, budgets.sites)
            for run, choice in zip(runs, trace.items, strict=True):
                if "encoder" in found:
                    found["encoder"].add(overlap(run.kept, choice.kept))
            got = driver.decoder(Rows.of(trace, prompt.turn), budgets.sites)
            for key, choice in trace.cuts.items():
                found[key].add(overlap(got.cuts[key], choice.kept))
        for key, agreement in found.items():
            yield agreement.check(f"{layout}: kept at {key}", limits_of(ladder).kept, layout)


def check_logits(ladder: Ladder) -> Iterator[Check]:
    """P3: the next token's logits out of the runtime, behind the bundle's own cuts, over all prompts."""
    for layout in ladder.layouts:
        pipeline = ladder.pipeline(layout)
        got, wanted = [], []
        for prompt, budgets, trace in ladder.pruned():
            options = options_of(ladder, budgets)
            got.append(pipeline.prefill(prepared(ladder, layout, prompt, options), options).logits[0, -1])
            wanted.append(trace.logits.numpy()[-1])
        name = f"{layout}: logits of the next token, pruned"
        if not got:
            yield Check.missing(name, ladder.why_untested())
            continue
        off = relative(centred(np.stack(got)), centred(np.stack(wanted)))
        yield _near(name, off, limits_of(ladder).logits, layout)


def check_tokens(ladder: Ladder) -> Iterator[Check]:
    """P4: the prompts are equal; greedy answers agree with the reference's, and batched with single ones.

    Activations of `int8` layers have one scale for all rows of a call, so that what a request is batched with
    changes its rounding: tokens of a batch are not exactly those of single requests below fp32.
    """
    yield from same_prompts(ladder)
    least = limits_of(ladder).tokens
    for layout in ladder.layouts:
        whole, pruned, together = Agreement(), Agreement(), Agreement()
        for prompt in ladder.prompts:
            got = runtime_tokens(ladder, layout, prompt, ladder.keep_all)
            whole.add(same_start(got, _wanted(ladder, prompt, ladder.keep_all)))
        yield whole.check(f"{layout}: greedy tokens, all kept", least, layout)
        for prompt, budgets, _ in ladder.pruned():
            if ladder.cuts:
                got = runtime_tokens(ladder, layout, prompt, budgets)
                pruned.add(same_start(got, _wanted(ladder, prompt, budgets)))
        if ladder.cuts:
            yield pruned.check(f"{layout}: greedy tokens, pruned", least, layout)
        requests = [request_of(prompt) for prompt in ladder.prompts]
        made = ladder.pipeline(layout).generate_batch(requests, options_of(ladder, ladder.keep_all))
        for prompt, answer in zip(ladder.prompts, made, strict=True):
            together.add(
                same_start(answer.token_ids, runtime_tokens(ladder, layout, prompt, ladder.keep_all))
            )
        yield together.check(f"{layout}: batch of {len(made)} and single", least, layout)


def _wanted(ladder: Ladder, prompt: Prompt, budgets: BudgetSet) -> list[int]:
    """The reference's greedy tokens, a full recompute."""
    key = ("reference", prompt.name, budgets.name)
    return ladder.cached(key, functools.partial(recomputed, ladder, prompt, budgets))


def _near(name: str, off: float, limit: float, stage: str) -> Check:
    """Whether a relative distance is within its limit."""
    text = f"{off:.3g} of the size, at most {limit:g} is allowed"
    status = Status.PASSED if off <= limit else Status.FAILED
    return Check(name, status, text, None if off <= limit else Place(stage))
