"""Images of unequal sizes, videos, several runs, three axes, DeepStack rows, windows: on the numpy model."""

from __future__ import annotations

from typing import Any

import make
import numpy as np
import pytest
import tiny
import toy

from foveate.runtime import Budget, GenerateOptions, Pipeline, Request
from foveate.runtime.errors import InputError, UsageError
from foveate.runtime.generate import Generation
from foveate.runtime.videos import Video

LAYOUTS = ("fused", "segmented")
IMAGES = [tiny.make_image(seed, size) for seed, size in ((0, (30, 20)), (1, (50, 40)), (2, (20, 20)))]
FRAMES = [tiny.make_image(seed, (30, 30)) for seed in range(3, 7)]
SIZES = [6, 20, 4]
OPTIONS = GenerateOptions(max_new_tokens=12)
REQUESTS = [
    Request("What is this?", IMAGES[:1]),
    Request("One <image>, two <image>, three <image>: which?", IMAGES),
    Request("No picture."),
    Request("<video>What happens?", (), [Video(FRAMES, fps=4)]),
    Request("Is <image> in <video>?", IMAGES[1:2], [FRAMES]),
]
Pipelines = dict[str, Pipeline]
both = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("toy")
        yield {layout: toy.make_pipeline(folder, layout, patch) for layout in LAYOUTS}


def ask(pipeline: Pipeline, request: Request, options: GenerateOptions = OPTIONS) -> Generation:
    return pipeline.generate(request.prompt, request.images, options, videos=request.videos)


def outcome(answer: Generation) -> tuple[Any, ...]:
    return answer.text, answer.token_ids, answer.finish_reason, answer.report


def log(pipeline: Pipeline) -> list[tuple[str, dict[str, Any]]]:
    return pipeline.model._backend.log  # type: ignore[attr-defined,no-any-return]


def test_layouts_agree(toys: Pipelines) -> None:
    answers = [[ask(toys[layout], request) for layout in LAYOUTS] for request in REQUESTS]
    for fused, segmented in answers:
        assert outcome(fused) == outcome(segmented)
        assert len(set(fused.token_ids)) > 3
    first, several, none, video, mixed = [fused.report for fused, _ in answers]
    assert (first.images, first.visual_tokens, first.sites[0].kept) == (1, 6, 3)
    assert [len(index) for index in several.sites[0].kept_index] == [3, 10, 2]
    assert [len(boxes) for boxes in several.boxes] == SIZES
    assert several.sites[1].kept < several.sites[1].total
    for before, after in zip(several.sites[0].kept_index, several.sites[1].kept_index, strict=True):
        assert set(after) <= set(before)
    assert (none.images, none.boxes) == (0, ())
    assert set(video.frames[0]) == {0, 1, 2, 3}
    assert (mixed.images, mixed.visual_tokens) == (2, 20 + 36)


@both
def test_batch_equals_singles(toys: Pipelines, layout: str) -> None:
    batch = toys[layout].generate_batch(REQUESTS, OPTIONS)
    assert [outcome(answer) for answer in batch] == [outcome(ask(toys[layout], r)) for r in REQUESTS]


@both
def test_cached_decoding_equals_reading_all_again(toys: Pipelines, layout: str) -> None:
    """Positions of three axes, cached positions and DeepStack rows go on as if all was one chunk."""
    pipeline = toys[layout]
    for request in REQUESTS:
        tokenized = pipeline.tokenize(*request)
        prepared = pipeline.prepare_batch([tokenized], OPTIONS)
        answer = ask(pipeline, request)
        read = pipeline.prefill(make.longer(prepared, answer.token_ids[:-1]), OPTIONS, logits="all")
        logits = read.logits[0, int(prepared.length[0]) - 1 :]
        assert tuple(np.argmax(logits, axis=-1).tolist()) == answer.token_ids


def test_positions_by_hand(toys: Pipelines) -> None:
    pipeline = toys["fused"]
    prepared = pipeline.prepare("a<image>b", IMAGES[:1], GenerateOptions(keep_ratio=1.0))
    start = pipeline.tokenize("a<image>b", IMAGES[:1]).visual.tolist().index(True)
    wanted = [[i] * 3 for i in range(start)]
    wanted += [[start, start + row, start + column] for row in range(2) for column in range(3)]
    behind = prepared.positions[0, start + 6 :].tolist()
    assert prepared.positions[0, : start + 6].tolist() == wanted
    assert behind == [[start + 3 + i] * 3 for i in range(len(behind))]
    assert prepared.next_position.tolist() == [start + 3 + len(behind)]
    assert prepared.block[0, start : start + 6].tolist() == [0] * 6


def test_one_call_for_each_item_with_the_words_of_its_prompt(toys: Pipelines) -> None:
    pipeline = toys["fused"]
    log(pipeline).clear()
    pipeline.prepare_batch([pipeline.tokenize(*REQUESTS[0]), pipeline.tokenize(*REQUESTS[1])])
    calls = [feeds for name, feeds in log(pipeline) if name == "vision"]
    assert [len(feeds["patches"]) for feeds in calls] == [SIZES[0], *SIZES]
    words = [pipeline.processor.decode([i for i in feeds["prompt_ids"][0] if i >= 0]) for feeds in calls]
    assert words[0] == "What is this?"
    assert set(words[1:]) == {"One, two, three: which?"}
    assert (calls[0]["prompt_ids"] == -1).any()  # shorter than the other prompt


