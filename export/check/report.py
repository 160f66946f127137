"""What a check found: per graph and per bundle, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from foveate.export.check.dependence import SyncPoint
from foveate.export.check.rule import Finding, Severity
from foveate.runtime.errors import CheckError


class Verdict(str, Enum):
    """`passes`: nothing but notes. `taken`: it builds, with warnings or costs. `refused`: it does not."""

    PASSES = "passes"
    TAKEN = "taken"
    REFUSED = "refused"


@dataclass(frozen=True)
class GraphReport:
    """One graph.

    Attributes:
        attention: how it is lowered.
        nodes: how many were looked at, bodies included.
        sync_points: where the host must wait for the device.
        segments: into how many parts the waits cut the engine; 1 is whole.
        capturable: whether a CUDA graph can be captured of it.
        why_not: the reasons, where it cannot.
    """

    name: str
    attention: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    nodes: int
    sync_points: tuple[SyncPoint, ...]
    segments: int
    capturable: bool
    why_not: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether TensorRT would not build it, or would compute something else."""
        return self.verdict is Verdict.REFUSED

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "attention": self.attention,
            "verdict": self.verdict.value,
            "nodes": self.nodes,
            "segments": self.segments,
            "capturable": self.capturable,
            "why_not_capturable": list(self.why_not),
            "sync_points": [asdict(sync) for sync in self.sync_points],
            "findings": [asdict(f) | {"severity": f.severity.value} for f in self.findings],
        }


@dataclass(frozen=True)
class BundleReport:
    """The graphs of a bundle's layouts for one version of TensorRT, each in every lowering asked for."""

    path: str
    version: str
    attention: str
    graphs: tuple[GraphReport, ...]

    @property
    def refused(self) -> bool:
        """Whether any graph is refused."""
        return any(graph.refused for graph in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bundle": self.path,
            "target": "tensorrt",
            "version": self.version,
            "attention": self.attention,
            "refused": self.refused,
            "graphs": [graph.to_json() for graph in self.graphs],
        }


def require_pass(report: GraphReport | BundleReport) -> None:
    """Raises CheckError where a graph is refused: the first error's node, rule and mend."""
    graphs = report.graphs if isinstance(report, BundleReport) else (report,)
    errors = [(g, f) for g in graphs for f in g.findings if f.severity is Severity.ERROR]
    if not errors:
        return
    graph, first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise CheckError(
        f"TensorRT would not take the graph {graph.name}{more}",
        found=f"{first.op} {first.node}: {first.what} [{first.rule}]",
        mend=first.mend,
    )
