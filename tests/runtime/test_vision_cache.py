"""An image that is asked about again gives the same answer without the vision stage, within a byte limit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.runtime import Budget, GenerateOptions, Pipeline, Request, Scheduler
from foveate.runtime.arrays import Arrays, Ints, ints
from foveate.runtime.chunk import VisualTokens
from foveate.runtime.errors import UsageError
from foveate.runtime.families import VisualItem
from foveate.runtime.model import Model
from foveate.runtime.vision_cache import VisionCache

IMAGES = [tiny.make_image(seed, size) for seed, size in ((0, (90, 70)), (1, (50, 120)), (2, (70, 70)))]
GREEDY = GenerateOptions(max_new_tokens=6)
Pipelines = dict[tuple[str, str], Pipeline]
both_layouts = pytest.mark.parametrize("layout", ["fused", "segmented"])


class Watched:
    """A model that tells how many images went through its vision stage."""

    def __init__(self, model: Model, *, reads_words: bool = False) -> None:
        self._model = model
        self.reads_words = reads_words
        self.seen = 0

    def look(self, items: Sequence[VisualItem], budgets: Arrays, words: Sequence[Ints]) -> VisualTokens:
        self.seen += len(items)
        return self._model.look(items, budgets, words)


def caching(pipeline: Pipeline, limit: int = 1 << 20) -> Pipeline:
    """The same graphs with a cache of their own."""
    cache = VisionCache(limit)
    return Pipeline(pipeline.bundle, pipeline.model, pipeline.processor, vision_cache=cache)


def outcome(answer: Any) -> tuple[Any, ...]:
    """All that a reused vision stage must not change."""
    report = answer.report
    return answer.token_ids, report.sites, report.kept, report.positions, report.segments, report.boxes


def items_of(pipeline: Pipeline, images: Sequence[Any]) -> list[VisualItem]:
    return [item for image in images if (item := pipeline.open(image).item) is not None]


def budgets_of(ratios: Sequence[float]) -> Arrays:
    return {"keep_ratio": np.array(ratios, np.float32), "keep_tokens": np.zeros(len(ratios), np.int64)}


def same(a: VisualTokens, b: VisualTokens) -> None:
    """Equal for all that comes behind the vision stage."""
    np.testing.assert_array_equal(a.features[a.kept_index], b.features[b.kept_index])
    np.testing.assert_array_equal(a.count, b.count)
    for mine, other in zip(a.order, b.order, strict=True):
        np.testing.assert_array_equal(mine, other)


@both_layouts
@pytest.mark.parametrize("name", ["plain", "pruned"])
def test_asked_again(pipelines: Pipelines, name: str, layout: str) -> None:
    plain = pipelines[name, layout]
    pipeline = caching(plain)
    for number, question in enumerate(("What is this?", "What is this?", "And what is that?")):
        answer = pipeline.generate(question, IMAGES[0], GREEDY)
        assert outcome(answer) == outcome(plain.generate(question, IMAGES[0], GREEDY))
        assert answer.report.vision_reused == (number > 0)
    use = pipeline.vision_cache.use  # type: ignore[union-attr]
    assert (use.entries, use.hits, use.misses) == (1, 2, 1)


@both_layouts
def test_several_images_old_and_new(pipelines: Pipelines, layout: str) -> None:
    plain = pipelines["pruned", layout]
    pipeline = caching(plain)
    pipeline.generate("This?", IMAGES[1], GREEDY)
    requests = [
        Request("<image>One, <image>two<image> and one again", [IMAGES[0], IMAGES[1], IMAGES[0]]),
        Request("No picture at all."),
        Request("Say what you see", IMAGES[2:]),
    ]
    answers = pipeline.generate_batch(requests, GREEDY)
    assert [answer.report.vision_reused for answer in answers] == [2, 0, 0]
    for answer, other in zip(answers, plain.generate_batch(requests, GREEDY), strict=True):
        assert outcome(answer) == outcome(other)


def test_the_key_is_all_that_the_stage_reads(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]
    file = io.BytesIO()
    IMAGES[2].save(file, "PNG")
    one, other, as_file = items_of(pipeline, [IMAGES[2], IMAGES[1], file.getvalue()])
    model, cache = Watched(pipeline.model), VisionCache(1 << 20)

    def seen(item: VisualItem, ratio: float = 0.5, words: Sequence[int] = ()) -> int:
        before = model.seen
        found = cache.look(model, [item], budgets_of([ratio]), [ints(words)])
        assert found.reused == (model.seen == before,)
        return model.seen - before

    assert [seen(one), seen(one), seen(as_file), seen(other), seen(other)] == [1, 0, 0, 1, 0]
    assert [seen(one, ratio=0.4), seen(one, ratio=0.4), seen(one)] == [1, 0, 0]
    # The words count only where the method reads them.
    assert [seen(one, words=[5, 6]), seen(one, words=[7])] == [0, 0]
    model.reads_words = True
    assert [seen(one, words=[5, 6]), seen(one, words=[7]), seen(one, words=[5, 6])] == [1, 1, 0]
    cache.clear()
    assert cache.use.bytes == cache.use.entries == 0
    assert seen(one, words=[5, 6]) == 1


@both_layouts
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_never_stale_and_never_too_large(pipelines: Pipelines, layout: str, data: st.DataObject) -> None:
    """Any sequence of requests, any limit: what the model itself gives, in at most so many bytes."""
    pipeline = pipelines["pruned", layout]
    made = items_of(pipeline, IMAGES)
    cache = VisionCache(data.draw(st.sampled_from([0, 700, 2000, 1 << 20])))
    one = st.tuples(st.integers(0, 2), st.sampled_from([0.2, 0.9]))
    for wanted in data.draw(st.lists(st.lists(one, min_size=1, max_size=4), max_size=4)):
        items = [made[number] for number, _ in wanted]
        budgets = budgets_of([ratio for _, ratio in wanted])
        words = [ints([])] * len(items)
        same(cache.look(pipeline.model, items, budgets, words), pipeline.model.look(items, budgets, words))
        assert cache.use.bytes <= cache.limit


def test_the_longest_unasked_goes_first(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]
    made, words = items_of(pipeline, IMAGES), [ints([])]
    first = VisionCache(1 << 20)
    first.look(pipeline.model, made[:1], budgets_of([0.2]), words)
    size = first.use.bytes
    model, cache = Watched(pipeline.model), VisionCache(2 * size)

    def seen(number: int, ratio: float = 0.2) -> int:
        before = model.seen
        cache.look(model, [made[number]], budgets_of([ratio]), words)
        return model.seen - before

    assert [seen(number) for number in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]
    assert (cache.use.bytes, cache.use.entries) == (2 * size, 2)
    # One that does not fit at all pushes nothing out.
    assert [seen(0, ratio=1.0), seen(0, ratio=1.0), seen(0), seen(1)] == [1, 1, 0, 0]


def test_an_entry_holds_the_kept_rows_alone(pipelines: Pipelines) -> None:
    width = pipelines["pruned", "segmented"].manifest.model.vision_width
    for layout in ("fused", "segmented"):  # the segmented stage gives all rows
        pipeline = pipelines["pruned", layout]
        cache = VisionCache(1 << 20)
        found = cache.look(pipeline.model, items_of(pipeline, IMAGES[:1]), budgets_of([0.2]), [ints([])])
        assert found.features.shape == (5, width)
        beside = 8 * (25 + 5 + 1) + 4 * 25  # order, kept index and count; scores
        assert cache.use.bytes == 4 * 5 * width + beside
        with pytest.raises(ValueError, match="read-only"):
            found.features[0] = 0


def test_shared_budgets(pipelines: Pipelines) -> None:
    plain = pipelines["pruned", "fused"]
    pipeline = caching(plain)
    for share in ("proportional", "saliency", "each", "saliency"):
        options = GenerateOptions(max_new_tokens=4, keep={"encoder": Budget(tokens=9)}, share=share)
        answers = [p.generate("Both?", IMAGES[:2], options) for p in (pipeline, plain)]
        assert outcome(answers[0]) == outcome(answers[1])


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1 GB"])
def test_bad_limits(limit: Any) -> None:
    with pytest.raises(UsageError, match="vision_cache is out of range"):
        VisionCache(limit)


def test_the_scheduler_reuses_too(pipelines: Pipelines) -> None:
    plain = pipelines["pruned", "fused"]
    pipeline = caching(plain)
    with Scheduler(pipeline, slots=2) as scheduler:
        handles = [scheduler.submit(question, IMAGES[:1], GREEDY) for question in ("This?", "That?", "This?")]
        answers = [handle.result() for handle in handles]
    assert [answer.report.vision_reused for answer in answers] == [0, 1, 1]
    for question, answer in zip(("This?", "That?", "This?"), answers, strict=True):
        assert outcome(answer) == outcome(plain.generate(question, IMAGES[:1], GREEDY))
