"""Target tensorrt on the ladder: equal to the checkpoint in float32, near it in half precision and 8 bits.

What TensorRT would be given runs here on ONNX Runtime's CPU kernels; bfloat16 by its twin
(`foveate.tools.parity.rounded`). The checker passes every graph that climbs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ladders import settings
from table import DEFAULT
from tiny.once import once
from tiny.products import products_of

from foveate.export import export_model
from foveate.export.check import Verdict, check_graph
from foveate.export.precision import PrecisionPlan, parse_precision
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import PrecisionRecord
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Front
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Rung, Status
from foveate.tools.parity.rounded import runnable
from foveate.tools.parity.rungs import climb
from foveate.tools.precision.choose import with_ranges
from foveate.tools.precision.prompts import built_in_probes
from foveate.tools.precision.trial import trial


@pytest.fixture(scope="module")
def written(default: tuple[Path, Bundle]) -> Bundle:
    """The table's first row for TensorRT, in float32."""

    def export(path: Path) -> None:
        chosen: Any = {"plan": DEFAULT.plan, "positions": DEFAULT.positions}
        export_model(default[0], path, target="tensorrt", dtype="fp32", **chosen)

    return Bundle.open(once(default[0].parent / "tensorrt", export))


def _climb(bundle: Bundle, reference: Reference, front: Front, *keys: str) -> tuple[Rung, ...]:
    few = settings("image first", "two images", budgets=("own rule", "ratio"))
    return climb(Ladder(bundle, reference, front, few), keys)


def _failed(rungs: tuple[Rung, ...]) -> list[str]:
    bad = (Status.FAILED, Status.CANNOT_RUN)
    return [f"{rung.key}: {c.name}: {c.detail}" for rung in rungs for c in rung.checks if c.status in bad]


def test_in_float32_it_is_the_checkpoint(written: Bundle, reference: Reference, front: Front) -> None:
    assert tuple(written.manifest.layouts) == ("segmented",)
    rungs = _climb(written, reference, front, "P0", "P1", "P2", "P3", "P4")
    assert not _failed(rungs)
    assert [rung.status for rung in rungs] == [Status.PASSED] * 5
    for name in written.manifest.stages:
        report = check_graph(written.stage_path(name))
        assert report.verdict is Verdict.PASSES, report.findings


@contextmanager
def lowered(written: Bundle, word: str) -> Iterator[tuple[Bundle, PrecisionPlan]]:
    """The same in another word; 8 bits with ranges measured on a built-in picture."""
    layers = list(products_of(written))
    stages = parse_precision(word, "tensorrt")
    plan = PrecisionPlan(stages, target="tensorrt")
    plan = with_ranges(written, layers, plan, built_in_probes()[:1], threads=1)
    record = PrecisionRecord.model_validate({"stages": stages})
    with trial(written, layers, plan) as made:
        yield Bundle(made.path, made.manifest.model_copy(update={"precision": record})), plan


@pytest.mark.parametrize("word", ["fp16", "bf16"])
def test_in_half_precision_it_is_near(word: str, written: Bundle, reference: Reference, front: Front) -> None:
    with lowered(written, word) as (bundle, plan):
        assert not plan.ranges
        rungs = _climb(bundle, reference, front, "P1", "P2")
        assert not _failed(rungs)
        assert [rung.title for rung in rungs] == ["stages, by distance", "kept indices, by overlap"]


@pytest.mark.parametrize("word", ["int8", "fp8"])
def test_eight_bits_are_calibrated(word: str, written: Bundle, reference: Reference, front: Front) -> None:
    """Layers of a model 48 wide average nothing out: what is kept is asked for, distances are not."""
    with lowered(written, word) as (bundle, plan):
        assert not plan.kernels, "the picture goes through every layer, so that none keeps half precision"
        assert set(plan.ranges) == {layer.name for layer in products_of(written)}
        assert min(plan.ranges.values()) > 0
        assert not _failed(_climb(bundle, reference, front, "P2"))
        for name in bundle.manifest.stages:
            assert check_graph(bundle.stage_path(name)).verdict is Verdict.PASSES


def test_a_twin_has_float32_caches_and_leaves_the_bundle_alone(written: Bundle) -> None:
    record = PrecisionRecord.model_validate({"stages": parse_precision("bf16", "tensorrt")})
    manifest = written.manifest.model_copy(update={"precision": record})
    with runnable(Bundle(written.path, manifest)) as twin:
        assert twin.path != written.path
        assert Bundle.open(twin.path, check="none").manifest.cache.dtype == "float32"
        folder = twin.path
    assert not folder.exists()
    Bundle.open(written.path, check="full")
    with runnable(written) as same:
        assert same is written
