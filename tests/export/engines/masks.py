"""Attention with a cache in ONNX's own notation, under masks that a test writes down."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

HEADS, KEY_HEADS, WIDTH = 4, 2, 8

# Every slot up to a row's own, as foveate.export.targets.portable says it.
CAUSAL = """
    slot = Range (zero, capacity, one)
    row0 = Range (zero, rows, one)
    row_s = Unsqueeze (row0, ax1)
    before = Unsqueeze (cache_length_0, ax12)
    last = Add (row_s, before)
    le = LessOrEqual (slot, last)
    total = Add (cache_length_0, length)
    total_b = Unsqueeze (total, ax12)
    lt = Less (slot, total_b)
    seen = And (le, lt)
    mask = Unsqueeze (seen, ax1)
"""
# Each is CAUSAL with lines replaced or added: no causal mask any more.
NOT_CAUSAL = {
    "a window of four slots": (
        "seen = And (le, lt)",
        "four = Constant <value_int = 4> () far = Sub (last, four) near = Greater (slot, far)"
        " both = And (le, lt) seen = And (both, near)",
    ),
    "a window that no test batch fills": (
        "seen = And (le, lt)",
        "far = Constant <value_int = 4096> () edge = Sub (last, far) near = Greater (slot, edge)"
        " both = And (le, lt) seen = And (both, near)",
    ),
    "one slot too many": ("last = Add (row_s, before)", "l0 = Add (row_s, before) last = Add (l0, one)"),
    "all that is there": ("seen = And (le, lt)", "seen = Or (le, lt)"),
    "by positions": (
        "before = Unsqueeze (cache_length_0, ax12)",
        "lowest = ReduceMin (position_ids, ax1) before = Unsqueeze (lowest, ax1)",
    ),
    "a bias": (
        "mask = Unsqueeze (seen, ax1)",
        "seen4 = Unsqueeze (seen, ax1) low = Constant <value_float = -30000.0> ()"
        " some = Constant <value_float = -0.5> () mask = Where (seen4, some, low)",
    ),
}
ADDITIVE = (
    "mask = Unsqueeze (seen, ax1)",
    "seen4 = Unsqueeze (seen, ax1) low = Constant <value_float = -30000.0> ()"
    " nought = Constant <value_float = 0.0> () mask = Where (seen4, nought, low)",
)


def attention_model(mask: str = CAUSAL, attributes: str = "scale = 0.3") -> ir.Model:
    """Query, key and value rows behind a cache, `[b, heads, s, d]`, to `mixed` and the cache."""
    shape = f"batch, {KEY_HEADS}, capacity_0, {WIDTH}"
    rows = f"batch, {KEY_HEADS}, sequence, {WIDTH}"
    lines = [line for line in mask.strip().splitlines() if line.strip()]
    statements = "".join(f"{_one_by_one(line)}\n" for line in lines)
    text = f"""
    <ir_version: 10, opset_import: ["" : 24]>
    decoder (float[batch, {HEADS}, sequence, {WIDTH}] query, float[{rows}] key, float[{rows}] value,
             int64[batch, sequence] position_ids, int64[batch] length, int64[batch] cache_length_0,
             float[{shape}] past_key_0, float[{shape}] past_value_0)
        => (float[batch, {HEADS}, sequence, {WIDTH}] mixed, float[{shape}] present_key_0,
            float[{shape}] present_value_0)
    {{
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        ax1 = Constant <value_ints = [1]> ()
        ax12 = Constant <value_ints = [1, 2]> ()
        shape_of_cache = Shape <start = 2, end = 3> (past_key_0)
        capacity = Squeeze (shape_of_cache)
        shape_of_rows = Shape <start = 2, end = 3> (query)
        rows = Squeeze (shape_of_rows)
        {statements}
        present_key_0 = TensorScatter <axis = -2, mode = "linear"> (past_key_0, key, cache_length_0)
        present_value_0 = TensorScatter <axis = -2, mode = "linear"> (past_value_0, value, cache_length_0)
        mixed = Attention <{attributes}> (query, present_key_0, present_value_0, mask)
    }}
    """
    model = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def changed(change: tuple[str, str]) -> str:
    """CAUSAL with a line replaced; the line must be there."""
    line, other = change
    assert line in CAUSAL
    return CAUSAL.replace(line, other)


def _one_by_one(line: str) -> str:
    """Several statements on one line, apart: the notation wants each on its own."""
    parts = line.strip().split(") ")
    return ")\n".join(parts)
