"""Reads onnxruntime's record of every node that ran: seconds, operations and bytes of each part of an answer.

The recording costs some microseconds a node, which is why it is a pass of its own: shares are taken from it,
times to the first token are not.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from foveate.runtime.bundle import Bundle
from foveate.tools.bench.asking import Answer, Asked
from foveate.tools.bench.parts import EMBED, HEAD, SELECT, Parts
from foveate.tools.bench.schema import Segment

Shape = Sequence[int]
Event = Mapping[str, Any]

FP32, INT8, BLOCK8, BLOCK4 = "fp32", "int8", "int8-block", "int4-block"
KIND = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv"), FP32),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), FP32),
    **dict.fromkeys(("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), INT8),
}
"""By what a product is computed with; MatMulNBits is told by the bits of its weights."""


@dataclass
class Tally:
    """One part of one run."""

    seconds: float = 0.0
    products: float = 0.0
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ops: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, event: Event, kind: str, flops: float) -> None:
        """Count a node that ran."""
        seconds = 1e-6 * event["dur"]
        self.seconds += seconds
        self.ops[event["args"]["op_name"]] += seconds
        if kind:
            self.products += seconds
            self.flops[kind] += flops


class Reader:
    """Knows the graphs of a bundle's layout: which part a node is of, and what its part weighs."""

    def __init__(self, bundle: Bundle, layout: str) -> None:
        self._parts: dict[str, Parts] = {}
        self._bits: dict[str, int] = {}
        self.weights: dict[str, float] = defaultdict(float)
        for name in bundle.layout_stages(layout):
            graph = onnx.load(str(bundle.stage_path(name)), load_external_data=False).graph
            parts = self._parts[name] = Parts(graph, name, bundle.manifest.cache.groups)
            self._bits |= {node.name: _bits(node) for node in graph.node if node.op_type == "MatMulNBits"}
            self._weigh(graph, parts)

    def runs(self, stage: str, trace: Path) -> list[dict[str, Tally]]:
        """The parts of each run of a stage, in the order of the runs."""
        events = [each for each in json.loads(trace.read_text(encoding="utf-8")) if "dur" in each]
        spans = sorted(
            (each["ts"], each["ts"] + each["dur"]) for each in events if each["name"] == "model_run"
        )
        nodes = sorted(
            (each for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")),
            key=lambda each: float(each["ts"]),
        )
        found: list[dict[str, Tally]] = []
        at = 0
        for _, end in spans:
            tallies: dict[str, Tally] = defaultdict(Tally)
            while at < len(nodes) and nodes[at]["ts"] <= end:
                self._count(stage, nodes[at], tallies)
                at += 1
            found.append(dict(tallies))
        return found

    def _count(self, stage: str, event: Event, tallies: dict[str, Tally]) -> None:
        name = event["name"].removesuffix("_kernel_time")
        kind = self.kind(name, event["args"]["op_name"])
        tallies[self._parts[stage].find(name)].add(event, kind, flops_of(event) if kind else 0.0)

    def kind(self, name: str, op: str) -> str:
        """How a node multiplies; empty where it does not."""
        if op == "MatMulNBits":
            bits = next((bits for known, bits in self._bits.items() if known in name), 4)
            return BLOCK8 if bits == 8 else BLOCK4
        return KIND.get(op, "")

    def _weigh(self, graph: Any, parts: Parts) -> None:
        """Bytes of the weights that each part reads, each once; of a table that is looked up, nothing."""
        sizes = {each.name: _bytes(each) for each in graph.initializer}
        for node in graph.node:
            for name in node.input:
                if name in sizes and not (node.op_type.startswith("Gather") and name == node.input[0]):
                    self.weights[parts.of[node.name]] += sizes.pop(name)


@dataclass(frozen=True)
class Traced:
    """Medians of one part over the traced answers, see `foveate.tools.bench.schema.Stage`."""

    phase: str
    part: str
    seconds: float
    products: float
    flops: dict[str, float]
    bytes: float
    slowest: tuple[tuple[str, float], ...]


def trace(
    asked: Asked, ask: Callable[[str], Answer], budgets: Sequence[str], rounds: int
) -> dict[str, list[Traced]]:
    """Ask some times at each budget, once more to warm up; the parts of each. Ends the record."""
    notes: dict[str, list[list[tuple[str, int]]]] = {}
    caches: dict[str, tuple[Segment, ...]] = {}
    for budget in budgets:
        ask(budget)
        notes[budget] = []
        for _ in range(rounds):
            caches[budget] = ask(budget).cache
            notes[budget].append([(note.stage, note.number) for note in asked.backend.noted])
    reader = Reader(asked.bundle, asked.layout)
    runs = {name: reader.runs(name, runner.end_profile()) for name, runner in asked.backend.runners.items()}
    return {budget: rows(reader, runs, notes[budget], caches[budget]) for budget in budgets}


def rows(
    reader: Reader,
    runs: Mapping[str, Sequence[dict[str, Tally]]],
    answers: Sequence[Sequence[tuple[str, int]]],
    cache: Sequence[Segment],
) -> list[Traced]:
    """The parts of some answers of one case.

    Args:
        reader: of the bundle.
        runs: by stage, as `Reader.runs` gives them.
        answers: of each, the stages that ran and their numbers among the runs of the stage, in order.
        cache: what the prompt leaves in each segment.
    """
    phases: dict[str, list[dict[str, Tally]]] = {"prefill": [], "decode": []}
    for answer in answers:
        first, steps = split(answer)
        phases["prefill"].append(_merged(runs[stage][number] for stage, number in first))
        phases["decode"] += [_merged(runs[stage][number] for stage, number in step) for step in steps]
    return [row for phase, passes in phases.items() for row in _rows(reader, phase, passes, cache)]


def split(answer: Sequence[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[list[tuple[str, int]]]]:
    """What ran for the first token, and for each one after it: a step begins with the embedding."""
    starts = [i for i, (stage, _) in enumerate(answer) if stage == "embed"]
    last_vision = max((i for i, (stage, _) in enumerate(answer) if stage.startswith("vision")), default=-1)
    starts = [i for i in starts if i > last_vision]
    ends = [*starts[1:], len(answer)]
    first = list(answer[: ends[0]]) if starts else list(answer)
    return first, [list(answer[a:b]) for a, b in zip(starts[1:], ends[1:], strict=True)]


def _rows(
    reader: Reader, phase: str, passes: Sequence[dict[str, Tally]], cache: Sequence[Segment]
) -> Iterable[Traced]:
    names = sorted({name for each in passes for name in each}, key=_order)
    # The connector and a cut's projections have no rows to work on in a step: their weights are not read.
    read = [name for name in names if name == HEAD or name.startswith("segment")]
    for name in names:
        tallies = [each.get(name, Tally()) for each in passes]
        kinds = {kind for tally in tallies for kind in tally.flops}
        ops = {op for tally in tallies for op in tally.ops}
        slow = sorted(((op, median(t.ops.get(op, 0.0) for t in tallies)) for op in ops), key=lambda e: -e[1])
        held = sum(each.bytes for i, each in enumerate(cache) if name == f"segment {i}")
        yield Traced(
            phase=phase,
            part=name,
            seconds=median(tally.seconds for tally in tallies),
            products=median(tally.products for tally in tallies),
            flops={kind: median(t.flops.get(kind, 0.0) for t in tallies) for kind in sorted(kinds)},
            bytes=reader.weights.get(name, 0.0) + held if phase == "decode" and name in read else 0.0,
            slowest=tuple(slow[:6]),
        )


def flops_of(event: Event) -> float:
    """Operations of a product that ran, from the shapes in its record: two for a multiply-add.

    Attention counts whole squares, as `foveate.tools.flops` does, of the tokens that the chunk brings.
    """
    args = event["args"]
    ins = [_shape(each) for each in args["input_type_shape"]]
    outs = [_shape(each) for each in args["output_type_shape"]]
    op = args["op_name"]
    if op in ("MultiHeadAttention", "GroupQueryAttention"):
        key = ins[1] if len(ins) > 1 and len(ins[1]) == 3 else ins[0]
        return 4.0 * math.prod(ins[0][:2]) * key[1] * ins[0][-1]
    if op == "Attention":
        query, key = ins[0], ins[1]
        return 2.0 * math.prod(query[:-1]) * key[-2] * (query[-1] + outs[0][-1])
    if op in ("Conv", "FusedConv"):
        return 2.0 * math.prod(outs[0]) * math.prod(ins[1][1:]) if len(ins) > 1 else 0.0
    # A constant factor's shape is not in the record, so the first one tells the length.
    return 2.0 * math.prod(outs[0]) * ins[0][-1]


def _merged(tallies: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Several graphs of one pass as one."""
    out: dict[str, Tally] = {}
    for each in tallies:
        for name, tally in each.items():
            into = out.setdefault(name, Tally())
            into.seconds += tally.seconds
            into.products += tally.products
            for mine, theirs in ((into.flops, tally.flops), (into.ops, tally.ops)):
                for key, value in theirs.items():
                    mine[key] += value
    return out


def _order(name: str) -> tuple[int, str]:
    places = ("vision", SELECT, EMBED, "segment")
    return next((i for i, place in enumerate(places) if name.startswith(place)), len(places)), name


def _shape(typed: Mapping[str, Shape]) -> Shape:
    return next(iter(typed.values()), [])


def _bits(node: Any) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "bits"), 4)


def _bytes(tensor: Any) -> float:
    """Of a tensor in a graph file, wherever its content lies."""
    lengths = [int(each.value) for each in tensor.external_data if each.key == "length"]
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return float(lengths[0] if lengths else math.prod(tensor.dims) * width)
