"""Muon for the matrices and AdamW for everything else, in float32, with one warm-up and cosine schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps; matrices of one shape go together."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for matrix in matrices:
            state = self.state[matrix]
            if "average" not in state:
                state["average"] = torch.zeros_like(matrix)
            state["average"].lerp_(matrix.grad, 1 - group["momentum"])
            directions.append(matrix.grad.lerp(state["average"], group["momentum"]))
        rows, columns = matrices[0].shape
        scale = 0.2 * math.sqrt(max(rows, columns))  # the size of an AdamW update
        for matrix, update in zip(matrices, orthogonalise(torch.stack(directions)), strict=True):
            matrix.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of `[m, rows, columns]` towards one (quintic Newton-Schulz)."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.transpose(-2, -1)
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.transpose(-2, -1)
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrices.shape[-2] <= matrices.shape[-1] else wide.transpose(-2, -1)


class Optimizer:
    """Both optimisers behind one `step`, with the learning rate of the current step."""

    def __init__(
        self, modules: dict[str, torch.nn.Module], rate: float, warmup: int, steps: int, decay: float
    ) -> None:
        matrices, others = [], []
        for name, parameter in (
            p for m in modules.values() for p in m.named_parameters() if p[1].requires_grad
        ):
            is_table = "embed" in name or "head" in name
            (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
        self.rate, self.warmup, self.steps = rate, warmup, steps
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=rate, decay=decay),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=decay),
        ]
        self.parameters = matrices + others

    def step(self, number: int) -> None:
        """Apply the gradients of step `number` (from 0) and clear them."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        warm = min(1.0, (number + 1) / self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, number / self.steps)))
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate * warm * (0.02 + 0.98 * cosine)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both optimisers, for resuming."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
