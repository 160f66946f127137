"""What the checkpoint can do, and whether it tells good pruning from bad: the figures in the README."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from foveate.tools.demo_model.model import cls_scores, pixels, vision_states
from foveate.tools.demo_model.packed import Choice, PackedQuestions, answer_logits, pack
from foveate.tools.demo_model.scenes import QUESTION_KINDS, TEST_QUOTA, TWO_HOP, Question, Scene, make_scene
from foveate.tools.demo_model.train_language import right_answers

QUESTIONS = 8  # per scene
Row = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """Scenes of one split with their questions, the encoder's states and the CLS scores."""

    model: LlavaForConditionalGeneration
    scenes: list[Scene]
    asked: list[tuple[Question, ...]]
    packed: PackedQuestions
    features: Tensor  # [b, n, c]
    scores: dict[str, Tensor]  # cls_full and cls_mean, [b, n]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of scenes, number of visual tokens."""
        return self.features.shape[0], self.features.shape[1]


@torch.no_grad()
def prepare(model: LlavaForConditionalGeneration, processor: LlavaProcessor, split: str, scenes: int) -> Exam:
    """Draw the scenes and run the encoder on them."""
    drawn = [make_scene(seed, split) for seed in range(scenes)]
    asked = [scene.ask(TEST_QUOTA, QUESTIONS) for scene in drawn]
    tower = model.model.vision_tower
    states = torch.cat([vision_states(tower, pixels(drawn[i : i + 100]))[0] for i in range(0, scenes, 100)])
    questions = pack(processor.tokenizer, asked)
    return Exam(model, drawn, asked, questions, states[:, 1:], cls_scores(tower, states))


@torch.no_grad()
def score(exam: Exam, features: Tensor | None = None, keep: Tensor | None = None, chunk: int = 50) -> Tensor:
    """Right or wrong, bool `[b, q]`, packed; `keep` (bool `[b, n]`) prunes before the decoder."""
    features = exam.features if features is None else features
    parts = []
    for start in range(0, len(features), chunk):
        block = slice(start, start + chunk)
        questions = _slice(exam.packed, block)
        kept = None if keep is None else keep[block]
        parts.append(right_answers(answer_logits(exam.model, features[block], questions, kept), questions))
    return torch.cat(parts)


@torch.no_grad()
def score_cut(exam: Exam, layer: int, choose: Choice, chunk: int = 32) -> Tensor:
    """Right or wrong, bool `[b, q]`, when `choose` says per question what survives decoder layer `layer`."""
    parts = []
    for start in range(0, exam.shape[0], chunk):
        block = slice(start, start + chunk)
        questions = _slice(exam.packed, block).unpack()
        features = exam.features[block].repeat_interleave(QUESTIONS, 0)
        logits = answer_logits(exam.model, features, questions, cut=(layer, choose))
        parts.append(right_answers(logits, questions).view(-1, QUESTIONS))
    return torch.cat(parts)


def _slice(questions: PackedQuestions, block: slice) -> PackedQuestions:
    parts = (questions.ids, questions.rows, questions.targets)
    return PackedQuestions(questions.prefix, *(part[block] for part in parts))


def knee_counts(scores: Tensor, scale: float, smallest: int) -> Tensor:
    """How many tokens the chord knee keeps per image, int `[b]`, from scores `[b, n]`."""
    ranked = scores.sort(1, descending=True).values
    count = ranked.shape[1]
    height = (ranked - ranked[:, -1:]) / (ranked[:, :1] - ranked[:, -1:]).clamp_min(1e-12)
    knee = (1 - torch.arange(count) / (count - 1) - height).argmax(1) + 1
    return (knee * scale).round().long().clamp(smallest, count)


def best(scores: Tensor, counts: Tensor | int) -> Tensor:
    """The `counts` highest scores of every row, bool `[b, n]`."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    return ranks < (counts[:, None] if isinstance(counts, Tensor) else counts)


def by_kind(exam: Exam, right: Tensor) -> Row:
    """Accuracy overall, on two-hop questions and by kind, in percent."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for questions, hits in zip(exam.asked, right.tolist(), strict=True):
        for question, hit in zip(questions, hits, strict=True):
            groups[question.kind].append(hit)
            groups["two_hop"] += [hit] if question.kind in TWO_HOP else []
            groups["all"].append(hit)
    names = ("all", "two_hop", *QUESTION_KINDS)
    return {name: round(100 * sum(groups[name]) / max(1, len(groups[name])), 2) for name in names}


