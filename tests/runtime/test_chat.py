"""A conversation with kept caches gives what a fresh prompt of the whole conversation gives."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from foveate.runtime import Budget, GenerateOptions, Pipeline
from foveate.runtime.errors import InputError, NothingPrunedError

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
