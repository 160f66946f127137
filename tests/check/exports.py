"""Graphs of a plan in every precision, traced once: no weights are made, drawn or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from foveate.export.check import GraphReport, check_graph
from foveate.export.check.reading import load_graph
from foveate.export.checkpoint import Checkpoint
from foveate.export.engines.flavour import flavour
from foveate.export.families import find_family
from foveate.export.graph_file import write_graph
from foveate.export.pipeline import plan_stages
from foveate.export.precision import PrecisionPlan, find_layers, parse_precision
from foveate.export.precision.forms import plan_forms
from foveate.export.precision.layers import stage_of
from foveate.export.precision.rewrite import halve_table, rewrite
from foveate.export.precision.storage import store
from foveate.export.precision.typed import type_graph
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.weights import merge_parameters, plan_placements
from foveate.pruning.plan import parse_plan
from foveate.runtime.bundle import Bundle


def _never() -> Tensor:
    raise AssertionError("weights are not read")


class Graphs:
    """The graphs of one layout of a checkpoint under a plan: traced, or those of a bundle in fp32."""

    def __init__(
        self,
        checkpoint: Path,
        plan: Sequence[str],
        target: str = "tensorrt",
        layout: str = "segmented",
        bundle: Bundle | None = None,
    ) -> None:
        source = Checkpoint(checkpoint)
        _, family = find_family(source.config)
        config = family.Config.read(source.config)
        cuts = parse_plan(plan, config.text.num_layers)
        lowering = find_target(target)
        stages = plan_stages(family, config, cuts, lowering)[layout]
        by_graph = {stage.name: read_parameters(stage) for stage in stages}
        self.target = target
        self.parameters = merge_parameters(by_graph.values())
        self.layers = find_layers(by_graph)
        self.models: Mapping[str, ir.Model] = {
            stage.name: trace_stage(stage, lowering)
            if bundle is None
            else load_graph(bundle.stage_path(stage.name))
            for stage in stages
        }

    def written(self, dtype: str, folder: Path) -> Iterator[tuple[str, Path]]:
        """Name and file of each graph; the weights that they point to do not exist."""
        words = parse_precision(dtype, self.target)
        ranges = {layer.name: 4.0 for layer in self.layers}  # as if they had been measured
        precision = PrecisionPlan(words, target=self.target, ranges=ranges)
        forms = plan_forms(precision, self.layers, self.target)
        loaders = dict.fromkeys(self.parameters, _never)
        stored, _ = store(self.parameters, loaders, forms, half_table=precision.table())
        placements, _ = plan_placements(stored)
        folder.mkdir(parents=True, exist_ok=True)
        for name, traced in self.models.items():
            model = traced.clone()
            rewrite(model, forms)
            if table := precision.table():
                halve_table(model, table)
            if half := precision.half(stage_of(name)):
                type_graph(model, half)
            write_graph(model, folder / f"{name}.onnx", placements)
            yield name, folder / f"{name}.onnx"

    def reports(self, dtype: str, attention: str, folder: Path) -> Iterator[GraphReport]:
        """Each graph as `foveate build` would hand it to TensorRT."""
        for name, path in self.written(dtype, folder):
            model = load_graph(path)
            axes = {
                dim.value for value in model.graph.inputs for dim in value.shape if not isinstance(dim, int)
            }
            lengths = {axis: 256 for axis in axes if "capacity" in axis}
            flavour(model, "native" if attention == "native" else "portable", lengths)
            yield check_graph(model, flavoured=True, attention=attention, name=name)
