"""P0: every graph is valid ONNX, and is what the manifest says it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx

from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import Stage, TensorSpec
from foveate.tools.parity.graphs import layer_values
from foveate.tools.parity.report import Check, Place

# Operators whose output size depends on values. TensorRT pays for each with a synchronisation, and the
# segmented layout promises that none is inside its graphs.
DATA_DEPENDENT = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression"})
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.UINT8: "uint8",
}

_NARROW = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}  # bits, where two values share a byte


def check_graphs(bundle: Bundle) -> Iterator[Check]:
    """One stage after the other: checker, interface, operator sets, weights, layer names."""
    segmented = set(bundle.manifest.layouts.get("segmented", ()))
    opsets: dict[str, int] = {}
    for name, stage in bundle.manifest.stages.items():
        path = bundle.stage_path(name)
        yield _checker(name, path)
        model = onnx.load(str(path), load_external_data=False)
        yield _interface(name, stage, model)
        yield _operators(name, model)
        yield _weights(name, path, model)
        if name in segmented:
            yield _static(name, model)
        opsets[name] = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    yield Check.that("one opset in all graphs", len(set(opsets.values())) == 1, f"opsets {opsets}")
    yield from _layer_names(bundle)


def _checker(name: str, path: Path) -> Check:
    try:
        onnx.checker.check_model(str(path), full_check=False)
    except Exception as error:  # the checker raises several kinds, some of them from C++
        return Check.that(f"{name}: onnx checker", False, str(error).strip()[:300], Place(name))
    return Check.that(f"{name}: onnx checker", True, "")


def _interface(name: str, stage: Stage, model: onnx.ModelProto) -> Check:
    problems = []
    for side, specs, values in (
        ("input", stage.inputs, model.graph.input),
        ("output", stage.outputs, model.graph.output),
    ):
        wanted, found = [_described(spec) for spec in specs], [_found(value) for value in values]
        if wanted != found:
            at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), len(found))
            problems.append(f"{side} {at} is {_item(found, at)}, the manifest says {_item(wanted, at)}")
    return Check.that(
        f"{name}: inputs and outputs are the manifest's", not problems, "; ".join(problems), Place(name)
    )


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"


def _found(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return f"{value.name} {_DTYPES.get(kind.elem_type, 'another type')} {shape}"


def _item(items: list[str], at: int) -> str:
    return items[at] if at < len(items) else "missing"


def _operators(name: str, model: onnx.ModelProto) -> Check:
    declared = {entry.domain for entry in model.opset_import}
    used = {node.domain for node in model.graph.node} | {
        node.domain for f in model.functions for node in f.node
    }
    missing = sorted(used - declared)
    return Check.that(
        f"{name}: operator sets are declared", not missing, f"not declared: {missing}", Place(name)
    )


def _weights(name: str, path: Path, model: onnx.ModelProto) -> Check:
    """External weights lie beside the graph, inside the file, and are as long as their shape says."""
    problems = []
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        file = path.parent / entry["location"]
        start, length = int(entry.get("offset", 0)), int(entry.get("length", 0))
        bits = _NARROW.get(tensor.data_type)
        bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        wanted = -(-math.prod(tensor.dims) * bits // 8)
        if not file.is_file() or start + length > file.stat().st_size:
            problems.append(f"{tensor.name} lies outside {entry['location']}")
        elif length != wanted:
            problems.append(f"{tensor.name} has {length} bytes, its shape needs {wanted}")
    return Check.that(
        f"{name}: weights are in their file", not problems, "; ".join(problems[:3]), Place(name)
    )


def _static(name: str, model: onnx.ModelProto) -> Check:
    found = sorted({node.op_type for node in model.graph.node} & DATA_DEPENDENT)
    return Check.that(f"{name}: no data-dependent shapes", not found, f"operators {found}", Place(name))


def _layer_names(bundle: Bundle) -> Iterator[Check]:
    """Each decoder layer has its name, or is the output of its segment; else no fault could be placed."""
    groups = bundle.manifest.cache.groups
    for layout, names in bundle.manifest.layouts.items():
        found: set[int] = {group[-1] for group in groups[:-1]} if len(names) > 3 else set()
        for name in names[2:]:
            found |= set(layer_values(onnx.load(str(bundle.stage_path(name)), load_external_data=False)))
        missing = sorted(set(range(bundle.manifest.model.num_layers)) - found)
        yield Check.that(f"{layout}: every decoder layer is named", not missing, f"layers {missing} are not")
