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
from torch import Tensor
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from foveate.tools.demo_model.model import build_model
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.demo_model.recipe import QuestionStage, Recipe
from foveate.tools.demo_model.tokenizer import build_processor, special_ids
from foveate.tools.demo_model.train_language import (
    MiddleHead,
    Whitening,
    features_of,
    train_captions,
    train_questions,
)
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

    def save(self, stage: str, step: int, **more: Any) -> None:
        """Write the state in one move, so that a stop in the middle leaves the old one."""
        state = {"stage": stage, "step": step, "cpu": self.cpu_seconds(), **more}
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
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, folder)
    state: dict[str, Any] = {"stage": "vision", "step": 0}
    if resume and (folder / STATE_FILE).exists():
        state = torch.load(folder / STATE_FILE, weights_only=True)
        run.cpu_before = state["cpu"]
    processor = build_processor(recipe.shape.vocabulary)
    if state["stage"] == "vision":
        state = {"stage": "captions", "step": 0, "tower": _vision(run, processor, state)}
    model = _language_model(run, processor, state)
    whitening = Whitening(model.model.vision_tower)
    if state["stage"] == "captions":
        _captions(run, model, processor, whitening, state)
        state = {"stage": "questions", "step": 0}
    if state["stage"] == "questions":
        head = _questions(run, "questions", model, processor, whitening, state)
        state = {"stage": "settle", "step": 0, "head": head}
    if state["stage"] == "settle":
        head = _questions(run, "settle", model, processor, whitening, state)
        state = {"stage": "crowds", "step": 0, "head": head}
    _questions(run, "crowds", model, processor, whitening, state)
    whitening.fold(model.model.multi_modal_projector.linear_1)
    target = folder / "checkpoint"
    save_checkpoint(model, processor, target)
    run.console.print(f"checkpoint: {target}  ({run.cpu_seconds():.0f} CPU-seconds)")
    return target


def _vision(run: Run, processor: LlavaProcessor, state: dict[str, Any]) -> dict[str, Tensor]:
    """Stage 1; returns the encoder's weights."""
    stage = run.recipe.vision
    torch.manual_seed(stage.seed)
    shape = run.recipe.shape
    tower = build_model(shape, special_ids(processor.tokenizer), shape.vocabulary).model.vision_tower
    heads = PatchHeads(shape.vision_width)
    both = {"tower": tower, "heads": heads}
    optimizer = Optimizer(both, stage.rate, stage.warmup, stage.steps, stage.weight_decay)
    if "optimizer" in state:
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        weights = {name: part.state_dict() for name, part in both.items()}
        run.save("vision", step, optimizer=optimizer.state_dict(), **weights)

    with _Reporter(run, "vision", stage.steps, state["step"], save) as after_step:
        train_vision(tower, heads, stage, state["step"], optimizer, after_step)
    run.save("captions", 0, tower=tower.state_dict())
    return tower.state_dict()


def _language_model(
    run: Run, processor: LlavaProcessor, state: dict[str, Any]
) -> LlavaForConditionalGeneration:
    """The whole model, as saved or with fresh weights around the trained encoder, which is frozen."""
    torch.manual_seed(run.recipe.captions.seed)
    model = build_model(run.recipe.shape, special_ids(processor.tokenizer), len(processor.tokenizer))
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        torch.nn.init.normal_(linear.weight, std=run.recipe.captions.projector_spread)
    if "model" in state:
        model.load_state_dict(state["model"])
    else:
        model.model.vision_tower.load_state_dict(state["tower"])
    model.model.vision_tower.requires_grad_(False)
    return model


def _trained_parts(model: LlavaForConditionalGeneration) -> dict[str, torch.nn.Module]:
    parts = (model.model.multi_modal_projector, model.model.language_model, model.lm_head)
    return dict(zip(("projector", "decoder", "lm_head"), parts, strict=True))


def _captions(
    run: Run,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    whitening: Whitening,
    state: dict[str, Any],
) -> None:
    """Stage 2a."""
    stage = run.recipe.captions
    optimizer = Optimizer(_trained_parts(model), stage.rate, stage.warmup, stage.schedule, stage.weight_decay)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        run.save("captions", step, model=model.state_dict(), optimizer=optimizer.state_dict())

    features = features_of(model.model.vision_tower, whitening)
    with _Reporter(run, "captions", stage.steps, state["step"], save) as after_step:
        train_captions(model, processor.tokenizer, stage, state["step"], optimizer, features, after_step)
    run.save("questions", 0, model=model.state_dict())


def _questions(
    run: Run,
    name: str,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    whitening: Whitening,
    state: dict[str, Any],
) -> dict[str, Tensor]:
    """Stage 2b (`questions`), 2c (`settle`) or 2d (`crowds`); returns the weights of the middle read-out."""
    stage: QuestionStage = getattr(run.recipe, name)
    torch.manual_seed(stage.seed)
    head = MiddleHead(run.recipe.shape.text_width)
    parts = {**_trained_parts(model), "head": head}
    optimizer = Optimizer(parts, stage.rate, stage.warmup, stage.steps, stage.weight_decay)
    if "head" in state:
        head.load_state_dict(state["head"])
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        weights = {"model": model.state_dict(), "head": head.state_dict()}
        run.save(name, step, optimizer=optimizer.state_dict(), **weights)

    features = features_of(model.model.vision_tower, whitening)
    with _Reporter(run, name, stage.steps, state["step"], save) as after_step:
        start = state["step"]
        train_questions(model, processor.tokenizer, head, stage, start, optimizer, features, after_step)
    following = {"questions": "settle", "settle": "crowds"}.get(name)
    if following:
        run.save(following, 0, model=model.state_dict(), head=head.state_dict())
    else:
        save(stage.steps)
    return head.state_dict()


class _Reporter:
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
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().eval()
    tokens = special_ids(processor.tokenizer)
    ids = {f"{name}_token_id": tokens[name] for name in ("bos", "eos", "pad")}
    half.generation_config = GenerationConfig(do_sample=False, max_new_tokens=16, **ids)
    half.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    for file in fresh.iterdir():
        file.chmod(0o644)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
