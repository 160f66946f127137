"""Moving and making elements: reshaping, joining, slicing, filling, casting."""

from __future__ import annotations

import onnx_ir as ir

from foveate.export.check.conditions import attribute_in, static
from foveate.export.check.place import Place
from foveate.export.check.rule import (
    ANY,
    BOOL,
    FLOATS,
    IMPORTERS,
    INTS,
    NUMBERS,
    QUANTISED,
    Operator,
    Rule,
    name_of,
)

_UINT8 = frozenset({ir.DataType.UINT8})
_CASTABLE = FLOATS | INTS | BOOL | _UINT8
_LITERALS = ("sparse_value", "value_string", "value_strings")
_ONE_TYPE = "cast all of them to one type"


def _cast_target(place: Place) -> str | None:
    target = place.node.outputs[0].dtype if place.node.op_type == "CastLike" else None
    if "to" in place.node.attributes:
        number = int(place.attribute("to"))
        if number not in {each.value for each in ir.DataType}:
            return f"there is no type {number}"
        target = ir.DataType(number)
    taken = target is None or target in _CASTABLE or target == ir.DataType.DOUBLE
    return None if taken else f"the target is {name_of(target)}"


def _range_type(place: Place) -> str | None:
    dtype = place.dtype(0)
    taken = dtype is None or dtype in INTS or dtype == ir.DataType.FLOAT
    return None if taken else f"its numbers are {name_of(dtype)}"


def _literal(place: Place) -> str | None:
    given = [name for name in _LITERALS if name in place.node.attributes]
    return f"{given[0]} is given" if given else None


def _open_squeeze(place: Place) -> str | None:
    if place.input(1) is not None or "axes" in place.node.attributes:
        return None
    return static(0)(place)


_TARGET = Rule(
    "target",
    _cast_target,
    "quantised types are reached by QuantizeLinear only",
    "use QuantizeLinear with a constant scale",
    IMPORTERS,
    "source",
)

ROWS = (
    Operator(("Concat",), ANY, typed=None, equal=None, on_host=True, mend=_ONE_TYPE),
    Operator(("Reshape", "Tile", "Expand"), ANY, sizes=(1,), on_host=True),
    Operator(("Slice",), ANY, sizes=(1, 2, 3, 4), on_host=True),
    Operator(("Split",), ANY, sizes=(1,), on_host=True),
    Operator(("Flatten", "Transpose", "Identity"), ANY | QUANTISED, on_host=True),
    Operator(("Shape", "Size"), ANY | QUANTISED | _UINT8, on_host=True),
    Operator(("ReverseSequence",), ANY),
    Operator(
        ("Unsqueeze",),
        ANY | QUANTISED,
        constants=(1,),
        on_host=True,
        mend="give the axes as constants",
    ),
    Operator(
        ("Squeeze",),
        ANY | QUANTISED,
        constants=(1,),
        on_host=True,
        mend="give the axes as constants",
        rules=(
            Rule(
                "axes",
                _open_squeeze,
                "without axes, all sizes must be static",
                "name the axes that are 1",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(
        ("Pad",),
        NUMBERS,
        sizes=(1,),
        mend="truth values are padded as int32 or by Concat",
        rules=(
            Rule(
                "mode",
                attribute_in("mode", "constant", ("constant", "reflect", "edge")),
                "this way of padding is not taken",
                "pad with a constant, by reflection or with the edge",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(("Trilu",), ANY),
    Operator(("DepthToSpace", "SpaceToDepth"), NUMBERS),
    Operator(
        ("EyeLike",),
        ANY | _UINT8,
        rules=(Rule("static", static(0), "its size must be static", "make it a constant"),),
    ),
    Operator(("OneHot",), ANY, typed=(0, 2), constants=(1,), mend="give the depth as a constant"),
    Operator(("ConstantOfShape",), INTS, sizes=(0,), on_host=True),
    Operator(
        ("Constant",),
        ANY | QUANTISED | _UINT8,
        typed=(),
        on_host=True,
        rules=(Rule("literal", _literal, "sparse tensors and text are not taken", "write the numbers out"),),
    ),
    Operator(
        ("Range",),
        NUMBERS,
        typed=None,
        equal=None,
        sizes=(0, 1, 2),
        on_host=True,
        mend="start, limit and step must be of one type: cast them",
        rules=(
            Rule(
                "numbers",
                _range_type,
                "only int32, int64 and float32 can be counted",
                "count in int64 and cast behind it",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(("Cast",), _CASTABLE, on_host=True, rules=(_TARGET,)),
    Operator(("CastLike",), _CASTABLE, on_host=True, rules=(_TARGET,)),
)
