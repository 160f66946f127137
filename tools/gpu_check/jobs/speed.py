"""Speed: `foveate bench` on a backend, beside transformers, beside the ceilings of the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from foveate.tools import flops
from foveate.tools.bench.device_roofline import decoder_flops
from foveate.tools.bench.machine import usable_cores
from foveate.tools.bench.schema import Case, Result
from foveate.tools.bench.table import middle, ratio, speed
from foveate.tools.gpu_check.jobs.command import foveate
from foveate.tools.gpu_check.jobs.facts import kept_ceilings
from foveate.tools.gpu_check.records import Job

CHECKPOINT: Final = "llava-7b"
PRUNED: Final = "encoder=0.22,decoder@2=0.5"
"""22 % of the visual tokens behind the encoder, half of these behind layer 2."""
RIVALS: Final[Mapping[str, str]] = {
    "transformers:sdpa": "device=cuda,dtype=float16",
    "transformers:compiled": "device=cuda,dtype=float16,cache=static",
}

LEVELS: Final = "1,2,4,8,16,32"
ROUNDS: Final = "8"
NEW_TOKENS: Final = "64"
_THREADS: Final = 8  # launching kernels, reading pictures and clients want cores of their own


def checkpoint(job: Job) -> dict[str, Any]:
    """The LLaVA-1.5-7B shape with random weights."""
    import os
    import shutil

    from foveate.tools.bench.checkpoints import write_checkpoint

    place = job.work / CHECKPOINT
    shutil.rmtree(place, ignore_errors=True)
    write_checkpoint(CHECKPOINT, place, workers=min(8, os.cpu_count() or 1), say=job.say)
    return {"GB": sum(file.stat().st_size for file in place.iterdir()) / 1e9}


def bench(job: Job, bundles: Mapping[str, str], backend: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """A small benchmark of bundles on one backend: `bundles` by name."""
    result = _bench(job, bundles, backend, [*words, "--rounds", "5", "--warm-up", "2"])
    return {"table": _first_tokens(result)}


def first_token(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """All tokens and pruned, beside transformers plain and compiled, in the same rounds."""
    words = ["--against", ",".join(RIVALS), "--checkpoint", str(job.work / CHECKPOINT)]
    for name, options in RIVALS.items():
        words += ["--rival-option", f"{name}={options}"]
    words += ["--budget", "all", "--budget", PRUNED, "--rounds", ROUNDS, "--warm-up", "3"]
    words += ["--new-tokens", NEW_TOKENS]
    result = _bench(job, {"foveate": bundle}, backend, [*words, "--strict"])
    sizes = flops.Sizes.read(json.loads((job.work / CHECKPOINT / "config.json").read_text(encoding="utf-8")))
    figures = achieved(result, sizes, kept_ceilings(job))
    compiled = [each.settings.get("compiled") for each in result.rivals if each.name.endswith(":compiled")]
    note = (
        "" if compiled == ["True"] else "transformers did not compile its step: that rival is no compiled one"
    )
    return {**figures, "remark": note, "table": _first_tokens(result)}


def concurrency(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """1 to 32 requests at once, all tokens and pruned."""
    words = ["--budget", "all", "--budget", PRUNED, "--rounds", "2", "--warm-up", "1"]
    words += ["--new-tokens", NEW_TOKENS]
    levels = ["--concurrency", LEVELS, "--requests", "2", "--layout", "segmented"]
    result = _bench(job, {"foveate": bundle}, backend, [*words, *levels])
    rows, rates = [], {}
    for level in sorted({each.concurrency for each in result.levels}):
        for budget in ("all", PRUNED):
            runs = [each for each in result.levels if (each.concurrency, each.budget) == (level, budget)]
            rates[level, budget] = median(each.tokens / each.wall for each in runs)
            first = median(value for each in runs for value in each.first)
            rows.append([level, budget, f"{rates[level, budget]:.0f}", f"{1e3 * first:.0f}"])
    most = max(level for level, _ in rates)
    return {
        "aim: pruned tokens/s over all tokens' at the most requests >= 1": rates[most, PRUNED]
        / rates[most, "all"],
        "table": {"columns": ["requests at once", "budget", "tokens/s", "first token ms, p50"], "rows": rows},
    }


def achieved(result: Result, sizes: flops.Sizes, ceiling: Mapping[str, Any]) -> dict[str, Any]:
    """The issue's figures: rates beside the ceilings, and ratios of times.

    Operations are counted by formula (`foveate.tools.flops`). A step of decoding reads the decoder's weights,
    the head and the caches once, whatever it does besides.
    """
    full, pruned = (next(each for each in result.cases if each.budget == name) for name in ("all", PRUNED))
    work = {case.budget: decoder_flops(case, sizes.decoder) for case in (full, pruned)}
    figures: dict[str, Any] = {}
    for name, case in (("all", full), ("pruned", pruned)):
        taken = middle(case, "prefill")
        figures[f"{name}: prefill TFLOP/s"] = 1e-12 * work[case.budget] / taken
        figures[f"{name}: decode TB/s"] = 1e-12 * step_bytes(case, sizes) * speed(case)
        figures[f"{name}: decode tokens/s"] = speed(case)
    times = ratio(full, pruned, "prefill")
    counted = work[pruned.budget] / work[full.budget]
    if times is not None:
        figures["aim: prefill ratio over FLOPs ratio <= 1.05"] = times.middle / counted
    for aim, case in (("0.8", full), ("0.3", pruned)):
        if best := _best_rival(result):
            share = middle(case, "ttft") / best
            figures[f"aim: first token of {case.budget} over the best transformers' <= {aim}"] = share
    if ceiling:
        figures |= _shares(figures, ceiling)
    return figures


def step_bytes(case: Case, sizes: flops.Sizes) -> float:
    """What a decoding step has to read, in half precision: the decoder's matrices, the head, the caches."""
    text = sizes.decoder
    layer = text.width * (2 * text.query + 2 * text.key) + 3 * text.width * text.mlp
    weights = 2.0 * (text.layers * layer + text.width * text.vocabulary)
    return weights + sum(each.bytes for each in case.cache)


