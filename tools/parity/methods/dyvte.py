"""dyvte: the gate's two logits, one product at a time; all visual tokens stay, or none."""

from __future__ import annotations

import math

import numpy as np

from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods import exit as fixed_exit
from foveate.tools.parity.methods._visual import visual_rows

NEAR = 1e-4  # logits this close, against their size, are one number to float32


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay; fragile where the two logits all but tie."""
    if budget.keep_ratio > 0 or budget.keep_tokens > 0:
        return fixed_exit.decoder({}, facts, budget)
    everything = Choice(tuple(range(len(facts.roles))))
    asking = sorted(int(row) for row in facts.question if 0 <= row < len(facts.roles))
    if not asking or not visual_rows(facts):
        return everything
    stay, leave = gate_logits(facts.adapter, np.asarray(facts.hidden, np.float64), asking)
    ahead = leave - stay - float(params.get("margin", 0.0))
    fragile = abs(ahead) <= NEAR * max(abs(stay), abs(leave), 1e-3)
    if ahead <= 0:
        return Choice(everything.kept, fragile)
    visual = set(visual_rows(facts))
    return Choice(tuple(row for row in everything.kept if row not in visual), fragile)


def gate_logits(weights: Params, hidden: np.ndarray, asking: list[int]) -> tuple[float, float]:
    """Stay and exit, from rows `asking` of `hidden` [s, d]."""
    d = hidden.shape[1]
    *others, last = asking
    mean = [math.fsum(hidden[row, j] for row in others) / len(others) if others else 0.0 for j in range(d)]
    seen = np.array([*mean, *hidden[last]])
    first, second = (np.asarray(weights[f"gate.{name}.weight"], np.float64) for name in ("fc1", "fc2"))
    inner = []
    for column in first.T:
        x = float(column @ seen)
        inner.append(0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    stay, leave = (float(np.dot(column, inner)) for column in second.T)
    return stay, leave
