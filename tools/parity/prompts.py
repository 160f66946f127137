"""placeholder"""

from dataclasses import dataclass
import numpy as np


@dataclass(frozen=True)
class Turn:
    input_ids: tuple[int, ...]
    roles: tuple[int, ...]
    query: tuple[int, ...]
    pixel_values: np.ndarray | None = None
