"""Builds what has changed, and puts it into place whole or not at all.

Plans go into a hidden folder inside `engines/`; the record is written last and the folder renamed to its key.
A run that is killed leaves that folder and a hidden graph, which the next run removes. What the builder
measured is kept after each graph, so that a build that was broken off is quicker the next time.

A flavoured graph stands, hidden, beside the bundle's own while it is read: parsers want a graph's weights in
the folder of the graph, and some take links for an attack.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from foveate.export.engines.builder import Order, build_plan
from foveate.export.engines.intent import Intent, StageIntent
from foveate.export.engines.machine import Here
from foveate.export.engines.progress import Phases, beside
from foveate.runtime import integrity
from foveate.runtime.engines import (
    RECORD_NAME,
    EngineRecord,
    PlanRecord,
    changes,
    engine_key,
    engines_folder,
    records,
    timing_cache,
)
from foveate.runtime.errors import ExportError, UsageError
from foveate.runtime.files import disk_is_full, flush, free_lock, mebibytes, take_lock

Progress = Callable[[str, float, float], None]
"""Called as `progress(what, done, total)`; `what` begins with the name of the graph."""

Plans = Mapping[str, tuple[Path, PlanRecord]]
"""Plans that are there already, by stage."""

_LOCK: Final = ".lock"
_CHUNK: Final = 1 << 24


def _silent(what: str, done: float, total: float) -> None: ...


@dataclass
class Outcome:
    """What a build did.

    Attributes:
        built, reused: names of stages.
        reasons: why anything was built; empty if all was there.
        warnings: of TensorRT and of the timing cache.
    """

    folder: Path
    record: EngineRecord
    built: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def build(intent: Intent, here: Here, *, rebuild: bool = False, progress: Progress = _silent) -> Outcome:
    """The engines of a bundle for this machine, as far as they are not there already.

    Args:
        intent: of `foveate.export.engines.intent.intend`.
        here: this machine.
        rebuild: build every plan, whatever is there.
        progress: how far it is.

    Raises:
        ExportError: TensorRT refused a graph, or the disk is full; nothing is left of this build.
        UsageError: another process builds engines of this bundle.
        KeyboardInterrupt: on Ctrl-C; nothing is left of this build, but for the timing cache.
    """
    record = intent.record(importlib.metadata.version("foveate"), here.machine)
    record = record.model_copy(update={"key": engine_key(record)})
    every = [] if rebuild else _usable(intent.bundle.path)
    reasons = ["--rebuild was given"] if rebuild else _reasons(record, every, intent.bundle.path)
    folder = engines_folder(intent.bundle.path) / record.key
    if not reasons:
        same = next(found for place, found in every if place == folder)
        return Outcome(folder, _asked_for(folder, same), reused=list(record.stages))
    outcome = Outcome(folder, record, reasons=reasons)
    old = {name: found for name, plan in record.stages.items() if (found := _reusable(plan, every))}
    with _workplace(folder.parent, intent, old) as place:
        _build_all(intent, outcome, old, place, progress)
        _finish(outcome, place)
    return outcome


def _asked_for(folder: Path, record: EngineRecord) -> EngineRecord:
    """Engines that were asked for again count as the latest, which is what the runtime takes."""
    renewed = record.model_copy(update={"built": _now()})
    temporary = folder / f".{RECORD_NAME}.{os.getpid()}"
    try:
        temporary.write_text(renewed.model_dump_json(indent=2), encoding="utf-8")
        temporary.replace(folder / RECORD_NAME)
    except OSError:  # a folder that cannot be written to has one set of engines, as a rule
        with suppress(OSError):
            temporary.unlink()
        return record
    return renewed


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


# --- what is there already ----------------------------------------------------------------------------------


def _usable(bundle: Path) -> list[tuple[Path, EngineRecord]]:
    """Folders of engines whose records can be read."""
    return [(folder, found) for folder, found in records(bundle) if isinstance(found, EngineRecord)]


def _unreadable(bundle: Path) -> list[str]:
    """What is wrong with records that cannot be read."""
    every = [(folder, found) for folder, found in records(bundle) if isinstance(found, str)]
    return [f"the record of {folder.name} is damaged: {why}" for folder, why in every]


def _reasons(wanted: EngineRecord, every: list[tuple[Path, EngineRecord]], bundle: Path) -> list[str]:
    """Why engines have to be built: what changed since those that come closest; empty if they are there."""
    for folder, found in every:
        if found.key == wanted.key == folder.name:
            return [reason for name in wanted.stages if (reason := _unfit(folder, found, wanted, name))]
    if not every:
        return _unreadable(bundle) or ["there are no engines yet"]
    return min((changes(found, wanted) for _, found in every), key=len)


def _unfit(folder: Path, found: EngineRecord, wanted: EngineRecord, stage: str) -> str:
    """What is wrong with a plan that was built for the same; empty if nothing is."""
    plan = found.stages.get(stage)
    if plan is None:
        return f"{stage} is not among the engines"
    if plan.key != wanted.stages[stage].key:
        return f"graph {stage} is told to TensorRT otherwise by this version of foveate"
    path = folder / plan.file
    if not path.is_file():
        return f"{plan.file} is missing"
    size = path.stat().st_size
    return "" if size == plan.bytes else f"{plan.file} has {size:,} bytes instead of {plan.bytes:,}"


def _reusable(plan: PlanRecord, every: list[tuple[Path, EngineRecord]]) -> tuple[Path, PlanRecord] | None:
    """A plan of the same key in any folder, if its content is what was written."""
    for folder, found in every:
        for other in found.stages.values():
            path = folder / other.file
            if other.key == plan.key and path.is_file() and path.stat().st_size == other.bytes:
                written = integrity.hash_files(folder, [other.file])[other.file].sha256
                if written == other.sha256:
                    return path, other
    return None


# --- building -----------------------------------------------------------------------------------------------


def _build_all(
    intent: Intent,
    outcome: Outcome,
    old: Plans,
    place: Path,
    progress: Progress,
) -> None:
    """Fills the folder with plans, and the outcome's record with what they are."""
    plans = {}
    for stage in intent.stages:
        plan = outcome.record.stages[stage.name]
        if stage.name in old:
            path, known = old[stage.name]
            _link(path, place / plan.file)
            fresh = {"bytes": known.bytes, "sha256": known.sha256, "seconds": known.seconds}
            outcome.reused.append(stage.name)
        else:
            fresh = _build_one(intent, stage, outcome, place, progress)
            outcome.built.append(stage.name)
        plans[stage.name] = plan.model_copy(update=fresh)
    outcome.record = outcome.record.model_copy(update={"stages": plans, "built": _now()})


