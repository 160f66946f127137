"""Good twins of `pairs.py` where they say more than the example of `examples.py`, and what both share."""

from __future__ import annotations

Text = tuple[str, ...]

KV = "float[1,2,3,8] x, float[1,2,5,8] y, float[1,2,5,8] v"
PICTURE = "float[2,3,8,8] x"
QUEUE = "float[1,2,16,8] x, float[1,2,3,8] y, int64[1] w"
SIZES = "int64[4] c = {2, 3, 4, 4}"
THEN = "then_branch = a () => (float[2] p) { p = Identity (x) }"
TRT = "[it] z = trt.TRT_Attention <%s> (x, y, v, %s)"

# Good twins that say more than the operator's example.
GOOD: dict[str, Text] = {
    "graph.inference": ("float[2,3] x, float[3,5] y", "[it] z = MatMul (x, y)"),
    "graph.axis-names": ("float[a,3] x, float[a,3] y", "[it] z = Add (x, y)"),
    "graph.masks": (
        "float[1,2,3,8] x, bool[1,1,3,3] b",
        "m = Where (b, o, f)\n u = Attention (x, x, x, m)\n [it] z = Attention (u, x, x, m)",
        "float o = {0.0}, float f = {-30000.0}",
    ),
    "graph.type": ("int32[2] x", "[it] z = Cast <to = 7> (x)"),
    "graph.double": ("float[2] x", "[it] z = Cast <to = 1> (x)"),
    "graph.bytes": ("uint8[2] x, int64[1] y", "v = Cast <to = 1> (x)\n [it] z = Gather (v, y)"),
    "graph.rank": ("float[2] x, int64[2] y", "[it] z = Reshape (x, y)"),
    "graph.open-rank": ("float[2] x, int64[2] y", "[it] z = Expand (x, y)"),
    "graph.shape-size": (
        "float[a,2] x, float[4] y",
        "s = Shape (x)\n [it] r = Expand (s, c)\n m = ReduceMax <keepdims = 0> (r)\n"
        "o = Reshape (m, one)\n z = Expand (y, o)",
        "int64[2] c = {32, 2}, int64[1] one = {1}",
    ),
    "graph.nesting": ("float[2] x", "[it] z = Neg (x)"),
    "graph.trailing": ("float[2,3] x, float y", "[it] z = Clip (x, , y)"),
    "graph.infinite": (
        "float[1,2,3,8] x, float[1,2,3,8] y, bool[1,1,3,3] b, float s",
        "m = Where (b, s, f)\n [it] z = Attention (x, y, y, m)",
        "float f = {-30000.0}",
    ),
    "graph.wait": ("float[n] x, float[m] y", "k = Shape (y)\n [it] z, i = TopK (x, k)"),
    "graph.split": (
        "bool[n] x, float[n] y",
        "i = NonZero (x)\n j = Reshape (i, c)\n k = Gather (y, j)\n [it] z = Neg (k)",
        "int64[1] c = {-1}",
    ),
    "graph.open-output": ("float[n] x", "[p] it = Neg (x)"),
    "graph.host-input": ("float[4] x, int64[k] y", "k = Shape (y)\n [it] z, i = TopK (x, k)"),
    "graph.branch": (
        "float[2] x",
        f"[it] z = If <{THEN}, else_branch = d () => (float[2] q) {{ q = Neg (x) }}> (b)",
        "bool b = {1}",
    ),
    "graph.mistaken": ("float[2,3] x", "[it] z = Gelu (x)"),
    "graph.contrib": ("float[2,3] x", '[it] z = Gelu <approximate = "tanh"> (x)'),
    "graph.unlisted": ("float[2,3] x", "[it] z = Gelu (x)"),
    "graph.flavour": (QUEUE, "[it] z = TensorScatter <axis = -2> (x, y, w)"),
    "Mod.fmod": ("float[2] x, float[2] y", "[it] z = Mod <fmod = 1> (x, y)"),
    "Squeeze.axes": ("float[1,3] x", "[it] z = Squeeze (x)"),
    "Pad.mode": ("float[2,3] x", '[it] z = Pad <mode = "reflect"> (x, c)', "int64[4] c = {0, 1, 0, 1}"),
    "Range.numbers": ("float x, float y, float w", "[it] z = Range (x, y, w)"),
    "TopK.k": ("float[2,5000] x", "[it] z, i = TopK (x, c)", "int64[1] c = {3839}"),
    "TopK.open-k": ("float[n,3839] x", "k = Shape <start = 1> (x)\n [it] z, i = TopK (x, k)"),
    "TopK.axis": ("float[1,5,1,1,1] x", "[it] z, i = TopK <axis = 1> (x, c)", "int64[1] c = {2}"),
    "NonZero.input": ("bool[5] x", "[it] z = NonZero (x)"),
    "AveragePool.dilations": (
        PICTURE,
        "[it] z = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)",
    ),
    "Resize.mode": (PICTURE, '[it] z = Resize <mode = "cubic"> (x, , , c)', SIZES),
    "Resize.coordinates": (
        PICTURE,
        '[it] z = Resize <coordinate_transformation_mode = "align_corners"> (x, , , c)',
        SIZES,
    ),
    "Resize.axes": (
        PICTURE,
        "[it] z = Resize <axes = [0, 1, 2, 3]> (x, , c)",
        "float[4] c = {1.0, 1.0, 2.0, 2.0}",
    ),
    "GridSample.volume": ("float[1,1,2,2,2] x, float[1,2,2,2,3] y", "[it] z = GridSample (x, y)"),
    "Dropout.training": ("float[2] x", "[it] z = Dropout (x, r, t)", "float r = {0.5}, bool t = {0}"),
    "Attention.causal": ("float[1,2,s,8] x", "[it] z = Attention <is_causal = 1> (x, x, x)"),
    "Attention.mask-and-causal": ("float[1,2,3,8] x", "[it] z = Attention <is_causal = 1> (x, x, x)"),
    "Attention.softcap": (KV, "[it] z = Attention <softcap = 0.0> (x, y, v)"),
    "Attention.flat-heads": (
        "float[1,3,16] x",
        "[it] z = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x)",
    ),
    "Attention.groups": ("float[1,4,3,8] x, float[1,2,5,8] y", "[it] z = Attention (x, y, y)"),
    "Attention.mask-rank": (KV + ", bool[3,5] m", "[it] z = Attention (x, y, v, m)"),
    "Attention.mask-type": (KV + ", float[3,5] m", "[it] z = Attention (x, y, v, m)"),
    "Attention.fused-type": ("bfloat16[1,2,3,16] x", "[it] z = Attention (x, x, x)"),
    "TRT_Attention.fused-type": (KV, TRT % ("TRT_decomposable = 1", "")),
    "Attention.head-width": ("float[1,2,3,16] x", "[it] z = Attention (x, x, x)"),
    "RotaryEmbedding.positions": (
        "float[1,2,3,8] x, float[9,4] y, int64[1,3] p",
        "[it] z = RotaryEmbedding (x, y, y, p)",
    ),
    "RotaryEmbedding.heads": (
        "float[1,3,16] x, float[1,3,4] y",
        "[it] z = RotaryEmbedding <num_heads = 2> (x, y, y)",
    ),
    "RotaryEmbedding.width": (
        "float[1,2,3,8] x, float[1,3,1] y",
        "[it] z = RotaryEmbedding <rotary_embedding_dim = 2> (x, y, y)",
    ),
    "RMSNormalization.stash": ("float16[2,3] x, float16[3] y", "[it] z = RMSNormalization (x, y)"),
    "LayerNormalization.half": (
        "float16[2,3] x, float[3] y",
        "w = Cast <to = 1> (x)\n [it] z = LayerNormalization (w, y)",
    ),
    "QuantizeLinear.zero-point": (
        "float[2] x",
        "[it] z = QuantizeLinear (x, s, p)",
        "float s = {0.5}, int8 p = {0}",
    ),
    "QuantizeLinear.blocks": (
        "float[4,4] x",
        "[it] z = QuantizeLinear <output_dtype = 3, block_size = 2> (x, s)",
        "float[2,4] s = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}",
    ),
    "DequantizeLinear.blocks": (
        "int8[4,4] x",
        "[it] z = DequantizeLinear <block_size = 2> (x, s)",
        "float[2,4] s = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}",
    ),
    "QuantizeLinear.int4-blocks": (
        "float[128,2] x",
        "[it] z = QuantizeLinear <axis = 0, block_size = 64, output_dtype = 22> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "DequantizeLinear.int4-blocks": (
        "int4[128,2] x",
        "[it] z = DequantizeLinear <axis = 0, block_size = 64> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "DequantizeLinear.pairs": ("int4[4] x", "[it] z = DequantizeLinear (x, s)", "float s = {0.5}"),
    "TRT_Attention.lengths": (
        "float[3,2,8] x, float[1,2,5,8] y, float[1,2,5,8] v, int32[2] q",
        '[it] z = trt.TRT_Attention <query_form = "packed_nhd"> (x, y, v, , q)',
    ),
    "TRT_Attention.mask-type": (KV + ", float[1,1,3,5] m", TRT % ("nb_rank = 1", "m")),
    "TRT_KVCacheUpdate.form": (
        "float[1,2,16,8] x, float[3,2,8] y, int32[1] w",
        '[it] z = trt.TRT_KVCacheUpdate <update_form = "packed_nhd"> (x, y, w)',
    ),
}
