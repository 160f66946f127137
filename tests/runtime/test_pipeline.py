"""Real bundles of a tiny LLaVA, run in both layouts: two ways to the same tokens must agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import tiny

from foveate.runtime import Budget, GenerateOptions, Pipeline, Request, load
from foveate.runtime.errors import BackendError, BundleError, InputError, NothingPrunedError, UsageError
from foveate.runtime.generate import Generation

IMAGES = [tiny.make_image(seed, size) for seed, size in ((0, (90, 70)), (1, (50, 120)), (2, (70, 70)))]
GREEDY = GenerateOptions(max_new_tokens=10)
REQUESTS = [
    Request("What is this?", IMAGES[:1]),
    Request("<image>One, and <image>two: which of both is the larger one?", IMAGES[1:]),
    Request("No picture at all."),
    Request("Say what you see<image>", IMAGES[2:]),
]
Pipelines = dict[tuple[str, str], Pipeline]
both_bundles = pytest.mark.parametrize("name", ["plain", "pruned"])
both_layouts = pytest.mark.parametrize("layout", ["fused", "segmented"])


def outcome(answer: Generation) -> tuple[Any, ...]:
    """Everything but the timings."""
    return answer.text, answer.token_ids, answer.finish_reason, answer.report


@both_bundles
def test_layouts_agree(pipelines: Pipelines, name: str) -> None:
    options = GenerateOptions(max_new_tokens=10, keep_ratio=0.4 if name == "pruned" else None)
    for request in REQUESTS:
        fused, segmented = (
            pipelines[name, layout].generate(*request[:2], options) for layout in ("fused", "segmented")
        )
        assert outcome(fused) == outcome(segmented)
        if name == "pruned" and request.images:
            assert fused.report.kept < fused.report.visual_tokens


@both_bundles
@both_layouts
def test_batch_equals_singles(pipelines: Pipelines, name: str, layout: str) -> None:
    pipeline = pipelines[name, layout]
    batch = pipeline.generate_batch(REQUESTS, GREEDY)
    singles = [pipeline.generate(*request[:2], GREEDY) for request in REQUESTS]
    assert [outcome(answer) for answer in batch] == [outcome(answer) for answer in singles]
    sampled = GenerateOptions(max_new_tokens=10, temperature=1.5, top_k=50, top_p=0.9, seed=4)
    batch = pipeline.generate_batch(REQUESTS, sampled)
    assert [a.token_ids for a in batch] == [pipeline.generate(*r[:2], sampled).token_ids for r in REQUESTS]
    assert pipeline.generate_batch([], GREEDY) == []


@both_bundles
@both_layouts
def test_many_images_in_several_vision_calls(
    pipelines: Pipelines, name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[name, layout]
    at_once = pipeline.generate(*REQUESTS[1][:2], GREEDY)
    monkeypatch.setattr("foveate.runtime.model.MAX_IMAGES_PER_CALL", 1)
    assert outcome(pipeline.generate(*REQUESTS[1][:2], GREEDY)) == outcome(at_once)


@both_bundles
@both_layouts
def test_cached_decoding_equals_reading_all_again(pipelines: Pipelines, name: str, layout: str) -> None:
    """A prompt with its answer, read as one chunk, gives the logits of step-by-step decoding.

    The answer's tokens are fixed (role 0) and the choice of the question is the same, for the query rows are.
    """
    pipeline = pipelines[name, layout]
    for request in REQUESTS:
        prepared = pipeline.prepare(*request[:2], GREEDY)
        answer = pipeline.generate(*request[:2], GREEDY)
        read = pipeline.prefill(make.longer(prepared, answer.token_ids[:-1]), GREEDY, logits="all")
        start = int(prepared.length[0]) - 1
        logits = read.logits[0, start:]
        assert read.present[0, start:].all()
        assert tuple(np.argmax(logits, axis=-1).tolist()) == answer.token_ids


@both_layouts
def test_all_logits_agree_with_the_last_ones(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]
    prepared = pipeline.prepare_batch([pipeline.tokenize(*request[:2]) for request in REQUESTS], GREEDY)
    every = pipeline.prefill(prepared, GREEDY, logits="all")
    last = pipeline.prefill(prepared, GREEDY)
    for row, length in enumerate(prepared.length):
        np.testing.assert_allclose(every.logits[row, length - 1], last.logits[row, 0], atol=2e-5)
    np.testing.assert_array_equal(np.isnan(every.logits).any(axis=-1), ~every.present)
    assert 0 < every.present.sum() < prepared.length.sum()


@both_layouts
def test_budgets_are_obeyed_per_request(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]

    def counts(**values: Any) -> list[tuple[int, int]]:
        answer = pipeline.generate("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=1, **values))
        return [(site.total, site.kept) for site in answer.report.sites]

    assert counts(keep_ratio=0.4)[0] == (25, 10)
    assert counts(keep_tokens=7)[0] == (25, 7)
    assert counts(keep_tokens=7, keep={"decoder@1": Budget(tokens=3)})[:2] == [(25, 7), (7, 3)]
    assert counts(keep_ratio=1.0, keep={"decoder@3": Budget(tokens=5)})[2][1] == 5
    assert counts(keep_ratio=0.4) == counts(keep_ratio=0.4)


def test_pruning_seed_changes_the_random_subset(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]

    def kept(seed: int | None) -> Any:
        options = GenerateOptions(max_new_tokens=1, keep_ratio=1.0, pruning_seed=seed)
        return pipeline.generate("What is this?", IMAGES[:1], options).report.sites[1].kept_index

    assert kept(None) == kept(0) != kept(1)
    assert kept(1) == kept(1)


def test_report_is_plain_data(pipelines: Pipelines) -> None:
    from dataclasses import asdict

    answer = pipelines["pruned", "fused"].generate(*REQUESTS[1][:2], GREEDY)
    report = answer.report
    assert json.loads(json.dumps(asdict(report)))["sites"][0]["site"] == "encoder"
    assert report.images == 2
    assert report.visual_tokens == 50
    assert len(report.sites[0].kept_index) == 2
    inner, outer = report.sites[1], report.sites[0]
    for before, after in zip(outer.kept_index, inner.kept_index, strict=True):
        assert set(after) <= set(before)
    counts = [report.sites[0].kept, report.sites[1].kept, report.sites[1].kept, report.sites[2].kept]
    assert report.layer_average == pytest.approx(sum(counts) / (4 * 50))
    # Original positions: later than the number of tokens, ascending.
    assert max(report.positions) >= len(report.positions)
    assert list(report.positions) == sorted(set(report.positions))
    timings = answer.timings
    assert all(value > 0 for value in (timings.preprocess, timings.vision, timings.embed, timings.prefill))
    assert timings.steps == len(answer.token_ids) - 1
    assert timings.tokens_per_second == pytest.approx(timings.steps / timings.decode)


# --- unpruned runs of pruned bundles ------------------------------------------------------------------------

ALL = {site: Budget(ratio=1.0) for site in ("encoder", "decoder@1", "decoder@3")}


@both_layouts
def test_nothing_pruned_is_an_error_unless_asked_for(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]
    keep = {site: Budget(ratio=0.999) for site in ALL}
    with pytest.raises(NothingPrunedError, match="--allow-unpruned"):
        pipeline.generate(*REQUESTS[0][:2], GenerateOptions(keep=keep))
    allowed = pipeline.generate(
        *REQUESTS[0][:2], GenerateOptions(max_new_tokens=3, keep=keep, allow_unpruned=True)
    )
    assert allowed.report.kept == 25
    assert pipeline.generate(*REQUESTS[0][:2], GenerateOptions(max_new_tokens=3, keep=ALL)).report.kept == 25
    assert pipeline.generate(*REQUESTS[2][:2], GREEDY).report.images == 0


@both_layouts
def test_keeping_all_equals_the_unpruned_bundle(pipelines: Pipelines, layout: str) -> None:
    """Without question text behind the image: the faithful profile drops some of that whatever the budget."""
    for request in REQUESTS[2:]:
        options = GenerateOptions(max_new_tokens=10, keep=ALL)
        pruned = pipelines["pruned", layout].generate(*request[:2], options)
        plain = pipelines["plain", layout].generate(*request[:2], GREEDY)
        assert pruned.report.sites[2].text_kept == pruned.report.sites[2].text_total
        assert pruned.token_ids == plain.token_ids


def test_budget_for_a_site_that_is_not_there(pipelines: Pipelines) -> None:
    with pytest.raises(UsageError, match=r"'decoder@2'.*encoder, decoder@1, decoder@3"):
        pipelines["pruned", "fused"].generate(
            "Hi", (), GenerateOptions(keep={"decoder@2": Budget(ratio=0.5)})
        )
    with pytest.raises(UsageError, match="unpruned"):
        pipelines["plain", "fused"].generate("Hi", (), GenerateOptions(keep_ratio=0.5))


# --- streams, stops and limits ------------------------------------------------------------------------------


def test_stream_gives_the_text_piece_by_piece(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    stream = pipeline.stream("What is this?", IMAGES[:1], GREEDY)
    tokens = list(stream)
    answer = stream.generation
    assert "".join(token.text for token in tokens) == answer.text
    assert tuple(token.id for token in tokens) == answer.token_ids
    assert outcome(answer) == outcome(pipeline.generate("What is this?", IMAGES[:1], GREEDY))
    assert stream.generation == answer


def test_interleaved_streams_do_not_disturb_each_other(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]
    streams = [pipeline.stream(*request[:2], GREEDY) for request in REQUESTS[:2]]
    for _ in range(3):
        for stream in streams:
            next(stream)
    alone = [pipeline.generate(*request[:2], GREEDY) for request in REQUESTS[:2]]
    assert [s.generation.token_ids for s in reversed(streams)] == [a.token_ids for a in reversed(alone)]


def test_abandoned_stream(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    first = next(iter(pipeline.stream(*REQUESTS[0][:2], GREEDY)))
    assert first.id == pipeline.generate(*REQUESTS[0][:2], GREEDY).token_ids[0]


def test_stop_string_ends_the_text_before_it(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    options = GenerateOptions(max_new_tokens=40)
    whole = next(
        a for a in (pipeline.generate(*r[:2], options) for r in REQUESTS) if len(a.text.strip("\ufffd")) > 4
    )
    request = next(r for r in REQUESTS if pipeline.generate(*r[:2], options).text == whole.text)
    stop = whole.text[2:4]
    cut = pipeline.generate(*request[:2], GenerateOptions(max_new_tokens=40, stop=("never", stop)))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_finish_reasons(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    assert pipeline.generate("Hi", (), GenerateOptions(max_new_tokens=1)).finish_reason == "length"
    eos = pipeline.manifest.model.eos_token_ids
    for request in REQUESTS:
        answer = pipeline.generate(*request[:2], GenerateOptions(max_new_tokens=60))
        assert (answer.finish_reason == "eos") == (answer.token_ids[-1] in eos)
        assert not set(answer.token_ids[:-1]) & set(eos)


@both_layouts
def test_prompts_up_to_the_limit(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["plain", layout]
    limit = pipeline.manifest.model.max_positions
    empty = int(pipeline.prepare("").length[0])
    fitting = "x" * (limit - empty - 1)
    answer = pipeline.generate(fitting, (), GenerateOptions(max_new_tokens=50))
    assert (len(answer.token_ids), answer.finish_reason) in ((1, "length"), (1, "eos"))
    with pytest.raises(InputError, match=rf"too long.*{limit} positions.*at most {limit - 1}"):
        pipeline.generate(fitting + "x")
    both = pipeline.generate_batch([fitting, "Hi"], GREEDY)
    assert len(both[0].token_ids) == 1
    assert outcome(both[1]) == outcome(pipeline.generate("Hi", (), GREEDY))


# --- bad input ----------------------------------------------------------------------------------------------


def test_bad_images_and_requests(pipelines: Pipelines, tmp_path: Path) -> None:
    pipeline = pipelines["plain", "fused"]
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="empty"):
        pipeline.generate("Hi", [tmp_path / "empty.png"])
    with pytest.raises(InputError, match="1 image, 2 places"):
        pipeline.generate("<image><image>", IMAGES[:1])
    with pytest.raises(InputError, match="a request is malformed"):
        pipeline.generate_batch([42])  # type: ignore[list-item]
    with pytest.raises(InputError, match="a list of requests"):
        pipeline.generate_batch("Hi")
    part = [{"role": "user", "content": [{"type": "image", "image": None}]}]
    with pytest.raises(InputError, match="unknown kind"):
        pipeline.generate(part)


def test_bad_ways_to_load(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no layout 'molten'.*fused, segmented"):
        load(bundles["plain"], layout="molten")
    with pytest.raises(UsageError, match="threads"):
        load(bundles["plain"], threads=0)
    with pytest.raises(UsageError, match="1 to 4096"):
        load(bundles["plain"], threads=5000)
    with pytest.raises(BundleError, match="no bundle"):
        load(tmp_path / "nothing")
    copy = shutil.copytree(bundles["plain"], tmp_path / "copy")
    graph = copy / "onnx" / "decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"onnx/decoder\.onnx has 1,000 bytes"):
        load(copy)
    with pytest.raises(BackendError, match="stage 'decoder' cannot be loaded"):
        load(copy, check="none")
