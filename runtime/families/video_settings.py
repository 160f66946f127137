"""What a checkpoint says about videos: transformers' video processors need torch, so we read their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_FILES: Final = ("video_preprocessor_config.json", "preprocessor_config.json")


def read_video_settings(folder: Path) -> dict[str, Any]:
    """The video processor's settings, from where transformers takes them; empty without any."""
    nested = _read_object(folder / "processor_config.json").get("video_processor")
    if isinstance(nested, dict):
        return nested
    return next((found for name in _FILES if (found := _read_object(folder / name))), {})


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
