"""The memory report of a process of its own, on a real bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveate.runtime import GenerateOptions, Pipeline

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux's /proc is read")


def measured(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foveate.tools.memory", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_measurement(bundles: dict[str, Path], pipelines: dict[tuple[str, str], Pipeline]) -> None:
    done = measured(bundles["pruned"], "--words", 3, "--tokens", 4, "--keep-ratio", 0.4, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    usage = json.loads(done.stdout)
    names = [moment["name"] for moment in usage["moments"]]
    assert names == ["start", "loaded", "first token", "first answer", "first token", "second answer"]
    for moment in usage["moments"]:
        assert 0 < moment["private"] + moment["mapped"] <= moment["resident"] <= moment["peak"]
    weights = (bundles["pruned"] / "onnx" / "weights.bin").stat().st_size
    assert usage["weights"] == weights
    assert usage["bound"] == int(1.15 * weights) + usage["caches"] + 400_000_000
    assert usage["moments"][-1]["peak"] <= usage["bound"]
    # The caches are those of the same prompt asked here.
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    options = GenerateOptions(max_new_tokens=1, keep_ratio=0.4)
    report = pipelines["pruned", "fused"].generate("what what what", [picture], options).report
    assert (usage["caches"], usage["prompt_tokens"]) == (report.cache_bytes, len(report.positions))


def test_no_bundle(tmp_path: Path) -> None:
    done = measured(tmp_path / "none")
    assert done.returncode not in (0, 1)
    assert done.stderr.startswith("error: there is no bundle")
    assert "Traceback" not in done.stderr
