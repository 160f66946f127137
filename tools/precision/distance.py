"""How far a plan's answers are from those in fp32: logits, row by row, on the probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distance:
    """Of logits from those of another precision, over some rows.

    Attributes:
        relative: root of the mean squared difference over the standard deviation of the logits of a row; a
            constant that is added to all logits of a row changes no probability, and does not count.
        divergence: mean Kullback-Leibler divergence from the other's distribution, in nats.
        tokens: share of rows with the same likeliest token.
    """

    relative: float
    divergence: float
    tokens: float


def distance(got: np.ndarray, wanted: np.ndarray) -> Distance:
    """Between logits `[rows, v]` of the same rows."""
    centred = [each - each.mean(axis=1, keepdims=True) for each in (got, wanted)]
    off = float(np.sqrt(np.mean((centred[0] - centred[1]) ** 2)))
    size = float(np.sqrt(np.mean(centred[1] ** 2)))
    logs = [_log_softmax(each.astype(np.float64)) for each in (got, wanted)]
    divergence = float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(axis=1).mean())
    tokens = float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    return Distance(off / size if size else 0.0, divergence, tokens)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
