"""Reading graphs without weights, versions, verdicts, and the error that a refused graph becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import graph
from onnx import numpy_helper

from foveate.export.check import Verdict, check_graph, require_pass
from foveate.export.check.reading import read_graph
from foveate.runtime.errors import BundleError, CheckError, UsageError

PRODUCT = ("float[n,3] x, float[3,4] w", "[it] z = MatMul (x, w)")


def external(name: str, shape: list[int], location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def test_weights_that_are_not_there_are_not_missed(tmp_path: Path) -> None:
    """700 billion numbers, in a file that nobody has."""
    model = graph("float[n,700000] x", "[it] z = MatMul (x, w)", "float[1] w = {0.0}")
    model.graph.initializer[0].CopyFrom(external("w", [700_000, 1_000_000], "nowhere.bin"))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert check_graph(path).verdict is Verdict.PASSES
    assert check_graph(ir.from_proto(model)).verdict is Verdict.PASSES


def test_large_weights_in_the_file_are_left_out() -> None:
    model = graph("float[n,64] x", "[it] z = MatMul (x, w)", "float[1] w = {0.0}")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((64, 256), np.float32), "w"))
    read = read_graph(model)
    assert isinstance(read.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert tuple(read.graph.outputs[0].shape or ())[1] == 256  # shapes are followed all the same
    assert model.graph.initializer[0].raw_data, "the caller's model keeps them"


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x0a\x12"])
def test_what_is_no_graph_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="no ONNX graph"):
        check_graph(path)
    with pytest.raises(BundleError, match="cannot be read"):
        check_graph(tmp_path / "none.onnx")


@pytest.mark.parametrize("version", ["", "eleven", "11", "8.6", "10.14.9"])
def test_versions_that_the_rules_do_not_know(version: str) -> None:
    with pytest.raises(UsageError):
        check_graph(graph(*PRODUCT), version=version)


@pytest.mark.parametrize(("version", "taken"), [("10.16.1.11", False), ("11.0", True), ("11.4.0.106", True)])
def test_rules_go_by_version(version: str, taken: bool) -> None:
    """Lengths and causal kinds came with 11."""
    model = graph(
        "float16[1,2,3,64] x, float16[1,2,5,64] y, int32[1] n",
        '[it] z = trt.TRT_Attention <causal_kind = "lower_right"> (x, y, y, , , n)',
    )
    assert check_graph(model, version=version, flavoured=True).refused is not taken


def test_heads_without_a_kernel_matter_where_they_must_have_one() -> None:
    model = graph("float16[1,2,3,12] x", "[it] z = Attention (x, x, x)")
    assert check_graph(model, attention="portable").verdict is Verdict.PASSES
    assert check_graph(model, attention="native").verdict is Verdict.TAKEN


def test_the_error_names_node_rule_and_mend() -> None:
    model = graph("int64[n] x", "[a] y = Neg (x)\n [b] z = CumSum (y, c)\n [d] w = Compress (z, m)",
                  "int64 c = {0}, bool[1] m = {1}")  # fmt: skip
    report = check_graph(model, name="decoder_0")
    with pytest.raises(CheckError) as raised:
        require_pass(report)
    error = raised.value
    assert error.exit_code == 12
    assert "decoder_0 (and 1 more)" in error.message
    assert "CumSum b" in error.found
    assert "[CumSum.dtype]" in error.found
    assert "float32" in error.mend
    require_pass(check_graph(graph(*PRODUCT)))


def test_a_report_is_plain_values() -> None:
    told = check_graph(graph("bool[n] x", "[it] z = NonZero (x)")).to_json()
    assert told["verdict"] == "taken"
    assert told["sync_points"][0]["node"] == "it"
    assert told["segments"] == 2
    assert {f["severity"] for f in told["findings"]} == {"cost"}


def test_a_file_that_contradicts_itself_is_said_to() -> None:
    """ONNX steps over such nodes without a word, and rules would see no shapes behind them."""
    model = graph("float[2,3] x, float[4] y", "[one] u = Neg (x)\n [two] z = Add (u, y)")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, [2, 9]))
    found = [finding for finding in check_graph(model).findings if finding.rule == "graph.inference"]
    assert [(finding.node, finding.op) for finding in found] == [("one", "Neg"), ("two", "Add")]
    assert "(3) vs (9)" in found[0].what
    assert "Incompatible dimensions" in found[1].what
    whole = check_graph(graph("float[2,3] x, float[2,3] y", "[one] u = Neg (x)\n [two] z = Add (u, y)"))
    assert whole.verdict is Verdict.PASSES


def test_what_nobody_can_infer_is_said_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **words: object) -> onnx.ModelProto:
        raise RuntimeError("out of its depth")

    model = graph(*PRODUCT)
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", broken)
    report = check_graph(model)
    (finding,) = (finding for finding in report.findings if finding.rule == "graph.inference")
    assert (finding.node, finding.op) == ("g", "")
    assert "out of its depth" in finding.what
    assert report.verdict is Verdict.TAKEN