@both
def test_graphs_are_fed_what_they_take(toys: Pipelines, layout: str) -> None:
    pipeline = toys[layout]
    log(pipeline).clear()
    answer = ask(pipeline, REQUESTS[1])
    decoders = [(name, feeds) for name, feeds in log(pipeline) if name.startswith("decoder")]
    step = decoders[-1][1]
    assert step["position_ids"].shape == (1, 1, 3)
    assert step["block"].tolist() == [[-1]]
    _, prompt = decoders[0]
    assert set(prompt["block"][0].tolist()) == {-1, 0, 1, 2}
    assert prompt["deepstack"].any()
    # The survivors' positions are what the layers behind the cut find in their cache.
    length, places = step["cache_length_1"][0], step["past_position_1"][0]
    kept = np.array(answer.report.positions)[:, 0]
    text = np.flatnonzero(prompt["block"][0, : prompt["length"][0]] < 0)
    assert set(kept[text]) <= set(places[:length].tolist())
    assert (np.diff(places[:length]) >= 0).all()
    assert len(places) >= length


def test_chat_opens_each_image_once(toys: Pipelines) -> None:
    keep_all = {site: Budget(ratio=1.0) for site in ("encoder", "decoder@1")}
    options = GenerateOptions(max_new_tokens=6, keep=keep_all)
    pipeline = toys["segmented"]
    turns = [("What <image>?", IMAGES[:1], ()), ("And?", (), ()), ("<video>So", (), [FRAMES])]
    chat, images, videos = pipeline.chat(), [], []
    toy.Preprocessor.made = 0
    answers = []
    for text, some, clips in turns:
        answers.append((chat.send(text, some, options, videos=clips), chat.messages))
    assert toy.Preprocessor.made == 2
    assert [answer.report.cache_reused for answer, _ in answers] == [False, True, True]
    # The feeds of earlier turns are gone: they are what takes memory.
    assert all(not visual.item.feeds for visual in chat._conversation.visuals)
    for (_, some, clips), (answer, messages) in zip(turns, answers, strict=True):
        images += some
        videos += clips
        fresh = pipeline.generate(list(messages[:-1]), images, options, videos=videos)
        assert answer.token_ids == fresh.token_ids


def test_a_history_that_is_read_again_makes_its_images_again(toys: Pipelines) -> None:
    pipeline = toys["fused"]
    chat = pipeline.chat()
    chat.send("What <image>?", IMAGES[:1], OPTIONS)
    answer = chat.send("And?", (), OPTIONS, reread=True)
    assert (answer.report.cache_reused, answer.report.images) == (False, 1)


def test_images_know_of_how_many_they_are(toys: Pipelines) -> None:
    pipeline = toys["fused"]
    opened = pipeline.open(IMAGES[0])
    for images, text in (([opened], "1[<image>]"), ([opened, IMAGES[1]], "2[<image>]2[<image>]")):
        assert text in pipeline.tokenize("What?", images, [FRAMES]).text.replace("\n", "")
    chat = pipeline.chat()
    chat.send("What?", IMAGES[:1], OPTIONS)
    answer = chat.send("And?", IMAGES[1:], OPTIONS)
    assert answer.report.cache_reused  # the first image stays one of one, as it was read
    assert [visual.of for visual in chat._conversation.visuals] == [1, 3, 3]