def _build_one(
    intent: Intent, stage: StageIntent, outcome: Outcome, place: Path, progress: Progress
) -> dict[str, Any]:
    """Builds one graph into the folder; gives size, hash and time of its plan."""
    graph = _flavoured_path(intent, stage.name)
    timings, measured = timing_cache(intent.bundle.path, outcome.record.machine), place / "timings"
    order = Order(stage.name, graph, stage.profiles, intent.options, timings, measured)
    phases, start = Phases(), time.perf_counter()
    progress(f"{stage.name}: reading the graph", 0, 1)
    try:
        graph.write_bytes(stage.content)
        plan = beside(
            lambda: build_plan(order, phases),
            phases,
            lambda phase, share: progress(f"{stage.name}: {phase or 'reading the graph'}", share, 1),
        )
    finally:
        graph.unlink(missing_ok=True)
        outcome.warnings += [f"{stage.name}: {text}" for text in order.warnings]
    if measured.is_file() and measured.stat().st_size:
        measured.replace(timings)
    else:
        lost = f"{timings.name} was not written: what was measured is lost, and will be measured again"
        outcome.warnings.append(f"{stage.name}: {lost}")
    size, sha256 = _write(memoryview(plan), place / outcome.record.stages[stage.name].file)
    progress(f"{stage.name}: {mebibytes(size)}", 1, 1)
    seconds = round(time.perf_counter() - start, 1)
    return {"bytes": size, "sha256": sha256, "seconds": seconds}


def _flavoured_path(intent: Intent, stage: str) -> Path:
    return intent.bundle.stage_path(stage).with_name(f".{stage}.engine-{os.getpid()}.onnx")


def _write(content: memoryview, path: Path) -> tuple[int, str]:
    """Writes a plan; gives its size and sha256."""
    digest, data = hashlib.sha256(), content.cast("B")
    with path.open("wb") as file:
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            digest.update(part)
            file.write(part)
    flush(path)
    return len(data), digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- the folder ---------------------------------------------------------------------------------------------


@contextmanager
def _workplace(engines: Path, intent: Intent, old: Plans) -> Iterator[Path]:
    """A hidden folder to build in, which is gone afterwards; locked against other builds of this bundle."""
    place, lock = engines / f".partial-{os.getpid()}", None
    try:
        engines.mkdir(exist_ok=True)
        lock = take_lock(engines / _LOCK)
        for left in engines.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        for stage in intent.stages:
            folder = intent.bundle.stage_path(stage.name).parent
            for lost in folder.glob(f".{stage.name}.engine-*.onnx"):
                lost.unlink(missing_ok=True)
        needed = sum(stage.least_plan_bytes for stage in intent.stages if stage.name not in old)
        if needed > shutil.disk_usage(engines).free:
            raise _full(engines, needed)
        place.mkdir()
        yield place
    except BlockingIOError as error:
        mend = "wait until it is finished"
        raise UsageError(f"another process is building engines in {engines}", mend=mend) from error
    except OSError as error:
        if disk_is_full(error):
            raise _full(engines, 0) from error
        raise ExportError(
            f"engines cannot be written to {engines}",
            found=str(error),
            mend="make the bundle's folder writable, or copy the bundle to a place of your own",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        free_lock(lock, engines / _LOCK)
        with suppress(OSError):
            engines.rmdir()  # only if nothing is in it


def _full(engines: Path, needed: int) -> ExportError:
    free = mebibytes(shutil.disk_usage(engines).free)
    return ExportError(
        f"there is no space left for engines in {engines}; nothing of them was kept",
        found=f"{free} free",
        wanted=f"at least {mebibytes(needed)}" if needed else "",
        mend="free some space, for instance of engines that foveate inspect lists, and build again",
    )


def _finish(outcome: Outcome, place: Path) -> None:
    """Writes the record and moves the folder to its place; one that is there steps aside first."""
    for leftover in place.glob("timings*"):
        leftover.unlink(missing_ok=True)
    path = place / RECORD_NAME
    path.write_text(outcome.record.model_dump_json(indent=2), encoding="utf-8")
    flush(path)
    old = place.with_name(f".partial-old-{os.getpid()}")
    if outcome.folder.exists():
        outcome.folder.rename(old)
    place.rename(outcome.folder)
    flush(outcome.folder.parent)
    shutil.rmtree(old, ignore_errors=True)
