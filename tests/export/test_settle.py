"""A stage's word in the manifest is one that its graph holds; nothing less than asked goes without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import pytest
import tiny

from foveate.export import export_model
from foveate.export.precision import LinearLayer, PrecisionPlan
from foveate.export.precision.settle import require_taken, settle
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import ExportError

EVEN = LinearLayer("even", "decoder", 128, 64, ("decoder",))
ODD = LinearLayer("odd", "decoder", 96, 64, ("decoder",))
EYE = LinearLayer("eye", "vision", 64, 64, ("vision",))
LAYERS = (EVEN, ODD, EYE)
INT4 = {"vision": "fp16", "decoder": "int4"}


def kernels(plan: PrecisionPlan) -> dict[str, str]:
    return {layer.name: plan.kernel(layer) for layer in LAYERS}


@pytest.mark.parametrize(
    ("target", "stages", "given", "held"),
    [
        ("tensorrt", INT4, {}, "int4"),  # one of two is enough
        ("tensorrt", INT4, {"even": "fp16"}, "fp16"),
        ("tensorrt", INT4 | {"vision": "bf16"}, {"even": "bf16"}, "bf16"),
        ("tensorrt", INT4, {"even": "int8-static"}, "int8"),
        ("tensorrt", INT4, {"even": "fp32", "odd": "fp32"}, "fp16"),  # attention and caches are
        ("cuda", INT4, {"even": "fp16"}, "fp16"),
        ("onnxruntime", {"decoder": "int8"}, {"even": "int8-block", "odd": "fp32"}, "int8"),
        ("onnxruntime", {"decoder": "int8"}, {"even": "fp32", "odd": "fp32"}, "fp32"),
        ("onnxruntime", {"decoder": "int4"}, {"even": "fp32", "odd": "int8-row"}, "int8"),
        ("onnxruntime", {"decoder": "fp32"}, {"even": "int8", "odd": "fp32"}, "fp32"),  # as decided
    ],
)
def test_a_word_is_one_that_a_layer_runs(
    target: str, stages: dict[str, str], given: dict[str, str], held: str
) -> None:
    plan = PrecisionPlan(stages, given, target=target)
    settled, notes = settle(plan, LAYERS)
    assert settled.word("decoder") == held
    assert kernels(settled) == kernels(plan)  # words change, what runs does not
    assert [settled.half(stage) for stage in stages] == [plan.half(stage) for stage in stages]
    asked = stages["decoder"]
    assert [note.partition(":")[0] for note in notes] == (
        [] if held == asked else [f"decoder={asked} was asked for and is {held}"]
    )
    assert all(note in settled.reason for note in notes)


def test_nothing_at_all_is_an_error() -> None:
    plan = PrecisionPlan(INT4, target="tensorrt")
    require_taken(plan, LAYERS, INT4)
    with pytest.raises(
        ExportError, match=r"takes int4.*1 layers are no multiple of 64.*--dtype decoder=fp16"
    ):
        require_taken(plan, (ODD, EYE), INT4)
    with pytest.raises(ExportError, match="none of its layers is large enough"):
        require_taken(plan, (EYE,), INT4)
    harmed = PrecisionPlan({"decoder": "int8"}, {"even": "fp32", "odd": "fp32"}, measured=True)
    with pytest.raises(ExportError, match=r"all of its 2 layers are kept higher.*--no-measure"):
        require_taken(harmed, LAYERS, harmed.stages)
    require_taken(harmed, LAYERS, {"decoder": "auto"})  # a program chose it, and may choose again


def test_the_finer_of_two_words_may_be_missed() -> None:
    """Bare int4 brings int8 along on CPUs; a projector without layers is no reason to refuse it."""
    asked = {"projector": "int8", "decoder": "int4"}
    plan = PrecisionPlan(asked)
    require_taken(plan, LAYERS, asked)
    settled, notes = settle(plan, LAYERS)
    assert settled.stages == {"projector": "fp32", "decoder": "int4"}
    assert len(notes) == 1


def shallow(path: Path, **text: int) -> Path:
    """As few blocks as there can be: what is asked of the export is not what they compute."""
    vision = {"intermediate_size": 96, "num_hidden_layers": 2}
    return tiny.make_llava(path, vision_options=vision, text_options={"num_hidden_layers": 1, **text})


def types(bundle: Bundle, stage: str) -> set[int]:
    """Of a graph's weights, as its file says."""
    graph = onnx.load(bundle.stage_path(stage), load_external_data=False).graph
    return {value.data_type for value in graph.initializer}


def test_a_manifest_says_what_its_graphs_hold(tmp_path: Path) -> None:
    """Inputs of 48 and 96 in the encoder; of 128 in one of the decoder's layers."""
    checkpoint = shallow(tmp_path / "checkpoint", intermediate_size=128)
    warned: list[str] = []
    bundle = export_model(
        checkpoint,
        tmp_path / "bundle",
        plan=["none"],
        target="tensorrt",
        dtype="vision=int4,decoder=int4",
        warn=warned.append,
    )
    stages = bundle.manifest.precision.stages
    assert stages == {"vision": "fp16", "projector": "fp16", "decoder": "int4", "head": "fp16"}
    assert onnx.TensorProto.INT4 not in types(bundle, "vision_segmented")
    assert onnx.TensorProto.FLOAT16 in types(bundle, "vision_segmented")
    assert onnx.TensorProto.INT4 in types(bundle, "decoder_0")
    (note,) = warned
    assert "vision=int4 was asked for and is fp16" in note
    assert note in bundle.manifest.precision.reason
    assert {layer.kernel for layer in bundle.manifest.precision.layers.values()} == {"fp16"}


def test_what_no_layer_takes_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    checkpoint, told = tiny.make_llava(tmp_path / "checkpoint"), []
    with pytest.raises(ExportError, match="no layer of this model takes int4"):
        export_model(
            checkpoint,
            tmp_path / "bundle",
            target="tensorrt",
            dtype="int4",
            progress=lambda what, done, total: told.append(what),
        )
    assert not told
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_choice_that_keeps_all_layers_higher_is_refused(tmp_path: Path) -> None:
    def choose(bundle: Bundle, layers: Sequence[LinearLayer], words: Mapping[str, str]) -> PrecisionPlan:
        return PrecisionPlan(words, dict.fromkeys((layer.name for layer in layers), "fp32"), measured=True)

    words = {"plan": ["none"], "layouts": ["fused"], "dtype": "int8"}
    with pytest.raises(ExportError, match="no layer of this model takes int8"):
        export_model(shallow(tmp_path / "checkpoint"), tmp_path / "bundle", choose=choose, **words)  # type: ignore[arg-type]
    assert not (tmp_path / "bundle").exists()
