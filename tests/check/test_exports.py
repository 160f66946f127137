"""What we export is taken: every method and family, in every precision, in both lowerings of attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
from doubles.left_out import LEFT_OUT_OPERATORS
from exports import Graphs
from tiny import all_rows, make
from tiny.rows import Row

from foveate.export.check import Severity, check_bundle
from foveate.export.check.reading import load_graph
from foveate.runtime.bundle import Bundle

sys.path.append(str(Path(__file__).parents[1] / "runtime"))
from engines_made import CUTS, engines

__all__ = ["engines"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "fp8")
LOWERINGS = ("portable", "native")
# Greedy choices go round in a loop on the device; nothing else that we export may cost anything.
LOOPING = {"divprune", "cdpruner"}


@pytest.fixture(scope="module")
def graphs(engines: Path) -> Graphs:
    """The shared tiny bundle's, traced when it was exported."""
    return Graphs(engines.parent / "checkpoint", CUTS, bundle=Bundle.open(engines, check="none"))


def operators_of(folder: Path) -> set[str]:
    """Of all graphs in a folder, bodies included."""
    graphs = [load_graph(path).graph for path in folder.glob("*.onnx")]
    assert graphs
    return {node.op_type for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)}


@pytest.mark.parametrize("attention", LOWERINGS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_plan_in_every_precision(graphs: Graphs, dtype: str, attention: str, tmp_path: Path) -> None:
    reports = list(graphs.reports(dtype, attention, tmp_path))
    assert [report.name for report in reports] == [*graphs.models]
    assert not operators_of(tmp_path) & LEFT_OUT_OPERATORS
    for report in reports:
        assert report.findings == (), report.name
        assert report.capturable
        assert report.segments == 1


@pytest.mark.parametrize("attention", LOWERINGS)
def test_a_bundle_without_its_weights(engines: Path, attention: str, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for file in (engines / "manifest.json", *engines.glob("onnx/*.onnx")):
        (tmp_path / file.relative_to(engines)).write_bytes(file.read_bytes())
    report = check_bundle(tmp_path, attention=attention)
    assert len(report.graphs) == 2 + len(CUTS)
    assert not report.refused
    assert [graph.findings for graph in report.graphs] == [()] * len(report.graphs)


def rows() -> Iterator[object]:
    """Every method once, and the first row of every family."""
    seen: set[str] = set()
    for row in all_rows():
        news = {row.family, *(word.partition(":")[0].partition("@")[0] for word in row.plan)}
        if news - seen:
            seen |= news
            yield pytest.param(row, id=row.name.partition(",")[0].partition(":")[0])


@pytest.mark.slow
@pytest.mark.parametrize("row", list(rows()))
def test_every_method_and_family(row: Row, tmp_path: Path) -> None:
    traced = Graphs(make(row.family, tmp_path / "checkpoint", **row.checkpoint), row.plan)
    looping = any(word.partition(":")[0] in LOOPING for word in row.plan)
    for dtype in PRECISIONS:
        for attention in LOWERINGS:
            for report in traced.reports(dtype, attention, tmp_path / dtype):
                assert not report.refused, (report.name, report.findings)
                free = not looping or report.name != "vision_segmented"
                assert report.capturable is free, (report.name, report.why_not)
                assert report.segments == (1 if free else 2)
                costs = [f for f in report.findings if f.severity is Severity.COST]
                assert bool(costs) is not free
        assert not operators_of(tmp_path / dtype) & LEFT_OUT_OPERATORS


@pytest.mark.slow
def test_the_fused_layout_is_reported_as_what_it_is(tmp_path: Path) -> None:
    """Taken, since its operators are standard ones; but its shapes depend on data, and that is said where."""
    checkpoint = make("llava", tmp_path / "checkpoint")
    fused = Graphs(checkpoint, CUTS, layout="fused")
    vision, embed, decoder = fused.reports("fp32", "portable", tmp_path)
    assert not any(report.refused for report in (vision, embed, decoder))
    assert embed.findings == ()
    assert [sync.op for sync in vision.sync_points] == ["NonZero"]
    assert {f.rule for f in vision.findings} == {"graph.wait", "graph.open-output"}
    assert [sync.level for sync in decoder.sync_points] == [0, 1]  # a wait for each cut of the decoder
    assert (vision.segments, decoder.segments) == (2, 3)
    assert "graph.split" in {f.rule for f in decoder.findings}
    assert not vision.capturable
    assert not decoder.capturable
