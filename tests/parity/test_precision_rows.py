"""The ladder below fp32: quantised graphs pass it, a wrong scale does not; what is asked for is stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from ladders import settings
from tiny.products import products_of

from foveate.export.precision import PrecisionPlan, parse_precision
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import PrecisionRecord
from foveate.tools.parity import lower
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Front
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Rung, Status
from foveate.tools.parity.rungs import climb
from foveate.tools.parity.tolerances import LOWER
from foveate.tools.precision.trial import trial

Make = Callable[[Bundle], Ladder]


@pytest.fixture
def small(reference: Reference, front: Front) -> Make:
    few = settings("image first", "two images", budgets=("ratio", "tokens"))
    return lambda bundle: Ladder(bundle, reference, front, few)


@contextmanager
def lowered(path: Path, words: str) -> Iterator[Bundle]:
    """The fused layout of an fp32 bundle in other words, tiny layers included."""
    bundle = Bundle.open(path, check="none")
    layouts = {"fused": bundle.manifest.layouts["fused"]}
    layers = list(products_of(bundle))
    with trial(bundle, layers, PrecisionPlan(parse_precision(words))) as made:
        record = PrecisionRecord.model_validate({"stages": parse_precision(words)})
        changes = {"precision": record, "layouts": layouts}
        yield Bundle(made.path, made.manifest.model_copy(update=changes))


def _failed(rungs: tuple[Rung, ...]) -> list[str]:
    bad = (Status.FAILED, Status.CANNOT_RUN)
    return [f"{rung.key}: {c.name}: {c.detail}" for rung in rungs for c in rung.checks if c.status in bad]


@pytest.mark.parametrize("words", ["fp16", "int8", "int4"])
def test_quantised_graphs_pass(copy: Path, small: Make, words: str) -> None:
    with lowered(copy, words) as bundle:
        rungs = climb(small(bundle), ("P0", "P1", "P2", "P3", "P4", "P5"))
    assert not _failed(rungs)
    assert [rung.title for rung in rungs][1] == "stages, by distance"
    assert rungs[5].status is Status.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("layer", "stage"),
    [("language_model.layers.1.mlp.down_proj", "decoder"), ("connector.linear_1", "embed")],
)
def test_a_wrong_scale_of_one_layer_fails(copy: Path, small: Make, layer: str, stage: str) -> None:
    with lowered(copy, "int8") as bundle:
        _scale_up(bundle, stage, f"{layer}.weight.")
        (rung,) = climb(small(bundle), ("P1",))
    assert rung.first_failure is not None
    assert rung.first_failure.where is not None
    assert rung.first_failure.where.stage == stage


def _scale_up(bundle: Bundle, stage: str, prefix: str) -> None:
    """Make a layer's scales four times what they are, in the file."""
    path = bundle.stage_path(stage)
    model = onnx.load(str(path), load_external_data=False)
    names = [item for item in model.graph.initializer if item.name == f"{prefix}scale"]
    assert names, [item.name for item in model.graph.initializer]
    entry = {item.key: item.value for item in names[0].external_data}
    file = np.memmap(path.parent / entry["location"], np.uint8, "r+")
    start = int(entry.get("offset", 0))
    scales = file[start : start + int(entry["length"])].view(np.float32)
    scales *= 4
    file.flush()


def test_the_loosest_word_counts() -> None:
    record = PrecisionRecord.model_validate({"stages": {"vision": "int8", "decoder": "int4", "head": "fp32"}})
    assert lower.loosest(record) == "int4"
    assert lower.loosest(PrecisionRecord()) == "fp32"
    assert (LOWER["int8"].loss, LOWER["int4"].loss) == (1.0, 2.0)


def test_agreement_is_a_share() -> None:
    assert lower.overlap([1, 2, 3, 9], [1, 2, 3]) == 0.75
    assert lower.same_start([5, 6, 7, 8], [5, 6, 9, 8]) == 0.5
    assert lower.same_start([], []) == lower.overlap([], []) == 1.0
    assert lower.relative(np.ones(4), np.full(4, 2.0)) == 0.5
    assert lower.relative(np.ones(3), np.ones(4)) == float("inf")
    assert lower.relative(np.array([np.nan]), np.ones(1)) == float("inf")
    assert lower.relative(np.full(3, 1e-9), np.zeros(3)) == float("inf")
    assert lower.relative(np.zeros(3), np.zeros(3)) == 0.0
    assert lower.Agreement().check("nothing", 0.5, "decoder").status is Status.CANNOT_RUN
