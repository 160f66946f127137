"""How many tokens stay: a request's budget, or else the method's own rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Budget(NamedTuple):
    """What a request allows, per image or sequence; 0 means "not given" (the method's own rule decides).

    Attributes:
        keep_ratio: float32 ``[b]``, kept fraction.
        keep_tokens: int64 ``[b]``, kept tokens; wins over ``keep_ratio``.
    """

    keep_ratio: Tensor
    keep_tokens: Tensor

    def given(self) -> Tensor:
        """Boolean ``[b]``: whether the request set a budget."""
        return (self.keep_tokens > 0) | (self.keep_ratio > 0)


def ratio_count(ratio: Tensor | float, size: Tensor) -> Tensor:
    """``ceil(ratio * size)`` as int64 ``[b]``, forgiving float32 noise: 0.7 * 10 is 7, not 8.

    The slack is 1e-4 of a token, or a unit or two in the last place where that is more (above 800 tokens).
    """
    exact = size.to(torch.float32) * ratio
    slack = torch.clamp(exact * 2.0**-23, min=1e-4)
    return torch.ceil(exact - slack).to(torch.int64)


def scaled_count(count: Tensor, scale: float) -> Tensor:
    """``count [b]`` times ``scale``, rounded half up (with the same slack as :func:`ratio_count`)."""
    exact = count.to(torch.float32) * scale
    slack = torch.clamp(exact * 2.0**-23, min=1e-4)
    return torch.floor(exact + 0.5 + slack).to(torch.int64)


def floor_count(count: Tensor, share: float) -> Tensor:
    """``count [b]`` times ``share``, rounded down (with the same slack as :func:`ratio_count`)."""
    exact = count.to(torch.float32) * share
    slack = torch.clamp(exact * 2.0**-23, min=1e-4)
    return torch.floor(exact + slack).to(torch.int64)


def resolve_or_none(budget: Budget, rule_count: Tensor, size: Tensor) -> Tensor:
    """As :func:`resolve_count`, for rules that may keep nothing; ``rule_count`` may exceed ``size``."""
    asked = resolve_count(budget, rule_count, size)
    return torch.where(budget.given(), asked, torch.minimum(rule_count, size))


def resolve_count(
    budget: Budget,
    rule_count: Tensor,
    size: Tensor | int,
    *,
    min_keep: int = 1,
    max_keep: int | None = None,
    round_to: int = 1,
) -> Tensor:
    """How many of ``size`` candidates stay, int64 ``[b]``.

    ``keep_tokens`` wins, then ``keep_ratio``, then ``rule_count``. A given budget is obeyed exactly, within
    ``[1, size]``. ``round_to`` (upwards), ``max_keep`` and ``min_keep`` shape the rule's own count only, in
    that order. No candidates (``size`` 0) gives 0.
    """
    size = torch.zeros_like(rule_count) + size  # b
    rule = rule_count
    if round_to > 1:
        rule = rule + (round_to - rule % round_to) % round_to
    if max_keep is not None:
        rule = torch.minimum(rule, torch.full_like(rule, max_keep))
    rule = torch.maximum(rule, torch.full_like(rule, min_keep))
    asked = torch.where(budget.keep_ratio > 0, ratio_count(budget.keep_ratio, size), rule)
    asked = torch.where(budget.keep_tokens > 0, budget.keep_tokens, asked)
    # torch.maximum rather than clamp: TensorRT's Clip takes no integers.
    return torch.minimum(torch.maximum(asked, torch.ones_like(asked)), size)
