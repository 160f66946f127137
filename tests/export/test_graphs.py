"""Written graphs from outside: names, sharing, privacy, and what the segmented ones never hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tiny

from foveate.export import export_model
from foveate.pruning.plan import parse_plan
from foveate.runtime.bundle import Bundle

SEGMENTED = ("vision_segmented", "embed", "decoder_0", "decoder_1", "decoder_2")
PLAN = ["cls-knee:min_keep=3", "text-relevance@1", "text-relevance@3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llava(tmp_path_factory.mktemp("graphs") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    return export_model(checkpoint, checkpoint.parent / "bundle", plan=parse_plan(PLAN))


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    stages = bundle.manifest.stages
    return {name: onnx.load(bundle.stage_path(name), load_external_data=False) for name in stages}


def test_every_graph_passes_the_checker(bundle: Bundle) -> None:
    for name in bundle.manifest.stages:
        onnx.checker.check_model(str(bundle.stage_path(name)))


def test_interfaces_are_those_of_the_manifest(bundle: Bundle, graphs: dict[str, onnx.ModelProto]) -> None:
    for name, stage in bundle.manifest.stages.items():
        graph = graphs[name].graph
        assert [value.name for value in graph.input] == [spec.name for spec in stage.inputs]
        assert [value.name for value in graph.output] == [spec.name for spec in stage.outputs]


def test_layers_have_names(graphs: dict[str, onnx.ModelProto]) -> None:
    def names(stage: str) -> set[str]:
        return {output for node in graphs[stage].graph.node for output in node.output}

    # Layer 0's output is a graph output of segment 0 and keeps that name; the fused graph shows all of them.
    assert {f"layer_{i}.hidden" for i in range(4)} <= names("decoder")
    assert {"layer_1.hidden"} <= names("decoder_1")
    assert {f"vision.layer_{i}.hidden" for i in range(3)} <= names("vision")


def test_layouts_share_one_weights_file(bundle: Bundle, graphs: dict[str, onnx.ModelProto]) -> None:
    def places(stage: str) -> dict[str, tuple[str, ...]]:
        return {t.name: tuple(e.value for e in t.external_data) for t in graphs[stage].graph.initializer}

    parts = places("decoder_0") | places("decoder_1") | places("decoder_2")
    assert parts == places("decoder")
    assert {place[0] for place in parts.values()} == {"weights.bin"}
    assert all(int(place[1]) % 4096 == 0 for place in parts.values())
    largest = max(sum(int(p[2]) for p in places(s).values()) for s in graphs)
    assert bundle.stage_path("decoder").with_name("weights.bin").stat().st_size < 2 * largest


def test_segmented_graphs_have_no_data_dependent_shape(graphs: dict[str, onnx.ModelProto]) -> None:
    for name in SEGMENTED:
        operators = {node.op_type for node in graphs[name].graph.node}
        assert not operators & {"NonZero", "Compress", "Unique", "If", "Loop", "Scan"}, name
        declared = {d.dim_param for v in graphs[name].graph.input for d in v.type.tensor_type.shape.dim}
        for value in graphs[name].graph.output:
            assert {d.dim_param for d in value.type.tensor_type.shape.dim} <= declared, (name, value.name)
    assert "NonZero" in {node.op_type for node in graphs["vision"].graph.node}


def test_encoder_attention_is_the_kernel_that_needs_little_memory(graphs: dict[str, onnx.ModelProto]) -> None:
    """The target rewrites what the tracer gives; were that to change, nothing else would notice."""
    for name in ("vision", "vision_segmented"):
        operators = [(node.domain, node.op_type) for node in graphs[name].graph.node]
        # Three of the four layers run; the last one only lends its projections to the score.
        assert operators.count(("com.microsoft", "MultiHeadAttention")) == 3, name
        assert ("", "Attention") not in operators, name


def test_files_tell_nothing_of_the_machine(bundle: Bundle) -> None:
    here = [str(Path(__file__).parents[2]), str(Path.home()), "site-packages", "stack_trace"]
    for name in bundle.manifest.stages:
        content = bundle.stage_path(name).read_bytes()
        assert not [word for word in here if word.encode() in content], name


def test_export_is_deterministic(bundle: Bundle, checkpoint: Path) -> None:
    again = export_model(
        checkpoint, checkpoint.parent / "again", plan=parse_plan(PLAN), layouts=["segmented"]
    )
    shared = set(again.manifest.files) & set(bundle.manifest.files)
    assert {"onnx/decoder_1.onnx", "onnx/embed.onnx"} <= shared
    for file in shared - {"onnx/weights.bin"}:
        # The placements are those of the same parameters in the same order, so offsets agree as well.
        assert again.manifest.files[file] == bundle.manifest.files[file], file


def test_unpruned_plan_has_no_budget_inputs(checkpoint: Path) -> None:
    plain = export_model(
        checkpoint, checkpoint.parent / "plain", plan=parse_plan(["none"]), layouts=["fused"]
    )
    names = {spec.name for stage in plain.manifest.stages.values() for spec in stage.inputs}
    assert not [name for name in names if name.startswith(("keep_", "token_role", "query_index"))]
    assert plain.manifest.cache.groups == ((0, 1, 2, 3),)
