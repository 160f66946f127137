"""Qwen2.5-VL: as Qwen2-VL, with attention windows and a video's real time in its positions."""

from __future__ import annotations

from foveate.runtime.families.qwen2_vl import Facts, Preprocessor

__all__ = ["Facts", "Preprocessor"]
