"""Graphs that TensorRT's importer refuses, each with a twin that it takes (tensorrt.md B)."""

from __future__ import annotations

Q = "float[1,2,3,8] q => float[1,2,3,8] y"
X = "float[4,4] x => float[4,4] y"
AXES = "axes = Constant<value = int64[1] {1}>()"
# rule: (signature, refused body, accepted body, words of the reason).
PAIRS = {
    "Attention: one output": (Q, "y, a = Attention(q, q, q)", "y = Attention(q, q, q)", "one output"),
    "Attention: no past": (
        "float[1,2,3,8] q, float[1,2,5,8] p => float[1,2,3,8] y",
        "y = Attention(q, q, q, , p, p)",
        "y = Attention(q, q, q)",
        "past_key",
    ),
    "Attention: no softcap": (
        Q,
        "y = Attention<softcap = 2.0>(q, q, q)",
        "y = Attention<softcap = 0.0>(q, q, q)",
        "softcap",
    ),
    "Attention: no softmax_precision": (
        Q,
        "y = Attention<softmax_precision = 1>(q, q, q)",
        "y = Attention(q, q, q)",
        "softmax_precision",
    ),
    "Attention: heads of 3-D queries": (
        "float[1,3,16] q => float[1,3,16] y",
        "y = Attention(q, q, q)",
        "y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, q, q)",
        "q_num_heads",
    ),
    "Attention: type of the mask": (
        "float[1,2,3,8] q, float16[3,3] m, float[3,3] n => float[1,2,3,8] y",
        "y = Attention(q, q, q, m)",
        "y = Attention(q, q, q, n)",
        "mask must be BOOL",
    ),
    "Attention: type of the key": (
        "float[1,2,3,8] q, float16[1,2,3,8] k => float[1,2,3,8] y",
        "y = Attention(q, k, k)",
        "y = Attention(q, q, q)",
        "different types",
    ),
    "TRT_Attention: mask or causal": (
        "float[1,2,3,8] q, float[3,3] m => float[1,2,3,8] y",
        'y = trt.TRT_Attention<causal_kind = "lower_right">(q, q, q, m)',
        "y = trt.TRT_Attention(q, q, q, m)",
        "exclude each other",
    ),
    "TRT_Attention: lengths are INT32": (
        "float[1,2,3,8] q, int64[1] n, int32[1] l => float[1,2,3,8] y",
        "y = trt.TRT_Attention(q, q, q, , , n)",
        "y = trt.TRT_Attention(q, q, q, , , l)",
        "INT32",
    ),
    "TensorScatter: linear": (
        "float[1,2,8,4] c, float[1,2,1,4] u => float[1,2,8,4] y",
        'y = TensorScatter<mode = "circular">(c, u)',
        "y = TensorScatter(c, u)",
        "linear",
    ),
    "TensorScatter: four dimensions": (
        "float[1,8,4] c, float[1,1,4] u => float[1,8,4] y",
        "y = TensorScatter(c, u)",
        None,
        "4 dimensions",
    ),
    "TRT_KVCacheUpdate: INT32 indices": (
        "float[1,2,8,4] c, float[1,2,1,4] u, int64[1] w, int32[1] v => float[1,2,8,4] y",
        "y = trt.TRT_KVCacheUpdate(c, u, w)",
        "y = trt.TRT_KVCacheUpdate(c, u, v)",
        "write_indices",
    ),
    "RotaryEmbedding: INT64 positions": (
        "float[1,2,3,8] q, float[9,4] s, int32[1,3] p, int64[1,3] r => float[1,2,3,8] y",
        "y = RotaryEmbedding(q, s, s, p)",
        "y = RotaryEmbedding(q, s, s, r)",
        "position_ids must be INT64",
    ),
    "TopK: sorted": (
        X,
        "k = Constant<value = int64[1] {4}>() y, i = TopK<sorted = 0>(x, k)",
        "k = Constant<value = int64[1] {4}>() y, i = TopK(x, k)",
        "sorted = 1",
    ),
    "TopK: K too large": (
        "float[5000] x => float[n] y",
        "k = Constant<value = int64[1] {3840}>() y, i = TopK(x, k)",
        "k = Constant<value = int64[1] {3839}>() y, i = TopK(x, k)",
        "K = 3840",
    ),
    "TopK: K positive": (
        "float[5000] x => float[n] y",
        "k = Constant<value = int64[1] {0}>() y, i = TopK(x, k)",
        "k = Constant<value = int64[1] {1}>() y, i = TopK(x, k)",
        "K = 0",
    ),
    "CumSum: floats": (
        "int64[4] x, float[4] f => float[4] y",
        "a = Constant<value = int64 {0}>() c = CumSum(x, a) y = Cast<to = 1>(c)",
        "a = Constant<value = int64 {0}>() y = CumSum(f, a)",
        "type INT64",
    ),
    "CumSum: constant axis": (
        "float[4] x, int64 b => float[4] y",
        "y = CumSum(x, b)",
        "a = Constant<value = int64 {0}>() y = CumSum(x, a)",
        "axis must be",
    ),
    "Reduce: constant axes": (
        "float[4,4] x, int64[1] a => float[4,1] y",
        "y = ReduceSum(x, a)",
        f"{AXES} y = ReduceSum(x, axes)",
        "axes must be",
    ),
    "Reduce: axes computed by the graph": (
        "float[4,4] x => float[4,1] y",
        "a = Constant<value = int64 {1}>() s = Constant<value = int64[1] {-1}>() b = Reshape(a, s) "
        "y = ReduceMean(x, b)",
        f"{AXES} y = ReduceMean(x, axes)",
        "axes must be",
    ),
    "Unsqueeze: constant axes": (
        "float[4] x, int64[1] a => float[4,1] y",
        "y = Unsqueeze(x, a)",
        f"{AXES} y = Unsqueeze(x, axes)",
        "axes must be",
    ),
    "OneHot: constant depth": (
        "int64[4] x, int64 d, float[2] v => float[4,n] y",
        "y = OneHot(x, d, v)",
        "e = Constant<value = int64 {5}>() y = OneHot(x, e, v)",
        "depth must be",
    ),
    "Range: one type": (
        "int64 a, int32 b => int64[n] y",
        "y = Range(a, b, a)",
        "y = Range(a, a, a)",
        "different types",
    ),
    "Range: INT32, INT64, FLOAT": (
        "double a, int64 b => int64[n] y",
        "c = Range(a, a, a) y = Cast<to = 7>(c)",
        "y = Range(b, b, b)",
        "type DOUBLE",
    ),
    "binary operators: one type": (
        "float[4] x, float16[4] h => float[4] y",
        "y = Add(x, h)",
        "y = Add(x, x)",
        "different types",
    ),
    "Max: one type": (
        "float[4] x, float16[4] h => float[4] y",
        "y = Max(x, h)",
        "y = Max(x, x)",
        "different",
    ),
    "MatMul: one type": (
        "float[4,4] x, float16[4,4] h => float[4,4] y",
        "y = MatMul(x, h)",
        "y = MatMul(x, x)",
        "different types",
    ),
    "MatMul: no integers": (
        "int64[4,4] x, float[4,4] f => float[4,4] y",
        "z = MatMul(x, x) y = Cast<to = 1>(z)",
        "y = MatMul(f, f)",
        "type INT64",
    ),
    "Less: one type": (
        "float[4] x, float16[4] h => bool[4] y",
        "y = Less(x, h)",
        "y = Less(x, x)",
        "different types",
    ),
    "Equal: no BOOL": (
        "bool[4] x => bool[4] y",
        "y = Equal(x, x)",
        "z = Xor(x, x) y = Not(z)",
        "type BOOL",
    ),
    "arithmetic: no BOOL": ("bool[4] x => bool[4] y", "y = Mul(x, x)", "y = And(x, x)", "type BOOL"),
    "Where: one type": (
        "bool[4] c, float[4] x, float16[4] h => float[4] y",
        "y = Where(c, x, h)",
        "y = Where(c, x, x)",
        "different types",
    ),
    "Clip: floats": (
        "int64[4] x, int64 l, float[4] f, float m => float[4] y",
        "z = Clip(x, l) y = Cast<to = 1>(z)",
        "y = Clip(f, m)",
        "type INT64",
    ),
    "Mod: fmod on integers": (
        "int64[4] x => int64[4] y",
        "y = Mod<fmod = 1>(x, x)",
        "y = Mod(x, x)",
        "fmod",
    ),
    "ScatterND: no reduction": (
        "float[4] x, int64[2,1] i, float[2] u => float[4] y",
        'y = ScatterND<reduction = "add">(x, i, u)',
        "y = ScatterND(x, i, u)",
        "reduction",
    ),
    "ArgMax: first index": (
        "float[4,4] x => int64[4,1] y",
        "y = ArgMax<axis = 1, select_last_index = 1>(x)",
        "y = ArgMax<axis = 1>(x)",
        "select_last_index",
    ),
    "Cast: not to FP8": (
        X,
        "z = Cast<to = 17>(x) y = Cast<to = 1>(z)",
        "y = Cast<to = 1>(x)",
        "FLOAT8E4M3FN",
    ),
    "QuantizeLinear: constant scale": (
        "float[4] x, float s => float[4] y",
        "q = QuantizeLinear<output_dtype = 3>(x, s) z = Constant<value = float {0.5}>() "
        "y = DequantizeLinear(q, z)",
        "z = Constant<value = float {0.5}>() q = QuantizeLinear<output_dtype = 3>(x, z) "
        "y = DequantizeLinear(q, z)",
        "positive constant",
    ),
    "QuantizeLinear: int4 in blocks of 64 or 128": (
        "float[64,1] x => int4[64,1] y",
        "s = Constant<value = float[2,1] {0.5, 0.5}>()"
        " y = QuantizeLinear<axis = 0, block_size = 32, output_dtype = 22>(x, s)",
        "s = Constant<value = float[1,1] {0.5}>()"
        " y = QuantizeLinear<axis = 0, block_size = 64, output_dtype = 22>(x, s)",
        "blocks of 32",
    ),
    "DequantizeLinear: zero point 0": (
        "int8[4] x => float[4] y",
        "s = Constant<value = float {0.5}>() z = Constant<value = int8 {3}>() y = DequantizeLinear(x, s, z)",
        "s = Constant<value = float {0.5}>() z = Constant<value = int8 {0}>() y = DequantizeLinear(x, s, z)",
        "zero point",
    ),
    "LayerNormalization: one output": (
        "float[4,4] x, float[4] w => float[4,4] y",
        "y, m = LayerNormalization(x, w)",
        "y = LayerNormalization(x, w)",
        "first output",
    ),
    "Resize: no antialias": (
        "float[1,1,4,4] x => float[1,1,8,8] y",
        's = Constant<value = int64[4] {1,1,8,8}>() y = Resize<mode = "linear", antialias = 1>(x, , , s)',
        's = Constant<value = int64[4] {1,1,8,8}>() y = Resize<mode = "linear">(x, , , s)',
        "antialias",
    ),
    "Resize: policy": (
        "float[1,1,4,4] x => float[1,1,8,8] y",
        "s = Constant<value = int64[4] {1,1,8,8}>() "
        'y = Resize<keep_aspect_ratio_policy = "not_larger">(x, , , s)',
        "s = Constant<value = int64[4] {1,1,8,8}>() y = Resize(x, , , s)",
        "policy",
    ),
    "Compress": (
        "float[4] x, bool[4] c => float[n] y",
        "y = Compress(x, c)",
        "i = NonZero(c) s = Constant<value = int64[1] {-1}>() j = Reshape(i, s) y = Gather(x, j)",
        "Plugin not found",
    ),
    "Unique": ("float[4] x => float[n] y", "y = Unique(x)", "y = Identity(x)", "Plugin not found"),
    "com.microsoft": (
        X,
        "y = com.microsoft.FusedMatMul(x, x)",
        "y = MatMul(x, x)",
        "Plugin not found",
    ),
    "Attention: heads": (
        "float[1,3,4,8] q, float[1,2,4,8] k => float[1,3,4,8] y",
        "y = Attention(q, k, k)",
        "y = Attention(q, q, q)",
        "no multiple",
    ),
    "Attention: static heads": (
        "float[1,h,4,8] q, float[1,2,4,8] k => float[1,2,4,8] y",
        "y = Attention(q, q, q)",
        "y = Attention(k, k, k)",
        "must be static",
    ),
    "Gather: indices": (
        "float[4] x, float[2] f, int64[2] i => float[2] y",
        "y = Gather(x, f)",
        "y = Gather(x, i)",
        "indices must be",
    ),
    "Reshape: known rank": (
        "float[4] x, int64[n] s, int64[2] t => float[a,b] y",
        "y = Reshape(x, s)",
        "y = Reshape(x, t)",
        "rank of the result",
    ),
    "Squeeze: what to squeeze": (
        "float[1,n] x => float[n] y",
        "y = Squeeze(x)",
        "a = Constant<value = int64[1] {0}>() y = Squeeze(x, a)",
        "without axes",
    ),
    "TopK: one of the last four axes": (
        "float[2,1,1,1,2] x => float[1,1,1,1,2] y",
        "k = Constant<value = int64[1] {1}>() y, i = TopK<axis = 0>(x, k)",
        "k = Constant<value = int64[1] {1}>() y, i = TopK<axis = 1>(x, k)",
        "last four",
    ),
    "Where: the condition": (
        "int64[4] c, float[4] x => float[4] y",
        "y = Where(c, x, x)",
        "b = Cast<to = 9>(c) y = Where(b, x, x)",
        "condition must be BOOL",
    ),
    "Concat: one type": (
        "float[4] x, float16[4] h => float[8] y",
        "y = Concat<axis = 0>(x, h)",
        "y = Concat<axis = 0>(x, x)",
        "different types",
    ),
    "ScatterND: one type": (
        "float[4] x, int64[2,1] i, float16[2] h, float[2] u => float[4] y",
        "y = ScatterND(x, i, h)",
        "y = ScatterND(x, i, u)",
        "different types",
    ),
    "ScatterElements: one type": (
        "float[4] x, int64[2] i, float16[2] h, float[2] u => float[4] y",
        "y = ScatterElements(x, i, h)",
        "y = ScatterElements(x, i, u)",
        "different types",
    ),
    "RMSNormalization: one type": (
        "float[4,4] x, float16[4] h, float[4] w => float[4,4] y",
        "y = RMSNormalization(x, h)",
        "y = RMSNormalization(x, w)",
        "different types",
    ),
    "LayerNormalization: one type": (
        "float[4,4] x, float16[4] h, float[4] w => float[4,4] y",
        "y = LayerNormalization(x, h)",
        "y = LayerNormalization(x, w)",
        "different types",
    ),
    "Clip: one type": (
        "float[4] x, float16 h, float m => float[4] y",
        "y = Clip(x, h)",
        "y = Clip(x, m)",
        "different types",
    ),
}
