"""What a rule is: data about an operator, and a test that says in words what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

import onnx_ir as ir

if TYPE_CHECKING:
    from foveate.export.check.place import Place

# How a rule is known: NVIDIA's documents, the importer's source, reports of others, or our own reasoning.
Mark = Literal["doc", "source", "field", "inferred"]

OPERATORS_TABLE: Final = "onnx-tensorrt docs/operators.md"
IMPORTERS: Final = "onnx-tensorrt onnxOpImporters.cpp"
CUSTOM_OPS: Final = "onnx-tensorrt docs/TRT_custom_ops.md"
HEADER: Final = "NvInfer.h"
DEVELOPER_GUIDE: Final = "TensorRT developer guide"


class Severity(str, Enum):
    """`error`: refused, or wrong numbers without a word. `warning`: taken, but may go wrong for some inputs.

    `cost`: taken and right, but slower. `note`: good to know.
    """

    ERROR = "error"
    WARNING = "warning"
    COST = "cost"
    NOTE = "note"


@dataclass(frozen=True)
class Rule:
    """A condition on a node of one operator.

    Attributes:
        name: unique within its operator.
        test: what was found, in words; None where the rule is kept.
        what: what is wrong with it.
        mend: what to do instead.
        source: where it is written.
        since: versions of TensorRT from which it holds; empty for all.
        until: the first version in which it holds no more; empty for none.
        standard: holds for files in standard operators only, not for the copy that is made for TensorRT.
        flavoured: holds for the copy only.
    """

    name: str
    test: Callable[[Place], str | None]
    what: str
    mend: str
    source: str = OPERATORS_TABLE
    mark: Mark = "doc"
    severity: Severity = Severity.ERROR
    since: str = ""
    until: str = ""
    standard: bool = True
    flavoured: bool = True


@dataclass(frozen=True)
class Operator:
    """What TensorRT's parser asks of the nodes of some operators.

    Attributes:
        names: the operators that this row is about.
        dtypes: taken of the inputs `typed` (None: of every input); None where the operator is not taken.
        equal: inputs that must have one dtype; None for all of them.
        initializers: inputs that must be initialisers or `Constant`s themselves.
        constants: inputs that must follow from constants.
        sizes: inputs whose values decide a shape: computed on the device, they cost a synchronisation.
        outputs: how many it may have; None for as many as ONNX says.
        rules: what else is asked.
        on_host: runs on small tensors on the host when its result decides a shape.
        since: the first version that has it; empty for all that the rules know.
        older: what to do with versions before `since`.
        mend: what to do where it is not taken.
    """

    names: tuple[str, ...]
    dtypes: frozenset[ir.DataType] | None
    typed: tuple[int, ...] | None = (0,)
    equal: tuple[int, ...] | None = ()
    initializers: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    outputs: int | None = None
    rules: tuple[Rule, ...] = ()
    on_host: bool = False
    since: str = ""
    older: str = "use a newer TensorRT"
    mend: str = ""
    source: str = OPERATORS_TABLE
    mark: Mark = "doc"


@dataclass(frozen=True)
class Finding:
    """A rule that a node breaks.

    Attributes:
        rule: `Operator.name`, or `graph.name` for rules about the whole.
        node: the node's name, or the value's where it has none.
        what: what was found and what is wrong with it.
    """

    rule: str
    severity: Severity
    node: str
    op: str
    what: str
    mend: str
    source: str
    mark: Mark


FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
WIDE_FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
INTS: Final = frozenset({ir.DataType.INT32, ir.DataType.INT64})
BOOL: Final = frozenset({ir.DataType.BOOL})
NUMBERS: Final = FLOATS | INTS
ANY: Final = NUMBERS | BOOL
QUANTISED: Final = frozenset(
    {ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1}
)
TAKEN: Final = ANY | QUANTISED | frozenset({ir.DataType.UINT8, ir.DataType.DOUBLE})


def name_of(dtype: ir.DataType | None) -> str:
    """`float16`; `unknown` for None."""
    return "unknown" if dtype is None else dtype.name.lower().replace("float8e4m3fn", "fp8")
