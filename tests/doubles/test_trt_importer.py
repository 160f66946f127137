"""The double's parser refuses what the importer refuses (tensorrt.md B), and takes the mended twin."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from doubles.tensorrt import importer
from doubles.tensorrt.compute import inferred
from doubles.trt_graphs import Log, graph
from doubles.trt_refused import PAIRS, X


def _parse(trt: ModuleType, model: bytes) -> tuple[bool, object]:
    log = Log(trt)
    network = trt.Builder(log.logger).create_network(0)
    parser = trt.OnnxParser(network, log.logger)
    parsed = parser.parse(model)
    assert parsed == (parser.num_errors == 0)
    return parsed, None if parsed else parser.get_error(0)


@pytest.mark.parametrize("rule", PAIRS)
def test_refused(rule: str, tensorrt: ModuleType) -> None:
    signature, bad, _, words = PAIRS[rule]
    parsed, error = _parse(tensorrt, graph(signature, bad))
    assert not parsed
    assert words in error.desc()  # type: ignore[attr-defined]
    node = onnx.load_model_from_string(graph(signature, bad)).graph.node[error.node()]  # type: ignore[attr-defined]
    assert (node.name, node.op_type) == (error.node_name(), error.node_operator())  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", [rule for rule, pair in PAIRS.items() if pair[2]])
def test_its_twin_is_taken(rule: str, tensorrt: ModuleType) -> None:
    signature, _, good, _ = PAIRS[rule]
    assert good is not None
    parsed, error = _parse(tensorrt, graph(signature, good))
    assert parsed, str(error)


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    broken = set()
    for signature, bad, _, _ in PAIRS.values():
        model = onnx.load_model_from_string(graph(signature, bad))
        known = importer.Graph(model, inferred(model))
        for node in model.graph.node:
            for rule in importer.OPERATORS[node.op_type].rules if node.op_type in importer.OPERATORS else ():
                if rule(importer.View(node, known)) is not None:
                    broken.add(rule)
    every = {rule for operator in importer.OPERATORS.values() for rule in operator.rules}
    assert every == broken, [getattr(rule, "__qualname__", rule) for rule in every - broken]


def test_a_newer_opset_is_refused(tensorrt: ModuleType) -> None:
    assert not _parse(tensorrt, graph(X, "y = Relu(x)", opset=25))[0]
    assert _parse(tensorrt, graph(X, "y = Relu(x)", opset=24))[0]


def test_an_input_of_unknown_rank_is_refused(tensorrt: ModuleType) -> None:
    model = onnx.load_model_from_string(graph(X, "y = Relu(x)"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert not _parse(tensorrt, model.SerializeToString())[0]


def test_supported_parts_are_named(tensorrt: ModuleType) -> None:
    log = Log(tensorrt)
    parser = tensorrt.OnnxParser(tensorrt.Builder(log.logger).create_network(0), log.logger)
    body = "a = Relu(x) b = com.microsoft.FusedMatMul(a, a) y = Relu(b)"
    assert not parser.supports_model_v2(graph(X, body))
    parts = [
        (parser.get_subgraph_nodes(i), parser.is_subgraph_supported(i)) for i in range(parser.num_subgraphs)
    ]
    assert parts == [([0], True), ([1], False), ([2], True)]


def test_weights_beside_the_model_need_its_path(tensorrt: ModuleType, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(graph("float[4] x, float[4] w => float[4] y", "y = Add(x, w)"))
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert not _parse(tensorrt, path.read_bytes())[0]
    log = Log(tensorrt)

    def parser() -> Any:
        return tensorrt.OnnxParser(tensorrt.Builder(log.logger).create_network(0), log.logger)

    assert parser().parse(path.read_bytes(), path=str(path)), log.lines
    assert parser().parse_from_file(str(path)), log.lines
    assert not parser().parse_from_file(str(tmp_path / "nothing.onnx"))
