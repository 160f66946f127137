"""Whole graphs of bundles, flavoured and written out again, on what real requests feed them.

A batch of requests of unequal length runs through ONNX Runtime, and every call of every graph is noted: what
it was fed, what its caches held, what came out. Then the flavoured graph gets the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
from doubles.tensorrt.expand import standard

from foveate.export.engines.flavour import flavour
from foveate.runtime import GenerateOptions
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.model import Model
from foveate.runtime.pipeline import Pipeline, Request
from foveate.runtime.processor import Processor

Arrays = dict[str, np.ndarray]
# Rows of the parity table whose attention is not causal everywhere: windows, pictures that see themselves,
# heads of text alone.
SLOW = ("gemma3: windows, images in both directions, pooled patches", "downsampling, YOPO")


@dataclass(frozen=True)
class Call:
    """One call of a graph; `caches` before it and `left` behind it, by the name that the graph reads."""

    stage: str
    feeds: Arrays
    caches: Arrays
    out: Arrays
    left: Arrays


class Noting(Backend):
    """ONNX Runtime that keeps every call."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.calls: list[Call] = []

    def open(self, path: Path, name: str, stage: Any) -> Any:
        runner, calls = super().open(path, name, stage), self.calls

        class Spy:
            stage = runner.stage

            def run(self, feeds: Mapping[str, Any], bindings: Mapping[str, Any] | None = None) -> Any:
                held = bindings or {}
                before = {k: np.array(v) for k, v in held.items() if k.startswith("past_")}
                out = runner.run(feeds, held)
                after = {key: np.array(held[key]) for key in before}
                kept = {key: np.array(value) for key, value in feeds.items()}
                calls.append(Call(name, kept, before, {k: np.array(v) for k, v in out.items()}, after))
                return out

        return Spy()


def noted(path: Path) -> list[Call]:
    """What a batch of three requests makes the graphs do."""
    bundle, backend = Bundle.open(path), Noting()
    processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
    pipeline = Pipeline(bundle, Model(bundle, "segmented", backend), processor)
    requests = [
        Request("What is this?", [tiny.make_image(1)]),
        Request("Hi"),
        Request("And this here?", [tiny.make_image(2)]),
    ]
    pipeline.generate_batch(requests, GenerateOptions(max_new_tokens=3))
    return backend.calls


def session_of(bundle: Bundle, stage: str, attention: Any) -> onnxruntime.InferenceSession:
    """The flavoured graph in standard operators, with its weights inside."""
    path = bundle.stage_path(stage)
    made = flavour(ir.load(path), attention).model
    proto = ir.to_proto(made)
    onnx.load_external_data_for_model(proto, str(path.parent))
    plain = standard(proto)
    return onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])


def lengths(call: Call) -> Arrays:
    """What the backend adds to a segment's feeds: see `foveate.runtime.tensorrt.feeds`."""
    groups = [name for name in call.feeds if name.startswith("cache_length_")]
    width = call.feeds["position_ids"].shape[1] if "position_ids" in call.feeds else 0
    made = {}
    for name in groups:
        group, start = name.rpartition("_")[2], call.feeds[name]
        made[f"write_index_{group}"] = start.astype(np.int32)
        made[f"key_value_length_{group}"] = (start + width).astype(np.int32)
    return made


def valid_parts(call: Call, name: str, value: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of an output that mean something: not those of padding."""
    length = call.feeds.get("length")
    if name.startswith("present_"):
        group = call.stage.rpartition("_")[2]
        for row, start in enumerate(call.feeds[f"cache_length_{group}"]):
            yield value[row, :, : start + length[row]]
    elif name == "hidden_out":
        yield from (value[row, :count] for row, count in enumerate(length))
    elif name.startswith("order_l"):
        counts = call.out[name.replace("order", "count")]
        yield from (value[row, :count] for row, count in enumerate(counts))
    else:
        yield value


def compare(path: Path, attention: str) -> Counter[tuple[str, str]]:
    """Runs every noted call through the flavoured graphs.

    Gives how many times each graph's outputs held something and were equal.
    """
    equal: Counter[tuple[str, str]] = Counter()
    bundle, calls = Bundle.open(path), noted(path)
    sessions = {stage: session_of(bundle, stage, attention) for stage in {call.stage for call in calls}}
    for call in calls:
        session = sessions[call.stage]
        feeds = {**call.feeds, **call.caches, **lengths(call)}
        names = [value.name for value in session.get_inputs()]
        # Rows that do not exist, of a call without pictures, come as none here: ONNX Runtime takes that.
        found = session.run(None, {name: feeds[name] for name in names})
        for value, array in zip(session.get_outputs(), found, strict=True):
            if value.name.startswith("present_text_"):
                continue  # rows of padding have no place of their own there
            wanted = call.out.get(value.name)
            if wanted is None:
                wanted = call.left[value.name.replace("present_", "past_")]
            pairs = zip(
                valid_parts(call, value.name, array), valid_parts(call, value.name, wanted), strict=True
            )
            numbers = 0
            for one, other in pairs:
                numbers += one.size
                # Float32 sums in another order, through the layers of a graph.
                np.testing.assert_allclose(
                    one, other, atol=2e-5, err_msg=f"{call.stage}: {value.name} of {len(calls)} calls"
                )
            equal[call.stage, value.name] += numbers > 0
    return equal


def require_all(equal: Counter[tuple[str, str]], bundle: Bundle) -> None:
    """Of each graph every output, in reading and in decoding."""
    for name in bundle.manifest.layouts["segmented"]:
        least = 2 if name.startswith(("embed", "decoder")) else 1
        for output in bundle.manifest.stages[name].outputs:
            if not output.name.startswith("present_text_"):
                assert equal[name, output.name] >= least, (name, output.name)


@pytest.mark.parametrize("attention", ["native", "portable"])
def test_requests_give_the_same(exported: Path, attention: str) -> None:
    require_all(compare(exported, attention), Bundle.open(exported))


@pytest.mark.slow
@pytest.mark.parametrize("row", SLOW)
def test_requests_give_the_same_under_other_masks(row: str, tmp_path: Path) -> None:
    import torch

    from foveate.export import export_model

    torch.set_num_threads(1)
    (found,) = (each for each in tiny.all_rows() if each.name == row)
    checkpoint = tiny.make(found.family, tmp_path / "checkpoint", **found.checkpoint)
    plan, path = list(found.plan), tmp_path / "bundle"
    export_model(checkpoint, path, plan=plan, target="tensorrt", dtype="fp32", layouts=("segmented",))
    bundle = Bundle.open(path)
    segments = [name for name in bundle.manifest.layouts["segmented"] if name.startswith("decoder")]
    kinds = set()
    for name in segments:
        for node in flavour(ir.load(bundle.stage_path(name)), "native").model.graph:
            if node.op_type == "TRT_Attention":
                kinds.add((node.attributes.get_string("causal_kind"), len(node.inputs) > 3))
    assert ("none", True) in kinds, "some attention here has a mask of its own"
    require_all(compare(bundle.path, "native"), bundle)
