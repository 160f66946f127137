"""Measures every family on its tiny checkpoint: `python tests/parity/families_table.py [--family NAME]`.

For each family the four plans (unpruned, encoder, decoder, both) are exported in both layouts, each export
in a process of its own so that its peak memory can be told, and the ladder's rungs P0 to P4 are climbed: over
all of the family's cases where both sites prune, over `FEW` of them elsewhere. Prints one Markdown line per
family and plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

PLANS = ("none", "encoder", "decoder", "both")
FEW = ("image in the middle", "three images", "text only")
RUNGS = ("P0", "P1", "P2", "P3", "P4")
HEADER = ("family", "plan", *RUNGS, "P1 max", "P3 max", "graphs MB", "export s", "peak MB")

_EXPORT = """
import json, resource, sys, time
import torch
from pathlib import Path
torch.set_num_threads(1)
from foveate.export import export_model
from foveate.pruning.plan import parse_plan
start = time.perf_counter()
export_model(Path(sys.argv[1]), Path(sys.argv[2]), plan=parse_plan(sys.argv[3:]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))
"""


def measure(family: str, which: str, checkpoint: Path, folder: Path) -> list[str]:
    """One line of the table."""
    bundle = folder / f"bundle_{which}"
    words = plan_of(family, checkpoint)[which]
    command = [sys.executable, "-c", _EXPORT, str(checkpoint), str(bundle), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{family}, {which}: export failed\n{done.stderr[-2000:]}")
    cost = json.loads(done.stdout.splitlines()[-1])
    rungs, largest = climb(bundle, checkpoint, () if which == "both" else FEW)
    size = sum(file.stat().st_size for file in (bundle / "onnx").iterdir()) / 1e6
    figures = [f"{size:.1f}", f"{cost['seconds']:.0f}", f"{cost['peak']:.0f}"]
    return [family, which, *(rungs[key] for key in RUNGS), largest["P1"], largest["P3"], *figures]


def plan_of(family: str, checkpoint: Path) -> Mapping[str, tuple[str, ...]]:
    """The family's default plan, and its halves; the knee's floor is lowered to suit tiny pictures."""
    from foveate.export.families import load_family

    first, second = load_family(family).FACTS.default_plan
    encoder = f"{first}:min_keep=3"
    return {"none": ("none",), "encoder": (encoder,), "decoder": (second,), "both": (encoder, second)}


def climb(bundle: Path, checkpoint: Path, cases: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Per rung "passed/all checks", and the largest difference of P1 and P3; no `cases` are all of them."""
    from ladders import settings

    from foveate.tools.parity.verify import verify

    report: Any = verify(bundle, checkpoint, rungs=RUNGS, settings=settings(*cases), record=False)
    rungs, largest = {}, {}
    for rung in report.rungs:
        good = sum(check.status.value == "passed" for check in rung.checks)
        rungs[rung.key] = "-" if rung.status.value == "not applicable" else f"{good}/{len(rung.checks)}"
        differences = [check.largest for check in rung.checks if check.largest is not None]
        largest[rung.key] = f"{max(differences):.1e}" if differences else "-"
        if rung.first_failure is not None:
            print(f"{bundle.name}: {rung.key}: {rung.first_failure}", file=sys.stderr)
    return rungs, largest


def line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    import tiny
    import torch

    from foveate.export.families import list_families

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--family", action="append", choices=list_families())
    parser.add_argument("--plan", action="append", choices=PLANS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [line(HEADER), line(["---"] * len(HEADER))]
    print(lines[0], flush=True)
    for family in given.family or list_families():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = tiny.make(family, Path(folder) / "checkpoint")
            for which in given.plan or PLANS:
                lines.append(line(measure(family, which, checkpoint, Path(folder))))
                print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
