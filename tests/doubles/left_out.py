"""Operators whose spoilt forms the double of TensorRT lets pass: what it need not know, for lack of any."""

LEFT_OUT_OPERATORS = {
    *("Mish", "DepthToSpace", "SpaceToDepth", "CastLike", "NonMaxSuppression", "Scan"),
    *("BlackmanWindow", "HammingWindow", "HannWindow", "STFT", "DFT", "Dropout", "RandomNormalLike"),
    "RandomUniformLike",
}
