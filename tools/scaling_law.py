"""How many visual tokens for a cost: the scaling law of "Inference Optimal VLMs Need Fewer Visual Tokens".

arXiv 2411.03312: error ``Y(N, V) = A / (N^alpha V^beta) + D``, ``N`` the language model's parameters in
billions, ``V`` visual tokens; a prompt costs ``N (Q + V)``, ``Q`` the text tokens. Paper facts: the form, the
exponents 0.077 and 0.015, the accuracies behind them (``MEASURED``, from the authors' code: means over nine
benchmarks of Qwen1.5 models with TokenPacker-like compression). Ours: ``A`` and ``D`` fitted to those
accuracies with the paper's exponents, and the exponents for reading text in pictures, fitted to the
authors' second table: they are rough, and turned around (there tokens count for more than parameters).

The law is about models *trained* with so many tokens. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOKENS = (1, 4, 16, 36, 64, 144, 576)
"""Numbers of visual tokens that were measured."""

MEASURED = {
    0.5: (0.3855, 0.3917, 0.4078, 0.4133, 0.4151, 0.4244, 0.4320),
    1.8: (0.4333, 0.4519, 0.4528, 0.4597, 0.4609, 0.4758, 0.4808),
    4.0: (0.4630, 0.4692, 0.4858, 0.4916, 0.5023, 0.5092, 0.5185),
    7.0: (0.4810, 0.4971, 0.5050, 0.5141, 0.5172, 0.5238, 0.5354),
}
"""Billions of parameters -> accuracy at each of ``TOKENS``."""


@dataclass(frozen=True)
class Law:
    """``error = scale / (parameters^alpha tokens^beta) + floor``.

    Attributes:
        alpha: exponent of the parameters (billions).
        beta: exponent of the visual tokens.
        scale: error of one billion parameters with one token, less ``floor``.
        floor: error that neither mends.
    """

    alpha: float
    beta: float
    scale: float
    floor: float = 0.0

    def error(self, billions: float, tokens: float) -> float:
        """Predicted share of wrong answers."""
        return self.floor + self.scale * float(billions**-self.alpha) * float(tokens**-self.beta)


LAWS = {
    "understanding": Law(alpha=0.077, beta=0.015, scale=0.553, floor=0.036),
    "reading": Law(alpha=0.028, beta=0.040, scale=0.917),
}
"""Kind of task -> law: understanding and reasoning (the paper's), reading text in pictures (our refit)."""


@dataclass(frozen=True)
class Choice:
    """One way to spend a cost: ``billions (text + tokens)`` in billions of token passes."""

    billions: float
    tokens: int
    cost: float
    error: float


def best_tokens(law: Law, text: float) -> float:
    """Visual tokens of the least error at a fixed cost, the size being free: ``beta Q / (alpha - beta)``.

    From ``d/dV (alpha ln N + beta ln V) = 0`` along ``N (Q + V) = const``. At least 1; infinite where tokens
    count for as much as parameters or more.
    """
    if law.beta >= law.alpha:
        return math.inf
    return max(1.0, law.beta * text / (law.alpha - law.beta))


def choices(
    law: Law, cost: float, text: float, sizes: Sequence[float], limit: int = 576
) -> tuple[Choice, ...]:
    """For each model size that the cost allows the most visual tokens, best choice first.

    Sizes that could not take one token are left out.
    """
    found = []
    for billions in sizes:
        tokens = min(limit, math.floor(cost / billions - text + 1e-9))
        if tokens >= 1:
            found.append(Choice(billions, tokens, billions * (text + tokens), law.error(billions, tokens)))
    return tuple(sorted(found, key=lambda each: (each.error, each.cost)))


def curve(law: Law, billions: float, counts: Sequence[int], text: float) -> tuple[Choice, ...]:
    """What one model is predicted to do with each of ``counts`` visual tokens."""
    return tuple(Choice(billions, n, billions * (text + n), law.error(billions, n)) for n in counts)


def parameters_like(law: Law, billions: float, tokens: float, fewer: float) -> float:
    """Billions of parameters that err with ``fewer`` tokens as ``billions`` do with ``tokens``."""
    return float(billions * (tokens / fewer) ** (law.beta / law.alpha))


def fit(
    table: dict[float, tuple[float, ...]], alpha: float, beta: float, tokens: Sequence[int] = TOKENS
) -> tuple[Law, float]:
    """Least squares for ``scale`` and ``floor`` at given exponents, and the squared error over the table."""
    xs, ys = [], []
    for billions, accuracies in table.items():
        for count, accuracy in zip(tokens, accuracies, strict=True):
            xs.append(billions**-alpha * count**-beta)
            ys.append(1 - accuracy)
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    rise = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    scale = rise / math.fsum((x - mean_x) ** 2 for x in xs)
    law = Law(alpha, beta, scale, mean_y - scale * mean_x)
    return law, math.fsum((scale * x + law.floor - y) ** 2 for x, y in zip(xs, ys, strict=True))
