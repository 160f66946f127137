"""A request's budgets as inputs of the graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.runtime.arrays import Array
from foveate.runtime.errors import UsageError
from foveate.runtime.manifest import CutRecord, Manifest
from foveate.runtime.options import ENCODER, Budget, GenerateOptions

# Zero means "the method's own rule", and a smaller ratio would become zero in float32.
_SMALLEST_RATIO = float(np.finfo(np.float32).tiny)


def require_known_sites(manifest: Manifest, options: GenerateOptions) -> None:
    """Raises `UsageError` when the request has a budget for a site that the bundle does not prune."""
    sites = [cut.name for cut in manifest.pruning if cut.site != "layers"]
    for site in options.budgets():
        if site not in sites:
            raise UsageError(
                f"this bundle does not prune at '{site}', so it takes no budget there",
                wanted=", ".join(sites)
                or f"no budget: the bundle {'drops no tokens' if manifest.pruning else 'is unpruned'}",
                mend="name one of these sites, or export with a method at this one",
            )


def require_used_seed(manifest: Manifest, options: GenerateOptions) -> None:
    """Raises `UsageError` when the request has a pruning seed and no method of the bundle takes one.

    For requests of people; tools that run all kinds of bundles with one seed leave it out.
    """
    if options.pruning_seed is not None and not _takes_seed(manifest):
        cuts = ", ".join(f"{cut.method} at {cut.name}" for cut in manifest.pruning)
        raise UsageError(
            "no method of this bundle draws at random, so it takes no pruning_seed",
            found=cuts or "an unpruned bundle",
            mend="leave --pruning-seed out, or export with a random method",
        )


def _takes_seed(manifest: Manifest) -> bool:
    names = {spec.name for stage in manifest.stages.values() for spec in stage.inputs}
    return any(name == "seed" or name.startswith("seed_l") for name in names)


def encoder_feeds(manifest: Manifest, options: GenerateOptions, batch: int) -> dict[str, Array]:
    """`keep_ratio`, `keep_tokens` and `seed` `[batch]` of the vision stage."""
    cut = manifest.encoder_cut
    return {} if cut is None else _feeds(cut, options, batch, "")


def least_lengths(manifest: Manifest, options: GenerateOptions, text: int, sizes: Sequence[int]) -> list[int]:
    """Rows of a prompt that certainly reach each group of layers, told before anything is looked at.

    `text` tokens always stay; `sizes` are the visual tokens of its items. Of these only those count that no
    site may drop, and where a request says how many, so many.
    """
    budgets, cut = options.budgets(), manifest.encoder_cut
    budget, visual = budgets.get(ENCODER, Budget()), sum(sizes)
    if cut is not None and options.share == "each":
        visual = sum(_least(cut, budget, size) for size in sizes)
    elif cut is not None:
        visual = _least(cut, budget, visual)
    lengths = [text + visual]
    for cut in manifest.decoder_cuts:
        visual = _least(cut, budgets.get(cut.name, Budget()), visual)
        lengths.append(text + visual)
    return lengths


def _least(cut: CutRecord, budget: Budget, size: int) -> int:
    """How many of at least `size` tokens a cut certainly keeps."""
    if budget.ratio == 1:
        return size
    # Methods with trained weights may have a number of their own, which a budget only limits.
    return min(budget.tokens, size) if budget.tokens is not None and cut.adapter is None else 0


def decoder_feeds(manifest: Manifest, options: GenerateOptions, batch: int) -> dict[str, Array]:
    """`keep_ratio_l2`, … `[batch]` of all of the decoder's cuts."""
    feeds: dict[str, Array] = {}
    for cut in manifest.decoder_cuts:
        feeds |= _feeds(cut, options, batch, f"_l{cut.layer}")
    return feeds


def _feeds(cut: CutRecord, options: GenerateOptions, batch: int, suffix: str) -> dict[str, Array]:
    """Zero leaves the count to the method's rule; the seed is added to the exported one by the graph."""
    budget = options.budgets().get(cut.name, Budget())
    ratio = 0.0 if budget.ratio is None else max(budget.ratio, _SMALLEST_RATIO)
    return {
        f"keep_ratio{suffix}": np.full(batch, ratio, np.float32),
        f"keep_tokens{suffix}": np.full(batch, budget.tokens or 0, np.int64),
        f"seed{suffix}": np.full(batch, options.pruning_seed or 0, np.int64),
    }
