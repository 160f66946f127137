"""P4: the runtime's greedy tokens are equal to the references', however they are made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from foveate.runtime.families import VisualItem
from foveate.tools.parity.choose import reads_whole_chunk
from foveate.tools.parity.compare import Difference, close, equal
from foveate.tools.parity.host import options_of, prepared, request_of, with_tokens
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.p4_chat import check_chat
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.report import Check, Status


def check_tokens(ladder: Ladder) -> Iterator[Check]:
    """First that both sides read the same prompt; then the tokens, from plain to involved."""
    yield from same_prompts(ladder)
    for layout in ladder.layouts:
        yield from _unpruned(ladder, layout)
        yield from _pruned(ladder, layout)
        yield from _reread(ladder, layout)
        yield from _batch(ladder, layout)
        yield from check_chat(ladder, layout)
    yield from _layouts_agree(ladder)


def runtime_tokens(ladder: Ladder, layout: str, prompt: Prompt, budgets: BudgetSet) -> list[int]:
    """The runtime's greedy tokens for one request; made once."""

    def make() -> Sequence[int]:
        request = request_of(prompt)
        made = ladder.pipeline(layout).generate(
            request.prompt, request.images, options_of(ladder, budgets), videos=request.videos
        )
        return made.token_ids

    return ladder.cached(("runtime", layout, prompt.name, budgets.name), make)


def _check(name: str, difference: Difference, stage: str) -> Check:
    return Check.of(name, difference, stage)


def same_prompts(ladder: Ladder) -> Iterator[Check]:
    """The runtime's ids, roles, query rows, positions and pixels are transformers' and the loop rule's."""
    for prompt in ladder.prompts:
        made = prepared(ladder, ladder.layouts[0], prompt, options_of(ladder, ladder.keep_all))
        turn = prompt.turn
        query = [int(row) for row in made.query_index[0] if row >= 0]
        positions = made.positions[0].reshape(len(made.positions[0]), -1)  # [s] or [s, axes] -> [s, axes]
        for what, got, wanted in (
            ("ids", made.input_ids[0].tolist(), turn.input_ids),
            ("roles", made.roles[0].tolist(), turn.roles),
            ("query rows", query, turn.query),
            ("items", made.block[0].tolist(), turn.item),
            *(
                (f"positions (axis {axis})", positions[:, axis].tolist(), turn.positions[:, axis].tolist())
                for axis in range(turn.positions.shape[1])
            ),
            ("next position", made.next_position.tolist(), [int(turn.positions[-1].max()) + 1]),
        ):
            yield _check(f"{prompt.name}: {what} of the prompt", equal(got, list(wanted)), "prompt")
        yield from _same_pixels(ladder, prompt, made.items[0])


def _same_pixels(ladder: Ladder, prompt: Prompt, items: Sequence[VisualItem]) -> Iterator[Check]:
    """What the vision stage is fed with, as far as the family's oracle says what that is."""
    source = prompt.turn.source
    if source is None or not prompt.turn.has_items:
        return
    pixels = ladder.front.oracle.pixels(source.inputs)
    for number, feeds in enumerate(source.in_order(pixels) if pixels else []):
        for name, wanted in feeds.items():
            difference = close(np.asarray(items[number].feeds[name], np.float64), wanted.astype(np.float64))
            yield _check(f"{prompt.name}: {name} of item {number}", difference, "prompt")


def _unpruned(ladder: Ladder, layout: str) -> Iterator[Check]:
    """Asked to keep everything, the bundle is transformers' `generate`."""
    eos, count = ladder.manifest.model.eos_token_ids, ladder.settings.new_tokens
    for prompt in ladder.prompts:
        make: Callable[[], Sequence[int]]
        make = functools.partial(ladder.reference.generate_unpruned, prompt.turn, count, eos)
        if ladder.plan_of(ladder.keep_all):
            make = functools.partial(recomputed, ladder, prompt, ladder.keep_all)
        wanted = ladder.cached(("transformers", prompt.name), make)
        got = runtime_tokens(ladder, layout, prompt, ladder.keep_all)
        yield _check(f"{layout}, {prompt.name}: keep all = transformers.generate", equal(got, wanted), layout)


