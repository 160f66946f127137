"""The report as JSON and as Markdown: one line a row, what failed with the end of its output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from foveate.tools.gpu_check.needs import NEEDS
from foveate.tools.gpu_check.records import Outcome, Report, Status

MARKS: Final[Mapping[Status, str]] = {Status.PASS: "pass", Status.FAIL: "**FAIL**", Status.NOT_RUN: "NOT RUN"}
_TAIL: Final = 2500


def write(report: Report, out: Path) -> tuple[Path, Path]:
    """`report.json` and `report.md` in a folder, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"report.json": report.model_dump_json(indent=1) + "\n", "report.md": markdown(report)}
    for name, text in texts.items():
        draft = out / f"{name}.part"
        draft.write_text(text, encoding="utf-8")
        draft.replace(out / name)
    return out / "report.json", out / "report.md"


def summary(report: Report) -> str:
    """One loud line."""
    passed, failed, left = (report.count(each) for each in (Status.PASS, Status.FAIL, Status.NOT_RUN))
    return f"{passed} passed, {failed} FAILED, {left} NOT RUN, of {len(report.outcomes)} rows"


def markdown(report: Report) -> str:
    """The whole report. Nothing in it names a folder of this machine but what rows printed themselves."""
    lines = ["# GPU check", "", f"**{summary(report)}** ({report.created})", ""]
    if report.count(Status.NOT_RUN):
        lines += ["A row that was not run says nothing, good or bad, about what it would have tested.", ""]
    lines += ["## Machine", "", *_facts(report.facts)]
    for name, said in report.lacking.items():
        lines.append(f"- **missing: {NEEDS[name].what}** ({said}). {NEEDS[name].mend}")
    lines += ["", "## Rows", ""]
    lines += ["| row | what | result | s | figures, or why |", "|---|---|---|---|---|"]
    lines += [_line(each) for each in report.outcomes]
    others = {each.code for each in report.outcomes if each.code} - {str(report.facts.get("code"))}
    if others:
        lines += [
            "",
            f"Some rows ran on other sources of Foveate than the present ones: {', '.join(sorted(others))}.",
        ]
    tables = [each for each in report.outcomes if "table" in each.figures]
    for each in tables:
        lines += ["", f"### {each.id}: {each.title}", "", *_table(each.figures["table"])]
    failed = [each for each in report.outcomes if each.status is Status.FAIL]
    for each in failed:
        lines += ["", f"## {each.id} failed", "", each.reason, "", "```", each.tail[-_TAIL:].strip(), "```"]
    return "\n".join(lines) + "\n"


def _facts(facts: Mapping[str, Any]) -> list[str]:
    gpus = facts.get("gpus") or []
    memory = facts.get("memory_bytes")
    lines = [
        f"- GPU: {each['name']}, {each['memory_bytes'] / 2**30:.0f} GiB, compute capability "
        f"{each['compute_capability']}, driver {each['driver']}"
        for each in gpus
    ] or ["- GPU: **none found**"]
    lines.append(f"- {facts['system']}, {facts['processor']}, {facts['cores']} cores")
    if memory:
        lines[-1] += f", {memory / 2**30:.0f} GiB"
    packages = ", ".join(f"{name} {value}" for name, value in facts["packages"].items())
    return [*lines, f"- Python {facts['python']}; {packages}", f"- sources {facts['code']}"]


def _line(outcome: Outcome) -> str:
    shown = [f"{name} {_short(value)}" for name, value in outcome.figures.items() if _is_short(value)]
    words = "; ".join([*([outcome.reason] if outcome.reason else []), *shown])
    seconds = f"{outcome.seconds:.0f}" if outcome.seconds else ""
    cells = (f"`{outcome.id}`", outcome.title, MARKS[outcome.status], seconds, words)
    return "| " + " | ".join(each.replace("|", "\\|").replace("\n", " ") for each in cells) + " |"


def _table(table: Mapping[str, Any]) -> list[str]:
    """`{"columns": [...], "rows": [[...], ...]}`."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) < 120)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
