"""How an oracle's scores become a choice that says whether float32 noise could turn it.

Used by the oracles in `methods`. Where scores decide, `decided` puts noise on them and looks again; where
candidate scores are made of others (patch scores, pooled), `made_of` puts the noise on those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, Params
from foveate.tools.parity.tolerances import SCORE_NOISE


def decided(
    decide: Callable[[Sequence[float]], oracles.Choice],
    scores: Sequence[float],
    together: Sequence[int] = (),
) -> Choice:
    """What `decide` chooses by `scores`; `together` as in `oracles.fragile`."""
    chosen = decide(scores)
    fragile = oracles.fragile(decide, scores, noise=SCORE_NOISE, together=together)
    return Choice(tuple(chosen.order[: chosen.count]), fragile)


def headed(
    scores: Sequence[float],
    params: Params,
    facts: EncoderFacts,
    budget: Budget,
    together: Sequence[int] = (),
) -> Choice:
    """The head of the sorted curve of candidate scores [n], by the knee options of a cut."""
    tile = [int(name) for name in facts.tile]
    return decided(lambda s: oracles.encoder_order(s, params, tile=tile, **budget.amount), scores, together)


def made_of(
    parts: Sequence[Any] | np.ndarray,
    make: Callable[[np.ndarray], Sequence[float] | np.ndarray],
    params: Params,
    facts: EncoderFacts,
    budget: Budget,
) -> Choice:
    """`headed` by scores that are made of others: of patches' [t, p], of bare candidates' [n]."""
    scores, together = pooled(parts, make)
    return headed(scores, params, facts, budget, together)


def pooled(
    parts: Sequence[Any] | np.ndarray,
    make: Callable[[np.ndarray], Sequence[float] | np.ndarray],
) -> tuple[list[float], list[int]]:
    """Candidate scores [n] that `make` makes of `parts`, and for each the first that shares its noise.

    Candidates that have one score whatever its parts are (a line end has its line's best) share its noise.
    """
    plain = np.asarray(parts, dtype=np.float64)
    noise = np.random.default_rng(0).uniform(-SCORE_NOISE, SCORE_NOISE, plain.shape)
    scores, moved = ([float(s) for s in make(p)] for p in (plain, plain * (1 + noise)))
    pairs = list(zip(scores, moved, strict=True))
    return scores, [pairs.index(pair) for pair in pairs]
