"""Where the time goes, beside what the machine can do: each part's own record and the ceilings, in processes
of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.runtime.errors import MissingDependencyError
from foveate.tools.bench.budgets import Wish
from foveate.tools.bench.child import Child
from foveate.tools.bench.order import Order, Report
from foveate.tools.bench.schema import Case, Ceiling, Result, Stage
from foveate.tools.bench.table import Rows, milliseconds

ROUNDS = 3
STEPS = 8
"""New tokens of a traced answer; a step is like the next."""


def require_packages() -> None:
    """Raises `MissingDependencyError` when graphs cannot be read here."""
    from importlib.util import find_spec

    if find_spec("onnx") is None:
        raise MissingDependencyError.of("onnx", "export")


def measure(
    order: Order, wishes: Mapping[str, Sequence[Wish]], image: Path, report: Report
) -> tuple[Ceiling, tuple[Stage, ...]]:
    """Every bundle's parts at every budget; the ceilings before and after, of which the higher ones count."""
    before = _ceilings(order, report)
    stages: list[Stage] = []
    for done, (name, path) in enumerate(order.bundles.items()):
        report("tracing", done, len(order.bundles))
        with (
            tempfile.TemporaryDirectory(prefix="foveate-trace-") as folder,
            Child(name, threads=order.threads) as child,
        ):
            child.call(
                "open",
                bundle=str(path),
                layout=order.layout,
                threads=order.threads,
                cores=order.cores,
                profile=folder,
            )
            parts = child.call(
                "trace",
                image=str(image),
                prompt=order.prompt,
                budgets=[wish.word for wish in wishes[name]],
                new_tokens=min(order.new_tokens, STEPS),
                rounds=min(order.rounds, ROUNDS),
            )
        stages += [
            Stage.model_validate({"subject": name, "budget": budget, **row})
            for budget, rows in parts.items()
            for row in rows
        ]
    report("tracing", 1, 1)
    return highest(before, _ceilings(order, report)), tuple(stages)


def highest(one: Ceiling, other: Ceiling) -> Ceiling:
    """The higher of each: a ceiling is what the machine can do, not what others left of it just then."""
    return Ceiling(
        gflops={name: max(value, other.gflops[name]) for name, value in one.gflops.items()},
        gbytes={name: max(value, other.gbytes[name]) for name, value in one.gbytes.items()},
    )


def _ceilings(order: Order, report: Report) -> Ceiling:
    with Child("the ceilings", threads=order.threads) as child:
        found = child.call(
            "ceilings",
            threads=order.threads,
            cores=order.cores,
            progress=lambda done, total: report("ceilings", done, total),
        )
    return Ceiling.model_validate(found)


def of_ceiling(stage: Stage, ceiling: Ceiling, *, products: bool = False) -> float:
    """The share of its time that a part would need at the ceilings; of its products alone if asked.

    For prefill by operations, each kind at its own ceiling; for decoding by bytes.
    """
    if stage.phase == "decode":
        return stage.bytes / (1e9 * ceiling.gbytes["memory"] * stage.seconds) if stage.seconds else 0.0
    least = sum(flops / (1e9 * ceiling.gflops[kind]) for kind, flops in stage.flops.items())
    seconds = stage.products if products else stage.seconds
    return least / seconds if seconds else 0.0


def table(result: Result) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per part: milliseconds, share of its phase, rates, and their share of ceilings."""
    columns = ("#", "phase", "part", "ms", "%", "GF/s", "GB/s", "of ceiling %", "most of it")
    rows: Rows = []
    cases = {(case.subject, case.budget): str(1 + i) for i, case in enumerate(result.cases)}
    assert result.ceiling is not None
    for stage in result.stages:
        whole = sum(each.seconds for each in result.stages if _same(each, stage)) or 1.0
        decode = stage.phase == "decode"
        flops = sum(stage.flops.values())
        share = of_ceiling(stage, result.ceiling)
        rows.append(
            (
                *(cases[stage.subject, stage.budget], stage.phase, stage.part),
                milliseconds(stage.seconds),
                f"{100 * stage.seconds / whole:.1f}",
                f"{1e-9 * flops / stage.seconds:.0f}" if flops and not decode else "",
                f"{1e-9 * stage.bytes / stage.seconds:.1f}" if decode and stage.bytes else "",
                f"{100 * share:.0f}" if share else "",
                "".join(f"{op} {100 * spent / stage.seconds:.0f} %" for op, spent in stage.slowest[:1]),
            )
        )
    return columns, rows


def ceilings(ceiling: Ceiling) -> str:
    """One line."""
    products = ", ".join(f"{kind} {value:.0f}" for kind, value in ceiling.gflops.items())
    reading = ", ".join(f"{name} {value:.1f}" for name, value in ceiling.gbytes.items())
    return f"Ceilings measured here: products {products} GF/s; reading {reading} GB/s."


def selection(result: Result, case: Case) -> float | None:
    """The share of the graphs' time before the first token that choosing takes; None if it was not traced."""
    rows = [
        each
        for each in result.stages
        if (each.subject, each.budget, each.phase) == (case.subject, case.budget, "prefill")
    ]
    whole = sum(each.seconds for each in rows)
    return sum(each.seconds for each in rows if each.part == "select") / whole if whole else None


def _same(one: Stage, other: Stage) -> bool:
    return (one.subject, one.budget, one.phase) == (other.subject, other.budget, other.phase)
