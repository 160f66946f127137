"""`foveate doctor`: what is installed, what is missing, and the line that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.doctor import Report

EXAMPLES = (
    ("foveate doctor", "everything in a few tables"),
    ("foveate doctor --json", "the same for a script or a bug report"),
)

INCOMPLETE = 6  # as a missing dependency


def command(json_output: output.JsonFlag = False) -> None:
    """Say what this machine has and lacks: packages of each extra, providers, GPUs, cores, disk, demo model.

    Exits with 0 if a bundle can be run here and with 6 if a package of the base install is missing. Missing
    extras are named with the pip line that brings them.
    """
    from foveate.tools.doctor import examine

    report = examine()
    if json_output:
        output.emit(report.to_json())
    else:
        _show(report)
    if not report.ready:
        raise typer.Exit(INCOMPLETE)


def _show(report: Report) -> None:
    out = output.stdout()
    machine, runtime, model = report.machine, report.onnxruntime, report.demo
    memory = output.size(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown"
    rows = [
        ("foveate", report.foveate),
        ("python", f"{report.python['version']}  {report.python['executable']}"),
        ("machine", f"{machine['system']}, {machine['cores']} usable cores, {memory} memory"),
        *((f"free in {folder}", output.size(free)) for folder, free in machine["free_disk_bytes"].items()),
        ("onnxruntime", f"{runtime['version'] or runtime['problem']}  {', '.join(runtime['providers'])}"),
        *_gpu_lines(report.gpu),
        ("tensorrt", report.tensorrt["version"] or report.tensorrt["problem"]),
        ("demo model", _demo_line(model)),
    ]
    out.print(output.table("This machine", ("what", "found"), rows))
    extras = [
        (row.name, row.purpose, "complete" if row.complete else ", ".join(row.missing))
        for row in report.extras
    ]
    out.print(output.table("Extras", ("extra", "for", "missing"), extras))
    for row in report.extras:
        if row.mend:
            out.print(f"to {row.purpose or row.name}: {row.mend}", markup=False)


def _gpu_lines(gpu: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each GPU, or one that says why there is none."""
    if gpu["problem"] or not gpu["devices"]:
        return [("gpu", gpu["problem"] or "none")]
    versions = f"CUDA {_version(gpu['runtime'])}, driver for {_version(gpu['driver'])}"
    return [
        (
            f"gpu {index}",
            f"{each['name']}, compute capability {each['capability']}, "
            f"{output.size(each['memory_bytes'])}, {versions}",
        )
        for index, each in enumerate(gpu["devices"])
    ]


def _version(number: int) -> str:
    """13.0 for 13000, as CUDA counts."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _demo_line(model: dict[str, object]) -> str:
    if not model["present"]:
        return "missing from this install"
    bundles = model["cached_bundles"]
    cached = len(bundles) if isinstance(bundles, list) else 0
    return f"sha256 {str(model['sha256'])[:16]}…, {cached} cached bundles"
