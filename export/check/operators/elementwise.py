"""Arithmetic, comparison and logic, element by element, and reductions."""

from __future__ import annotations

import onnx_ir as ir

from foveate.export.check.conditions import attribute_in, dtype_in, static
from foveate.export.check.place import Place
from foveate.export.check.rule import (
    BOOL,
    FLOATS,
    IMPORTERS,
    INTS,
    NUMBERS,
    WIDE_FLOATS,
    Operator,
    Rule,
)

_CAST = "cast to float32 before it"
_SAME = "cast the operands to one type: the parser adds no casts of its own"


def _whole_modulus(place: Place) -> str | None:
    whole = place.dtype(0) in INTS
    return "fmod is 1 with whole numbers" if whole and place.attribute("fmod", 0) else None


def _open_axis(place: Place) -> str | None:
    return static(0, int(place.attribute("axis", -1)))(place)


ROWS = (
    Operator(
        (
            *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cosh", "Elu", "Erf", "HardSigmoid"),
            *("HardSwish", "LeakyRelu", "LogSoftmax", "Selu", "Sinh", "Softmax", "Softplus", "Softsign"),
            *("Tan", "ThresholdedRelu", "IsInf", "MeanVarianceNormalization", "LpNormalization", "LRN"),
        ),
        FLOATS,
        mend=_CAST,
    ),
    Operator(
        ("Ceil", "Cos", "Exp", "Floor", "Log", "Reciprocal", "Round", "Sigmoid", "Sin", "Sqrt", "Tanh"),
        FLOATS,
        on_host=True,
        mend=f"whole numbers are refused here: {_CAST}",
    ),
    Operator(("Swish",), FLOATS, since="11.1", older="write it as x * Sigmoid(alpha * x)"),
    Operator(("Mish",), WIDE_FLOATS, mend=_CAST),
    Operator(
        ("Hardmax",),
        FLOATS,
        mend=_CAST,
        rules=(Rule("axis", _open_axis, "its axis must be static", "use ArgMax and Equal"),),
    ),
    Operator(
        ("Clip",),
        FLOATS,
        typed=None,
        equal=None,
        on_host=True,
        mend="whole numbers are refused here: use Max and Min",
    ),
    Operator(("PRelu",), FLOATS, typed=None, equal=None, mend=_CAST),
    Operator(("Shrink", "IsNaN"), NUMBERS),
    Operator(("Abs", "Neg", "Relu", "Sign"), NUMBERS, on_host=True),
    Operator(("Gelu",), NUMBERS | {ir.DataType.INT8}),
    Operator(
        ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean"),
        NUMBERS,
        typed=None,
        equal=None,
        on_host=True,
        mend=_SAME,
    ),
    Operator(
        ("Mod",),
        NUMBERS,
        typed=None,
        equal=None,
        on_host=True,
        mend=_SAME,
        rules=(
            Rule(
                "fmod",
                _whole_modulus,
                "whole numbers have the sign of the divisor only",
                "leave fmod at 0",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(
        ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"),
        NUMBERS,
        typed=None,
        equal=None,
        on_host=True,
        mend="truth values are compared by Not(Xor(a, b)); other operands must be of one type",
    ),
    Operator(("And", "Or", "Xor"), BOOL, typed=None, on_host=True, mend="cast to bool before it"),
    Operator(("Not",), BOOL, on_host=True, mend="cast to bool before it"),
    Operator(
        ("Where",),
        NUMBERS | BOOL,
        typed=(1, 2),
        equal=(1, 2),
        on_host=True,
        mend="cast both branches to one type",
        rules=(
            Rule("condition", dtype_in(0, BOOL), "the condition must be bool", "cast the condition to bool"),
        ),
    ),
    Operator(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        NUMBERS,
        initializers=(1,),
        on_host=True,
        mend="give the axes as an initialiser or a Constant; nothing computed, not even from constants",
    ),
    Operator(
        ("CumSum",),
        FLOATS,
        constants=(1,),
        on_host=True,
        mend="cast to float32 before it (exact up to 2^24 = 16,777,216) and back, with a constant axis",
    ),
    Operator(
        ("ArgMax", "ArgMin"),
        NUMBERS,
        rules=(
            Rule(
                "tie",
                attribute_in("select_last_index", 0, (0,)),
                "of equal values only the first can be asked for",
                "reverse the axis before it and count from the end",
                IMPORTERS,
                "inferred",
            ),
        ),
    ),
)
