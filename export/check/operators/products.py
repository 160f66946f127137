"""Products, convolutions, pooling, resizing, recurrence and noise."""

from __future__ import annotations

import string

import numpy as np
import onnx_ir as ir

from foveate.export.check.conditions import attribute_in, first, rank_in, static
from foveate.export.check.place import Place
from foveate.export.check.rule import (
    DEVELOPER_GUIDE,
    FLOATS,
    IMPORTERS,
    INTS,
    WIDE_FLOATS,
    Operator,
    Rule,
    Severity,
)

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
_NO_INTS = "whole numbers are not multiplied as matrices: cast to float32"


def _equation(place: Place) -> str | None:
    equation = str(place.attribute("equation", ""))
    strange = set(equation) - set(string.ascii_lowercase + ",-> ")
    return f"the equation {equation!r} has {sorted(strange)[0]!r}" if strange else None


def _dilated(place: Place) -> str | None:
    dilations = place.attribute("dilations", ())
    return f"dilations are {tuple(dilations)}" if any(each != 1 for each in dilations) else None


def _flat(place: Place) -> str | None:
    return rank_in(0, (4, 5))(place)


def _training(place: Place) -> str | None:
    mode = place.number(2)
    if place.input(2) is None:
        return None
    if mode is None:
        return "training_mode is no constant"
    return "training_mode is true" if bool(np.asarray(mode).any()) else None


def _spatial(place: Place) -> str | None:
    mode, rank = place.attribute("mode", "nearest"), place.rank(0)
    most = {"cubic": 2, "linear": 3}.get(str(mode))
    return f"{mode} over {rank - 2} axes" if most and rank and rank - 2 > most else None


def _axes_of_scales(place: Place) -> str | None:
    axes, rank = place.attribute("axes"), place.rank(0)
    if axes is None or place.input(2) is None:
        return None
    return None if rank is None or list(axes) == list(range(rank)) else f"axes are {list(axes)}"


_DILATIONS = Rule("dilations", _dilated, "pools have no dilation", "pool without it")
_POOL_RANK = Rule("rank", _flat, "pools have two or three axes in space", "add an axis of 1")
_SEED = Rule(
    "seed",
    lambda place: "a seed is given" if "seed" in place.node.attributes else None,
    "it is ignored, so that runs differ",
    "feed the noise as an input",
    severity=Severity.WARNING,
)
_CHANNELS = Rule(
    "channels",
    static(0, 1),
    "the number of channels must be known when the engine is built",
    "make it static",
    DEVELOPER_GUIDE,
)

ROWS = (
    Operator(("MatMul",), FLOATS, typed=None, equal=None, mend=_NO_INTS),
    Operator(
        ("Gemm",),
        FLOATS,
        typed=None,
        equal=None,
        mend=_NO_INTS,
        rules=(
            Rule(
                "rank",
                first(rank_in(0, (2,)), rank_in(1, (2,))),
                "both factors must have two axes",
                "use MatMul",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(
        ("Einsum",),
        FLOATS,
        typed=None,
        equal=None,
        mend=_NO_INTS,
        rules=(
            Rule(
                "equation",
                _equation,
                "only lower-case letters are read",
                "name the axes by lower-case letters, or use MatMul",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(("Conv", "ConvTranspose"), FLOATS, typed=None, equal=None, rules=(_CHANNELS,)),
    Operator(("DeformConv",), WIDE_FLOATS, rules=(_CHANNELS,)),
    Operator(("AveragePool", "LpPool"), FLOATS, rules=(_DILATIONS, _POOL_RANK)),
    Operator(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), FLOATS),
    Operator(("MaxPool",), FLOATS, outputs=1, rules=(_DILATIONS, _POOL_RANK)),
    Operator(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), FLOATS, outputs=1),
    Operator(
        ("Resize",),
        FLOATS,
        sizes=(2, 3),
        rules=(
            Rule(
                "mode",
                attribute_in("mode", "nearest", ("nearest", "linear", "cubic")),
                "this way of resizing is not taken",
                "resize to the nearest, linearly or cubically",
            ),
            Rule(
                "antialias",
                attribute_in("antialias", 0, (0,)),
                "pictures are not smoothed before they shrink",
                "resize before the graph",
            ),
            Rule(
                "coordinates",
                attribute_in("coordinate_transformation_mode", "half_pixel", _COORDINATES),
                "these coordinates are not taken",
                f"use one of {', '.join(_COORDINATES)}",
            ),
            Rule(
                "nearest",
                attribute_in("nearest_mode", "round_prefer_floor", _NEAREST),
                "this rounding is not taken",
                f"use one of {', '.join(_NEAREST)}",
            ),
            Rule(
                "policy",
                attribute_in("keep_aspect_ratio_policy", "stretch", ("stretch",)),
                "the aspect ratio is not kept",
                "stretch",
            ),
            Rule(
                "axes",
                _axes_of_scales,
                "scales must be given for all axes in order",
                "leave the axes out",
            ),
            Rule(
                "spatial",
                _spatial,
                "linear resizing has at most three axes, cubic two",
                "resize axis by axis",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(("Upsample",), FLOATS, sizes=(1,)),
    Operator(
        ("GridSample",),
        WIDE_FLOATS,
        rules=(
            Rule(
                "rank", rank_in(0, (4,)), "only four axes are taken", "sample plane by plane", until="11.2.1"
            ),
            Rule(
                "volume",
                rank_in(0, (4, 5)),
                "only four or five axes are taken",
                "flatten the rest",
                since="11.2.1",
            ),
        ),
    ),
    Operator(("RoiAlign",), WIDE_FLOATS),
    Operator(
        ("BlackmanWindow", "HammingWindow", "HannWindow"), INTS, constants=(0,), mend="make it a constant"
    ),
    Operator(("STFT",), frozenset({ir.DataType.FLOAT}), initializers=(1, 2)),
    Operator(("DFT",), FLOATS, since="11.2.1", older="multiply by a constant matrix of sines and cosines"),
    Operator(
        ("Dropout",),
        FLOATS,
        outputs=1,
        rules=(
            Rule("training", _training, "it must be a constant false", "export the model in evaluation mode"),
        ),
    ),
    Operator(("RandomNormal", "RandomUniform"), FLOATS, typed=(), rules=(_SEED,)),
    Operator(("RandomNormalLike", "RandomUniformLike"), FLOATS, rules=(_SEED,)),
    Operator(("GRU", "RNN"), FLOATS),
    Operator(
        ("LSTM",),
        FLOATS,
        rules=(
            Rule(
                "input-forget",
                attribute_in("input_forget", 0, (0,)),
                "gates cannot be coupled",
                "set input_forget to 0",
            ),
            Rule("layout", attribute_in("layout", 0, (0,)), "steps must come first", "set layout to 0"),
        ),
    ),
)
