"""`foveate check`: will TensorRT take these graphs? Told on any machine, without TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.export.check import BundleReport, GraphReport

EXAMPLES = (
    ("foveate check bundle", "every graph against TensorRT's rules, in seconds, without TensorRT"),
    (
        "foveate check bundle --attention native --verbose",
        "as it will be built with TensorRT's own attention",
    ),
    ("foveate check bundle --layout fused --json", "where shapes depend on data, as JSON"),
)

TARGETS = ("tensorrt",)
LOWERINGS = ("both", "portable", "native")
_SEVERITIES = {"error": "red", "warning": "yellow", "cost": "cyan", "note": "dim"}


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that foveate export wrote, or demo.")
    ],
    target: Annotated[str, typer.Option(metavar="TARGET", help="Whose rules: tensorrt.")] = "tensorrt",
    attention: Annotated[
        str,
        typer.Option(
            metavar="LOWERING", help="portable, native (TensorRT's own attention and caches), or both."
        ),
    ] = "both",
    fused_only: Annotated[
        bool,
        typer.Option("--fused-only", help="As foveate build --fused-only: attention must have a kernel."),
    ] = False,
    trt_version: Annotated[
        str, typer.Option(metavar="VERSION", help="Of TensorRT; newer ones are held to the rules of 11.1.")
    ] = "11.1",
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT", help="fused, segmented or all. [dim]\\[default: segmented if there is one][/]"
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every finding, not only the first of each rule.")
    ] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Tell whether TensorRT will take each graph of a bundle, and if not, which node, which rule, what to do.

    Needs no GPU, no TensorRT and no weights. Also says where shapes depend on data, into how many parts that
    cuts an engine, and whether a CUDA graph can be captured.

    Leaves with exit code 12 if a graph is refused. What stands in no list is refused as unknown.
    """
    from foveate.tools.demo import resolve_bundle
    from foveate.tools.extras import needs

    output.one_of("--target", target, TARGETS)
    output.one_of("--attention", attention, LOWERINGS)
    path = resolve_bundle(bundle, say=output.remark)
    with needs("export"):
        from foveate.export.check import check_bundle, require_pass

        with output.progress(quiet=json_output) as bars:
            report = check_bundle(
                path,
                layout=layout,
                version=trt_version,
                attention=attention,
                fused_only=fused_only,
                progress=bars,
            )
    if json_output:
        output.emit(report.to_json())
    else:
        _show(report, verbose)
    require_pass(report)


def _show(report: BundleReport, verbose: bool) -> None:
    columns = ("graph", "lowering", "verdict", "errors", "warnings", "costs", "parts", "CUDA graph")
    rows = [_row(graph) for graph in report.graphs]
    title = f"{report.path} for TensorRT {report.version}"
    output.stdout().print(output.table(title, columns, rows, numbers=(3, 4, 5, 6)))
    for graph in report.graphs:
        _findings(graph, verbose)


def _row(graph: GraphReport) -> tuple[object, ...]:
    counts = [sum(f.severity.value == word for f in graph.findings) for word in ("error", "warning", "cost")]
    captured = "yes" if graph.capturable else "no"  # the findings say why
    return (graph.name, graph.attention, graph.verdict.value, *counts, graph.segments, captured)


def _findings(graph: GraphReport, verbose: bool) -> None:
    """What was found in a graph: each rule with its first place, and how many more there are."""
    from rich.text import Text

    by_rule: dict[str, list[int]] = {}
    for number, finding in enumerate(graph.findings):
        by_rule.setdefault(finding.rule, []).append(number)
    for rule, places in by_rule.items():
        for number in places if verbose else places[:1]:
            finding = graph.findings[number]
            more = f" ({len(places) - 1} more)" if len(places) > 1 and not verbose else ""
            line = Text.assemble(
                (f"{finding.severity.value:<8}", _SEVERITIES[finding.severity.value]),
                f"{graph.name} ({graph.attention}): {finding.op} ",
                (finding.node, "bold"),
                f": {finding.what}{more}. ",
                (f"To mend it: {finding.mend}. [{rule}; {finding.source}, {finding.mark}]", "dim"),
            )
            output.stdout().print(line, soft_wrap=True)
