"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np

from foveate.runtime.arrays import Floats
from foveate.runtime.errors import BackendError
from foveate.runtime.options import GenerateOptions


class Sampler:
    """Picks one sequence's tokens; its random numbers depend on the seed alone, not on the rest of a batch.

    1. `temperature` 0: the largest logit, the lower id on a tie.
    2. Otherwise the logits are divided by the temperature, cut to the `top_k` best, then to the smallest set
       of best tokens whose probability reaches `top_p`, and one of these is drawn.
    """

    def __init__(self, options: GenerateOptions) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def pick(self, logits: Floats) -> int:
        """The next token id, from `logits [v]`.

        Raises:
            BackendError: the logits are not numbers.
        """
        if not np.isfinite(logits.max()):  # the maximum of NaN with anything is NaN
            mend = "run foveate verify on the bundle"
            raise BackendError("the model's logits are not numbers (NaN or infinite)", mend=mend)
        if self._options.temperature == 0:
            return int(np.argmax(logits))
        ids, probability = candidates(logits, self._options)
        drawn = np.searchsorted(np.cumsum(probability), self._random.random(), side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def candidates(logits: Floats, options: GenerateOptions) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[m]`, best first, and probabilities `[m]` of the tokens that may be drawn, from `logits [v]`."""
    ids = np.argsort(-logits, kind="stable")[: options.top_k]
    # The best becomes 0 before the division: a tiny temperature then leaves 0 and -infinity, not NaN.
    below = logits[ids].astype(np.float64) - float(logits[ids[0]])
    with np.errstate(over="ignore"):
        weight = np.exp(below / float(options.temperature))
    probability = weight / weight.sum()
    if options.top_p is not None:
        # As many as are needed to reach top_p, the first one always.
        before = np.cumsum(probability) - probability
        size = max(1, int(np.count_nonzero(before < options.top_p)))
        ids, probability = ids[:size], probability[:size] / probability[:size].sum()
    return ids, probability
