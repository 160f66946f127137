"""Which masks are the causal one: told by what they hold, not by how they are made."""

import masks
import onnx_ir as ir
import pytest

from foveate.export.engines.causal import causal_group


def mask_of(model: ir.Model) -> ir.Value:
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    mask = attention.inputs[3]
    assert mask is not None
    return mask


def test_the_portable_target_s_mask_is_causal():
    assert causal_group(mask_of(masks.attention_model())) == 0


def test_so_is_it_as_numbers():
    assert causal_group(mask_of(masks.attention_model(masks.changed(masks.ADDITIVE)))) == 0


def test_the_bound_by_the_length_is_not_needed():
    """A row's own slot is never behind the length, where the row is a token at all."""
    text = masks.changed(("seen = And (le, lt)", "seen = And (le, le)"))
    assert causal_group(mask_of(masks.attention_model(text))) == 0


def test_the_group_is_that_of_the_length():
    model = masks.attention_model()
    (length,) = (value for value in model.graph.inputs if value.name == "cache_length_0")
    length.name = "cache_length_3"
    assert causal_group(mask_of(model)) == 3


@pytest.mark.parametrize("kind", masks.NOT_CAUSAL)
def test_other_masks_are_not(kind):
    assert causal_group(mask_of(masks.attention_model(masks.changed(masks.NOT_CAUSAL[kind])))) is None


def test_nor_is_a_mask_from_outside():
    model = masks.attention_model()
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    given = ir.val("given", shape=["batch", 1, "sequence", "capacity_0"], dtype=ir.DataType.BOOL)
    model.graph.inputs.append(given)
    attention.replace_input_with(3, given)
    assert causal_group(given) is None