def _shares(figures: Mapping[str, Any], ceiling: Mapping[str, Any]) -> dict[str, Any]:
    read, product = ceiling["gbytes"]["memory"] / 1e3, ceiling["gflops"].get("fp16", 0.0) / 1e3
    found = {}
    for name in ("all", "pruned"):
        found[f"aim: {name} decode over read ceiling >= 0.8"] = figures[f"{name}: decode TB/s"] / read
        if product:
            found[f"{name}: prefill over fp16 ceiling"] = figures[f"{name}: prefill TFLOP/s"] / product
    return found


def _best_rival(result: Result) -> float | None:
    """Seconds to the first token of the fastest rival, the median."""
    found = [median(times) for each in result.rivals if (times := each.seconds("ttft", "wall"))]
    return min(found) if found else None


def _bench(job: Job, bundles: Mapping[str, str], backend: str, words: Sequence[str]) -> Result:
    out = job.work / "bench" / job.row.id
    named = [f"{name}={job.work / place}" for name, place in bundles.items()]
    threads = str(min(_THREADS, len(usable_cores()) or 1))
    asked = ("--backend", backend, "--threads", threads, "--image", "demo:3", "--out", str(out))
    foveate(job, "bench", *named, *words, *asked)
    return Result.read(Path(out) / "bench.json")


def _first_tokens(result: Result) -> dict[str, Any]:
    """Every contestant: the split of the first token, a later one, device memory."""
    columns = [
        "who",
        "budget",
        "vision ms",
        "prefill ms",
        "first token ms",
        "a later one ms",
        "GPU GB at most",
    ]
    rows: list[list[Any]] = []
    peaks = {each.name: each.device_peak for each in result.subjects}
    for case in result.cases:
        taken = [middle(case, part) for part in ("vision", "prefill", "ttft", "decode")]
        rows.append(
            [case.subject, case.budget, *(f"{1e3 * each:.2f}" for each in taken), _gb(peaks[case.subject])]
        )
    for rival in result.rivals:
        parts = [rival.seconds(part, "wall") for part in ("vision", "prefill", "ttft", "decode")]
        cells = [f"{1e3 * median(each):.2f}" if each else "?" for each in parts]
        rows.append([rival.name, "all", *cells, _gb(rival.device_peak)])
    return {"columns": columns, "rows": rows}


def _gb(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f}"
