"""Every tolerance of the ladder, with its reason. A failing gate is mended in the graphs, never here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Two float32 implementations of the same formula differ by the order of their sums. Measured on tiny and on
# trained models that is 1e-6 to 1e-5 after all layers; a wrong weight, position or row shows as 1e-2 and
# more. 1e-4 lies between the two, and is the design's figure for stages, layers and logits.
FLOAT32_ABSOLUTE = 1e-4

# Up to this magnitude 1e-4 is at least 52 float32 steps (1.9e-6 each, from 16 on). Beyond it the allowance
# grows with the value: rounding does, and hidden states of trained language models have channels in the
# thousands. The logits from which a token is chosen are not given this: there 1e-4 is absolute.
FLOAT32_STEPS_FROM = 16.0

# Scores that decide what is kept carry the same rounding noise. An input on which noise of this relative
# size changes the *oracle's own* answer is a tie in float32: it is no test, and another input is taken
# (`ladder.py`). Measured on tiny checkpoints: transformers in float32 against float64 differs by up
# to 2e-5 of a score, and two float32 implementations by twice that.
SCORE_NOISE = 4e-5

# Rows that a method rewrites (merges, groups), next to the largest number among them: a weighted mean of rows
# that agree to rounding. A wrong weight or a wrong member moves a row by percents.
FEATURE_RELATIVE = 1e-5


@dataclass(frozen=True)
class AccuracyGate:
    """P5, in points: the most that a cut alone may lose, and how much it has to beat random pruning by."""

    loss: float
    margin: float


# On so many scenes (eight questions each) a paired difference has a standard error of about 1 point.
ACCURACY_SCENES = 60
# Stated for the demo's own cuts. The encoder's: its design goal is a loss of at most 2 points where random
# pruning of equal size loses 10 and more; 3 standard errors on top. The decoder's: what the first layers
# have read of the image is not lost with the tokens, so random pruning does well there, too. Measured at half
# the tokens: 3 points lost, 9 better than random; 2 standard errors on each.
ACCURACY_GATES = {"cls-knee": AccuracyGate(5.0, 10.0), "text-relevance": AccuracyGate(5.0, 5.0)}


@dataclass(frozen=True)
class LowerLimits:
    """What is allowed below fp32, see `lower.py`.

    Attributes:
        stage: relative distance of a stage's output, on the reference's own input.
        logits: relative distance of the next token's logits behind all stages and cuts, over all prompts.
        kept: least mean share of kept indices in common with the reference's.
        tokens: least mean share of greedy tokens before the first that differs.
        loss: points of accuracy on the built-in model's scenes, against the same plan in fp32.
    """

    stage: float
    logits: float
    kept: float
    tokens: float
    loss: float


# A layer's rounding noise is 1 % of its output with 8 bits and 8 to 11 % with 4. Over all layers that gives
# logits which are 0.02 and 0.10 of their size off on the built-in model, 0.05 and 0.55 on tiny models of
# random weights, 48 wide, whose layers average nothing out. A wrong scale, packing or row gives 1 and more.
# Kept indices and greedy tokens of models that know nothing hang on differences smaller than that noise: few
# of them have to agree, the distances are what finds a fault. The loss is what docs/precision.md promises.
LOWER = {
    "fp32": LowerLimits(stage=0.001, logits=0.001, kept=1.0, tokens=1.0, loss=0.0),  # of single stages
    "fp16": LowerLimits(stage=0.005, logits=0.02, kept=0.97, tokens=0.9, loss=0.5),
    "bf16": LowerLimits(stage=0.04, logits=0.1, kept=0.9, tokens=0.6, loss=0.5),
    "int8": LowerLimits(stage=0.1, logits=0.25, kept=0.85, tokens=0.5, loss=1.0),
    "fp8": LowerLimits(stage=0.2, logits=0.35, kept=0.85, tokens=0.4, loss=1.0),
    "int4": LowerLimits(stage=0.7, logits=0.8, kept=0.8, tokens=0.3, loss=2.0),
}


def allowed(wanted: np.ndarray, *, absolute_only: bool = False) -> np.ndarray:
    """Largest permitted absolute difference, elementwise over `wanted` (any shape), for float32."""
    if absolute_only:
        return np.full(wanted.shape, FLOAT32_ABSOLUTE)
    return np.asarray(FLOAT32_ABSOLUTE * np.maximum(1.0, np.abs(wanted) / FLOAT32_STEPS_FROM))
