"""Errors to plant in a bundle: one number in a weight, one index, one position, one count."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from foveate.runtime.bundle import Bundle, BundleWriter


@contextmanager
def edited(bundle: Path, stage: str) -> Iterator[onnx.ModelProto]:
    """A stage's graph, written back when the block ends; weights stay in their file."""
    path = bundle / "onnx" / f"{stage}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    yield model
    path.write_bytes(model.SerializeToString())


def change_weight(bundle: Path, stage: str, name: str, by: float = 0.5) -> None:
    """Add `by` to one number of a weight, in the file that all graphs share."""
    model = onnx.load(str(bundle / "onnx" / f"{stage}.onnx"), load_external_data=False)
    (tensor,) = (item for item in model.graph.initializer if item.name == name)
    entry = {item.key: item.value for item in tensor.external_data}
    width = tensor.dims[-1]
    at = int(entry["offset"]) + 4 * (width + 2 if len(tensor.dims) > 1 else 2)  # row 1, column 2
    with (bundle / "onnx" / entry["location"]).open("r+b") as file:
        file.seek(at)
        (value,) = struct.unpack("<f", file.read(4))
        file.seek(at)
        file.write(struct.pack("<f", value + by))


def swap_indices(bundle: Path, stage: str, order: str, first: int, second: int) -> None:
    """Exchange two candidates wherever the graph's order names them."""
    with edited(bundle, stage) as model:
        raw = _rename_output(model, order)
        for name, value in (("swap_a", first), ("swap_b", second)):
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [value]))
        _insert(
            model,
            raw,
            helper.make_node("Equal", [raw, "swap_a"], ["swap_is_a"]),
            helper.make_node("Equal", [raw, "swap_b"], ["swap_is_b"]),
            helper.make_node("Where", ["swap_is_b", "swap_a", raw], ["swap_half"]),
            helper.make_node("Where", ["swap_is_a", "swap_b", "swap_half"], [order]),
        )


def change_count(bundle: Path, stage: str, count: str, by: int = 1) -> None:
    """Let a graph report (and use) `by` more kept tokens than its rule gave."""
    with edited(bundle, stage) as model:
        raw = _rename_output(model, count)
        model.graph.initializer.append(helper.make_tensor("count_by", TensorProto.INT64, [], [by]))
        _insert(model, raw, helper.make_node("Add", [raw, "count_by"], [count]))


def stretch_positions(bundle: Path, stage: str) -> None:
    """Double every position. (Adding to all of them would change nothing: RoPE is relative.)"""
    with edited(bundle, stage) as model:
        model.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [], [2]))
        _replace_input(
            model, "position_ids", helper.make_node("Mul", ["position_ids", "two"], ["moved_positions"])
        )


def renumber_positions(bundle: Path, stage: str) -> None:
    """Number rows 0, 1, 2, ... whatever they come with: right for a whole prompt, wrong behind a cut."""
    with edited(bundle, stage) as model:
        for name, dims, values in (
            ("one_shape", [1], [1]),
            ("zero", [], [0]),
            ("unit", [], [1]),
            ("axis0", [1], [0]),
        ):
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, dims, values))
        _replace_input(
            model,
            "position_ids",
            helper.make_node("Shape", ["position_ids"], ["rows_1d"], start=1, end=2),
            helper.make_node("Squeeze", ["rows_1d"], ["rows"]),
            helper.make_node("Range", ["zero", "rows", "unit"], ["numbers"]),
            helper.make_node("Unsqueeze", ["numbers", "axis0"], ["moved_positions"]),
        )


def rename_output(bundle: Path, stage: str, old: str, new: str) -> None:
    """Give a graph output another name than the manifest says."""
    with edited(bundle, stage) as model:
        for node in model.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
            node.input[:] = [new if name == old else name for name in node.input]
        for value in model.graph.output:
            value.name = new if value.name == old else value.name


def write_again(damaged: Path, target: Path) -> Path:
    """A damaged bundle as an exporter with that error would have written it: with hashes that fit."""
    manifest = Bundle.open(damaged, check="none").manifest
    with BundleWriter(target) as writer:
        for part in ("onnx", "processor"):
            shutil.copytree(damaged / part, writer.path / part)
        writer.finish(manifest)
    return target


def _rename_output(model: onnx.ModelProto, name: str) -> str:
    """Free the name of a node's output; gives its new name. Consumers keep asking for the old one."""
    for node in model.graph.node:
        if name in node.output:
            node.output[:] = [f"{name}.raw" if output == name else output for output in node.output]
    return f"{name}.raw"


def _insert(model: onnx.ModelProto, after: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes behind the one that makes the value `after`."""
    place = next(i for i, node in enumerate(model.graph.node) if after in node.output) + 1
    every = [*list(model.graph.node)[:place], *nodes, *list(model.graph.node)[place:]]
    del model.graph.node[:]
    model.graph.node.extend(every)


def _replace_input(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    """Let every consumer of a graph input read the last node's output instead."""
    for node in model.graph.node:
        node.input[:] = [nodes[-1].output[0] if value == name else value for value in node.input]
    every = [*nodes, *list(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(every)
