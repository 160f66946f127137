"""Flavoured graphs compute what the portable ones do, once TensorRT's operators are written out again.

`doubles.tensorrt.expand` does that; it knows NVIDIA's description of these operators and none of our code.
"""

from __future__ import annotations

import masks
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from doubles.tensorrt.expand import standard

from foveate.export.engines.flavour import flavour
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import ExportError

SLOTS = 16
NEAR = 2e-6  # a few roundings of float32 values near 1: the same sums, written out in another order
Arrays = dict[str, np.ndarray]


def run(model: ir.Model | onnx.ModelProto, feeds: Arrays) -> Arrays:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: feeds[name] for name in names})
    return dict(zip([value.name for value in session.get_outputs()], found, strict=True))


def feeds_for(before: tuple[int, ...], valid: tuple[int, ...], rows: int) -> Arrays:
    """A chunk of `rows` rows, `valid` of them tokens, behind `before` tokens in each cache; else junk."""
    rng, b = np.random.default_rng(7), len(before)
    cache = (b, masks.KEY_HEADS, SLOTS, masks.WIDTH)
    chunk = (b, masks.KEY_HEADS, rows, masks.WIDTH)
    shapes = {"key": chunk, "value": chunk, "past_key_0": cache, "past_value_0": cache}
    shapes["query"] = (b, masks.HEADS, rows, masks.WIDTH)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    start = np.array(before, np.int64)
    # As the backend gives them: where rows are written, and how many keys there are then, padding included.
    return feeds | {
        "length": np.array(valid, np.int64),
        "cache_length_0": start,
        "position_ids": np.arange(rows)[None] + start[:, None],
        "write_index_0": start.astype(np.int32),
        "key_value_length_0": (start + rows).astype(np.int32),
    }


CHUNKS = {
    "a prompt": ((0, 0), (5, 5), 5),
    "rows of unequal length": ((0, 0), (5, 2), 5),
    "a chunk behind unequal caches": ((4, 9), (3, 1), 3),
    "a decoding step": ((7, 3), (1, 1), 1),
    "a full cache": ((13, 11), (3, 2), 3),
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("form", ["bool", "numbers"])
def test_lengths_in_place_of_the_causal_mask_change_nothing(chunk: str, form: str) -> None:
    before, valid, rows = CHUNKS[chunk]
    text = masks.CAUSAL if form == "bool" else masks.changed(masks.ADDITIVE)
    feeds = feeds_for(before, valid, rows)
    plain = run(masks.attention_model(text), feeds)
    made = flavour(masks.attention_model(text), "native")
    assert made.added == ("write_index_0", "key_value_length_0")
    assert {"cache_length_0", "length"} <= set(made.removed)
    flavoured = run(standard(ir.to_proto(made.model)), feeds)
    for row, (start, count) in enumerate(zip(before, valid, strict=True)):
        mixed = (each["mixed"][row, :, :count] for each in (flavoured, plain))
        np.testing.assert_allclose(*mixed, atol=NEAR, err_msg="rows of padding may differ, these must not")
        for name in ("present_key_0", "present_value_0"):
            kept = (each[name][row, :, : start + count] for each in (flavoured, plain))
            np.testing.assert_array_equal(*kept)


@pytest.mark.parametrize("kind", masks.NOT_CAUSAL)
def test_any_other_mask_stays(kind: str) -> None:
    text = masks.changed(masks.NOT_CAUSAL[kind])
    made = flavour(masks.attention_model(text), "native")
    (attention,) = (node for node in made.model.graph if node.op_type == "TRT_Attention")
    assert attention.attributes.get_string("causal_kind") == "none"
    assert "key_value_length_0" not in made.added
    before, valid, rows = CHUNKS["a chunk behind unequal caches"]
    feeds = feeds_for(before, valid, rows)
    plain = run(masks.attention_model(text), feeds)
    flavoured = run(standard(ir.to_proto(made.model)), feeds)
    for row, count in enumerate(valid):
        np.testing.assert_allclose(
            flavoured["mixed"][row, :, :count], plain["mixed"][row, :, :count], atol=NEAR
        )


def test_without_a_scale_the_width_of_a_head_is_it() -> None:
    feeds = feeds_for(*CHUNKS["a prompt"])
    plain = run(masks.attention_model(attributes="softcap = 0.0"), feeds)
    made = flavour(masks.attention_model(attributes="softcap = 0.0"), "native")
    flavoured = run(standard(ir.to_proto(made.model)), feeds)
    np.testing.assert_allclose(flavoured["mixed"], plain["mixed"], atol=NEAR)


def test_a_half_query_is_scaled_before_it_is_rounded() -> None:
    """The factor of an odd width, rounded to half, would move every score."""
    model = masks.attention_model()
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    query = attention.inputs[0]
    half = ir.node("Cast", [query], {"to": ir.DataType.FLOAT16.value})
    half.outputs[0].type, half.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), query.shape
    turned = ir.node("Transpose", half.outputs, {"perm": [0, 1, 2, 3]})
    turned.outputs[0].type, turned.outputs[0].shape = half.outputs[0].type, query.shape
    model.graph.insert_before(attention, [half, turned])
    attention.replace_input_with(0, turned.outputs[0])
    made = flavour(model, "native").model
    (product,) = (node for node in made.graph if node.op_type == "Mul")
    (attention,) = (node for node in made.graph if node.op_type == "TRT_Attention")
    assert product.inputs[0].name == "query"
    assert [product.inputs[0].dtype, attention.inputs[0].dtype] == [ir.DataType.FLOAT, ir.DataType.FLOAT16]
    assert sum(node.op_type == "Transpose" for node in made.graph) == 1, "the old one is gone"


def test_what_the_native_layer_lacks_is_refused() -> None:
    model = masks.attention_model(attributes="softcap = 5.0")
    with pytest.raises(ExportError, match=r"softcap.*--attention portable"):
        flavour(model, "native")


def test_fused_only_is_written_down() -> None:
    for fused_only, number in ((False, 1), (True, 0)):
        made = flavour(masks.attention_model(), "native", fused_only=fused_only).model
        (attention,) = (node for node in made.graph if node.op_type == "TRT_Attention")
        assert attention.attributes.get_int("TRT_decomposable") == number


def test_capacities_become_numbers_everywhere() -> None:
    made = flavour(masks.attention_model(), "portable", {"capacity_0": SLOTS}).model
    assert not any("capacity_0" in str(value.shape) for value in (*made.graph.inputs, *made.graph.outputs))
    assert not any("capacity_0" in str(v.shape) for node in made.graph for v in node.outputs)
    assert {node.op_type for node in made.graph} >= {"Attention", "TensorScatter"}


def test_a_bundle_s_graphs_are_recognised(exported: object) -> None:
    """Every cached attention of a LLaVA is causal; the encoder's has no mask at all."""
    bundle = Bundle.open(str(exported))
    for stage in bundle.manifest.layouts["segmented"]:
        made = flavour(ir.load(bundle.stage_path(stage)), "native")
        kinds = [
            node.attributes.get_string("causal_kind")
            for node in made.model.graph
            if node.op_type == "TRT_Attention"
        ]
        segment = stage.startswith("decoder")
        assert set(kinds) <= {"lower_right" if segment else "none"}
        assert bool(kinds) == (stage != "embed")
        group = stage.rpartition("_")[2]
        assert made.added == ((f"write_index_{group}", f"key_value_length_{group}") if segment else ())
