"""Counts the arithmetic that a bundle's graphs really do, from ONNX Runtime's record of every node it ran.

So the cost of choosing is in it, and whatever a method leaves out is not, without a word about methods here.
Convolutions, matrix products and attention count, two operations for a multiply-add; attention counts whole
squares, as `foveate.tools.flops` does.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]

from foveate.runtime.backends.onnxruntime import Backend, Runner
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import Stage
from foveate.runtime.model import Model
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.processor import Processor
from foveate.tools.demo_model.scenes import Scene

Shape = list[int]


@dataclass(frozen=True)
class Work:
    """Operations of one prompt's prefill, by stage; means over the prompts that were counted."""

    vision: float
    embed: float
    decoder: float

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.vision + self.embed + self.decoder


def count_work(
    bundle: Path, asked: Sequence[tuple[Scene, str]], options: GenerateOptions, layout: str = "fused"
) -> Work:
    """What the first token of each prompt takes, mean over prompts of one image each."""
    opened = Bundle.open(bundle, check="none")
    with tempfile.TemporaryDirectory(prefix="foveate-work-") as folder:
        backend = _Recording(Path(folder))
        model = Model(opened, layout, backend)
        pipeline = Pipeline(
            opened, model, Processor(opened.processor_path, opened.manifest.model, opened.manifest.family)
        )
        for scene, text in asked:
            prepared = pipeline.prepare(text, [scene.pil()], options)
            pipeline.prefill(prepared, options)
        sums = {name: sum(map(flops_of, events)) / len(asked) for name, events in backend.records()}
    decoder = sum(value for name, value in sums.items() if name.startswith("decoder"))
    vision = sum(value for name, value in sums.items() if name.startswith("vision"))
    return Work(vision, sums.get("embed", 0.0), decoder)


def flops_of(event: Mapping[str, Any]) -> float:
    """Operations of one node, from its record: `op_name`, and shapes by type of inputs and outputs."""
    args = event["args"]
    ins = [_shape(each) for each in args["input_type_shape"]]
    outs = [_shape(each) for each in args["output_type_shape"]]
    rule = _RULES.get(args["op_name"])
    return rule(ins, outs) if rule else 0.0


class _Recording(Backend):
    """Opens stages that note down every node they run; nothing is fused, so each has its own shapes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(threads=1)
        self._folder = folder
        self._sessions: list[tuple[str, onnxruntime.InferenceSession]] = []

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """See `Backend.open`."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / name)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._sessions.append((name, session))
        return Runner(session, name, stage)

    def records(self) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """Stage by stage, the nodes that have run. Ends the recording."""
        for name, session in self._sessions:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            yield name, [each for each in events if _is_node(each)]


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith("_kernel_time")


def _shape(typed: Mapping[str, Shape]) -> Shape:
    return next(iter(typed.values()), [])


def _product(ins: list[Shape], outs: list[Shape]) -> float:
    """MatMul: a constant factor's shape is missing, so the first one tells the length."""
    return 2.0 * math.prod(outs[0]) * ins[0][-1]


def _convolution(ins: list[Shape], outs: list[Shape]) -> float:
    return 2.0 * math.prod(outs[0]) * math.prod(ins[1][1:])


def _attention(ins: list[Shape], outs: list[Shape]) -> float:
    """The opset's Attention, heads apart (`b h s e`) or together (`b s (h e)`)."""
    query, key, out = ins[0], ins[1], outs[0]
    return 2.0 * math.prod(query[:-1]) * key[-2] * (query[-1] + out[-1])


def _grouped(ins: list[Shape], outs: list[Shape]) -> float:
    """GroupQueryAttention over an empty cache: its cache's shape is room, not tokens."""
    b, s, width = ins[0]
    return 4.0 * b * s * ins[1][1] * width


_RULES = {
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _convolution,
    "Attention": _attention,
    "MultiHeadAttention": _grouped,
    "GroupQueryAttention": _grouped,
}
