"""A conversation with kept caches gives what a fresh prompt of the whole conversation gives."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from foveate.runtime import Budget, GenerateOptions, Pipeline
from foveate.runtime.errors import InputError, NothingPrunedError
from foveate.runtime.vision_cache import VisionCache

IMAGES = [tiny.make_image(seed) for seed in range(3)]
OPTIONS = GenerateOptions(max_new_tokens=8)
Pipelines = dict[tuple[str, str], Pipeline]
both_layouts = pytest.mark.parametrize("layout", ["fused", "segmented"])
TURNS = (
    ("What is this?", IMAGES[:1]),
    ("And?", []),
    ("Now this <image> and that<image>", IMAGES[1:]),
    ("So?", []),
)


def fresh(
    pipeline: Pipeline, messages: Any, images: Any, options: GenerateOptions = OPTIONS
) -> tuple[int, ...]:
    return pipeline.generate(list(messages), images, options).token_ids


@both_layouts
def test_turns_equal_fresh_prompts(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["plain", layout]
    chat = pipeline.chat(system="Be brief.")
    shown: list[Any] = []
    for number, (text, images) in enumerate(TURNS):
        history = chat.messages
        answer = chat.send(text, images, OPTIONS)
        shown += images
        asked = chat.messages[len(history)]
        assert answer.token_ids == fresh(pipeline, [*history, asked], shown)
        assert answer.report.cache_reused == (number > 0)
        assert answer.report.images == len(images)
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 4]


@both_layouts
def test_reused_turns_read_only_what_is_new(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]
    chat = pipeline.chat()
    first = chat.send(*TURNS[0], OPTIONS)
    second = chat.send(*TURNS[1], OPTIONS)
    assert first.report.sites[0].kept < first.report.visual_tokens
    assert second.report.cache_reused
    assert second.report.images == 0
    assert len(second.report.positions) < len(first.report.positions) + 8 * 3
    # Positions go on where the first turn's prompt, counted as before any pruning, ended or later.
    assert min(second.report.positions) >= pipeline.prepare(*TURNS[0]).next_position[0]
    third = chat.send(*TURNS[2], OPTIONS)
    assert third.report.visual_tokens == 50
    assert third.report.kept < 50


def test_pruned_layouts_agree(pipelines: Pipelines) -> None:
    chats = [pipelines["pruned", layout].chat() for layout in ("fused", "segmented")]
    for turn in TURNS:
        answers = [chat.send(*turn, OPTIONS) for chat in chats]
        assert answers[0].token_ids == answers[1].token_ids
        assert answers[0].report == answers[1].report


def test_stop_strings_are_taken_back_from_the_cache(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    text = pipeline.generate("What is this?", IMAGES[:1], OPTIONS).text
    chat = pipeline.chat()
    answer = chat.send("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=8, stop=(text[1],)))
    assert answer.finish_reason == "stop"
    history = chat.messages
    second = chat.send("And?", [], OPTIONS)
    assert second.report.cache_reused
    assert second.token_ids == fresh(pipeline, [*history, chat.messages[2]], IMAGES[:1])


def test_rewritten_history_is_read_again(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that writes earlier turns otherwise cannot continue the cache; the report says so."""
    pipeline = pipelines["plain", "fused"]
    chat = pipeline.chat()
    chat.send("What is this?", IMAGES[:1], OPTIONS)
    template = "{% for m in messages %}{{ m['role'] }}{{ messages | length }}" + tiny.CHAT_TEMPLATE.partition(
        "{% for message in messages %}"
    )[2].replace("message[", "m[")
    monkeypatch.setitem(pipeline.processor.__dict__, "_template", template)
    history = chat.messages
    answer = chat.send("And?", [], OPTIONS)
    assert not answer.report.cache_reused
    assert "template" in answer.report.cache_note
    assert answer.report.images == 1
    assert answer.token_ids == fresh(pipeline, [*history, chat.messages[2]], IMAGES[:1])


def test_a_failed_or_abandoned_turn_leaves_the_history(pipelines: Pipelines) -> None:
    pipeline = pipelines["plain", "fused"]
    chat = pipeline.chat()
    chat.send("What is this?", IMAGES[:1], OPTIONS)
    history = chat.messages
    with pytest.raises(InputError):
        chat.send("<image>", [], OPTIONS)
    with pytest.raises(InputError, match="too long"):
        chat.send("x" * 600, [], OPTIONS)
    next(chat.stream("Never mind", [], OPTIONS))
    assert chat.messages == history
    answer = chat.send("And?", [], OPTIONS)
    assert answer.token_ids == fresh(pipeline, [*history, chat.messages[2]], IMAGES[:1])


def test_a_failed_turn_leaves_the_cache(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]
    chats = [pipeline.chat() for _ in range(2)]
    for chat in chats:
        chat.send("What is this?", IMAGES[0], OPTIONS)
    chat = chats[0]
    with pytest.raises(InputError, match="there is no image"):
        chat.send("And?", ["gone.png"], OPTIONS)
    with pytest.raises(InputError, match="too long"):
        chat.send("x" * 600, [], OPTIONS)
    keep = {site: Budget(ratio=0.999) for site in ("encoder", "decoder@1", "decoder@3")}
    with pytest.raises(NothingPrunedError):
        chat.send("And?", IMAGES[1:2], GenerateOptions(keep=keep))
    answers = [chat.send("And?", [], OPTIONS) for chat in chats]
    assert answers[0].report.cache_reused
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].report == answers[1].report


