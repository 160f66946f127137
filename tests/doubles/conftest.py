"""The doubles' own tests: what they refuse is what the documentation says that the real things refuse."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

from doubles.fixtures import cudart, tensorrt  # noqa: E402

__all__ = ["cudart", "tensorrt"]
