"""For every rule that is not a row's own, a graph that breaks it; and the good twin, where that is not the
operator's example of `examples.py`. A graph is (inputs, nodes) or (inputs, nodes, constants)."""

from __future__ import annotations

from pair_parts import GOOD, KV, PICTURE, QUEUE, SIZES, THEN, TRT, Text

__all__ = ["BAD", "GOOD"]

_BRANCH = "float[2] x, bool b"
_FLAT_POOL = "[it] z = %s <kernel_shape = [2]> (x)"
_PLACES = "float[1,2,16,8] x, float[1,2,3,8] y, int32[1] w"
_POOL = "[it] z = %s <kernel_shape = [2, 2], dilations = [2, 2]> (x)"
_UPDATE = "[it] z = trt.TRT_KVCacheUpdate <%s> (x, y, w)"


def _indices(name: str, rest: str = "") -> Text:
    return "float[4] x, float[2] y, float[2] v", f"[it] z = {name} (x, y{rest})"


BAD: dict[str, Text] = {
    "graph.inference": ("float[2,3] x, float[4,5] y", "[it] z = MatMul (x, y)"),
    "graph.type": ("float[2] x", "[it] z = Cast <to = 12> (x)"),
    "graph.double": ("float[2] x", "[it] z = Cast <to = 11> (x)"),
    "graph.bytes": ("uint8[2] x, int64[1] y", "[it] z = Gather (x, y)"),
    "graph.rank": ("float[2] x, int64[n] y", "[it] z = Reshape (x, y)"),
    "graph.open-rank": ("float[2] x, int64[n] y", "[it] z = Expand (x, y)"),
    "graph.shape-size": (
        "float[a,2] x, float[4] y",
        "s = Shape (x)\n [it] r = Expand (s, c)\n m = ReduceMax <keepdims = 0> (r)\n"
        "o = Reshape (m, one)\n z = Expand (y, o)",
        "int64[2] c = {100, 2}, int64[1] one = {1}",
    ),
    "graph.nesting": ("float[2] x, bool b", ""),  # made by the test
    "graph.trailing": ("float[2,3] x, float[2,3] y", "[it] z = Clip (x, , )"),
    "graph.infinite": (
        "float[1,2,3,8] x, float[1,2,3,8] y, bool[1,1,3,3] b, float s",
        "m = Where (b, s, f)\n [it] z = Attention (x, y, y, m)",
        "float f = {-inf}",
    ),
    "graph.axis-names": ("float[a,3] x, float[b,3] y", "[it] z = Add (x, y)"),
    "graph.masks": (
        "float[1,2,3,8] x, bool[1,1,3,3] b",
        "m = Where (b, o, f)\n n = Where (b, o, f)\n u = Attention (x, x, x, m)\n"
        "[it] z = Attention (u, x, x, n)",
        "float o = {0.0}, float f = {-30000.0}",
    ),
    "graph.wait": ("bool[5] x", "[it] z = NonZero (x)"),
    "graph.split": (
        "bool[n] x, float[n] y",
        "i = NonZero (x)\n j = Reshape (i, c)\n k = Gather (y, j)\n b = Cast <to = 9> (k)\n"
        "[it] z = NonZero (b)",
        "int64[1] c = {-1}",
    ),
    "graph.open-output": ("bool[5] x", "[p] it = NonZero (x)"),
    "graph.host-input": ("float[4] x, int64[1] k", "[it] z, i = TopK (x, k)"),
    "graph.branch": (
        "bool b, float[2] x",
        f"[it] z = If <{THEN}, else_branch = d () => (float[2] q) {{ q = Neg (x) }}> (b)",
    ),
    "graph.mistaken": ("float[2,3] x", "[it] z = com.microsoft.Gelu (x)"),
    "graph.contrib": ("float[2,3] x", "[it] z = com.microsoft.FastGelu (x)"),
    "graph.unlisted": ("float[2,3] x", "[it] z = Gelatinise (x)"),
    "graph.flavour": (_PLACES, _UPDATE % "axis = -2"),
    "Hardmax.axis": ("float[2,n] x", "[it] z = Hardmax (x)"),
    "Mod.fmod": ("int64[2] x, int64[2] y", "[it] z = Mod <fmod = 1> (x, y)"),
    "Where.condition": ("int64[2] x, float[2] y", "[it] z = Where (x, y, y)"),
    "ArgMax.tie": ("float[2] x", "[it] z = ArgMax <select_last_index = 1> (x)"),
    "ArgMin.tie": ("float[2] x", "[it] z = ArgMin <select_last_index = 1> (x)"),
    "Squeeze.axes": ("float[1,n] x", "[it] z = Squeeze (x)"),
    "Pad.mode": ("float[2,3] x", '[it] z = Pad <mode = "wrap"> (x, c)', "int64[4] c = {0, 1, 0, 1}"),
    "EyeLike.static": ("float[n,3] x", "[it] z = EyeLike (x)"),
    "Constant.literal": ("float[1] x", '[it] z = Constant <value_string = "word"> ()'),
    "Range.numbers": ("float16 x, float16 y, float16 w", "[it] z = Range (x, y, w)"),
    "Cast.target": ("float[2,3] x", "[it] z = Cast <to = 3> (x)"),
    "CastLike.target": ("float[2,3] x, int8[1] y", "[it] z = CastLike (x, y)"),
    "Gather.indices": _indices("Gather"),
    "GatherElements.indices": _indices("GatherElements"),
    "GatherND.indices": _indices("GatherND"),
    "ScatterND.indices": _indices("ScatterND", ", v"),
    "Scatter.indices": _indices("Scatter", ", v"),
    "ScatterElements.indices": _indices("ScatterElements", ", v"),
    "ScatterND.reduction": (
        "float[4] x, int64[2,1] y, float[2] v",
        '[it] z = ScatterND <reduction = "add"> (x, y, v)',
    ),
    "Scatter.reduction": (
        "float[4] x, int64[2] y, float[2] v",
        '[it] z = Scatter <reduction = "add"> (x, y, v)',
    ),
    "ScatterElements.reduction": (
        "float[4] x, int64[2] y, float[2] v",
        '[it] z = ScatterElements <reduction = "add"> (x, y, v)',
    ),
    "TopK.sorted": ("float[2,3] x", "[it] z, i = TopK <sorted = 0> (x, c)", "int64[1] c = {2}"),
    "TopK.k": ("float[2,5000] x", "[it] z, i = TopK (x, c)", "int64[1] c = {3840}"),
    "TopK.open-k": ("float[2,n] x", "k = Shape <start = 1> (x)\n [it] z, i = TopK (x, k)"),
    "TopK.axis": ("float[5,1,1,1,1] x", "[it] z, i = TopK <axis = 0> (x, c)", "int64[1] c = {2}"),
    "NonZero.input": ("int64[5] x", "[it] z = NonZero (x)"),
    "Gemm.rank": ("float[1,2,3] x, float[3,4] y", "[it] z = Gemm (x, y)"),
    "Einsum.equation": ("float[2,3] x, float[3,4] y", '[it] z = Einsum <equation = "...j,jk->...k"> (x, y)'),
    "Conv.channels": ("float[2,n,8,8] x, float[4,3,2,2] y", "[it] z = Conv (x, y)"),
    "ConvTranspose.channels": ("float[2,n,8,8] x, float[3,4,2,2] y", "[it] z = ConvTranspose (x, y)"),
    "DeformConv.channels": (
        "float[1,n,3,3] x, float[1,1,2,2] y, float[1,8,2,2] o",
        "[it] z = DeformConv (x, y, o)",
    ),
    "AveragePool.dilations": (PICTURE, _POOL % "AveragePool"),
    "LpPool.dilations": (PICTURE, _POOL % "LpPool"),
    "MaxPool.dilations": (PICTURE, _POOL % "MaxPool"),
    "AveragePool.rank": ("float[2,3,8] x", _FLAT_POOL % "AveragePool"),
    "LpPool.rank": ("float[2,3,8] x", _FLAT_POOL % "LpPool"),
    "MaxPool.rank": ("float[2,3,8] x", _FLAT_POOL % "MaxPool"),
    "Resize.mode": (PICTURE, '[it] z = Resize <mode = "lanczos"> (x, , , c)', SIZES),
    "Resize.antialias": (PICTURE, '[it] z = Resize <mode = "linear", antialias = 1> (x, , , c)', SIZES),
    "Resize.coordinates": (
        PICTURE,
        '[it] z = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (x, , , c)',
        SIZES,
    ),
    "Resize.nearest": (PICTURE, '[it] z = Resize <nearest_mode = "away"> (x, , , c)', SIZES),
    "Resize.policy": (
        PICTURE,
        '[it] z = Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , c)',
        SIZES,
    ),
    "Resize.axes": (PICTURE, "[it] z = Resize <axes = [2, 3]> (x, , c)", "float[2] c = {2.0, 2.0}"),
    "Resize.spatial": (
        PICTURE.replace("8,8", "2,2,2"),
        '[it] z = Resize <mode = "cubic"> (x, , , c)',
        "int64[5] c = {2, 3, 4, 4, 4}",
    ),
    "GridSample.rank": ("float[1,1,2,2,2] x, float[1,2,2,2,3] y", "[it] z = GridSample (x, y)"),
    "GridSample.volume": ("float[1,1,2,2,2,2] x, float[1,2,2,2,2,4] y", "[it] z = GridSample (x, y)"),
    "Dropout.training": ("float[2] x", "[it] z = Dropout (x, r, t)", "float r = {0.5}, bool t = {1}"),
    "RandomNormal.seed": ("float[1] x", "[it] z = RandomNormal <shape = [2], seed = 1.0> ()"),
    "RandomUniform.seed": ("float[1] x", "[it] z = RandomUniform <shape = [2], seed = 1.0> ()"),
    "RandomNormalLike.seed": ("float[1] x", "[it] z = RandomNormalLike <seed = 1.0> (x)"),
    "RandomUniformLike.seed": ("float[1] x", "[it] z = RandomUniformLike <seed = 1.0> (x)"),
    "LSTM.input-forget": (
        "float[3,1,2] x, float[1,16,2] w, float[1,16,4] r",
        "[it] , z = LSTM <hidden_size = 4, input_forget = 1> (x, w, r)",
    ),
    "LSTM.layout": (
        "float[1,3,2] x, float[1,16,2] w, float[1,16,4] r",
        "[it] , z = LSTM <hidden_size = 4, layout = 1> (x, w, r)",
    ),
    "Attention.nonpad": (KV + ", int64[1] n", "[it] z = Attention (x, y, v, , , , n)"),
    "Attention.past": (KV + ", float[1,2,4,8] p", "[it] z, k, w = Attention (x, y, v, , p, p)"),
    "Attention.causal": (KV, "[it] z = Attention <is_causal = 1> (x, y, v)"),
    "Attention.mask-and-causal": (
        "float[1,2,3,8] x, bool[1,1,3,3] m",
        "[it] z = Attention <is_causal = 1> (x, x, x, m)",
    ),
    "Attention.softcap": (KV, "[it] z = Attention <softcap = 5.0> (x, y, v)"),
    "Attention.softmax-precision": (KV, "[it] z = Attention <softmax_precision = 1> (x, y, v)"),
    "Attention.scores": (KV, "[it] z = Attention <qk_matmul_output_mode = 1> (x, y, v)"),
    "Attention.rank": ("float[3,8] x", "[it] z = Attention (x, x, x)"),
    "Attention.flat-heads": ("float[1,3,16] x", "[it] z = Attention (x, x, x)"),
    "Attention.heads": ("float[1,h,3,8] x", "[it] z = Attention (x, x, x)"),
    "Attention.groups": ("float[1,3,3,8] x, float[1,2,5,8] y", "[it] z = Attention (x, y, y)"),
    "Attention.mask-rank": (KV + ", bool[1,1,1,3,5] m", "[it] z = Attention (x, y, v, m)"),
    "Attention.mask-type": (KV + ", float16[3,5] m", "[it] z = Attention (x, y, v, m)"),
    "Attention.fused-type": ("float[1,2,3,16] x", "[it] z = Attention (x, x, x)"),
    "Attention.head-width": ("float[1,2,3,12] x", "[it] z = Attention (x, x, x)"),
    "Attention.attributes": (KV, "[it] z = Attention <TRT_decomposable = 1> (x, y, v)"),
    "TensorScatter.places": (
        QUEUE.replace("int64", "float"),
        "[it] z = TensorScatter <axis = -2> (x, y, w)",
    ),
    "TensorScatter.rank": (
        "float[1,16,8] x, float[1,3,8] y, int64[1] w",
        "[it] z = TensorScatter <axis = -2> (x, y, w)",
    ),
    "TensorScatter.mode": (QUEUE, '[it] z = TensorScatter <axis = -2, mode = "circular"> (x, y, w)'),
    "TensorScatter.axis": (
        "float[1,2,16,8] x, float[1,2,16,3] y, int64[1] w",
        "[it] z = TensorScatter <axis = -1> (x, y, w)",
    ),
    "TensorScatter.input": (QUEUE, "c = Neg (x)\n [it] z = TensorScatter <axis = -2> (c, y, w)"),
    "TensorScatter.output": (QUEUE, "[it] z = TensorScatter <axis = -2> (x, y, w)\n o = Neg (z)"),
    "TensorScatter.capacity": (QUEUE.replace("16", "n"), "[it] z = TensorScatter <axis = -2> (x, y, w)"),
    "RotaryEmbedding.positions": (
        "float[1,2,3,8] x, float[9,4] y, int32[1,3] p",
        "[it] z = RotaryEmbedding (x, y, y, p)",
    ),
    "RotaryEmbedding.heads": ("float[1,3,16] x, float[1,3,4] y", "[it] z = RotaryEmbedding (x, y, y)"),
    "RotaryEmbedding.width": (
        "float[1,2,3,8] x, float[1,3,1] y",
        "[it] z = RotaryEmbedding <rotary_embedding_dim = 3> (x, y, y)",
    ),
    "RotaryEmbedding.empty-input": (
        "float[1,2,3,8] x, float[1,3,4] y",
        "[it] z = RotaryEmbedding (x, y, y, , )",
    ),
    "RMSNormalization.stash": (
        "float16[2,3] x, float16[3] y",
        "[it] z = RMSNormalization <stash_type = 10> (x, y)",
    ),
    "LayerNormalization.half": ("float16[2,3] x, float16[3] y", "[it] z = LayerNormalization (x, y)"),
    "QuantizeLinear.zero-point": (
        "float[2] x",
        "[it] z = QuantizeLinear (x, s, p)",
        "float s = {0.5}, int8 p = {3}",
    ),
    "QuantizeLinear.scale": (
        "float[2] x",
        "[it] z = QuantizeLinear <output_dtype = 3> (x, s)",
        "float s = {-0.5}",
    ),
    "QuantizeLinear.blocks": (
        "float[4,4] x",
        "[it] z = QuantizeLinear <output_dtype = 3, block_size = 2> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "QuantizeLinear.type": (
        "float[2] x",
        "[it] z = QuantizeLinear <output_dtype = 2> (x, s)",
        "float s = {0.5}",
    ),
    "DequantizeLinear.zero-point": (
        "int8[2] x",
        "[it] z = DequantizeLinear (x, s, p)",
        "float s = {0.5}, int8 p = {3}",
    ),
    "DequantizeLinear.scale": ("int8[2] x", "[it] z = DequantizeLinear (x, s)", "float s = {0.0}"),
    "DequantizeLinear.blocks": (
        "int8[4,4] x",
        "[it] z = DequantizeLinear <block_size = 2> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "QuantizeLinear.int4-blocks": (
        "float[64,2] x",
        "[it] z = QuantizeLinear <axis = 0, block_size = 32, output_dtype = 22> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "DequantizeLinear.int4-blocks": (
        "int4[100,2] x",
        "[it] z = DequantizeLinear <axis = 0, block_size = 64> (x, s)",
        "float[2,2] s = {0.5, 0.5, 0.5, 0.5}",
    ),
    "DequantizeLinear.pairs": ("int4[3] x", "[it] z = DequantizeLinear (x, s)", "float s = {0.5}"),
    "If.rank": (
        _BRANCH,
        f"[it] z = If <{THEN}, else_branch = d () => (float[1,2] q) {{ q = Unsqueeze (x, c) }}> (b)",
        "int64[1] c = {0}",
    ),
    "If.names": (_BRANCH, f"[it] z = If <{THEN}, else_branch = d () => (float[2] p) {{ p = Neg (x) }}> (b)"),
    "Loop.condition": (
        "int64 n, int64 b, float[2] x",
        "[it] z = Loop <body = a (int64 i, bool on, float[2] v) => (bool o, float[2] w) "
        "{ o = Identity (on) w = Neg (v) }> (n, b, x)",
    ),
    "Loop.scan": (
        "int64 n, bool b, float[2] x",
        "[it] z, s = Loop <body = a (int64 i, bool on, float[2] v) => (bool o, float[2] w, float[2] t) "
        "{ o = Identity (on) w = Neg (v) t = Neg (v) }> (n, b, x)",
    ),
    "Loop.carried": (
        "int64 n, bool b, float[2] x",
        "[it] z = Loop <body = a (int64 i, bool on, float[k] v) => (bool o, float[4] w) "
        "{ o = Identity (on) w = Concat <axis = 0> (v, v) }> (n, b, x)",
    ),
    "TRT_Attention.attributes": (KV, TRT % ("scale = 0.5", "")),
    "TRT_Attention.causal-kind": (KV, TRT % ('causal_kind = "diagonal"', "")),
    "TRT_Attention.forms": (KV, TRT % ('kv_form = "paged"', "")),
    "TRT_Attention.mask-and-causal": (KV + ", bool[1,1,3,5] m", TRT % ('causal_kind = "lower_right"', "m")),
    "TRT_Attention.lengths": (
        "float[3,2,8] x, float[1,2,5,8] y, float[1,2,5,8] v",
        TRT % ('query_form = "packed_nhd"', ""),
    ),
    "TRT_Attention.length-type": (KV + ", int64[1] n", TRT % ('causal_kind = "lower_right"', ", , n")),
    "TRT_Attention.rank": ("float[3,2,8] x, float[1,2,5,8] y, float[1,2,5,8] v", TRT % ("nb_rank = 1", "")),
    "TRT_Attention.heads": (
        "float[1,h,3,8] x, float[1,2,5,8] y, float[1,2,5,8] v",
        TRT % ("nb_rank = 1", ""),
    ),
    "TRT_Attention.groups": (
        "float[1,3,3,8] x, float[1,2,5,8] y, float[1,2,5,8] v",
        TRT % ("nb_rank = 1", ""),
    ),
    "TRT_Attention.mask-rank": (KV + ", bool[1,1,1,3,5] m", TRT % ("nb_rank = 1", "m")),
    "TRT_Attention.mask-type": (KV + ", float16[3,5] m", TRT % ("nb_rank = 1", "m")),
    "TRT_Attention.fused-type": (KV, TRT % ("nb_rank = 1", "")),
    "TRT_Attention.head-width": (
        "float[1,2,3,12] x, float[1,2,5,12] y, float[1,2,5,12] v",
        TRT % ("nb_rank = 1", ""),
    ),
    "TRT_KVCacheUpdate.places": (QUEUE, _UPDATE % "axis = -2"),
    "TRT_KVCacheUpdate.form": (_PLACES, _UPDATE % 'update_form = "paged"'),
    "TRT_KVCacheUpdate.rank": ("float[1,16,8] x, float[1,3,8] y, int32[1] w", _UPDATE % "axis = -2"),
    "TRT_KVCacheUpdate.mode": (_PLACES, _UPDATE % 'mode = "circular"'),
    "TRT_KVCacheUpdate.axis": (_PLACES, _UPDATE % "axis = -1"),
    "TRT_KVCacheUpdate.input": (
        _PLACES,
        "c = Neg (x)\n [it] z = trt.TRT_KVCacheUpdate <axis = -2> (c, y, w)",
    ),
    "TRT_KVCacheUpdate.output": (_PLACES, _UPDATE % "axis = -2" + "\n o = Neg (z)"),
    "TRT_KVCacheUpdate.capacity": (_PLACES.replace("16", "n"), _UPDATE % "axis = -2"),
}
