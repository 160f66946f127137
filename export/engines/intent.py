"""What would be built of a bundle: every graph flavoured and checked, with its profiles. Needs no GPU."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from foveate.export.check import GraphReport, check_graph, require_pass
from foveate.export.engines.flavour import Flavoured, flavour
from foveate.export.engines.pictures import measure
from foveate.export.engines.profiles import (
    Axes,
    axes_of,
    capacities,
    make_profile,
    profile_records,
    require_sortable,
    stage_axes,
)
from foveate.runtime.bundle import Bundle
from foveate.runtime.engines import (
    BuildOptions,
    EngineRecord,
    Machine,
    PlanRecord,
    Profile,
    ProfileRecord,
    digest,
    graph_hashes,
    weights_hash,
)
from foveate.runtime.errors import UsageError

TARGETS: Final = ("tensorrt", "portable")
# What a graph is checked for where there is no TensorRT: the version whose parser was read.
CHECKED_VERSION: Final = "11.1"


@dataclass(frozen=True)
class StageIntent:
    """One graph as the builder gets it.

    Attributes:
        content: the flavoured file, serialised; it refers to the bundle's weights.
        axes: of its inputs by the name of each profile: smallest, usual and largest length.
        least_plan_bytes: the graph's weights, which its plan will hold at least.
    """

    name: str
    graph_sha256: str
    flavoured: Flavoured
    content: bytes
    axes: dict[str, Axes]
    profiles: tuple[ProfileRecord, ...]
    report: GraphReport
    least_plan_bytes: int

    def key(self, weights_sha256: str, machine: Machine, options: BuildOptions) -> str:
        """Hash of everything that the plan depends on."""
        return digest(
            {
                "graph": hashlib.sha256(self.content).hexdigest(),
                "weights": weights_sha256,
                "machine": machine.model_dump(exclude={"gpu"}),
                "options": options.model_dump(),
                "profiles": [record.model_dump() for record in self.profiles],
            }
        )

    def plan(self, key: str) -> PlanRecord:
        """The record of the plan to be: without content yet."""
        graph = self.flavoured.model.graph
        return PlanRecord(
            file=f"{self.name}.plan",
            bytes=0,
            sha256="",
            graph_sha256=self.graph_sha256,
            key=key,
            profiles=self.profiles,
            inputs=tuple(value.name or "" for value in graph.inputs),
            outputs=tuple(value.name or "" for value in graph.outputs),
        )


@dataclass(frozen=True)
class Intent:
    """All graphs of the segmented layout, and what they were made with."""

    bundle: Bundle
    profile: Profile
    options: BuildOptions
    capacity: tuple[int, ...]
    stages: tuple[StageIntent, ...]

    def record(self, foveate: str, machine: Machine) -> EngineRecord:
        """The record of the engines to be: without key, files and time yet."""
        manifest = self.bundle.manifest
        weights = weights_hash(manifest)
        return EngineRecord(
            foveate=foveate,
            **machine.model_dump(),
            precision=manifest.precision.name,
            profile=self.profile,
            options=self.options,
            capacity=self.capacity,
            weights_sha256=weights,
            stages={s.name: s.plan(s.key(weights, machine, self.options)) for s in self.stages},
        )


def intend(
    bundle: Bundle, options: BuildOptions, profile: str = "", version: str = CHECKED_VERSION
) -> Intent:
    """Flavours and checks every graph.

    Raises:
        UsageError: the bundle is for another target or lacks the layout, or the profile is nonsense.
        CheckError: TensorRT would not take a graph; with node, rule and mend.
        ExportError: a graph has an attention that the native layers do not have.
    """
    _require_buildable(bundle)
    manifest = bundle.manifest
    samples = measure(bundle)
    made = make_profile(manifest, profile, samples)
    if samples is not None and made.frames > 1:
        samples = samples.with_video(bundle, made.frames)
    slots, hashes, stages = capacities(manifest, made), graph_hashes(manifest), []
    for name, axes in stage_axes(manifest, made, samples).items():
        changed = flavour(
            ir.load(bundle.stage_path(name)), options.attention, slots, fused_only=options.fused_only
        )
        graph = changed.model.graph
        own = axes_of(graph, axes)
        require_sortable(graph, name, axes)
        report = check_graph(
            changed.model,
            version=version,
            attention=options.attention,
            fused_only=options.fused_only,
            flavoured=True,
            name=name,
        )
        require_pass(report)
        content = ir.to_proto(changed.model).SerializeToString(deterministic=True)
        records = profile_records(graph, own)
        stages.append(
            StageIntent(name, hashes[name], changed, content, own, records, report, _weight_bytes(graph))
        )
    return Intent(bundle, made, options, tuple(slots.values()), tuple(stages))


def _require_buildable(bundle: Bundle) -> None:
    manifest = bundle.manifest
    again = f"export it again: foveate export CHECKPOINT -o {bundle.path} --target tensorrt --overwrite"
    if manifest.target not in TARGETS:
        raise UsageError(
            f"bundle {bundle.path} was not exported for TensorRT",
            found=f"target {manifest.target}, which has operators of its own",
            wanted=" or ".join(TARGETS),
            mend=again,
        )
    if "segmented" not in manifest.layouts:
        raise UsageError(
            f"bundle {bundle.path} has no segmented layout, of which engines are built",
            found=", ".join(manifest.layouts),
            mend=again,
        )


def _weight_bytes(graph: ir.Graph) -> int:
    tensors = (value.const_value for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
