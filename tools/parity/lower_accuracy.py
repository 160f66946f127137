"""P5 below fp32: what the precision costs in right answers, against the same plan in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foveate.pruning.plan import PruningPlan
from foveate.runtime.bundle import Bundle
from foveate.runtime.generate import Generation
from foveate.runtime.pipeline import load
from foveate.tools.evaluate import KEEP_ALL, Exam, answer, is_demo, is_right, token_cuts
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.lower import limits_of
from foveate.tools.parity.report import Check, Status


def check_loss(ladder: Ladder) -> Iterator[Check]:
    """All tokens, then the plan's own rules; the same scenes and questions for both precisions."""
    if not is_demo(ladder.bundle):
        yield Check("accuracy", Status.NOT_APPLICABLE, "no task set for this checkpoint")
        return
    settings, layout = ladder.settings, ladder.layouts[0]
    exam = Exam.draw(settings.scenes)
    exact = load(export_exact(ladder.bundle), layout=layout, backend="onnxruntime", threads=settings.threads)
    keep_all = {cut.name: KEEP_ALL for cut in token_cuts(ladder.manifest)}
    budgets = {"all tokens": keep_all, "pruned": {}} if keep_all else {"all tokens": {}}
    for name, keep in budgets.items():
        sides = [answer(pipeline, exam, keep, name) for pipeline in (exact, ladder.pipeline(layout))]
        yield _compare(name, exam, *sides, limit=limits_of(ladder).loss)


def export_exact(bundle: Bundle) -> Path:
    """The built-in model in fp32 under a bundle's plan; kept in the cache for the next time."""
    from foveate.export import export_model
    from foveate.export.precision import dialect
    from foveate.tools.cache import cached_bundle, is_exported
    from foveate.tools.demo import CHECKPOINT

    manifest = bundle.manifest
    cuts = [cut.model_dump(exclude={"adapter"}) for cut in manifest.pruning]
    # Not every target knows float32; the cuts and the weights are the same in all of them.
    target = manifest.target if "fp32" in dialect(manifest.target).kernels else "portable"
    path = cached_bundle("demo-exact", cuts, manifest.positions, target, sorted(manifest.layouts))
    if not is_exported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        export_model(
            CHECKPOINT,
            path,
            plan=PruningPlan.from_list(cuts),
            layouts=tuple(manifest.layouts),
            positions=manifest.positions,
            target=target,
            dtype="fp32",
            adapters=sorted((bundle.path / "adapters").glob("*.safetensors")),
        )
    return path


def _compare(
    name: str, exam: Exam, wanted: list[Generation], got: list[Generation], *, limit: float
) -> Check:
    questions = [question for asked in exam.asked for question in asked]
    right = [
        sum(is_right(question, given) for question, given in zip(questions, side, strict=True))
        for side in (wanted, got)
    ]
    share = [100 * count / len(questions) for count in right]
    same = sum(a.token_ids == b.token_ids for a, b in zip(wanted, got, strict=True)) / len(questions)
    text = (
        f"{share[1]:.2f} % right, fp32 {share[0]:.2f} %; {100 * same:.1f} % of {len(questions)} answers are "
        f"the same; a loss of {limit:g} points is allowed"
    )
    status = Status.PASSED if share[0] - share[1] <= limit else Status.FAILED
    return Check(f"{name}: accuracy", status, text)
