"""Versions of TensorRT as tuples, and which of them the rules know."""

from __future__ import annotations

import re
from typing import Final

from foveate.runtime.errors import UsageError

Version = tuple[int, ...]

# The newest parser whose source could be read; what is built with a newer one is held to the same rules.
DEFAULT: Final = "11.1"
# TensorScatter, and with it caches that are written in place, came with it.
OLDEST: Final = "10.15"


def parse_version(text: str) -> Version:
    """`11.1` or `11.4.0.106` as numbers.

    Raises:
        UsageError: no version, or one older than the rules.
    """
    if not re.fullmatch(r"\d+(\.\d+){1,3}", text):
        raise UsageError("this is no version of TensorRT", found=repr(text), wanted=f"such as {DEFAULT}")
    version = tuple(map(int, text.split(".")))
    if version < parse_version_unchecked(OLDEST):
        raise UsageError(
            "this version of TensorRT has no caches that are written in place",
            found=text,
            wanted=f"{OLDEST} or newer",
        )
    return version


def parse_version_unchecked(text: str) -> Version:
    """Numbers of a version that stands in the rules."""
    return tuple(map(int, text.split(".")))
