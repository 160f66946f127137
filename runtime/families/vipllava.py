"""ViP-LLaVA: pictures and prompts as LLaVA-1.5; what it does otherwise lies inside its graphs."""

from __future__ import annotations

from foveate.runtime.families.llava import Facts, Preprocessor

__all__ = ["Facts", "Preprocessor"]
