"""cdpruner: greedy determinant maximisation over diag(r) S diag(r), by solving for each candidate's gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params

SPANNED = 1e-5
"""A candidate that keeps less than this of its own diagonal entry adds nothing."""
SCORE_ERROR = 3e-7
"""What float32 may change in a cosine with the words."""


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    if facts.projected is None or facts.prompt is None:
        raise NoOracleError("cdpruner needs the projected candidates and the words of the prompt")
    weight, error = weights(params, facts)
    kernel = _kernel(np.asarray(facts.projected, dtype=np.float64), weight)
    size = len(kernel)
    rule = ceil_share(params.get("ratio", 0.1111), size)
    count = final_count(rule, size, budget.keep_ratio, budget.keep_tokens, {})

    chosen: list[int] = []
    factor = np.zeros((0, size))  # rows of the Cholesky factor, one per chosen candidate
    fragile = False
    while len(chosen) < count:
        own = [float(kernel[i, i]) for i in range(size)]
        gain = [own[i] - math.fsum(float(each) ** 2 for each in factor[:, i]) for i in range(size)]
        left = [i for i in range(size) if i not in chosen]
        best = _best(left, gain, own)
        # Equal weights that no rounding touches: the first pick is an exact tie, on both sides.
        exact = not chosen and error == 0 and len(set(own)) == 1
        fragile = fragile or (not exact and _close(best, left, gain, own, [2 * error * w for w in weight]))
        chosen.append(best)
        if gain[best] > SPANNED * own[best]:
            row = kernel[best] - factor[:, best] @ factor
            factor = np.vstack([factor, row / math.sqrt(gain[best])])
    return Choice(tuple(sorted(chosen)), fragile and count < size)


def weights(params: Params, facts: EncoderFacts) -> tuple[list[float], float]:
    """Each candidate's relevance within (0, 1], and how far float32 may be off in it."""
    assert facts.projected is not None
    assert facts.prompt is not None
    plain = np.asarray(oracles.prompt_scores(facts.projected, facts.prompt))
    scores = [float(each) for each in (plain if facts.ends is None else facts.ends(plain))]
    scores = [-each for each in scores] if params.get("negative", False) else scores
    width = max(scores) - min(scores) + 1e-6
    scaled = [(each - min(scores) + 1e-6) / width for each in scores]
    if params.get("relevance", "linear") == "exp":
        theta = params.get("theta", 0.5)
        alpha = theta / (2 * (1 - theta))
        return [math.exp((each - 1) * alpha) for each in scaled], alpha * SCORE_ERROR / width
    return scaled, SCORE_ERROR / width


def _kernel(rows: np.ndarray, weight: Sequence[float]) -> np.ndarray:
    made = np.zeros((len(rows), len(rows)))
    for i, a in enumerate(rows):
        made[i, i] = weight[i] ** 2 if a.any() else 0.0
        for j in range(i):
            norm = math.sqrt((a * a).sum()) * math.sqrt((rows[j] * rows[j]).sum())
            made[i, j] = made[j, i] = weight[i] * weight[j] * (a * rows[j]).sum() / max(norm, 1e-12)
    return made


def _best(left: Sequence[int], gain: Sequence[float], own: Sequence[float]) -> int:
    """The largest gain; where the chosen ones span all that is left, the largest diagonal entry."""
    alive = [i for i in left if gain[i] > SPANNED * own[i]]
    if alive:
        return max(alive, key=lambda i: (gain[i], -i))
    return max(left, key=lambda i: (own[i], -i))


def _close(
    best: int, left: Sequence[int], gain: Sequence[float], own: Sequence[float], error: Sequence[float]
) -> bool:
    """Whether float32 could have picked another one: by a near tie, or by who counts as spanned."""
    if gain[best] < 5 * SPANNED * own[best]:
        doubtful = [i for i in left if SPANNED / 5 < abs(gain[i]) / max(own[i], 1e-300) < 5 * SPANNED]
        rival = [
            i for i in left if i != best and own[best] - own[i] < 1e-5 * own[best] + error[best] + error[i]
        ]
        return bool(doubtful or rival)
    for i in left:
        slack = 1e-5 * gain[best] + 3e-6 * max(own[best], own[i]) + error[best] + error[i]
        if i != best and gain[best] - gain[i] < slack:
            return True
    return False
