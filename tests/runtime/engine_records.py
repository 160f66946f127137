"""Records of engines that nobody built."""

from __future__ import annotations

from typing import Any

from foveate.runtime.engines import BuildOptions, EngineRecord, PlanRecord, Profile

SIZES = Profile(batch=4, prompt=256, new=64, images=2, visual=576, kept=(), logits=1)
_RECORD = {
    "foveate": "0.1.0",
    "tensorrt": "11.4.0.106",
    "compute_capability": "9.0",
    "gpu": "H200",
    "driver": "13.0",
    "precision": "fp16",
    "profile": SIZES,
    "options": BuildOptions(),
    "capacity": (320, 200),
    "weights_sha256": "0" * 64,
}
_PLAN = {"bytes": 4, "sha256": "0" * 64, "graph_sha256": "0" * 64, "key": "k", "profiles": ()}


def record(**changes: Any) -> EngineRecord:
    """Engines of an H200, with caches of 320 and 200 slots."""
    return EngineRecord(**(_RECORD | changes))


def plan(name: str, **changes: Any) -> PlanRecord:
    """The plan of a stage, of four bytes."""
    return PlanRecord(**({"file": f"{name}.plan"} | _PLAN | changes))
