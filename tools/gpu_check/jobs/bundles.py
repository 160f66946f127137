"""Bundles: exported, checked, built, verified on a backend."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveate.tools.gpu_check.jobs.command import foveate, python
from foveate.tools.gpu_check.records import Job

TESTS = Path(__file__).parents[3] / "tests"


def export(
    job: Job, bundle: str, target: str, dtype: str, checkpoint: str = "demo", words: Sequence[str] = ()
) -> dict[str, Any]:
    """A checkpoint (`demo`, or a folder below the work folder) as a bundle below the work folder."""
    source = checkpoint if checkpoint == "demo" else str(job.work / checkpoint)
    place = job.work / bundle
    asked = ("export", source, "-o", str(place), "--target", target, "--dtype", dtype, "--overwrite", *words)
    foveate(job, *asked)
    return {"GB": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e9}


def check(job: Job, bundle: str, attention: str) -> dict[str, Any]:
    """`foveate check`: whether TensorRT would take every graph."""
    found = foveate(job, "check", str(job.work / bundle), "--target", "tensorrt", "--attention", attention)
    verdicts = [str(each["verdict"]) for each in found["graphs"]]
    return {
        "graphs": len(verdicts),
        **{verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
    }


def build(job: Job, bundle: str, attention: str, into: str = "", profile: str = "") -> dict[str, Any]:
    """`foveate build`, twice: the second time nothing may be left to do. `into` is a copy to build in."""
    place = job.work / (into or bundle)
    if into:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(job.work / bundle, place)
    words = ["build", str(place), "--attention", attention]
    words += ["--profile", profile] if profile else []
    foveate(job, *words)
    plans = sorted((place / "engines").rglob("*.plan"))
    stamps = {plan: plan.stat().st_mtime_ns for plan in plans}
    foveate(job, *words)
    again = [plan.name for plan in plans if plan.stat().st_mtime_ns != stamps[plan]]
    if again or not plans:
        what = f"the second build made plans again: {', '.join(again)}" if again else "there are no plans"
        raise AssertionError(what)
    return {"plans": len(plans), "MB": sum(plan.stat().st_size for plan in plans) / 1e6}


def ladder(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """`foveate verify`: all rungs, on the backend."""
    return _climbed(foveate(job, "verify", str(job.work / bundle), "--backend", backend))


def family(job: Job, family: str, target: str, dtype: str, backend: str) -> dict[str, Any]:
    """A tiny checkpoint of a family, exported and verified; it is made by transformers' own classes."""
    place = job.work / f"tiny-{family}-{target}-{dtype}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with _tests_importable():
        importlib.import_module("tiny").make(family, place / "checkpoint")
    words = ("--target", target, "--dtype", dtype)
    foveate(job, "export", str(place / "checkpoint"), "-o", str(place / "bundle"), *words)
    # Pictures of noise are no task: P5 is the built-in model's.
    rungs = [word for rung in ("P0", "P1", "P2", "P3", "P4") for word in ("--rung", rung)]
    try:
        return _climbed(foveate(job, "verify", str(place / "bundle"), "--backend", backend, *rungs))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def soak(job: Job, bundle: str, backend: str, minutes: float) -> dict[str, Any]:
    """Mixed requests through the scheduler; each answer has to be the one that is given alone."""
    path = job.work / f"soak-{backend}.json"
    words = ("-m", "foveate.tools.soak", str(job.work / bundle), "--backend", backend)
    python(job, *words, "--minutes", str(minutes), "--json", str(path), "--growth", "4000")
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if isinstance(value, (int, float, str))}


def _climbed(report: Any) -> dict[str, Any]:
    """How many checks each rung passed, from the ladder's JSON."""
    found = {}
    for each in report["rungs"]:
        checks = each["checks"]
        asked = [one for one in checks if one["status"] != "not applicable"]
        found[str(each["key"])] = f"{sum(one['status'] == 'passed' for one in asked)} of {len(asked)}"
    return found


@contextmanager
def _tests_importable() -> Iterator[None]:
    """The folder of the tests on the path: the tiny checkpoints are no part of the package."""
    sys.path.insert(0, str(TESTS))
    try:
        yield
    finally:
        sys.path.remove(str(TESTS))
