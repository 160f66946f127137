"""How one budget for a whole prompt is shared between its images: GenerateOptions.share.

Three images of 10, 20 and 30 visual tokens, and keep_tokens = 12:

    each           12 of each image (10 of the first, which has no more)
    proportional    2,  4,  6
    saliency       the 12 tokens of the best scores, wherever they are; at least one of each image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from foveate.runtime.arrays import Array, Ints, ints
from foveate.runtime.budgets import encoder_feeds
from foveate.runtime.chunk import VisualTokens
from foveate.runtime.errors import UsageError
from foveate.runtime.manifest import Manifest
from foveate.runtime.options import ENCODER, Budget, GenerateOptions


def require_share(options: GenerateOptions, *, gives_scores: bool) -> None:
    """Raises `UsageError` when the bundle's vision stage cannot share a budget as it is asked to."""
    if options.share == "saliency" and not gives_scores:
        raise UsageError(
            "the method after the encoder gives no scores to compare images by",
            found="share saliency",
            wanted="each or proportional",
            mend="share proportionally, or export with a method that ranks, such as cls-knee",
        )


def shared_feeds(
    manifest: Manifest, options: GenerateOptions, prompts: Sequence[Sequence[int]]
) -> dict[str, Array]:
    """`keep_ratio`, `keep_tokens` and `seed` of the vision stage, for the items of all prompts.

    `prompts` are the numbers of visual tokens of each prompt's items.
    """
    feeds = encoder_feeds(manifest, options, sum(map(len, prompts)))
    total = options.budgets().get(ENCODER, Budget()).tokens
    if options.share == "each" or total is None or not feeds:
        return feeds
    split = proportional if options.share == "proportional" else _at_most
    counts = [ints(split(total, sizes)) for sizes in prompts]
    return {**feeds, "keep_tokens": np.concatenate([ints([]), *counts])}


def proportional(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` split in proportion to `sizes`, by largest remainders; at least 1 and at most the size each.

    An item that would get none takes one from the largest share, the first of equal ones; if there are more
    items than tokens, each gets one.
    """
    whole = sum(sizes)
    total = min(total, whole)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    for i, share in enumerate(shares):
        if share == 0:
            largest = max(range(len(shares)), key=lambda j: (shares[j], -j))
            shares[largest] -= shares[largest] > 1
            shares[i] = 1
    return shares


def _at_most(total: int, sizes: Sequence[int]) -> list[int]:
    return [min(total, size) for size in sizes]


def keep_best(visual: VisualTokens, options: GenerateOptions, items: Sequence[int]) -> VisualTokens:
    """With share "saliency": of each prompt's kept tokens only the best ones, as many as its budget says.

    `items` is the number of items of each prompt. Ties go to the earlier token.
    """
    total = options.budgets().get(ENCODER, Budget()).tokens
    if options.share != "saliency" or total is None or visual.score is None:
        return visual
    order, stays, first = list(visual.order), [], 0
    for number in items:
        mine = range(first, first + number)
        kept = [visual.kept(i) for i in mine]
        chosen = best_of_all([visual.score[i][k] for i, k in zip(mine, kept, strict=True)], total)
        for i, index, best in zip(mine, kept, chosen, strict=True):
            order[i] = np.concatenate([index[best], index[~best], order[i][visual.count[i] :]])
        stays += chosen
        first += number
    return replace(
        visual,
        kept_index=visual.kept_index[np.concatenate([np.zeros(0, bool), *stays])],
        order=tuple(order),
        count=ints([np.count_nonzero(best) for best in stays]),
    )


def best_of_all(scores: Sequence[Array], total: int) -> list[np.ndarray]:
    """Which of each item's tokens, with these `scores [k]`, are among the `total` best of all: bool `[k]`.

    The best token of every item stays in any case.
    """
    if not scores:
        return []
    starts = np.cumsum([0, *(len(score) for score in scores)])
    every = np.concatenate(scores).astype(np.float64)
    every = np.where(np.isnan(every), -np.inf, every)
    firsts = [start + int(np.argmax(every[start:end])) for start, end in pairwise(starts)]
    stays = np.zeros(len(every), bool)
    stays[firsts] = True
    ranked: Ints = np.argsort(-every, kind="stable")
    others = ranked[~stays[ranked]]
    stays[others[: max(0, total - len(firsts))]] = True
    return [stays[start:end] for start, end in pairwise(starts)]
