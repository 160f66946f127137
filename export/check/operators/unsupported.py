"""Operators that TensorRT's parser does not take."""

from __future__ import annotations

from foveate.export.check.rule import IMPORTERS, Operator


def _refused(mend: str, *names: str) -> Operator:
    return Operator(names, None, mend=mend)


ROWS = (
    _refused("use NonZero on the mask, Reshape to one axis, and Gather", "Compress"),
    _refused("sort by TopK and compare neighbours", "Unique"),
    _refused("sample outside the graph", "Multinomial", "Bernoulli"),
    _refused("use And, Or, Not and Xor on bool", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    _refused("multiply or divide by powers of two", "BitShift"),
    _refused(
        "use QuantizeLinear and DequantizeLinear with constant scales around float products",
        *("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"),
    ),
    _refused(
        "use plain tensors, one for each element",
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "SequenceMap", "ConcatFromSequence", "SplitToSequence"),
    ),
    _refused(
        "treat text outside the graph",
        *("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"),
    ),
    _refused("read pictures outside the graph", "ImageDecoder"),
    _refused("use Pad and Slice", "CenterCropPad"),
    _refused("compute the grid outside, or from constants", "AffineGrid"),
    _refused("use Reshape, Transpose and a sum over shifted copies", "Col2Im"),
    _refused("use Resize", "MaxUnpool"),
    _refused("use RoiAlign", "MaxRoiPool"),
    _refused("make the matrix a constant", "MelWeightMatrix"),
    _refused("leave it out: it is for training", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    _refused("compute it by elimination, or outside", "Det"),
    Operator(
        ("SwiGLU", "LinearAttention", "CausalConvWithState", "CumProd", "BitCast"),
        None,
        mend="it came after opset 24: write it out in older operators",
        source=IMPORTERS,
        mark="source",
    ),
)
