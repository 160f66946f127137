"""Whether decoding steps are captured into CUDA graphs; if that fails once, nothing is captured any more."""

from __future__ import annotations

import warnings

from foveate.runtime.errors import FoveateError


class Graphs:
    """Shared by all contexts of a backend.

    Attributes:
        on: whether to capture.
        note: why they are off although nobody asked for that; empty otherwise. Reports carry it.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self.note = ""

    def give_up(self, stage: str, reason: str | FoveateError) -> None:
        """Run plainly from now on, and say so once."""
        if not self.on:
            return
        self.on = False
        self.note = f"decoding steps run without CUDA graphs, so slower: stage '{stage}': {reason}"
        warnings.warn(self.note, RuntimeWarning, stacklevel=2)
