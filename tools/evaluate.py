"""Accuracy against budget on the built-in model's scenes: the bundle's method, and random pruning.

Runs the real runtime. The vision stage sees a scene once for all of its questions. Every point says how many
visual tokens were really kept; a point that should prune and did not is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveate.runtime.backends import CPU
from foveate.runtime.budgets import encoder_feeds
from foveate.runtime.bundle import Bundle
from foveate.runtime.chunk import PreparedPrompt, VisualTokens, collate
from foveate.runtime.errors import ParityError, UsageError
from foveate.runtime.generate import Generation
from foveate.runtime.manifest import CutRecord, Manifest
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline, load
from foveate.runtime.report import Timings
from foveate.tools.demo_model.scenes import QUESTION_KINDS, TEST_QUOTA, Question, Scene, make_scene
from foveate.tools.evaluation import METHOD, OWN_RULE, RANDOM, Evaluation, Point, Tally

if TYPE_CHECKING:
    from foveate.export.precision import PrecisionPlan

__all__ = ["Contest", "Evaluation", "Exam", "Progress", "evaluate", "hold_contest", "is_demo", "sites_of"]

SITES = ("encoder", "decoder", "both")
QUESTIONS = 8  # per scene
SCENES_PER_BATCH = 4
ANSWER_TOKENS = 6
KEEP_ALL = Budget(ratio=1.0)

Progress = Callable[[str, float, float], None]


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


@dataclass(frozen=True)
class Contest:
    """The bundle's method and random pruning at the same sites, before the same exam."""

    pruned: Pipeline
    drawn: Pipeline
    exam: Exam
    progress: Progress

    def at(self, places: Sequence[str], ratio: float) -> tuple[Point, ...]:
        """Both at one ratio of each site's incoming tokens. At 1 nothing is pruned: one point for both."""
        budgets, name = dict.fromkeys(places, Budget(ratio=ratio)), f"{ratio:g}"
        points = [run_point(self.pruned, self.exam, places, budgets, (METHOD, name), self.progress)]
        if ratio < 1:
            points.append(run_point(self.drawn, self.exam, places, budgets, (RANDOM, name), self.progress))
        return tuple(points)

    def own_rule(self, places: Sequence[str]) -> tuple[Point, Point]:
        """The method as it is, and random pruning with the counts that it chose."""
        method = run_point(self.pruned, self.exam, places, {}, (METHOD, OWN_RULE), self.progress)
        budgets = _decoder_budgets(self.pruned.manifest, method, places)
        counts = method.counts if "encoder" in places else ()
        label = (RANDOM, OWN_RULE)
        return method, run_point(self.drawn, self.exam, places, budgets, label, self.progress, counts)


