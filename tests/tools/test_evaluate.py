"""Accuracy against budget: intervals, what counts as kept, and that pruning nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.runtime.errors import ParityError, UsageError
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline, load
from foveate.tools import evaluate
from foveate.tools.cli.eval import parse_budgets
from foveate.tools.evaluate import ANSWER_TOKENS, Exam
from foveate.tools.evaluation import OWN_RULE, Evaluation, Point, Tally

ENCODER = ("encoder",)
BOTH = ("encoder", "decoder@1")


@pytest.fixture(scope="module")
def pipeline(shallow_bundle: Path) -> Pipeline:
    """A model that knows nothing, pruned at both sites."""
    return load(shallow_bundle, threads=1)


@pytest.fixture(scope="module")
def exam() -> Exam:
    return Exam.draw(5)


def test_wilson() -> None:
    low, high = Tally(8, 10).interval()
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Tally(0, 10).interval() == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert Tally(10, 10).interval()[1] == 1.0
    assert Tally().interval() == (0.0, 1.0)


def test_budgets_from_the_command_line() -> None:
    assert parse_budgets("1.0, 0.5,0.25") == [1.0, 0.5, 0.25]
    with pytest.raises(UsageError, match="separated by commas"):
        parse_budgets("half")
    with pytest.raises(UsageError, match="out of range"):
        evaluate.checked_budgets([0.5, 1.5])


def test_a_point_counts_what_was_kept(pipeline: Pipeline, exam: Exam) -> None:
    point = evaluate.run_point(
        pipeline, exam, BOTH, dict.fromkeys(BOTH, Budget(ratio=0.4)), ("method", "0.4")
    )
    assert point.accuracy.total == sum(map(len, exam.asked))
    assert point.sites == {"encoder": 10 / 25, "decoder@1": 4 / 10}
    assert (point.kept, point.layer_average) == (4 / 25, pytest.approx((10 + 4) / 50))
    assert point.counts == (10,) * 5


def test_sites_that_are_not_asked_for_keep_all(pipeline: Pipeline, exam: Exam) -> None:
    point = evaluate.run_point(pipeline, exam, ENCODER, {}, ("method", OWN_RULE))
    assert point.sites["decoder@1"] == 1.0
    assert 0 < point.sites["encoder"] < 1
    again = evaluate.run_point(pipeline, exam, ENCODER, {}, ("x", OWN_RULE), counts=[7, 8, 9, 10, 11])
    assert again.counts == (7, 8, 9, 10, 11)


def test_a_point_that_pruned_nothing_is_refused(pipeline: Pipeline, exam: Exam) -> None:
    with pytest.raises(ParityError, match="pruned nothing"):
        evaluate.run_point(pipeline, exam, ENCODER, {"encoder": Budget(tokens=25)}, ("method", "25 tokens"))
    evaluate.run_point(pipeline, exam, ENCODER, {"encoder": Budget(ratio=1.0)}, ("method", "1"))


def test_shared_vision_gives_the_tokens_of_single_requests(pipeline: Pipeline, exam: Exam) -> None:
    """Several scenes with several questions each, in one batch, with other counts for each scene."""
    options = GenerateOptions(max_new_tokens=ANSWER_TOKENS, allow_unpruned=True, pruning_seed=0)
    prepared = evaluate.prepare_scenes(pipeline, exam, range(3), options)
    made = pipeline.stream_prepared(prepared, options).generations
    asked = [(scene, question) for scene in range(3) for question in exam.asked[scene]]
    assert len(made) == len(asked)
    for (scene, question), generation in zip(asked[::3], made[::3], strict=True):
        alone = pipeline.generate(question.text, [exam.scenes[scene].pil()], options)
        assert generation.token_ids == alone.token_ids
        assert generation.report.sites == alone.report.sites


def test_only_the_built_in_model_has_scenes(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="no task set"):
        evaluate.evaluate(pipeline.bundle.path, [0.5], scenes=1)
    with pytest.raises(UsageError, match="encoder, decoder, both"):
        evaluate.evaluate(pipeline.bundle.path, [0.5], site="middle", scenes=1)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    from foveate.tools.evaluate_plot import plot

    kinds = {"color": Tally(3, 5)}
    names = (("method", "1", 1.0), ("method", "0.5", 0.5), ("random", "0.5", 0.5), ("method", OWN_RULE, 0.2))
    points = tuple(Point(m, b, Tally(3, 5), kinds, kept, kept, {"encoder": kept}) for m, b, kept in names)
    plot(Evaluation("demo", "encoder", "fused", 1, points), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
