"""Writes .ci/typing/tensorrt from the newest bindings of tests/bindings/versions.py; run when they change."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUBS = ROOT / ".ci" / "typing" / "tensorrt" / "__init__.pyi"
sys.path.insert(0, str(ROOT / "tests" / "bindings"))

import fetch  # noqa: E402
import stubs  # noqa: E402
import versions  # noqa: E402

if __name__ == "__main__":
    cache = ROOT / ".pytest_cache" / "d" / "tensorrt-bindings"
    surface = fetch.describe(versions.NEWEST, cache)
    STUBS.parent.mkdir(parents=True, exist_ok=True)
    STUBS.write_text(stubs.write_stubs(surface, versions.NEWEST.version))
