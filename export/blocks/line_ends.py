"""Visual tokens that end a line of others: what they score, and where they belong."""

from __future__ import annotations

import torch
from torch import Tensor


class LineEnds:
    """Which of n tokens end which of l lines. A line end shows nothing: it ranks behind its line's best.

    Attributes:
        is_end: bool `[n]`.
        number: int64 `[n]`: which line a line end ends; 0 for other tokens.
        line: int64 `[l, columns]`: the tokens of each line, in order.
    """

    def __init__(self, is_end: Tensor, number: Tensor, line: Tensor) -> None:
        self.is_end, self.line = is_end, line
        self.number = torch.where(is_end, number, 0)

    def best(self, score: Tensor) -> Tensor:
        """Scores `[n]`, each line end's replaced by the best of its line."""
        return self._put(score, score[self.line].max(dim=1).values)

    def last(self, value: Tensor) -> Tensor:
        """Values `[n]`, each line end's replaced by that of its line's last token."""
        return self._put(value, value.index_select(0, self.line[:, -1]))

    def _put(self, value: Tensor, of_line: Tensor) -> Tensor:
        return torch.where(self.is_end, of_line.index_select(0, self.number), value)
