"""Two readings of what TensorRT takes, written apart: the checker's rules and the double's parser.

The checker (foveate.export.check) has for every rule a graph that breaks it; the double has to refuse it too,
or a reason stands here. And what the double refuses, the checker refuses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

from doubles.left_out import LEFT_OUT_OPERATORS
from doubles.tensorrt.compute import inferred
from doubles.tensorrt.expand import NotModelledError
from doubles.tensorrt.importer import refusals

sys.path.append(str(Path(__file__).parent.parent / "check"))

from examples import example
from pairs import GOOD
from test_operators import ROWS, SPOIL
from test_rules import OWN, bad_graph

from foveate.export.check import Severity
from foveate.export.check.operators import operators

# TensorRT takes these and computes something else than ONNX means: the checker's business, not the parser's.
SILENT = {"Attention.nonpad", "Attention.causal", "graph.mistaken"}
# Refused by the builder, or by ONNX Runtime for a file that is to run there too; see test_trt_build.
ELSEWHERE = {
    *(
        f"{op}.{part}"
        for op in ("TensorScatter", "TRT_KVCacheUpdate")
        for part in ("input", "output", "capacity")
    ),
    *("graph.flavour", "Attention.attributes", "TRT_Attention.attributes"),
}
# Rules that none of our graphs comes near, which the double leaves to the checker.
LEFT_OUT = {
    *("graph.shape-size", "graph.nesting", "Hardmax.axis", "Pad.mode", "EyeLike.static", "Constant.literal"),
    *("CastLike.target", "Gemm.rank", "Einsum.equation", "Conv.channels", "ConvTranspose.channels"),
    *("DeformConv.channels", "AveragePool.dilations", "AveragePool.rank", "LpPool.dilations", "LpPool.rank"),
    *("MaxPool.dilations", "MaxPool.rank", "Resize.mode", "Resize.coordinates", "Resize.nearest"),
    *("Resize.axes", "Resize.spatial", "GridSample.rank", "GridSample.volume", "Dropout.training"),
    *("LSTM.input-forget", "LSTM.layout", "RotaryEmbedding.width", "QuantizeLinear.blocks"),
    *("QuantizeLinear.type", "DequantizeLinear.blocks", "DequantizeLinear.pairs", "If.rank", "If.names"),
    *("Loop.condition", "Loop.scan", "Loop.carried", "Attention.mask-and-causal", "TRT_Attention.rank"),
}
LATE = {"DFT"}  # taken only from 11.2.1 on
ERRORS = [entry.rule for entry in OWN if entry.severity is Severity.ERROR]
MILD = [entry.rule for entry in OWN if entry.severity is not Severity.ERROR]


def _modelled(rule: str) -> bool:
    """Packed forms and TensorRT's quantising operators make the double raise NotModelledError."""
    name = rule.partition(".")[0]
    own = not name.startswith("TRT_") or name in ("TRT_Attention", "TRT_KVCacheUpdate")
    return own and rule not in ("TRT_Attention.forms", "TRT_Attention.lengths", "TRT_KVCacheUpdate.form")


def _refused(model: onnx.ModelProto) -> bool:
    return next(refusals(model, inferred(model)), None) is not None


def test_what_is_not_modelled_is_no_answer() -> None:
    with pytest.raises(NotModelledError):
        _refused(bad_graph("TRT_Attention.forms"))


@pytest.mark.parametrize("rule", list(filter(_modelled, ERRORS)))
def test_the_double_refuses_what_the_checker_refuses(rule: str) -> None:
    wanted = rule not in SILENT | ELSEWHERE | LEFT_OUT
    assert _refused(bad_graph(rule)) is wanted


@pytest.mark.parametrize("rule", MILD)
def test_the_double_takes_what_the_checker_only_remarks_on(rule: str) -> None:
    assert not _refused(bad_graph(rule))


@pytest.mark.parametrize(
    "name",
    [n for n, row in operators().items() if row.dtypes is not None and _modelled(n) and n not in LATE],
)
def test_the_double_takes_an_operator_that_the_checker_takes(name: str) -> None:
    assert not _refused(example(name).build(operators()[name]))


def _spoilt() -> list[str]:
    """Rows of the operators that the double knows; it is of one version."""
    known = [row for row in ROWS if _modelled(row) and row.partition(".")[0] not in LEFT_OUT_OPERATORS]
    return [row for row in known if not row.endswith(".version")]


@pytest.mark.parametrize("row", _spoilt())
def test_the_double_refuses_a_spoilt_operator(row: str) -> None:
    name, part = row.split(".")
    assert _refused(SPOIL[part](name)[0])


@pytest.mark.parametrize("name", sorted(LEFT_OUT_OPERATORS - LATE))
def test_no_operator_is_left_out_for_nothing(name: str) -> None:
    """That our exports have none of them is asked in tests/check/test_exports.py."""
    rows = [row for row in ROWS if row.startswith(f"{name}.") and not row.endswith(".version")]
    assert any(not _refused(SPOIL[row.partition(".")[2]](name)[0]) for row in rows)


@pytest.mark.parametrize("rule", list(filter(_modelled, GOOD)))
def test_the_double_takes_the_good_twin(rule: str) -> None:
    from graphs import graph

    assert not _refused(graph(*GOOD[rule]))