FULL = {"decoder@1": Budget(ratio=1.0), "decoder@3": Budget(ratio=1.0)}
FEW = GenerateOptions(max_new_tokens=8, keep_ratio=0.4)


@both_layouts
def test_pruned_by_looks_alone_equals_fresh_prompts(pipelines: Pipelines, layout: str) -> None:
    """A cut after the encoder that reads no words keeps the same in any turn: reuse changes nothing."""
    pipeline, chat = pipelines["pruned", layout], pipelines["pruned", layout].chat()
    options = GenerateOptions(max_new_tokens=8, keep_ratio=0.4, keep=FULL)
    shown: list[Any] = []
    for number, (text, images) in enumerate(TURNS):
        history = chat.messages
        answer = chat.send(text, images, options)
        shown += images
        assert answer.report.cache_reused == (number > 0)
        assert answer.token_ids == fresh(pipeline, [*history, chat.messages[len(history)]], shown, options)


@both_layouts
def test_another_budget_for_earlier_images_reads_them_again(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]
    chat = pipeline.chat("Be brief.")
    notes = []
    for text, images, ratio in (
        ("What is this?", IMAGES[:1], None),
        ("And?", [], None),  # nothing asked for: earlier turns stay
        ("So?", [], 0.4),  # can only be meant for the earlier image
        ("So?", [], 0.4),
        ("Now this", IMAGES[1:2], 0.2),  # for its own image
        ("Well?", [], 0.2),
    ):
        history = chat.messages
        options = GenerateOptions(max_new_tokens=8, keep_ratio=ratio)
        answer = chat.send(text, images, options)
        notes.append((answer.report.cache_reused, answer.report.cache_note.partition(":")[0]))
        if text == "So?" and not answer.report.cache_reused:
            whole = [*history, chat.messages[len(history)]]
            assert answer.token_ids == fresh(pipeline, whole, IMAGES[:1], options)
            assert answer.report.sites[0].kept == 10
            assert "budget" in answer.report.cache_note
    kept = (True, "earlier turns keep what was kept when they were read")
    assert notes == [(False, ""), kept, (False, "read again"), kept, kept, kept]


def test_reading_again_on_demand(pipelines: Pipelines) -> None:
    plain = pipelines["pruned", "fused"]
    pipeline = Pipeline(plain.bundle, plain.model, plain.processor, vision_cache=VisionCache(1 << 20))
    chat = pipeline.chat()
    chat.send("What is this?", IMAGES[:1], FEW)
    history = chat.messages
    answer = chat.send("Where is it?", [], FEW, reread=True)
    whole = plain.generate([*history, chat.messages[2]], IMAGES[:1], FEW)
    assert (answer.token_ids, answer.report.sites) == (whole.token_ids, whole.report.sites)
    assert (answer.report.cache_reused, answer.report.cache_note) == (False, "read again: as asked")
    assert answer.report.vision_reused == 1


def test_a_failed_second_reading_leaves_the_cache(pipelines: Pipelines) -> None:
    pipeline = pipelines["pruned", "fused"]
    chats = [pipeline.chat() for _ in range(2)]
    for chat in chats:
        chat.send("What is this?", IMAGES[0], FEW)
    keep = {site: Budget(ratio=0.999) for site in ("encoder", "decoder@1", "decoder@3")}
    with pytest.raises(NothingPrunedError):
        chats[0].send("And?", [], GenerateOptions(keep=keep))
    answers = [chat.send("And?", [], FEW) for chat in chats]
    assert answers[0].report.cache_reused
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].report == answers[1].report


def test_notes_say_why(pipelines: Pipelines) -> None:
    chat = pipelines["plain", "fused"].chat("Be brief.")
    assert chat.send("What is this?", IMAGES[:1], OPTIONS).report.cache_note == ""
    assert chat.send("And?", [], OPTIONS).report.cache_note == ""
    next(chat.stream("Never mind", [], OPTIONS))
    report = chat.send("And?", [], OPTIONS).report
    assert (report.cache_reused, report.cache_note.partition(":")[0]) == (False, "read again")


@both_layouts
def test_cache_bytes_are_those_of_the_tokens(pipelines: Pipelines, layout: str) -> None:
    pipeline = pipelines["pruned", layout]
    record = pipeline.manifest.cache
    chat = pipeline.chat()
    first = chat.send("What is this?", IMAGES[:1], FEW).report
    text = len(first.positions) - first.sites[0].kept
    kept = [site.kept for site in first.sites]  # behind the encoder's cut, and behind each of the decoder's
    assert [segment.tokens for segment in first.segments] == [text + count for count in kept]
    assert [segment.layers for segment in first.segments] == [(0, 0), (1, 2), (3, 3)]
    per_token = 2 * record.num_kv_heads * record.head_dim * 4  # key and value, float32
    layers = [1, 2, 1]
    sizes = [per_token * n * s.tokens for n, s in zip(layers, first.segments, strict=True)]
    assert [segment.cache_bytes for segment in first.segments] == sizes
    assert first.cache_bytes == sum(sizes)
    second = chat.send("And?", [], FEW).report
    grown = [b.tokens - a.tokens for a, b in zip(first.segments, second.segments, strict=True)]
    assert len(set(grown)) == 1  # nothing but text came
    assert len(second.positions) <= grown[0] < len(second.positions) + 8  # and what stayed of the answer
