"""Every tolerance of the ladder, with its reason. A failing gate is mended in the graphs, never here."""

from __future__ import annotations

import numpy as np

# Two float32 implementations of the same formula differ by the order of their sums. Measured on tiny and on
# trained models that is 1e-6 to 1e-5 after all layers; a wrong weight, position or row shows as 1e-2 and
# more. 1e-4 lies between the two, and is the design's figure for stages, layers and logits.
FLOAT32_ABSOLUTE = 1e-4

# Beyond this magnitude 1e-4 is fewer than 13 float32 steps (a step at 64 is 7.6e-6), and hidden states of
# trained language models do have channels in the thousands. From here on the allowance grows with the
# value: 13 steps. Logits are never given this: they stay below it, and the gate on them is absolute.
FLOAT32_STEPS_FROM = 64.0

# Scores that decide what is kept carry the same rounding noise. An input on which noise of this relative
# size changes the *oracle's own* answer is a tie in float32: it is no test, and another input is taken
# (`ladder.decisive`). Measured on tiny checkpoints: transformers in float32 against float64 differs by up
# to 2e-5 of a score, and two float32 implementations by twice that.
SCORE_NOISE = 4e-5

# Half-precision bundles are gated on direction, not on digits: float16 keeps 11 bits, and sums over a
# model's width lose a few of them. 0.999 is the design's figure.
FLOAT16_COSINE = 0.999


def allowed(wanted: np.ndarray, *, absolute_only: bool = False) -> np.ndarray:
    """Largest permitted absolute difference, elementwise over `wanted` (any shape), for float32."""
    if absolute_only:
        return np.full(wanted.shape, FLOAT32_ABSOLUTE)
    return np.asarray(FLOAT32_ABSOLUTE * np.maximum(1.0, np.abs(wanted) / FLOAT32_STEPS_FROM))
