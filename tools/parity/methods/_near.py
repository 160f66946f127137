"""What the oracles of merging methods share: cosines one by one, and when a decision about them is close."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NEAR = 1e-5  # cosines closer than this are one number to float32, after sums over a whole row


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two rows in double precision; 0 with a zero row."""
    norm = max(math.sqrt(float(a @ a)), 1e-12) * max(math.sqrt(float(b @ b)), 1e-12)
    return float(a @ b) / norm


def cosine_table(rows: np.ndarray) -> list[list[float]]:
    """Cosine of every row [n, w] with every other one."""
    rows = np.asarray(rows, dtype=np.float64)
    return [[cosine(a, b) for b in rows] for a in rows]


def best(values: Sequence[float]) -> tuple[int, bool]:
    """The first largest value's place, and whether another one is as large to float32."""
    top = max(range(len(values)), key=lambda i: (values[i], -i))
    return top, any(values[top] - value <= NEAR for i, value in enumerate(values) if i != top)


def head(values: Sequence[float], count: int) -> tuple[list[int], bool]:
    """Places of the `count` largest values (first of equals), and whether noise could exchange one."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    close = 0 < count < len(order) and values[order[count - 1]] - values[order[count]] <= NEAR
    return order[:count], close