def _pruned(ladder: Ladder, layout: str) -> Iterator[Check]:
    """Cached decoding by the runtime, against a full recompute of the pruned reference."""
    if not ladder.plan:
        return
    tested = False
    for prompt, budgets, _ in ladder.pruned():
        tested = True
        wanted = ladder.cached(
            ("reference", prompt.name, budgets.name), functools.partial(recomputed, ladder, prompt, budgets)
        )
        got = runtime_tokens(ladder, layout, prompt, budgets)
        name = f"{layout}, {prompt.name}, {budgets.name}: tokens = pruned reference"
        yield _check(name, equal(got, wanted), layout)
    if not tested:
        yield Check.missing(f"{layout}: tokens = pruned reference", ladder.why_untested())


def recomputed(ladder: Ladder, prompt: Prompt, budgets: BudgetSet) -> Sequence[int]:
    """The reference's greedy tokens, every step a full recompute."""
    model, manifest = ladder.manifest.model, ladder.manifest
    made = ladder.reference.generate(
        [prompt.turn],
        ladder.settings.new_tokens,
        ladder.plan_of(budgets),
        budgets.sites,
        manifest.positions,
        model.eos_token_ids,
    )
    return made.tokens


def _reread(ladder: Ladder, layout: str) -> Iterator[Check]:
    """Cached = uncached: prompt and answer read as one chunk predict the answer, token by token.

    The answer's rows are protected and are no query rows, so the cuts choose as they did for the prompt
    alone.
    """
    whole = [cut.key for cut in ladder.cuts if reads_whole_chunk(cut.method, cut.params)]
    if whole:
        why = f"the answer's rows would have a say in the cut {whole[0]}"
        yield Check(f"{layout}: cached = uncached", Status.NOT_APPLICABLE, why)
        return
    pipeline = ladder.pipeline(layout)
    for prompt in ladder.prompts:
        for budgets in (ladder.keep_all, ladder.budgets[0])[: 2 if ladder.cuts else 1]:
            tokens = runtime_tokens(ladder, layout, prompt, budgets)
            options = options_of(ladder, budgets)
            alone = prepared(ladder, layout, prompt, options)
            first = int(alone.length[0]) - 1
            read = pipeline.prefill(with_tokens(alone, tokens[:-1]), options, logits="all")
            again = [int(row.argmax()) for row in np.nan_to_num(read.logits[0, first:])]
            yield _check(
                f"{layout}, {prompt.name}, {budgets.name}: cached = uncached", equal(tokens, again), layout
            )


def _batch(ladder: Ladder, layout: str) -> Iterator[Check]:
    """All prompts at once (different lengths, numbers of images and kept tokens) = one by one."""
    pipeline = ladder.pipeline(layout)
    for budgets in (ladder.keep_all, *(ladder.budgets if ladder.cuts else ())):
        requests = [request_of(prompt) for prompt in ladder.prompts]
        made = pipeline.generate_batch(requests, options_of(ladder, budgets))
        for prompt, generation in zip(ladder.prompts, made, strict=True):
            alone = runtime_tokens(ladder, layout, prompt, budgets)
            name = f"{layout}, {prompt.name}, {budgets.name}: batch of {len(made)} = single"
            yield _check(name, equal(generation.token_ids, alone), layout)


def _layouts_agree(ladder: Ladder) -> Iterator[Check]:
    """Both layouts give the same tokens, ties or not: the same arithmetic decides in both."""
    if len(ladder.layouts) < 2:
        yield Check("fused = segmented", Status.NOT_APPLICABLE, f"the bundle has only {ladder.layouts[0]}")
        return
    first, *others = ladder.layouts
    for layout in others:
        for prompt in ladder.prompts:
            for budgets in (ladder.keep_all, *(ladder.budgets if ladder.cuts else ())):
                got = runtime_tokens(ladder, layout, prompt, budgets)
                wanted = runtime_tokens(ladder, first, prompt, budgets)
                yield _check(f"{prompt.name}, {budgets.name}: {layout} = {first}", equal(got, wanted), layout)
