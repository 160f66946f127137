"""Checking graphs and bundles against the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import onnx_ir as ir

from foveate.export.check.dependence import Dependence, Kind, follow
from foveate.export.check.nodes import check_node
from foveate.export.check.operators import operators
from foveate.export.check.place import Place, bodies, is_initializer
from foveate.export.check.reading import Source, load_graph, read_graph
from foveate.export.check.report import BundleReport, GraphReport, Verdict
from foveate.export.check.rule import Finding, Severity
from foveate.export.check.versions import DEFAULT, parse_version
from foveate.export.check.whole import RULES, Scene
from foveate.runtime import integrity
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import BundleError

_ORDER = list(Severity)
# Of caches, which have static lengths in an engine; no rule looks at how long they are.
_CAPACITY: Final = 1024
# Attention by lengths and a causal kind came with it.
_NATIVE: Final = (11,)


def _silent(what: str, done: float, total: float) -> None: ...


def check_graph(
    source: Source,
    *,
    version: str = DEFAULT,
    attention: str = "portable",
    fused_only: bool = False,
    flavoured: bool = False,
    name: str | None = None,
) -> GraphReport:
    """Whether TensorRT would take a graph, and what it would cost. Weights in external data are never read.

    Args:
        source: a file, or a model in memory, which is left as it is.
        version: of TensorRT.
        attention: how it is lowered: "native", or "portable", which lets all of it be decomposed.
        fused_only: every attention must have a fused kernel, however it is lowered.
        flavoured: the copy that is made for the builder, with TensorRT's own operators and static caches.
        name: what to call it; None takes the graph's own.

    Raises:
        BundleError: the file is no ONNX graph.
        UsageError: no such version, or one that the rules do not know.
    """
    wanted = parse_version(version)
    model, table = read_graph(source), operators()
    dependence, kinds = follow(model, table)
    nodes = tuple(_nodes(model.graph, 0))

    def is_constant(value: ir.Value) -> bool:
        return is_initializer(value) or kinds.get(value) is Kind.CONSTANT

    fused = fused_only or attention == "native"
    places = (Place(node, wanted, flavoured, fused, is_constant) for node, _ in nodes)
    found = [finding for place in places for finding in check_node(place, table)]
    scene = Scene(model, nodes, dependence)
    found += [finding for rule in RULES for finding in rule.check(scene)]
    found.sort(key=lambda finding: _ORDER.index(finding.severity))
    reasons = tuple(_why_not(dependence))
    return GraphReport(
        name or model.graph.name or "graph",
        attention,
        _verdict(found),
        tuple(found),
        len(nodes),
        tuple(dependence.syncs),
        dependence.segments,
        not reasons,
        reasons,
    )


def check_bundle(
    path: str | Path,
    *,
    layout: str | None = None,
    version: str = DEFAULT,
    attention: str = "portable",
    fused_only: bool = False,
    progress: Callable[[str, float, float], None] = _silent,
) -> BundleReport:
    """Every graph of a bundle as `foveate build` would hand it to TensorRT.

    Args:
        layout: "fused", "segmented" or "all"; None takes the segmented one where there is one.
        attention: "portable" or "native": how attention and caches are written for the builder; "both" checks
            each of them that there is: native comes with TensorRT 11 and for target tensorrt only.
        fused_only: as `foveate build --fused-only` would: attention without a fused kernel fails.
        progress: called as `progress(what, done, total)`.

    Raises:
        BundleError: no bundle there, or a graph in it was changed.
        UsageError: no such layout or version.
        ExportError: attention has a form that the native layers do not have.
    """
    bundle = Bundle.open(path, check="none")
    names = _stages(bundle, layout)
    asked = [(name, each) for each in _lowerings(bundle, version, attention) for name in names]
    graphs = []
    for number, (name, each) in enumerate(asked):
        progress(f"checking {name}", number, len(asked))
        graphs.append(_check_stage(bundle, name, version, each, fused_only))
    progress("checking", len(asked), len(asked))
    _require_unchanged(bundle, names)
    return BundleReport(str(bundle.path), version, attention, tuple(graphs))


def _require_unchanged(bundle: Bundle, names: Iterable[str]) -> None:
    """Raises BundleError where a graph is not the one that was exported: `foveate build` would refuse it."""
    files = bundle.manifest.files
    graphs = {file: files[file] for name in names for file in (bundle.manifest.stages[name].file,)}
    changed = integrity.differences(bundle.path, graphs)
    if changed:
        raise BundleError(
            f"bundle {bundle.path} is not what was exported: {'; '.join(changed)}",
            mend="copy the bundle again, or export it again with --overwrite",
        )


def _lowerings(bundle: Bundle, version: str, attention: str) -> tuple[str, ...]:
    if attention != "both":
        return (attention,)
    native = bundle.manifest.target == "tensorrt" and parse_version(version) >= _NATIVE
    return ("portable", "native") if native else ("portable",)


def _check_stage(bundle: Bundle, name: str, version: str, attention: str, fused_only: bool) -> GraphReport:
    """Graphs for other targets are checked as they are; nobody would make a copy of them for TensorRT."""
    path = bundle.stage_path(name)
    if bundle.manifest.target != "tensorrt":
        return check_graph(path, version=version, attention=attention, fused_only=fused_only, name=name)
    from foveate.export.engines.flavour import flavour

    model = load_graph(path)
    axes = [axis for spec in bundle.manifest.stages[name].inputs for axis in spec.shape]
    lengths = {axis: _CAPACITY for axis in axes if isinstance(axis, str) and "capacity" in axis}
    flavour(model, "native" if attention == "native" else "portable", lengths, fused_only=fused_only)
    return check_graph(
        model, version=version, attention=attention, fused_only=fused_only, flavoured=True, name=name
    )


def _stages(bundle: Bundle, layout: str | None) -> tuple[str, ...]:
    layouts = bundle.manifest.layouts
    if layout == "all":
        return tuple(dict.fromkeys(name for stages in layouts.values() for name in stages))
    return bundle.layout_stages(layout or ("segmented" if "segmented" in layouts else next(iter(layouts))))


def _nodes(graph: ir.Graph, depth: int) -> Iterator[tuple[ir.Node, int]]:
    """Every node with the number of bodies around it."""
    for node in graph:
        yield node, depth
        for inner in bodies(node):
            yield from _nodes(inner, depth + 1)


def _why_not(dependence: Dependence) -> Iterator[str]:
    for sync in dependence.syncs:
        yield f"{sync.op} {sync.node} waits for {sync.value}"
    for node in dependence.branches:
        yield f"{node.op_type} {node.name or node.outputs[0].name} runs on the device"


def _verdict(findings: list[Finding]) -> Verdict:
    found = {finding.severity for finding in findings}
    if Severity.ERROR in found:
        return Verdict.REFUSED
    return Verdict.TAKEN if found - {Severity.NOTE} else Verdict.PASSES
