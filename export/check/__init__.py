"""Whether TensorRT will take a graph, told from the file alone: no TensorRT, no GPU, no weights.

The rules are data (`operators`, `whole`); `python -c "from foveate.export.check import all_rules; ..."` lists
them. What stands in no list is refused as unknown.
"""

from foveate.export.check.catalogue import all_rules
from foveate.export.check.checker import check_bundle, check_graph
from foveate.export.check.report import BundleReport, GraphReport, Verdict, require_pass
from foveate.export.check.rule import Finding, Severity

__all__ = [
    "BundleReport",
    "Finding",
    "GraphReport",
    "Severity",
    "Verdict",
    "all_rules",
    "check_bundle",
    "check_graph",
    "require_pass",
]
