"""Accuracy against budget on the built-in model's scenes: the bundle's method, and random pruning.

Runs the real runtime. The vision stage sees a scene once for all of its questions. Every point says how many
visual tokens were really kept; a point that should prune and did not is an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foveate.runtime.budgets import encoder_feeds
from foveate.runtime.bundle import Bundle
from foveate.runtime.chunk import PreparedPrompt, VisualTokens, arrange, collate
from foveate.runtime.errors import ParityError, UsageError
from foveate.runtime.generate import Generation
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline, load
from foveate.runtime.report import Timings
from foveate.tools.demo_model.scenes import QUESTION_KINDS, TEST_QUOTA, TWO_HOP, Question, Scene, make_scene

SITES = ("encoder", "decoder", "both")
QUESTIONS = 8  # per scene
SCENES_PER_BATCH = 4
ANSWER_TOKENS = 6
KEEP_ALL = Budget(ratio=1.0)
OWN_RULE = "own rule"
RANDOM = "random"

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Tally:
    """Right answers out of so many."""

    right: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Accuracy in 0..1."""
        return self.right / self.total if self.total else 0.0

    def plus(self, right: bool) -> Tally:
        """One more answer."""
        return Tally(self.right + right, self.total + 1)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval (95 %): right also near 0 and 1, where the usual one leaves the range."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Point:
    """One method at one budget: accuracy in all and by kind, and what was kept.

    `kept` is the mean share of visual tokens behind the last site, `layer_average` the mean share over the
    decoder's layers, `sites` the mean share that each site let through; `counts` the tokens kept of each
    scene at the encoder.
    """

    method: str
    budget: str
    accuracy: Tally
    kinds: Mapping[str, Tally]
    kept: float
    layer_average: float
    sites: Mapping[str, float]
    counts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def two_hop(self) -> Tally:
        """The questions that take two look-ups."""
        found = [tally for kind, tally in self.kinds.items() if kind in TWO_HOP]
        return Tally(sum(t.right for t in found), sum(t.total for t in found))

    def to_json(self) -> dict[str, Any]:
        """Plain values; accuracies in percent with their intervals."""
        return {
            "method": self.method,
            "budget": self.budget,
            "kept": round(self.kept, 4),
            "layer_average": round(self.layer_average, 4),
            "sites": {site: round(share, 4) for site, share in self.sites.items()},
            "accuracy": _tally_json(self.accuracy),
            "two_hop": _tally_json(self.two_hop),
            "kinds": {kind: _tally_json(tally) for kind, tally in self.kinds.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """All points of one run."""

    bundle: str
    site: str
    layout: str
    scenes: int
    points: tuple[Point, ...]

    def point(self, method: str, budget: str) -> Point:
        """The point of a method at a budget. Raises KeyError."""
        return {(point.method, point.budget): point for point in self.points}[method, budget]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        own = asdict(self)
        return {**own, "points": [point.to_json() for point in self.points]}


@dataclass(frozen=True)
class Exam:
    """Scenes of the test split, each with its questions."""

    scenes: tuple[Scene, ...]
    asked: tuple[tuple[Question, ...], ...]

    @classmethod
    def draw(cls, count: int) -> Exam:
        """The first `count` test scenes."""
        scenes = tuple(make_scene(seed, "test") for seed in range(count))
        return cls(scenes, tuple(scene.ask(TEST_QUOTA, QUESTIONS) for scene in scenes))

    def batches(self) -> Iterator[range]:
        """Numbers of scenes that are run together."""
        for start in range(0, len(self.scenes), SCENES_PER_BATCH):
            yield range(start, min(start + SCENES_PER_BATCH, len(self.scenes)))


def evaluate(
    bundle: Path,
    budgets: Sequence[float],
    *,
    site: str = "both",
    scenes: int = 250,
    layout: str = "fused",
    threads: int | None = None,
    random_bundle: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Accuracy of the bundle's method and of random pruning at each budget, and at the method's own rule.

    A budget is a ratio of each site's incoming visual tokens; sites that are not evaluated keep all. Random
    pruning gets the counts that the method's own rule chose, scene by scene.

    Raises:
        UsageError: a budget or site that does not fit, or a bundle of another model than the built-in one.
        ParityError: a point that should have pruned did not.
    """
    exam = Exam.draw(scenes)
    opened = Bundle.open(bundle)
    places = sites_of(opened, site)
    require_demo(opened)
    pruned = load(bundle, layout=layout, threads=threads, check="none")
    drawn = load(random_bundle or export_random(opened, progress), layout=layout, threads=threads)
    plan = [f"{budget:g}" for budget in _checked(budgets)]
    points: list[Point] = []
    for name in (*plan, OWN_RULE):
        settings = {} if name == OWN_RULE else {place: Budget(ratio=float(name)) for place in places}
        method = run_point(pruned, exam, places, settings, ("method", name), progress)
        points.append(method)
        if name == "1":
            continue  # nothing is pruned: one yardstick for both
        if name == OWN_RULE:
            settings = _decoder_budgets(opened, method, places)
        counts = method.counts if name == OWN_RULE and "encoder" in places else ()
        points.append(run_point(drawn, exam, places, settings, (RANDOM, name), progress, counts))
    return Evaluation(bundle.name, site, layout, scenes, tuple(points))


def _decoder_budgets(bundle: Bundle, point: Point, places: Sequence[str]) -> dict[str, Budget]:
    """What random pruning keeps in the decoder to match a method's own rule: its ratio, or mean share."""
    found = {}
    for cut in bundle.manifest.decoder_cuts:
        if cut.name in places:
            fixed = cut.params.get("rule", "ratio") == "ratio" and "ratio" in cut.params
            share = float(cut.params["ratio"]) if fixed else point.sites[cut.name]
            found[cut.name] = Budget(ratio=min(1.0, max(share, 1e-3)))
    return found


def run_point(
    pipeline: Pipeline,
    exam: Exam,
    places: Sequence[str],
    budgets: Mapping[str, Budget],
    label: tuple[str, str],
    progress: Progress = lambda what, done, total: None,
    counts: Sequence[int] = (),
) -> Point:
    """One method at one budget.

    `places` without a budget follow their own rule, other sites keep all. `counts` are the tokens to keep
    of each scene at the encoder, where that is wanted.

    Raises:
        ParityError: it should have pruned and did not.
    """
    others = [cut.name for cut in pipeline.manifest.pruning if cut.name not in places]
    keep = dict.fromkeys(others, KEEP_ALL) | dict(budgets)
    kinds = dict.fromkeys(QUESTION_KINDS, Tally())
    made: list[Generation] = []
    for numbers in exam.batches():
        progress(" ".join(label), numbers.start, len(exam.scenes))
        options = GenerateOptions(
            max_new_tokens=ANSWER_TOKENS, keep=keep, pruning_seed=numbers.start, allow_unpruned=True
        )
        prepared = prepare_scenes(pipeline, exam, numbers, options, counts)
        answers = pipeline.stream_prepared(prepared, options).generations
        questions = [question for number in numbers for question in exam.asked[number]]
        for question, answer in zip(questions, answers, strict=True):
            kinds[question.kind] = kinds[question.kind].plus(answer.text.strip() == question.answer)
        made += answers
    progress(" ".join(label), len(exam.scenes), len(exam.scenes))
    point = _summarise(label, kinds, made, exam)
    asked_for_all = all(budgets.get(place) == KEEP_ALL for place in places)
    if point.kept >= 1.0 and not asked_for_all:
        raise ParityError(
            f"the point '{' '.join(label)}' pruned nothing, so its accuracy says nothing about pruning",
            found=f"all visual tokens of {len(exam.scenes)} scenes were kept",
            mend="give a smaller budget, or export with a method that prunes",
        )
    return point


def prepare_scenes(
    pipeline: Pipeline, exam: Exam, numbers: range, options: GenerateOptions, counts: Sequence[int] = ()
) -> PreparedPrompt:
    """A batch of all questions of some scenes. Each scene goes through the vision stage once."""
    model = pipeline.manifest.model
    pictures = [exam.scenes[number].pil() for number in numbers]
    pixels = pipeline.processor.pixels(pictures)
    feeds = encoder_feeds(pipeline.manifest, options, len(pictures))
    if counts and feeds:
        feeds["keep_tokens"] = np.array([counts[number] for number in numbers], np.int64)
    if feeds:
        feeds["seed"] = np.array(numbers, np.int64)  # another subset for each scene
    visual = pipeline.model.look(pixels, feeds)
    rows, owner, slot = [], [], 0
    for place, number in enumerate(numbers):
        kept = visual.kept(place)
        for question in exam.asked[number]:
            prompt = pipeline.tokenize(question.text, [pictures[place]])
            rows.append(
                arrange(
                    prompt.input_ids,
                    prompt.user_text,
                    [kept],
                    model.visual_tokens_per_image,
                    image_token_id=model.image_token_id,
                    mode=pipeline.manifest.positions,
                    first_slot=slot,
                )
            )
            owner.append(place)
        slot += len(kept)
    # Rows of one scene share its features; order and count are repeated, for the report counts images by
    # rows.
    shared = VisualTokens(visual.features, visual.kept_index, visual.order[owner], visual.count[owner])
    return collate(rows, [1] * len(rows), shared, pixels, Timings())


def _summarise(
    label: tuple[str, str], kinds: Mapping[str, Tally], made: Sequence[Generation], exam: Exam
) -> Point:
    reports = [generation.report for generation in made]
    total = sum(report.visual_tokens for report in reports)
    passed: dict[str, list[int]] = {}
    for report in reports:
        for entry in report.sites:
            sums = passed.setdefault(entry.site, [0, 0])
            sums[0] += entry.kept
            sums[1] += entry.total
    return Point(
        method=label[0],
        budget=label[1],
        accuracy=Tally(sum(t.right for t in kinds.values()), sum(t.total for t in kinds.values())),
        kinds={kind: tally for kind, tally in kinds.items() if tally.total},
        kept=sum(report.kept for report in reports) / max(1, total),
        layer_average=sum(report.layer_average for report in reports) / max(1, len(reports)),
        sites={site: kept / max(1, came) for site, (kept, came) in passed.items()},
        counts=_encoder_counts(made, exam),
    )


def _encoder_counts(made: Sequence[Generation], exam: Exam) -> tuple[int, ...]:
    """Visual tokens kept of each scene at the encoder; empty without a cut there."""
    counts, row = [], 0
    for asked in exam.asked:
        entry = next((site for site in made[row].report.sites if site.site == "encoder"), None)
        if entry is None:
            return ()
        counts.append(entry.kept)
        row += len(asked)
    return tuple(counts)


def sites_of(bundle: Bundle, site: str) -> tuple[str, ...]:
    """Names of the bundle's cuts that `site` means. Raises UsageError when there are none."""
    if site not in SITES:
        raise UsageError(f"unknown site '{site}'", wanted=", ".join(SITES))
    names = tuple(cut.name for cut in bundle.manifest.pruning if site in (cut.site, "both"))
    if not names:
        there = ", ".join(cut.name for cut in bundle.manifest.pruning) or "none: it is unpruned"
        raise UsageError(f"the bundle has no cut at '{site}'", found=there, mend="export with a method there")
    return names


def require_demo(bundle: Bundle) -> None:
    """Raises UsageError unless the bundle was made of the built-in model, which the scenes are for."""
    if not is_demo(bundle):
        raise UsageError(
            f"there is no task set for '{bundle.manifest.source.name}'",
            wanted="demo, or a bundle of the built-in model",
            mend="foveate eval demo",
        )


def is_demo(bundle: Bundle) -> bool:
    """Whether the bundle was made of the built-in model."""
    from foveate.export.checkpoint import Checkpoint
    from foveate.tools.demo import CHECKPOINT

    if not (CHECKPOINT / "config.json").is_file():
        return False
    return bundle.manifest.source.weights_sha256 == Checkpoint(CHECKPOINT).weights_sha256()


def export_random(bundle: Bundle, progress: Progress = lambda what, done, total: None) -> Path:
    """The same checkpoint with random pruning at the same sites; kept in the cache for the next time."""
    from foveate.export import export_model
    from foveate.pruning.plan import parse_plan
    from foveate.tools.demo import CHECKPOINT, cache_folder

    words = [RANDOM if cut.layer is None else f"{RANDOM}@{cut.layer}" for cut in bundle.manifest.pruning]
    # The files' hashes change with the weights and with the exporter, so the cache is never stale.
    content = repr((words, bundle.manifest.positions, sorted(bundle.manifest.files.items())))
    path = cache_folder() / f"demo-random-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if not (path / "manifest.json").is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_model(
            CHECKPOINT,
            path,
            plan=parse_plan(words),
            layouts=tuple(bundle.manifest.layouts),
            positions=bundle.manifest.positions,
            progress=progress,
        )
    return path


def _checked(budgets: Sequence[float]) -> list[float]:
    """Raises UsageError when a budget is no ratio."""
    for budget in budgets:
        if not 0 < budget <= 1:
            raise UsageError("a budget is out of range", found=f"{budget:g}", wanted="0 < budget <= 1")
    return sorted(set(budgets), reverse=True)


def _tally_json(tally: Tally) -> dict[str, Any]:
    low, high = tally.interval()
    return {
        "percent": round(100 * tally.share, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
        "right": tally.right,
        "total": tally.total,
    }
