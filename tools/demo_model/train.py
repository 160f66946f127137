"""Run the whole recipe, with a progress bar, and go on from where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from foveate.tools.demo_model.model import build_model
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.demo_model.recipe import Recipe
from foveate.tools.demo_model.tokenizer import build_processor, special_ids
from foveate.tools.demo_model.train_language import features_of, train_language
from foveate.tools.demo_model.train_vision import PatchHeads, train_vision

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


@dataclass
class Run:
    """A training run in a folder: `state.pt` to resume from, `log.jsonl` to read."""

    recipe: Recipe
    folder: Path
    console: Console = field(default_factory=Console)
    cpu_before: float = 0.0  # spent by earlier processes of this run

    def cpu_seconds(self) -> float:
        """Processor time of the run so far."""
        return self.cpu_before + time.process_time()

    def save(self, stage: str, step: int, model: torch.nn.Module, **more: Any) -> None:
        """Write the state in one move, so that a stop in the middle leaves the old one."""
        state = {"stage": stage, "step": step, "model": model.state_dict(), "cpu": self.cpu_seconds(), **more}
        fresh = self.folder / f"{STATE_FILE}.new"
        torch.save(state, fresh)
        os.replace(fresh, self.folder / STATE_FILE)

    def log(self, stage: str, step: int, loss: float, checked: dict[str, float]) -> None:
        """Append one line to the log."""
        rounded = {name: round(value, 4) for name, value in checked.items()}
        line = {
            "stage": stage,
            "step": step,
            "loss": round(loss, 4),
            "cpu_s": round(self.cpu_seconds()),
            **rounded,
        }
        with (self.folder / LOG_FILE).open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """Train both stages in `folder`; returns the finished checkpoint folder inside it."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.vision.seed)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, folder)
    processor = build_processor(recipe.shape.vocabulary)
    model = build_model(recipe.shape, special_ids(processor.tokenizer), len(processor.tokenizer))
    heads = PatchHeads(recipe.shape.vision_width)
    state: dict[str, Any] = {"stage": "vision", "step": 0}
    if resume and (folder / STATE_FILE).exists():
        state = torch.load(folder / STATE_FILE, weights_only=True)
        model.load_state_dict(state["model"])
        run.cpu_before = state["cpu"]
    if state["stage"] == "vision":
        _vision(run, model, heads, state)
        state = {"stage": "language", "step": 0}
    _language(run, model, processor, state)
    target = folder / "checkpoint"
    save_checkpoint(model, processor, target)
    run.console.print(f"checkpoint: {target}  ({run.cpu_seconds():.0f} CPU-seconds)")
    return target


def _vision(run: Run, model: LlavaForConditionalGeneration, heads: PatchHeads, state: dict[str, Any]) -> None:
    stage = run.recipe.vision
    tower = model.model.vision_tower
    optimizer = Optimizer(
        {"tower": tower, "heads": heads}, stage.rate, stage.warmup, stage.steps, stage.weight_decay
    )
    if "optimizer" in state:
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        run.save("vision", step, model, heads=heads.state_dict(), optimizer=optimizer.state_dict())

    with _progress(run, "vision", stage.steps, state["step"], save) as after_step:
        train_vision(tower, heads, stage, state["step"], optimizer, after_step)
    run.save("language", 0, model)


def _language(
    run: Run, model: LlavaForConditionalGeneration, processor: LlavaProcessor, state: dict[str, Any]
) -> None:
    stage = run.recipe.language
    model.model.vision_tower.requires_grad_(False)
    parts = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "out": model.lm_head,
    }
    optimizer = Optimizer(parts, stage.rate, stage.warmup, stage.steps, stage.weight_decay)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        run.save("language", step, model, optimizer=optimizer.state_dict())

    with _progress(run, "language", stage.steps, state["step"], save) as after_step:
        features = features_of(model)
        train_language(model, processor.tokenizer, stage, state["step"], optimizer, features, after_step)


class _progress:  # noqa: N801
    """A progress bar whose callback also logs checks and saves every so many steps."""

    def __init__(self, run: Run, stage: str, steps: int, start: int, save: Callable[[int], None]) -> None:
        self.run, self.stage, self.steps, self.save = run, stage, steps, save
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        more = (TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f} {task.fields[note]}"))
        self.bar = Progress(*columns, *more, console=run.console)
        self.task = self.bar.add_task(stage, total=steps, completed=start, loss=float("nan"), note="")

    def __enter__(self) -> Callable[[int, float, dict[str, Any]], None]:
        self.bar.start()
        return self._after_step

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _after_step(self, step: int, loss: float, checked: dict[str, Any]) -> None:
        note = {"note": " ".join(f"{k} {v:.3f}" for k, v in list(checked.items())[:2])} if checked else {}
        self.bar.update(self.task, completed=step, loss=loss, **note)
        if checked:
            self.run.log(self.stage, step, loss, checked)
        if step % self.run.recipe.save_every == 0 and step < self.steps:
            self.save(step)


def save_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, target: Path) -> None:
    """Write model (float16) and processor to a fresh folder, then move it into place."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    half = build_model_like(model).half().eval()
    tokens = special_ids(processor.tokenizer)
    ids = {f"{name}_token_id": tokens[name] for name in ("bos", "eos", "pad")}
    half.generation_config = GenerationConfig(do_sample=False, max_new_tokens=16, **ids)
    half.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def build_model_like(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """A copy with its own weights."""
    twin = LlavaForConditionalGeneration(model.config)
    twin.load_state_dict(model.state_dict())
    return twin