def test_images_that_are_made_otherwise_when_not_alone(
    toys: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the history is read again, and a turn sees what a fresh prompt sees."""
    monkeypatch.setattr(toy.Preprocessor, "counts_images", True, raising=False)
    pipeline = toys["fused"]
    chat = pipeline.chat()
    reused = []
    for text, images in (("What?", IMAGES[:1]), ("And?", ()), ("Now?", IMAGES[1:2]), ("So?", IMAGES[2:])):
        answer = chat.send(text, images, OPTIONS)
        reused.append(answer.report.cache_reused)
    assert reused == [False, True, False, True]
    assert [visual.of for visual in chat._conversation.visuals] == [2, 2, 3]
    history = list(chat.messages[:5])
    prompt = pipeline.tokenize(history, IMAGES[:2])
    assert prompt.text.replace("\n", "").count("2[<image>]") == 2


def test_opened_images_are_taken_as_they_are(toys: Pipelines) -> None:
    pipeline = toys["fused"]
    toy.Preprocessor.made = 0
    image, video = pipeline.open(IMAGES[1]), pipeline.open(Video(FRAMES), "video")
    wanted = ask(pipeline, REQUESTS[4])
    toy.Preprocessor.made = 0
    for images, videos in (((image,), (video,)), (image, video), ([image], [video])):
        assert outcome(pipeline.generate(REQUESTS[4].prompt, images, OPTIONS, videos=videos)) == outcome(
            wanted
        )
    assert toy.Preprocessor.made == 0
    assert image.pictures()[0].size == IMAGES[1].size
    assert len(video.pictures()) == 4


@pytest.mark.parametrize(
    ("prompt", "images", "videos", "message"),
    [
        ("<video>", (), (), "0 videos, 1 place"),
        ("x", (), [FRAMES, FRAMES[:2]], ""),
        ("<image><video>", IMAGES[:2], [FRAMES], "2 images, 1 place"),
        ([{"role": "user", "content": [{"type": "text", "text": "a <video> b"}]}], (), (), "0 videos, 1 pl"),
        ("x", (), FRAMES[:1], "a video is of an unknown kind.*list of their own"),
        ("x", (), 3, "a video is of an unknown kind"),
    ],
)
def test_places_of_videos(toys: Pipelines, prompt: Any, images: Any, videos: Any, message: str) -> None:
    if not message:
        assert len(toys["fused"].tokenize(prompt, images, videos).items) == 2
        return
    with pytest.raises(InputError, match=message):
        toys["fused"].tokenize(prompt, images, videos)


def test_templates_may_write_images_before_videos(toys: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = toys["fused"]
    template = (
        "{% for m in messages %}{% for kind in ('image', 'video', 'text') %}"
        "{% for p in m['content'] if p['type'] == kind %}"
        "{{ p['text'] if kind == 'text' else '<' + kind + '>' }}{% endfor %}{% endfor %}{% endfor %}"
    )
    monkeypatch.setitem(pipeline.processor.__dict__, "_template", template)
    prompt = pipeline.tokenize("<video>a<image>b<image>c", IMAGES[:2], [FRAMES])
    assert [visual.kind for visual in prompt.visuals] == ["image", "image", "video"]
    assert [item.visual_tokens for item in prompt.items] == [6, 20, 36]
    assert [visual.source for visual in prompt.visuals[:2]] == IMAGES[:2]


# --- one budget for the whole prompt ------------------------------------------------------------------------


@both
@pytest.mark.parametrize("total", [1, 3, 4, 11, 29, 30, 99])
def test_saliency_keeps_the_best_of_all(toys: Pipelines, layout: str, total: int) -> None:
    """Against a sort of all (image, token) pairs."""
    pipeline = toys[layout]
    options = GenerateOptions(
        max_new_tokens=3, keep_tokens=total, share="saliency", keep={"decoder@1": Budget(ratio=1.0)}
    )
    answer = pipeline.generate(REQUESTS[1].prompt, IMAGES, options)
    scores = [pipeline.open(image).item.feeds["patches"][:, 0].tolist() for image in IMAGES]  # type: ignore[union-attr]
    every = sorted((-s, i, j) for i, score in enumerate(scores) for j, s in enumerate(score))
    chosen = [next((i, j) for _, i, j in every if i == image) for image in range(3)]
    for _, i, j in every:
        if len(chosen) < total and (i, j) not in chosen:
            chosen.append((i, j))
    wanted = tuple(tuple(sorted(j for i, j in chosen if i == image)) for image in range(3))
    assert answer.report.sites[0].kept_index == wanted
    assert answer.report.sites[0].kept == min(30, max(3, total))
    prepared = pipeline.prepare(REQUESTS[1].prompt, IMAGES, options)
    rows = prepared.visual.features[prepared.visual.kept_index]
    features = [pipeline.open(image).item.feeds["patches"] for image in IMAGES]  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        rows, np.concatenate([f[list(k)] for f, k in zip(features, wanted, strict=True)])
    )


@both
def test_shares_are_of_each_prompt(toys: Pipelines, layout: str) -> None:
    def kept(share: str) -> list[list[int]]:
        options = GenerateOptions(max_new_tokens=2, keep_tokens=9, share=share, allow_unpruned=True)
        answers = toys[layout].generate_batch(REQUESTS[:3], options)
        return [[len(index) for index in answer.report.sites[0].kept_index] for answer in answers]

    assert kept("each") == [[6], [6, 9, 4], []]
    assert kept("proportional") == [[6], [2, 6, 1], []]
    found = kept("saliency")
    assert [sum(each) for each in found] == [6, 9, 0]


def test_keeping_all_by_a_shared_budget_is_asked_for(toys: Pipelines) -> None:
    keep = {"decoder@1": Budget(ratio=1.0)}
    for total, share, good in ((30, "proportional", True), (30, "saliency", True), (20, "each", True)):
        options = GenerateOptions(max_new_tokens=2, keep_tokens=total, share=share, keep=keep)
        answer = toys["fused"].generate(REQUESTS[1].prompt, IMAGES, options)
        assert (answer.report.kept == 30) == good


def test_saliency_needs_scores(toys: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = toys["fused"]
    monkeypatch.setattr(type(pipeline.model), "gives_scores", False)
    with pytest.raises(UsageError, match=r"gives no scores.*proportional"):
        ask(pipeline, REQUESTS[1], GenerateOptions(keep_tokens=5, share="saliency"))