def majority(exam: Exam) -> Row:
    """The most frequent answer to each question string, known in hindsight: a bound for answering blindly."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in (question for image in exam.asked for question in image):
        answers[question.text][question.answer] += 1
    guess = {text: counts.most_common(1)[0][0] for text, counts in answers.items()}
    return by_kind(exam, torch.tensor([[guess[q.text] == q.answer for q in image] for image in exam.asked]))


def encoder_rows(exam: Exam, scale: float, smallest: int) -> dict[str, Row]:
    """Pruning before the decoder: the knee, fixed budgets, and random choices of the same sizes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(exam.shape, generator=generator)
    budgets: dict[str, Callable[[Tensor], Tensor | int]] = {
        f"knee x{scale:g} min {smallest}": lambda scores: knee_counts(scores, scale, smallest),
        "knee x1 min 1": lambda scores: knee_counts(scores, 1.0, 1),
        "half": lambda scores: exam.shape[1] // 2,
        "quarter": lambda scores: exam.shape[1] // 4,
        "eighth": lambda scores: exam.shape[1] // 8,
    }
    rows = {}
    for name, scores in exam.scores.items():
        for label, budget in budgets.items():
            counts = budget(scores)
            kept = best(scores, counts)
            extra = {"kept_percent": round(100 * kept.float().mean().item(), 2)}
            rows[f"{name} {label}"] = {**by_kind(exam, score(exam, keep=kept)), **extra}
            if name == "cls_full" or "knee" in label:
                right = score(exam, keep=best(noise, counts))
                rows[f"random, as {name} {label}"] = {**by_kind(exam, right), **extra}
    return rows


def decoder_rows(exam: Exam, layers: tuple[int, ...]) -> dict[str, Row]:
    """Pruning inside the decoder: nothing left, and parts left by relevance and at random."""
    rows = {}
    half, eighth = exam.shape[1] // 2, exam.shape[1] // 8
    for layer in layers:
        generator = torch.Generator().manual_seed(layer)

        def random(relevance: Tensor, count: int, source: torch.Generator = generator) -> Tensor:
            return best(torch.rand(relevance.shape, generator=source), count)

        choices: dict[str, Choice] = {
            "none": torch.zeros_like,
            "relevant half": lambda relevance: best(relevance, half),
            "random half": lambda relevance, draw=random: draw(relevance, half),
            "least relevant half": lambda relevance: best(-relevance, half),
            "relevant eighth": lambda relevance: best(relevance, eighth),
            "random eighth": lambda relevance, draw=random: draw(relevance, eighth),
        }
        for name, choose in track(choices.items(), f"decoder layer {layer}", transient=True):
            right = score_cut(exam, layer, lambda relevance, f=choose: f(relevance).bool())
            rows[f"after layer {layer}: {name}"] = by_kind(exam, right)
    return rows


@torch.no_grad()
def generate_check(exam: Exam, processor: LlavaProcessor, number: int) -> Row:
    """Answer with `generate` and the real processor; compare with the packed scorer item by item."""
    right = score(exam)
    agreed = correct = 0
    for item in range(number):
        scene, question = exam.scenes[item], exam.asked[item][item % QUESTIONS]
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        turns = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(images=scene.pil(), text=prompt, return_tensors="pt")
        output = exam.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = processor.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
        correct += answer == question.answer
        agreed += (answer == question.answer) == bool(right[item, item % QUESTIONS])
    return {"items": number, "correct": correct, "agree_with_scorer": agreed}


def measure(
    checkpoint: Path,
    scenes: int = 1000,
    split: str = "test",
    layers: tuple[int, ...] = (1, 2, 3),
    knee_scale: float = 2.0,
    min_keep: int = 14,
    generated: int = 50,
) -> dict[str, Any]:
    """All the figures of a checkpoint folder, in percent."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    exam = prepare(model, processor, split, scenes)
    rows = {
        "all tokens": by_kind(exam, score(exam)),
        "image of another scene": by_kind(exam, score(exam, features=exam.features.roll(1, 0))),
        "majority per question": majority(exam),
        **encoder_rows(exam, knee_scale, min_keep),
        **(decoder_rows(exam, layers) if layers else {}),
    }
    counts = Counter(question.kind for image in exam.asked for question in image)
    return {
        "split": split,
        "scenes": scenes,
        "questions": dict(counts),
        "generate": generate_check(exam, processor, generated) if generated else {},
        "accuracy_percent": rows,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    total = sum(result["questions"].values())
    table = Table(title=f"{result['split']}: {result['scenes']} scenes, {total} questions, percent right")
    columns = ("kept_percent", "all", "two_hop", *QUESTION_KINDS)
    table.add_column("visual tokens", no_wrap=True)
    for name in columns:
        table.add_column(name.replace("_percent", " %"), justify="right")
    for label, row in result["accuracy_percent"].items():
        table.add_row(label, *(f"{row[name]:.1f}" if name in row else "" for name in columns))
    console.print(table)
    console.print(f"generate: {result['generate']}")
