"""The loop that trains any method: progress, checks, a state to resume from, an adapter at the end."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.export.adapter import Adapter
from foveate.runtime.errors import UsageError
from foveate.tools.train.record import Row, draw_curve, write_table
from foveate.tools.train.trainer import Report, Steps, Trainer


def _silent(what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Files:
    """What a run writes: the adapter; beside it the checks, their picture and, until it ends, its state."""

    adapter: Path

    @property
    def table(self) -> Path:
        """The checks."""
        return self.adapter.with_suffix(".csv")

    @property
    def picture(self) -> Path:
        """The curve of the checks."""
        return self.adapter.with_suffix(".png")

    @property
    def state(self) -> Path:
        """What ``resume`` reads; gone when the run is done."""
        return self.adapter.with_suffix(".state")


@dataclass
class _Run:
    trainer: Trainer
    files: Files
    optimizer: Steps
    step: int = 0
    loss: float = math.nan
    whole: bool = True  # False while the weights are being changed
    rows: list[Row] = field(default_factory=list)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.process_time)

    @property
    def cpu_seconds(self) -> float:
        return self.seconds_before + time.process_time() - self.started

    def save(self) -> None:
        """Write the state in one move, so that a stop in the middle leaves the old one."""
        state = {
            "configuration": configuration(self.trainer),
            "step": self.step,
            "rows": [dict(row) for row in self.rows],
            "cpu_seconds": self.cpu_seconds,
            "tensors": self.trainer.tensors(),
            "optimizer": self.optimizer.state_dict(),
        }
        fresh = self.files.state.with_name(f".{self.files.state.name}.new")
        torch.save(state, fresh)
        os.replace(fresh, self.files.state)

    def load(self) -> None:
        """Go on from the state. Raises UsageError: it is no state, or of another run."""
        path = self.files.state
        try:
            state = torch.load(path, weights_only=True)
            found = json.loads(state["configuration"])
        except Exception as error:  # torch.load raises half a dozen kinds for a damaged file
            raise UsageError(
                f"{path} is no state of a training run",
                found=f"{type(error).__name__}: {error}"[:200],
                wanted="the file that a stopped run left",
                mend="delete it and begin a new run, without --resume",
            ) from error
        _same_run(found, json.loads(configuration(self.trainer)), path)
        self.step, self.rows, self.seconds_before = state["step"], state["rows"], state["cpu_seconds"]
        self.trainer.load(state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])

    def check(self) -> None:
        """Add a row to the table."""
        figures = self.trainer.check()
        self.rows.append(
            {"step": self.step, **figures, "loss": self.loss, "cpu_seconds": round(self.cpu_seconds, 1)}
        )
        write_table(self.rows, self.files.table)


def train(
    trainer: Trainer, out: Path, *, resume: bool = False, overwrite: bool = False, progress: Report = _silent
) -> Adapter:
    """Train, and write the adapter in float16 with its table and picture beside it.

    A run that is interrupted keeps its state: ``resume`` goes on from there and ends with the same weights.

    Raises:
        UsageError: the adapter is there already, or there is no such run to resume.
    """
    check_place(out, resume=resume, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    run = _Run(trainer, Files(out), trainer.optimizer())
    if resume:
        run.load()
    try:
        trainer.prepare(progress)
        _steps(run, progress)
    except KeyboardInterrupt:
        if run.whole and run.step > 0:  # else what the last check left is the state
            run.save()
        raise
    adapter = _finish(run)
    run.files.state.unlink(missing_ok=True)
    return adapter


def check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises UsageError where nothing can or should be written, or nothing was stopped."""
    state = Files(out).state
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(
            f"{out} is there already",
            found="a folder" if out.is_dir() else "a file",
            mend="choose another name" + ("" if out.is_dir() else ", or --overwrite"),
        )
    if resume and not state.is_file():
        raise UsageError(
            "there is no training run to resume",
            found=f"no file {state}",
            wanted="the state that a stopped run leaves beside its adapter",
            mend="leave out --resume to begin a new run",
        )


def _steps(run: _Run, progress: Report) -> None:
    recipe, name = run.trainer.recipe, run.trainer.name
    if run.step == 0:
        run.check()
    while run.step < recipe.steps:
        loss = run.trainer.loss(run.step)
        loss.backward()  # type: ignore[no-untyped-call]
        run.whole = False
        run.optimizer.step(run.step)
        run.step, run.loss, run.whole = run.step + 1, loss.item(), True
        if run.step % recipe.check_every == 0 and run.step < recipe.steps:
            run.check()
            run.save()
        note = ", ".join(f"{key} {value:.3f}" for key, value in list(run.rows[-1].items())[1:2])
        progress(f"{name}: loss {run.loss:.3f}, {note}", run.step, recipe.steps)


def _finish(run: _Run) -> Adapter:
    """Round the weights as the file does, examine those, and write."""
    trainer = run.trainer
    tensors = trainer.tensors(torch.float16)
    trainer.load(tensors)
    if run.rows[-1]["step"] != run.step:
        run.check()
    draw_curve(f"{trainer.name} on {trainer.bench.source.name}", run.rows, run.files.picture)
    figures = {k: round(v, 4) for k, v in run.rows[-1].items() if k not in ("step", "loss", "cpu_seconds")}
    about = {"recipe": trainer.recipe.to_dict(), "data": trainer.data, "validation": figures}
    adapter = Adapter(
        path=run.files.adapter,
        method=trainer.name,
        params=trainer.params(),
        source_name=trainer.bench.source.name,
        source_weights=trainer.bench.weights_sha256,
        trained=about,
        tensors=tensors,
    )
    return adapter.write(run.files.adapter)


def configuration(trainer: Trainer) -> str:
    """Everything that two halves of one run must share, as JSON."""
    own = {
        "method": trainer.name,
        "model": trainer.bench.weights_sha256,
        "recipe": trainer.recipe.to_dict(),
        "cuts": trainer.params(),
    }
    return json.dumps(own, sort_keys=True)


def _same_run(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raises UsageError naming the first thing in which the stopped run differs."""
    for name in wanted:
        if found.get(name) == wanted[name]:
            continue
        was, now = found.get(name), wanted[name]
        if isinstance(was, dict) and isinstance(now, dict):
            key = next(key for key in {**was, **now} if was.get(key) != now.get(key))
            name, was, now = f"{name}.{key}", was.get(key), now.get(key)
        raise UsageError(
            "the run to resume had another configuration",
            found=f"{name} {was} in {path}",
            wanted=f"{name} {now}",
            mend="repeat the options of the stopped run, or begin a new one without --resume",
        )