def hold_contest(
    bundle: Bundle,
    scenes: int,
    *,
    layout: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Contest:
    """A contest on the first `scenes` test scenes; random pruning's bundle is exported on first use.

    That one runs on the CPU, wherever the pruned one runs: nobody has built engines for it.

    Raises:
        UsageError: the bundle was not made of the built-in model.
    """
    require_demo(bundle)
    pruned = load(bundle.path, layout=layout, backend=backend, threads=threads, check="none")
    drawn = load(export_random(bundle, progress), layout=pruned.model.layout, backend=CPU, threads=threads)
    return Contest(pruned, drawn, Exam.draw(scenes), progress)


def evaluate(
    bundle: Path,
    budgets: Sequence[float],
    *,
    site: str = "both",
    scenes: int = 200,
    layout: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Accuracy of the bundle's method and of random pruning at each budget, and at the method's own rule.

    A budget is a ratio of each site's incoming visual tokens; sites that are not evaluated keep all. Random
    pruning gets the counts that the method's own rule chose, scene by scene.

    Raises:
        UsageError: a budget or site that does not fit, or a bundle of another model than the built-in one.
        ParityError: a point that should have pruned did not.
    """
    opened = Bundle.open(bundle)
    places, ratios = sites_of(opened, site), checked_budgets(budgets)
    contest = hold_contest(opened, scenes, layout=layout, backend=backend, threads=threads, progress=progress)
    layout = contest.pruned.model.layout
    points = [point for ratio in ratios for point in contest.at(places, ratio)]
    return Evaluation(bundle.name, site, layout, scenes, (*points, *contest.own_rule(places)))


def _decoder_budgets(manifest: Manifest, point: Point, places: Sequence[str]) -> dict[str, Budget]:
    """What random pruning keeps in the decoder to match a method's own rule: its ratio, or mean share."""
    found = {}
    for cut in manifest.decoder_cuts:
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
    others = [cut.name for cut in token_cuts(pipeline.manifest) if cut.name not in places]
    keep = dict.fromkeys(others, KEEP_ALL) | dict(budgets)
    made = answer(pipeline, exam, keep, " ".join(label), progress, counts)
    point = summarise(label, made, exam)
    idle = [place for place in places if point.sites[place] >= 1 and budgets.get(place) != KEEP_ALL]
    if idle:
        raise ParityError(
            f"the point '{' '.join(label)}' pruned nothing at {', '.join(idle)}, so it says nothing",
            found=f"all visual tokens of {len(exam.scenes)} scenes passed",
            mend="give a smaller budget, or export with a method that prunes",
        )
    return point


def prepare_scenes(
    pipeline: Pipeline, exam: Exam, numbers: range, options: GenerateOptions, counts: Sequence[int] = ()
) -> PreparedPrompt:
    """A batch of all questions of some scenes. Each scene goes through the vision stage once, if it can."""
    visuals = [pipeline.open(exam.scenes[number].pil()) for number in numbers]
    owners = [place for place, number in enumerate(numbers) for _ in exam.asked[number]]
    questions = [question.text for number in numbers for question in exam.asked[number]]
    prompts = [pipeline.tokenize(text, [visuals[i]]) for text, i in zip(questions, owners, strict=True)]
    # A method that reads the question has to look anew for each one.
    alone = pipeline.model.reads_words
    looks = owners if alone else list(range(len(visuals)))
    feeds = encoder_feeds(pipeline.manifest, options, len(looks))
    if counts and feeds:
        feeds["keep_tokens"] = np.array([counts[numbers[i]] for i in looks], np.int64)
    if feeds:
        feeds["seed"] = np.array([numbers[i] for i in looks], np.int64)  # another subset for each scene
    items = [item for i in looks if (item := visuals[i].item)]
    words = [prompt.words for prompt in prompts] if alone else None
    visual = pipeline.model.look(items, feeds, words)
    chosen = list(range(len(prompts))) if alone else owners
    first = np.cumsum([0, *visual.count])
    rows = [
        pipeline.arrange(prompt, prompt.items, [visual.kept(i)], first_slot=int(first[i]))
        for prompt, i in zip(prompts, chosen, strict=True)
    ]
    # Rows of one scene share its features; order and count are repeated, for the report counts images by
    # rows.
    order = tuple(visual.order[i] for i in chosen)
    shared = VisualTokens(visual.features, visual.kept_index, order, visual.count[chosen])
    return collate(rows, [prompt.items for prompt in prompts], shared, Timings())


def answer(
    pipeline: Pipeline,
    exam: Exam,
    keep: Mapping[str, Budget],
    what: str,
    progress: Progress = lambda what, done, total: None,
    counts: Sequence[int] = (),
) -> list[Generation]:
    """The answers to all questions, scene by scene, with these budgets by site; see `run_point`."""
    made: list[Generation] = []
    for numbers in exam.batches():
        progress(what, numbers.start, len(exam.scenes))
        # One seed per batch; methods that do not draw never see it.
        options = GenerateOptions(
            max_new_tokens=ANSWER_TOKENS, keep=keep, pruning_seed=numbers.start, allow_unpruned=True
        )
        prepared = prepare_scenes(pipeline, exam, numbers, options, counts)
        made += pipeline.stream_prepared(prepared, options).generations
    progress(what, len(exam.scenes), len(exam.scenes))
    return made


def is_right(question: Question, answer: Generation) -> bool:
    """Whether it is the only right answer, word for word."""
    return answer.text.strip() == question.answer


def summarise(label: tuple[str, str], made: Sequence[Generation], exam: Exam) -> Point:
    """The figures of all answers to an exam."""
    kinds = dict.fromkeys(QUESTION_KINDS, Tally())
    for question, given in zip((each for asked in exam.asked for each in asked), made, strict=True):
        kinds[question.kind] = kinds[question.kind].plus(is_right(question, given))
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
    names = tuple(cut.name for cut in token_cuts(bundle.manifest) if site in (cut.site, "both"))
    if not names:
        there = ", ".join(cut.name for cut in bundle.manifest.pruning) or "none: it is unpruned"
        raise UsageError(f"the bundle has no cut at '{site}'", found=there, mend="export with a method there")
    return names


def token_cuts(manifest: Manifest) -> tuple[CutRecord, ...]:
    """The cuts that drop tokens: those that take a budget."""
    return tuple(cut for cut in manifest.pruning if cut.site != "layers")


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
    """The same checkpoint and precision with random pruning at the same sites; kept in the cache."""
    from foveate.export import export_model
    from foveate.pruning.plan import parse_plan
    from foveate.tools.cache import cached_bundle, is_exported
    from foveate.tools.demo import CHECKPOINT
    from foveate.tools.precision.choose import Settings, chooser

    words = [_random_word(cut) for cut in bundle.manifest.pruning]
    manifest = bundle.manifest
    path = cached_bundle("demo-random", words, manifest.positions, sorted(manifest.files.items()))
    if not is_exported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        export_model(
            CHECKPOINT,
            path,
            plan=parse_plan(words),
            layouts=tuple(bundle.manifest.layouts),
            positions=bundle.manifest.positions,
            target=manifest.target,
            dtype=_precision(manifest),
            choose=chooser(Settings(measure=False)),
            progress=progress,
        )
    return path


def _precision(manifest: Manifest) -> PrecisionPlan | str:
    """The bundle's own, layer by layer; its words where ranges of activations have to be measured again."""
    from foveate.export.precision import PrecisionPlan
    from foveate.export.precision.words import MEASURED, dialect

    found = manifest.precision
    kernels = {name: layer.kernel for name, layer in found.layers.items()}
    usual = dialect(manifest.target).kernels
    if any(MEASURED & set(usual[word].values()) for word in found.stages.values() if word != "fp32"):
        return ",".join(f"{stage}={word}" for stage, word in found.stages.items())
    return PrecisionPlan(found.stages, kernels, target=manifest.target)


def _random_word(cut: CutRecord) -> str:
    """Random pruning where a cut drops tokens; work that is left out of the layers stays left out."""
    if cut.site != "layers":
        return RANDOM if cut.layer is None else f"{RANDOM}@{cut.layer}"
    options = {name: "none" if value is None else str(value).lower() for name, value in cut.params.items()}
    return f"{cut.method}:{','.join(f'{name}={value}' for name, value in options.items())}"


def checked_budgets(budgets: Sequence[float]) -> list[float]:
    """From large to small, each once. Raises UsageError when one is no ratio."""
    for budget in budgets:
        if not 0 < budget <= 1:
            raise UsageError("a budget is out of range", found=f"{budget:g}", wanted="0 < budget <= 1")
    return sorted(set(budgets), reverse=True)
